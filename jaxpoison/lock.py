"""One run at a time in a folder: a lock file that the kernel frees when its holder ends.

The file `.lock` is removed when the lock is released. One that a killed process left behind locks
nothing, and the next run takes it over.
"""

import contextlib
import fcntl
import os
import pathlib
import socket
import warnings
import weakref

from jaxpoison.types import InputError

__all__ = ["Lock"]

NAME = ".lock"


class Lock:
    """Holds `folder` for one run, from its making until `release`, or the end of its process.

    The lock is advisory (flock): it keeps runs of this library apart, in one process too. Where the
    file system has no locks, a warning says so and nothing is held.

    Args:
      folder: an existing folder.
      hint: ends the line of the refusal, such as which setting names the folder.

    Raises:
      InputError: another run holds it.
      OSError: the lock file cannot be made.
    """

    def __init__(self, folder: pathlib.Path, hint: str = ""):
        path = folder / NAME
        number = _open(path, folder, hint)
        with contextlib.suppress(OSError):  # for the reader of a message; a full disk may refuse it
            os.ftruncate(number, 0)
            os.write(number, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self.release = weakref.finalize(self, _free, number, path)
        """Frees the folder and removes the file; does nothing the second time."""

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _open(path: pathlib.Path, folder: pathlib.Path, hint: str) -> int:
    """A locked descriptor of the file that stands at `path`."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _stands(number, path):
                return number
        except BlockingIOError as error:
            holder = os.pread(number, 200, 0).decode(errors="replace") or "another process"
            os.close(number)
            raise InputError(
                f"{folder} is in use by {' '.join(holder.split())}; wait for it to end, or choose "
                f"another folder{hint}"
            ) from error
        except OSError as error:
            warnings.warn(
                f"{path} cannot be locked ({error.strerror}); see that no other run uses {folder}",
                stacklevel=3,
            )
            return number
        os.close(number)  # the holder before removed it between the two calls


def _stands(number: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False


def _free(number: int, path: pathlib.Path) -> None:
    if _stands(number, path):
        with contextlib.suppress(OSError):
            path.unlink()
    os.close(number)
