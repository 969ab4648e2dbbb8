"""README's examples run, its commands are the ones CI runs, and its map names every method."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_every_python_block_runs_in_order():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 4
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["stored"].image.dtype == "uint8"


def test_ci_runs_the_test_command_word_for_word():
    (command,) = re.findall(r"`(python3 -m venv .*pytest)`", README)
    assert command in (ROOT / ".ci" / "run").read_text()


def test_the_map_names_every_attack():
    for room in ("attacks", "defenses"):
        for path in (ROOT / "jaxpoison" / room).glob("*/*.py"):
            if path.name != "__init__.py":
                assert str(path.relative_to(ROOT)) in README, path
