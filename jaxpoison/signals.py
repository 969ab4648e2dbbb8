"""What SIGTERM and SIGINT do: collected while steps are taken, else one line and the end.

Whatever is written is written in one step, so a process may end at any moment and the same command
goes on. `loops` collects signals to save first; `announced` is for all other moments.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from jaxpoison import hosts

__all__ = ["AGAIN", "announced", "collect", "die"]

AGAIN = "run the same command to go on"


@contextmanager
def collect() -> Iterator[list[signal.Signals]]:
    """Collect SIGTERM and SIGINT instead of dying; the handlers before come back at the end."""
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number, frame):
        del frame
        received.append(signal.Signals(number))

    before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():  # None: one that was not installed by Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def die(number: signal.Signals) -> None:
    """Let a signal that was collected do what it would have done, without another line."""
    sys.stderr.flush()
    sys.stdout.flush()
    if signal.getsignal(number) is _announced:
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(number) == signal.SIG_DFL:
        hosts.leave()
    signal.raise_signal(number)
    if signal.getsignal(number) is signal.default_int_handler:
        raise KeyboardInterrupt  # the handler's own was lost in a callback, as of a collection


@contextmanager
def announced() -> Iterator[None]:
    """Meanwhile SIGTERM prints one line and ends the process, exit code 143, at once.

    Python runs a handler between two of its own instructions, and a compilation is none for
    minutes. So the line comes from a thread that reads what the system writes to the wakeup
    descriptor. Only the main thread can install it; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handler = signal.signal(signal.SIGTERM, _announced)
    watch = threading.Thread(target=_watch, args=(reader,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)
        os.close(writer)
        watch.join()
        os.close(reader)


def _announced(number, frame):
    """The handler itself has nothing to do: `_watch` has heard it."""


def _watch(reader: int) -> None:
    while number := os.read(reader, 1):
        heard = number[0] == signal.SIGTERM
        if heard and signal.getsignal(signal.SIGTERM) is _announced:
            print(f"stopped by SIGTERM; {AGAIN}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(128 + signal.SIGTERM)
