"""From a frozen dataclass to a command: `--help` for every field, one line for every mistake."""

import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import tyro

from jaxpoison.loops import NonFiniteError
from jaxpoison.types import InputError

__all__ = ["command_line"]


def command_line(main: Callable[[Any], Any], config_type: type, doc: str | None) -> None:
    """Parse `config_type` from the command line and call `main` with it.

    Exit code 0; 1 if a run became non-finite; 2 for bad input or an unwritable file, with one line
    on standard error. The compilation cache is kept in JAX_COMPILATION_CACHE_DIR, by default
    ~/.cache/jaxpoison.
    """
    code = 2
    try:
        if not jax.config.jax_compilation_cache_dir:
            cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
            jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(cache, "jaxpoison")))
        main(tyro.cli(config_type, description=doc))
        return
    except NonFiniteError as error:
        message, code = str(error), 1
    except InputError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.strerror}: {error.filename}" if error.filename else str(error)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
