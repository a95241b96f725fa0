"""The process that decodes: it opens slides, reads what it is asked for, and may die of a damaged file without loss.

Run as `python -m genrag_cli.slides.serve SOCKET MEMORY LIMIT` by `slides.decoder`, which knows the other end. Pixels of
tiles go through shared memory, everything else through the socket. Knows no backbone, bank or output.

| asked | answered |
|---|---|
| `open`, path, pictures, square, folder | `ok` and the slide's facts |
| `call`, function, arguments | `ok` and what the function returns, given the slide first |
| `apply`, source, folder, function, arguments | `ok` and what the function returns, which reads files of other tools |
| `tiles`, stream, grid, rows, batch, workers | a `batch` for every `more`, in order |
| `more`, stream, slot | `batch`, stream, slot, bad rows, CPU seconds so far |
| `end`, stream | `ended`, stream, once nothing is being read any more |
| `close` | `ok` and the most memory that this process ever took |
"""

import contextlib
import mmap
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np

from genrag_cli.errors import GeneragError, SlideError
from genrag_cli.slides.base import WHITE, Pixels, Slide
from genrag_cli.slides.open import open_slide
from genrag_cli.slides.square import present_square, stretch_of
from genrag_cli.slides.tiles import TileReader
from genrag_cli.types import Ints, TileGrid

TICK_S = 1.0
"""How often long work says that it is alive, at most; only where reads finish."""


def main() -> None:
    """Serves until the other end is gone."""
    fd, memory, limit = (int(text) for text in sys.argv[1:4])
    _end_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limit:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + limit, hard))
    with contextlib.suppress(EOFError, ConnectionError):
        Server(Connection(fd), memory).serve()
    os._exit(0)  # a read that hangs must not keep it alive


@dataclass(eq=False)
class _Batch:
    """Tiles of one batch: those that nobody has begun with, those that are not done, and those that cannot be read."""

    slot: int
    rows: list[int]
    pixels: Pixels
    left: int
    bad: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = iter(list(zip(self.rows, self.pixels, strict=True)))


@dataclass(eq=False)
class _Stream:
    """Tiles on their way."""

    number: int
    reader: TileReader
    rows: Ints
    batch: int
    workers: int
    begun: deque[_Batch] = field(default_factory=deque)
    next: int = 0
    ended: bool = False


class Server:
    """One slide at a time.

    Args:
        line: to whoever asks.
        memory: descriptor of the shared memory.
    """

    def __init__(self, line: Connection, memory: int) -> None:
        self.line, self.memory = line, memory
        self.sending, self.counting = threading.Lock(), threading.Lock()
        self.slide: Slide | None = None
        self.stream: _Stream | None = None
        self.shared: Pixels = np.empty(0, np.uint8)
        self.pool: ThreadPoolExecutor | None = None
        self.told = 0.0

    def serve(self) -> None:
        """Answers until the line is closed."""
        while True:
            what, *arguments = self.line.recv()
            getattr(self, f"on_{what}")(*arguments)

    def send(self, *message: Any) -> None:
        """Says something, from any thread."""
        with self.sending:
            self.line.send(message)

    def answer(self, work: Callable[[], Any]) -> None:
        """Sends what some work returns, or why it failed."""
        said: tuple[Any, ...]
        try:
            said = ("ok", work())
        except GeneragError as error:
            said = ("failed", type(error), error.message, error.hint)
        except MemoryError:
            said = ("failed", SlideError, *self._too_large())
        except Exception as error:  # readers of damaged files raise anything
            said = ("failed", SlideError, f"{self._path()}: {type(error).__name__}: {error}", "Is the file damaged?")
        # Not before: an error holds what was allocated until it is handled, and saying something takes memory too.
        self.send(*said)

    def on_open(self, path: Path, pictures: bool, square: bool, folder: Path) -> None:
        """Opens a slide, whose path counts from a folder, and whose px are shown as squares."""

        def work() -> dict[str, Any]:
            os.chdir(folder)
            slide = self.slide = _ticking(_open_as(path, pictures, square), self.tick)
            try:
                candidates: Any = slide.pixel_size_candidates()
            except GeneragError as error:
                candidates = (type(error), error.message, error.hint)
            return {
                "slide_id": slide.slide_id, "reader": slide.reader, "notes": slide.notes, "size": slide.size,
                "levels": slide.levels, "tile_sizes": [slide.tile_size(i) for i in range(len(slide.levels))],
                "candidates": candidates, "stretch": stretch_of(slide),
            }  # fmt: skip

        self._let_go()
        self.opened = (path, pictures, square)
        self.answer(work)

    def on_call(self, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Calls a function of this package on the slide."""
        self.answer(lambda: function(self.slide, *arguments, **named))

    def on_apply(
        self, source: Path, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...],
        named: dict[str, Any],
    ) -> None:  # fmt: skip
        """Calls a function of this package that needs no slide; paths count from a folder."""

        def work() -> Any:
            os.chdir(folder)
            return function(*arguments, **named)

        self._let_go()
        self.opened = (source, False, False)
        self.answer(work)

    def on_read(self, *where: int) -> None:
        """Reads a rectangle."""
        self.answer(lambda: self._open().read_region(*where))

    def on_digest(self) -> None:
        """The slide's digest, as its files are now."""
        self.answer(lambda: self._open().digest())

    def on_close(self) -> None:
        """Closes the slide."""
        self._let_go()
        self.send("ok", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    def on_tiles(self, number: int, grid: TileGrid, rows: Ints, batch: int, workers: int, size: int) -> None:
        """Begins a stream; nothing is read before `more`."""
        self._end_stream()
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="tiles")
        if len(self.shared) != size:
            self.shared = np.frombuffer(mmap.mmap(self.memory, size), np.uint8)
        self.stream = _Stream(number, TileReader(self._open(), grid), rows, batch, workers)

    def on_more(self, number: int, slot: int) -> None:
        """Begins the next batch, into a slot of the shared memory."""
        stream = self.stream
        if stream is None or stream.number != number or self.pool is None:
            return
        chunk = stream.rows[stream.next : stream.next + stream.batch]
        stream.next += len(chunk)
        side = stream.reader.grid.tile_px
        each = side * side * 3
        low = slot * stream.batch * each
        pixels = self.shared[low : low + len(chunk) * each].reshape(len(chunk), side, side, 3)
        batch = _Batch(slot, chunk.tolist(), pixels, len(chunk))
        stream.begun.append(batch)
        for _ in range(min(stream.workers, len(chunk))):  # one task a thread; one a tile would cost as much as reading
            self.pool.submit(self._read_tiles, stream, batch)

    def on_end(self, number: int) -> None:
        """Ends a stream and says so once nothing is being read."""
        if self.stream is not None and self.stream.number == number:
            self._end_stream()
        self.send("ended", number)

    def tick(self) -> None:
        """Says now and then that reads finish."""
        now = time.monotonic()
        if now - self.told > TICK_S:
            self.told = now
            self.send("tick")

    def _read_tiles(self, stream: _Stream, batch: _Batch) -> None:
        """Reads tiles of a batch until none is left, beside other threads that do the same."""
        for row, into in batch.waiting:
            if stream.ended:
                return
            why = self._read(stream, row, into)
            if why:
                batch.bad[row] = why
            with self.counting:
                batch.left -= 1
                done = batch.left == 0
            if done:
                self._send_finished(stream)

    def _send_finished(self, stream: _Stream) -> None:
        with self.sending:
            while stream.begun and not stream.ended and stream.begun[0].left == 0:
                batch = stream.begun.popleft()
                bad = {row: batch.bad[row] for row in batch.rows if row in batch.bad}
                said = ("batch", stream.number, batch.slot, len(batch.rows), bad, time.process_time())
                with contextlib.suppress(OSError):
                    self.line.send(said)

    def _read(self, stream: _Stream, row: int, into: Pixels) -> str:
        """Reads a tile; empty, or why it could not be read, after a second try on a slide opened anew."""
        try:
            stream.reader.read(row, into)
        except MemoryError:
            return self._too_large()[0]
        except Exception:  # readers of damaged files raise anything; what the second try says is what is told
            # OpenSlide answers every read with its first error until the file is opened again.
            try:
                with _open_as(*self.opened) as fresh:
                    TileReader(fresh, stream.reader.grid).read(row, into)
                self._renew(stream)
            except Exception as error:
                into[:] = WHITE
                self._renew(stream)
                return error.message if isinstance(error, GeneragError) else f"{type(error).__name__}: {error}"
        self.tick()
        return ""

    def _renew(self, stream: _Stream) -> None:
        """Puts a slide opened anew in the place of one that failed; the old one ends with its last read."""
        with contextlib.suppress(GeneragError, OSError):
            self.slide = _ticking(_open_as(*self.opened), self.tick)
            stream.reader = TileReader(self.slide, stream.reader.grid)

    def _end_stream(self) -> None:
        stream, pool = self.stream, self.pool
        self.stream = self.pool = None
        if stream is not None:
            stream.ended = True
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def _let_go(self) -> None:
        self._end_stream()
        if self.slide is not None:
            self.slide.close()
        self.slide = None

    def _open(self) -> Slide:
        if self.slide is None:
            raise SlideError(f"{self._path()}: closed already")
        return self.slide

    def _path(self) -> Path:
        return self.opened[0]

    def _too_large(self) -> tuple[str, str]:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        return (
            f"{self._path()}: reading it takes more than {limit / 2**30:.1f} GiB of memory",
            "Is the file damaged? Otherwise convert it to a tiled pyramidal TIFF.",
        )


def _open_as(path: Path, pictures: bool, square: bool) -> Slide:
    slide = open_slide(path, pictures=pictures)
    return present_square(slide) if square else slide


class _Ticking:
    """A slide that says when it has read something."""

    def __init__(self, slide: Slide, tick: Callable[[], None]) -> None:
        self._slide, self._tick = slide, tick

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slide, name)

    def read_region(self, x: int, y: int, w: int, h: int, level: int) -> Pixels:
        """Reads a rectangle; see `Slide.read_region`."""
        pixels = self._slide.read_region(x, y, w, h, level)
        self._tick()
        return pixels


def _ticking(slide: Slide, tick: Callable[[], None]) -> Slide:
    return cast(Slide, _Ticking(slide, tick))


def _address_space() -> int:
    """Bytes of address space that this process has now; mostly libraries."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 4 << 30


def _end_with_parent() -> None:
    """Ends this process with the one that started it, even while a read hangs."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(TICK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
