"""Seconds, and memory above what was there before, of pieces of work. It needs the standard library alone."""

import ctypes
import gc
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measured:
    """What came out of a piece of work, how long it took, and the memory that it needed at most (None: unknown)."""

    result: Any
    seconds: float
    peak_mb: float | None


class Meter:
    """Times pieces of work, with the memory that they need above what was resident when the meter was made."""

    def __init__(self) -> None:
        self.before = reset_peak()

    def __call__(self, work: Callable[[], Any]) -> Measured:
        reset_peak(tidy=False)
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        return Measured(result, seconds, None if self.before is None else (resident("VmHWM") - self.before) / 1e6)


def reset_peak(tidy: bool = True) -> int | None:
    """Forgets the resident high-water mark and returns what is resident, None where the kernel does not say.

    `tidy` first gives freed memory back to the system; not right before timing, which would pay for it.
    """
    if tidy:
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return resident("VmRSS")
    except OSError:
        return None


def resident(what: str) -> int:
    """A size in bytes from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def highest(peaks: list[float | None]) -> float | None:
    """The largest, if all are known."""
    known = [p for p in peaks if p is not None]
    return max(known) if len(known) == len(peaks) else None


def best_ms(work: Callable[[], Any], repeats: int, *, warm: bool) -> float:
    """Milliseconds of a piece of work at its best."""
    taken = []
    for _ in range(repeats + warm):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return 1e3 * min(taken[warm:])


def load_average() -> float | None:
    """How busy the machine is: a core that somebody else uses slows a dense pass and a solver by different factors."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
