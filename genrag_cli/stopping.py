"""Stopping on request: a scheduler asks once, work ends at its next checkpoint, and the same command goes on later.

Knows the request and the signals that carry it. Does not know checkpoints; long work calls `check` at each of its own.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from genrag_cli.errors import Stopped

MESSAGE = "stopped; the same command goes on from here"
SIGNALS = ("SIGTERM", "SIGUSR1")
"""What schedulers send before a time limit; SIGUSR1 is what `--signal` of SLURM is usually told to send."""

_asked = threading.Event()


def ask() -> None:
    """Asks for a stop at the next checkpoint."""
    _asked.set()


def is_asked() -> bool:
    """Whether a stop was asked for."""
    return _asked.is_set()


def check() -> None:
    """A checkpoint: what is finished is kept.

    Raises:
        Stopped: where a stop was asked for.
    """
    if _asked.is_set():
        raise Stopped(MESSAGE)


@contextlib.contextmanager
def gracefully() -> Iterator[None]:
    """Has the first SIGTERM or SIGUSR1 ask for a stop at the next checkpoint; a second one stops at once.

    Outside the main thread, where Python takes no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if _asked.is_set():
            raise KeyboardInterrupt
        _asked.set()

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()
