import dataclasses
import subprocess
import sys

import jax
import pytest

from jaxpoison.loops import NonFiniteError
from jaxpoison.perturb import Budget
from jaxpoison.report import Study, StudyConfig, command_line
from jaxpoison.types import InputError


@dataclasses.dataclass(frozen=True)
class Config(StudyConfig):
    """Settings of a test."""

    eps: float = 0.3
    """L-infinity radius, pixels in [0, 1]."""
    epochs: int = 20
    """Of every victim."""

    def __post_init__(self):
        super().__post_init__()
        if self.epochs < 1:
            raise InputError(f"epochs = {self.epochs}; it must be at least 1")


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command: (exit code, what it wrote on each stream)."""

    def run(main, *words):
        monkeypatch.setattr(sys, "argv", ["small", *map(str, words)])
        code = 0
        try:
            command_line(main, Config, "A small experiment.\n\nIts second paragraph.")
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def one_line(outcome, message, code=2):
    assert outcome == (code, "", f"error: {message}\n")


def test_help_lists_every_setting_with_unit_and_default(command):
    code, out, err = command(pytest.fail, "--help")
    assert code == 0 and err == ""
    words = " ".join(out.replace("│", " ").split())
    for text in (
        "A small experiment. Its second paragraph.",
        "--name STR Run folder: RUNS/<experiment>/NAME. (default: default)",
        "--runs PATH Where run folders are. (default: runs)",
        "--overwrite, --no-overwrite Remove an earlier run of this name and compute it again.",
        "--seed INT Of everything random",
        "--deterministic, --no-deterministic Same bits from every run on a GPU too",
        "--distributed {None}|STR One run on several hosts, the same command on each",
        "--victims INT Fresh victims per training set (seeds of the interval). (default: 5)",
        "--eps FLOAT L-infinity radius, pixels in [0, 1]. (default: 0.3)",
        "--epochs INT Of every victim. (default: 20)",
    ):
        assert text in words


def test_values_arrive_in_the_config_and_the_code_is_0(command):
    seen = []
    assert command(seen.append, "--eps", 0.1, "--name", "other", "--victims", 2)[0] == 0
    assert seen == [Config(name="other", eps=0.1, victims=2)]
    assert type(seen[0]) is Config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--victims", 0), "victims = 0; it must be at least 1"),
        (("--epochs", 0), "epochs = 0; it must be at least 1"),
        (("--name", "a/b"), "name = 'a/b'; a plain folder name is needed"),
        (("--name", ".."), "name = '..'; a plain folder name is needed"),
        (("--eps", 8), "eps = 8 looks like grey levels; write 8/255"),
        (("--eps", -0.1), "eps = -0.1; it must be a finite number at least 0"),
    ],
)
def test_a_wrong_value_is_one_line_and_writes_nothing(command, tmp_path, words, message):
    def main(config):
        Budget("linf", config.eps)
        Study("small", config)

    one_line(command(main, "--runs", tmp_path, *words), message)
    assert list(tmp_path.iterdir()) == []


def test_words_that_do_not_parse_are_code_2(command):
    for words in (("--epochs", "many"), ("--nothing", "1")):
        code, out, err = command(pytest.fail, *words)
        assert code == 2 and out == "" and words[0] in err


def test_an_unwritable_run_folder_is_one_line(command, tmp_path):
    (tmp_path / "file").write_text("")
    runs = tmp_path / "file" / "runs"
    outcome = command(lambda config: Study("small", config), "--runs", runs)
    one_line(outcome, f"cannot write run folder {runs / 'small' / 'default'}: Not a directory")


def test_a_folder_of_other_settings_is_one_line(command, tmp_path):
    def main(config):
        Study("small", config)

    assert command(main, "--runs", tmp_path) == (0, "", "")
    code, out, err = command(main, "--runs", tmp_path, "--eps", 0.2)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "was made with eps = 0.3, now it is 0.2; choose another --name, or --overwrite" in err
    assert command(main, "--runs", tmp_path, "--eps", 0.2, "--overwrite") == (0, "", "")


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (NonFiniteError("step 3 is not finite"), "step 3 is not finite", 1),
        (OSError("no name and no reason"), "no name and no reason", 2),
        (OSError(28, "No space left on device", "a.json"), "No space left on device: a.json", 2),
        (OSError(5, "Input/output error"), "[Errno 5] Input/output error", 2),
        (InputError("two\nlines"), "two lines", 2),
    ],
)
def test_failures_are_one_line(command, error, message, code):
    def main(config):
        del config
        raise error

    one_line(command(main), message, code)


def test_other_errors_are_not_swallowed(command):
    def main(config):
        del config
        raise KeyError("a defect")

    with pytest.raises(KeyError, match="a defect"):
        command(main)


def test_the_keyboard_ends_it_with_one_line(command):
    def main(config):
        del config
        raise KeyboardInterrupt

    line = "stopped by SIGINT; run the same command to go on\n"
    assert command(main) == (130, "", line)


BUSY = """
import ctypes, dataclasses, os, signal, threading
from jaxpoison.report import StudyConfig, command_line

def main(config):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    for _ in range(3):
        ctypes.CDLL(None).usleep(900_000)  # no Python runs in the main thread, as in a compilation
    ctypes.CDLL(None).pause()

command_line(main, StudyConfig, None)
"""


def test_sigterm_ends_it_with_one_line_though_python_does_not_run():
    done = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 143
    assert done.stderr == "stopped by SIGTERM; run the same command to go on\n"


def test_the_compilation_cache_has_a_home(command, monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen = []

    def main(config):
        del config
        seen.append(jax.config.jax_compilation_cache_dir)

    try:
        command(main)
        jax.config.update("jax_compilation_cache_dir", None)
        command(main)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert seen == [before, str(tmp_path / "jaxpoison")]
