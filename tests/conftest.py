"""Four fake devices, a compilation cache on disk, and the strict flags of the suite."""

import gc
import os
import pathlib
import tempfile

_flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _flags:
    os.environ["XLA_FLAGS"] = f"{_flags} --xla_force_host_platform_device_count=4".strip()
os.environ.setdefault("MPLBACKEND", "Agg")

import jax  # noqa: E402
import pytest  # noqa: E402
from jax._src import compiler  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

CACHE = pathlib.Path(
    os.environ.get("JAXPOISON_TEST_CACHE", pathlib.Path(tempfile.gettempdir()) / "jaxpoison-cache"),
    os.environ.get("PYTEST_XDIST_WORKER", ""),  # jax does not write its entries in one step
)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")

import tests.typecheck  # noqa: E402, F401

with install_import_hook("jaxpoison", "tests.typecheck.checked"):
    import jaxpoison  # noqa: F401

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_finish():
    """What is imported stays: no later collection of garbage, one a module, has to read it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def release_programs():
    """Drop a module's compiled programs: each holds memory maps, of which a process has 65,530."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def strict_dtypes():
    """No silent promotion; for perturb, hypergrad, tree and float32 models."""
    with jax.numpy_dtype_promotion("strict"):
        yield


def _quickly():
    """Compilation without optimization: for tests of wiring, not of speed or of the last bits."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


quick_compile = pytest.fixture(_quickly, name="quick_compile")
quick_module = pytest.fixture(_quickly, name="quick_module", scope="module")
"""The same for a module, fixtures of its scope included."""


def _quickest():
    """`quick_compile` by the older emitters of XLA's CPU compiler, which cost less still.

    They round otherwise: for records, pictures and learning, not where two programs are compared
    to their last bits.
    jax takes options of the compiler for one jit alone, hence the patch; without effect where the
    compiler has these emitters no more.
    """
    older = {"xla_cpu_use_fusion_emitters": False}
    with pytest.MonkeyPatch.context() as patch:
        try:
            jax.jit(lambda: 0, compiler_options=older)()
        except jax.errors.JaxRuntimeError:
            yield
            return
        usual = compiler.get_compile_options

        def get_compile_options(*args, env_options_overrides=None, **options):
            asked = older | (env_options_overrides or {})
            return usual(*args, env_options_overrides=asked, **options)

        patch.setattr(compiler, "get_compile_options", get_compile_options)
        yield


@pytest.fixture
def quickest_compile(quick_compile):
    yield from _quickest()


@pytest.fixture(scope="module")
def quickest_module(quick_module):
    yield from _quickest()


@pytest.fixture
def x64():
    """float64, for finite differences."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data sets beside the project; tests that want it skip where it is not."""
    folder = SHARED / "data"
    if not (folder / "prepare.py").exists():
        pytest.skip("no ../shared/data beside the project")
    return folder
