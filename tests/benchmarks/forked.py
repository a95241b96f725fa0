"""Commands of generag, each in a process of its own that starts at once, with a limit of time and an eye on memory.

The process is forked from this one, which has imported everything that commands import and computed nothing, so that no
library has threads yet. Knows processes; does not know what a command does.
"""

import contextlib
import importlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IMPORTED = (
    "torch", "anndata", "h5py", "zarr", "numba", "pandas", "skimage.measure", "matplotlib.pyplot",
    "genrag_cli.cli.app", "genrag_cli.cli.setup", "genrag_cli.pipeline.retrieve", "genrag_cli.pipeline.embed",
    "genrag_cli.pipeline.elsewhere", "genrag_cli.pipeline.evaluate", "genrag_cli.pipeline.plot",
    "genrag_cli.pipeline.explain", "genrag_cli.pipeline.batch.run", "genrag_cli.pipeline.batch.report",
    "genrag_cli.backbones.encoders.stain", "genrag_cli.retrieval.compiled",
)  # fmt: skip
LOOK_S = 0.05


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    argv: tuple[str, ...]
    code: int | None
    """Negative: the signal that ended it; None: it ran past its limit and was ended."""
    out: str
    err: str
    seconds: float
    peak: int
    """Bytes of its own, with all processes below it, at most, as seen every `LOOK_S`."""


def import_all() -> None:
    """Imports what commands import."""
    for name in IMPORTED:
        importlib.import_module(name)


def run(argv: Sequence[object], *, limit_s: float = 120.0, most: int = 0) -> Ran:
    """Runs a command.

    Args:
        argv: without the `generag`.
        limit_s: after so many seconds it is ended, with all that it started.
        most: bytes at which it is ended; 0: none.
    """
    words = tuple(map(str, argv))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        began = time.monotonic()
        if not (pid := os.fork()):
            _become(words, out.fileno(), err.fileno())
        code, peak = _watch(pid, began + limit_s, most)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
    return Ran(words, code, said[0], said[1], time.monotonic() - began, peak)


def _become(words: tuple[str, ...], out: int, err: int) -> None:
    """Turns this process into the command, and ends with it."""
    code = 70
    try:
        os.setpgid(0, 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.argv = ["generag", *words]
        from genrag_cli.__main__ import main

        try:
            main()
            code = 0
        except SystemExit as done:
            code = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        from genrag_cli.slides.decoder import end_idle

        with contextlib.suppress(Exception):
            end_idle()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _watch(pid: int, until: float, most: int) -> tuple[int | None, int]:
    peak = 0
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), peak
        peak = max(peak, memory_of_tree(pid))
        if time.monotonic() > until or (most and peak > most):
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None, peak
        time.sleep(LOOK_S)


def memory_of_tree(pid: int) -> int:
    """Bytes that a process and all below it hold beside files that are mapped."""
    total = 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                total += memory_of_tree(int(child))
    return total
