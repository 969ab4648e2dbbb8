"""From a frozen dataclass to a command: `--help` for every field, one line for every mistake."""

import argparse
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn, get_type_hints

import jax

from jaxpoison import hosts, signals
from jaxpoison.loops import NonFiniteError
from jaxpoison.report.study_config import StudyConfig
from jaxpoison.types import InputError

__all__ = ["command_line"]


def command_line(main: Callable[[Any], Any], config_type: type, doc: str | None) -> None:
    """Parse `config_type` from the command line and call `main` with it.

    Exit code 0; 1 if a run became non-finite; 2 for bad input or an unwritable file; 130 if stopped
    from the keyboard, 143 by SIGTERM. Each but 0 is one line on standard error, save a word that
    does not parse, which tyro shows in a box. `distributed` and `deterministic` of a `StudyConfig`
    take effect before `main` begins. The compilation cache is kept in JAX_COMPILATION_CACHE_DIR, by
    default ~/.cache/jaxpoison.

    Args:
      main: the experiment.
      config_type: a frozen dataclass; `__post_init__` raises InputError for values it refuses. If
        it has `presets()`, configurations by name, `--scale NAME` takes its defaults from one;
        fields named in its `HIDDEN` are left out of `--help`.
      doc: what `--help` says first, such as the script's docstring.
    """
    try:
        if not jax.config.jax_compilation_cache_dir:  # pyrefly: ignore[missing-attribute]
            cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
            jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(cache, "jaxpoison")))
        config = _parse(config_type, doc)
        if isinstance(config, StudyConfig):
            hosts.start(distributed=config.distributed, deterministic=config.deterministic)
        with signals.announced():  # after jax, whose start on several hosts has its own handler
            main(config)
    except NonFiniteError as error:
        _stop(str(error), 1)
    except InputError as error:
        _stop(str(error), 2)
    except OSError as error:
        _stop(f"{error.strerror}: {error.filename}" if error.filename else str(error), 2)
    except KeyboardInterrupt:
        print(f"stopped by SIGINT; {signals.AGAIN}", file=sys.stderr)
        sys.exit(130)


def _parse(config_type: type, doc: str | None) -> Any:
    """The configuration; its own checks run outside tyro, which would draw a box around them."""
    import tyro  # here: what calls an experiment from Python does not need it

    hidden = getattr(config_type, "HIDDEN", ())  # what this kind of run refuses
    hints: dict[str, Any] = get_type_hints(config_type, include_extras=True)
    types = {name: tyro.conf.Suppress[hints[name]] for name in hidden}
    body = {"__post_init__": lambda self: None, "__annotations__": types}
    unchecked = type(config_type.__name__, (config_type,), body)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    prog = None if spec is None else f"python -m {spec.name}"
    fields = dataclasses.fields(config_type)
    start = _preset(config_type)
    default = None
    if start is not None:
        default = unchecked(**{field.name: getattr(start, field.name) for field in fields})
    values = tyro.cli(unchecked, prog=prog, description=doc, default=default)
    return config_type(**{field.name: getattr(values, field.name) for field in fields})


def _preset(config_type: type) -> Any:
    """The configuration that `--scale NAME` starts from, of a type that has such presets."""
    presets = getattr(config_type, "presets", dict)()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--scale", nargs="?")
    return presets.get(parser.parse_known_args()[0].scale)


def _stop(message: str, code: int) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
