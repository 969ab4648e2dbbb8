"""Which room may import which, read from the syntax tree of every file."""

import ast
import pathlib

import pytest

import jaxpoison

ROOT = pathlib.Path(jaxpoison.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LEVEL = {
    "types": 0,
    "check": 1,
    **dict.fromkeys(("tree", "lock", "hosts", "signals", "checkpoint", "book", "loops"), 2),
    **dict.fromkeys(("over", "ensemble", "sweep"), 2),
    **dict.fromkeys(("perturb", "data", "models"), 3),
    "victims": 4,
    "hypergrad": 5,
    **dict.fromkeys(("attacks", "defenses"), 6),
    "report": 7,
}
SIBLINGS = [{"perturb", "data", "models"}, {"attacks", "defenses"}]
ONLY_IN = {
    "flax": "models",
    "tensorflow_datasets": "data",
    "sklearn.datasets": "data",
    "matplotlib": "report",
}
OUTSIDE = {"experiments", "tests", "benchmarks"}
NOT_USED = {"pickle", "cloudpickle", "dill", "shelve", "joblib", "marshal"}
SHARED_ASSEMBLY = {
    "autoregression",
    "autoregression_table",
    "bilevel",
    "crafting",
    "parameter_corruption",
    "selection",
    "update_rules",
}  # of attacks/, for all attacks
SHARED_SCREENING = {
    "combined",
    "disentangling",
    "fits",
    "known",
    "per_sample_gradients",
    "purified",
    "removal",
    "screened",
}  # of defenses/: what filters are given, how a score becomes a mask; how purifiers are fitted, the
# loss and passes of D-VAE; how training-time defenses are chained


def modules(node: ast.AST, package: str) -> list[str]:
    """Every module a statement may import; of `from a import b` both a and a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parent = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join(parent + ([base] if base else []))
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        ("import_module", "__import__", "LazyModule")
    ):
        return [a.value for a in node.args if isinstance(a, ast.Constant)]
    return []


def violations(path: str, source: str) -> list[str]:
    """The rules that `source`, at `path` inside jaxpoison, breaks; "line: what"."""
    parts = pathlib.PurePosixPath(path).with_suffix("").parts
    room, is_init = parts[0], parts[-1] == "__init__"
    package = ".".join(("jaxpoison", *parts[:-1]))
    found = []
    for node in ast.walk(ast.parse(source)):
        allow = isinstance(node, ast.keyword) and node.arg == "allow_pickle"
        if allow and ast.unparse(node.value) != "False":
            found.append(f"{node.value.lineno}: allow_pickle")
        for name in modules(node, package):
            words = str(name).split(".")
            why = _outside(words, room) or _inside(words, room, parts, is_init)
            if why:
                found.append(f"{node.lineno}: {why}")
    return found


def _outside(words, room):
    if words[0] in OUTSIDE:
        return f"imports {words[0]}"
    if words[0] in NOT_USED:
        return f"imports {words[0]}"
    for name, home in ONLY_IN.items():
        if words[: name.count(".") + 1] == name.split(".") and room != home:
            return f"imports {name} outside {home}"
    return None


def _inside(words, room, parts, is_init):
    if words[0] != "jaxpoison" or len(words) == 1 or room in ("__init__", "__main__"):
        return None
    other = words[1]
    if other not in LEVEL:
        return None if other.startswith("__") else f"imports {other}, which is no room"
    if LEVEL[other] > LEVEL[room]:
        return f"{room} imports {other}"
    if other != room and any({room, other} <= group for group in SIBLINGS):
        return f"{room} imports its sibling {other}"
    same_family = room == other and room in ("attacks", "defenses") and not is_init
    shared = SHARED_SCREENING if room == "defenses" else SHARED_ASSEMBLY
    if same_family and tuple(words[1:]) != parts and not shared & set(words[2:3]):
        if room == "defenses" or len(words) > 2 or SHARED_ASSEMBLY & set(parts[1:2]):
            return f"{'/'.join(parts)} imports {'.'.join(words[1:])}"
    return None


def test_there_are_files_to_read():
    assert len(FILES) > 40
    rooms = {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in FILES}
    assert rooms <= set(LEVEL) | {"__init__", "__main__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_import_is_allowed(path):
    assert violations(path.relative_to(ROOT).as_posix(), path.read_text()) == []


BAD = [
    ("tree.py", "from jaxpoison import perturb"),
    ("loops.py", "import jaxpoison.attacks.bilevel"),
    ("models/linear.py", "from jaxpoison.victims.learner import learner"),
    ("models/linear.py", "from jaxpoison.data import synthetic"),
    ("data/folder.py", "from ..perturb import projections"),
    ("victims/train.py", "def f():\n    from jaxpoison import hypergrad"),
    ("hypergrad/unrolled.py", "from jaxpoison.attacks import bilevel"),
    ("attacks/unlearnable/lsp.py", "from jaxpoison.attacks.unlearnable import one_pixel"),
    ("attacks/unlearnable/lsp.py", "from jaxpoison.attacks import one_pixel"),
    ("attacks/unlearnable/lsp.py", "from .one_pixel import one_pixel"),
    ("attacks/unlearnable/lsp.py", "from jaxpoison.defenses import purify"),
    ("defenses/purify/jpeg.py", "from jaxpoison.attacks import bilevel"),
    ("defenses/filter/sever.py", "from jaxpoison.defenses.filter.largest_loss import largest_loss"),
    ("attacks/bilevel.py", "from jaxpoison import report"),
    ("report/tables.py", "import experiments.quickstart"),
    ("data/folder.py", "from tests import oracles"),
    ("report/tables.py", "import benchmarks"),
    ("victims/learner.py", "import flax.linen as nn"),
    ("victims/learner.py", "from flax import linen"),
    ("report/tables.py", "import tensorflow_datasets as tfds"),
    ("report/tables.py", "from sklearn import datasets"),
    ("victims/evaluate.py", "import matplotlib.pyplot as plt"),
    ("data/folder.py", "import pickle"),
    ("data/folder.py", "import numpy as np\nnp.load(f, allow_pickle=True)"),
    ("data/folder.py", "import importlib\nimportlib.import_module('jaxpoison.attacks')"),
    ("tree.py", "import jaxpoison.utils"),
    ("check.py", "from jaxpoison import tree"),
    ("types.py", "from jaxpoison import check"),
]
GOOD = [
    ("attacks/unlearnable/lsp.py", "from jaxpoison.attacks.bilevel import bilevel, closed_form"),
    ("attacks/__init__.py", "from jaxpoison.attacks.unlearnable.lsp import lsp"),
    ("defenses/filter/sever.py", "from jaxpoison.defenses.removal import keep_below"),
    ("__main__.py", "from jaxpoison.report import tables"),
    ("check.py", "from jaxpoison.types import InputError"),
    ("tree.py", "from jaxpoison import check"),
    ("hypergrad/matching.py", "from jaxpoison import tree, victims"),
    ("report/figures.py", "import matplotlib"),
    ("victims/evaluate.py", "from sklearn import metrics"),
    ("data/folder.py", "import numpy as np\nnp.load(f, allow_pickle=False)"),
]


@pytest.mark.parametrize(("path", "source"), BAD)
def test_the_checker_can_fail(path, source):
    assert violations(path, source)


@pytest.mark.parametrize(("path", "source"), GOOD)
def test_the_checker_passes_what_is_allowed(path, source):
    assert violations(path, source) == []
