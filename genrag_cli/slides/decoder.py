"""The process that decodes, seen from the other side: how it is started, asked, waited for, kept and ended.

Knows the socket and the shared memory between the two, and how long silence may last. Does not know what a slide is;
`slides.remote` says what is asked, `slides.serve` runs over there.
"""

import atexit
import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from genrag_cli import stopping
from genrag_cli.errors import SlideError, UsageError

PATIENCE_S = 600.0
"""How long no read may finish before the process that reads is taken for hanging; `GENERAG_READ_TIMEOUT` sets it."""
MEMORY_SHARE = 0.5
"""Of the machine's memory that the process may take beyond its libraries."""

_LOOK_S = 0.5
"""Between two looks at whether a stop was asked for."""


class Decoder:
    """A process that reads, and the line to it."""

    _idle: "list[Decoder]" = []  # noqa: RUF012 - shared on purpose
    _lock = threading.Lock()

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._file = _anonymous_file()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - held as long as the process
        self._size = 0
        command = [
            sys.executable, "-m", "genrag_cli.slides.serve", str(theirs.fileno()), str(self._file.fileno()),
            str(memory_limit()),
        ]  # fmt: skip
        with _without_signals():
            self._child = subprocess.Popen(
                command, pass_fds=(theirs.fileno(), self._file.fileno()), stdin=subprocess.DEVNULL,
                stdout=self._said, stderr=self._said,
            )  # fmt: skip
        theirs.close()
        self._line = Connection(ours.detach())
        self._kept: deque[Any] = deque()
        self.alive = True

    @classmethod
    def take(cls) -> "Decoder":
        """One that waits for work, or a new one."""
        with cls._lock:
            while cls._idle:
                waiting = cls._idle.pop()
                if waiting._child.poll() is None:
                    return waiting
                waiting.kill()
        return cls()

    def give_back(self) -> None:
        """Keeps it for the next slide."""
        self._kept.clear()
        with self._lock:
            self._idle.append(self)

    def share(self, size: int) -> mmap.mmap:
        """Shared memory of at least this size."""
        size = max(size, 1)
        if size > self._size:
            os.ftruncate(self._file.fileno(), size)
            self._size = size
        return mmap.mmap(self._file.fileno(), size)

    def send(self, *message: Any) -> None:
        """Says something; that nobody listens any more shows when an answer is waited for."""
        with contextlib.suppress(OSError):
            self._line.send(message)

    def ask(self, path: Path, what: str, *arguments: Any, stoppable: bool = True) -> Any:
        """Asks and waits for the answer; batches that come before it are kept.

        Raises:
            SlideError: as the other side says, or where it is gone.
            Stopped: see `receive`.
        """
        try:
            self.send(what, *arguments)
            while (message := self.receive(path, stoppable=stoppable))[0] not in ("ok", "failed"):
                self._kept.append(message)
        except KeyboardInterrupt:  # the answer may still come, and would be taken for another's
            self.kill()
            raise
        if message[0] == "failed":
            _, kind, text, hint = message
            raise kind(text, hint)
        return message[1]

    def next_batch(self, path: Path) -> Any:
        """The next thing said about tiles; raises as `receive`."""
        return self._kept.popleft() if self._kept else self.receive(path)

    def receive(self, path: Path, *, stoppable: bool = True) -> Any:
        """The next thing said, ticks left out.

        Raises:
            SlideError: where the process died, or nothing was read for too long.
            Stopped: where a stop was asked for; the process, which may be at work, is ended.
        """
        self.expect_alive(path)
        patience, silent = _patience(), 0.0
        look = min(patience, _LOOK_S)
        while True:
            if stoppable and stopping.is_asked():
                self.kill()
                stopping.check()
            try:
                message = self._line.recv() if self._line.poll(look) else None
            except (EOFError, OSError) as error:
                said = self._last_words()
                killed = "It was ended from outside, mostly for lack of memory: give the job more, and run it again."
                damaged = "The file is damaged in a way that takes its reader down; copy it again."
                raise SlideError(
                    f"{path}: the process that read it died{said}", killed if "(SIGKILL)" in said else damaged
                ) from error
            except KeyboardInterrupt:  # half a message may have been taken
                self.kill()
                raise
            if message is None:
                silent += look  # not by a clock: a scheduler may suspend both sides for hours
                if silent >= patience:
                    self.kill()
                    raise SlideError(
                        f"{path}: nothing could be read for {patience:g} s",
                        "Is its disk or file server there? GENERAG_READ_TIMEOUT sets how long is waited.",
                    )
            elif message[0] == "tick":
                silent = 0.0
            else:
                return message

    def expect_alive(self, path: Path) -> None:
        """Refuses to ask a process that has ended.

        Raises:
            SlideError: where it has.
        """
        if not self.alive:
            raise SlideError(f"{path}: the process that read it has ended", "Run the same command again.")

    def kill(self) -> None:
        """Ends the process."""
        self.alive = False
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        self._line.close()
        self._file.close()
        self._said.close()

    def _last_words(self) -> str:
        """Signal or exit code, and the last line that the process wrote."""
        self.alive = False
        try:
            code = self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        name = f" ({signal.Signals(-code).name})" if code < 0 else f" (exit code {code})"
        return name + (f": {lines[-1][:200]}" if lines else "")


@contextlib.contextmanager
def _without_signals() -> Iterator[None]:
    """Has a process that is started within never hear of stops: those are for this one, which ends it in its time.

    Schedulers and terminals signal whole groups of processes, and the other one needs a while to say what it ignores.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _patience() -> float:
    """Seconds without a read after which the process that reads is taken for hanging.

    Raises:
        UsageError: where the environment says no number.
    """
    text = os.environ.get("GENERAG_READ_TIMEOUT") or str(PATIENCE_S)
    try:
        patience = float(text)
    except ValueError:
        patience = 0.0
    if not patience > 0:
        raise UsageError(f"GENERAG_READ_TIMEOUT is {text!r}; it is a number of seconds above 0", "Leave it unset.")
    return patience


def _anonymous_file() -> IO[bytes]:
    """A file in memory where the system has such, else one without a name."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("generag-tiles"), "r+b", buffering=0)
    return tempfile.TemporaryFile()


def memory_limit() -> int:
    """Bytes that a process that reads may take beyond its libraries."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0
    return int(MEMORY_SHARE * total)


@atexit.register
def end_idle() -> None:
    """Ends the processes that wait for work."""
    with Decoder._lock:
        while Decoder._idle:
            Decoder._idle.pop().kill()
