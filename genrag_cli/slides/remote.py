"""Slides that another process reads, so that a damaged file can take down that process and nothing else.

The process (`slides.decoder`) is started once and used for one slide after the other; one that died, hung or took too
much memory is replaced for the next slide. Knows what is asked and what comes back. Decodes nothing.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import numpy as np

from genrag_cli.errors import SlideError
from genrag_cli.slides.base import Level, Pixels, Slide
from genrag_cli.slides.decoder import Decoder
from genrag_cli.types import Ints, TileBatch, TileGrid

P = ParamSpec("P")
R = TypeVar("R")


class RemoteSlide:
    """A slide in another process; what it offers is as in `Slide`.

    Args:
        path: the slide.
        pictures: accept JPG and PNG too.
        square: show px that are not square as if they were; else they are refused where their size is asked for.

    Raises:
        SlideError: where it cannot be opened, or opening it took its process down.
    """

    def __init__(self, path: Path, *, pictures: bool = False, square: bool = True) -> None:
        self.path = path
        self._process: Decoder | None = Decoder.take()
        self._streams = 0
        try:
            facts = self._ask("open", path, pictures, square, Path.cwd())
        except BaseException:
            self._drop()
            raise
        self.slide_id: str = facts["slide_id"]
        self.reader: str = facts["reader"]
        self.notes: tuple[str, ...] = facts["notes"]
        self.size: tuple[int, int] = facts["size"]
        self.levels: list[Level] = facts["levels"]
        self._tile_sizes: list[tuple[int, int] | None] = facts["tile_sizes"]
        self._candidates = facts["candidates"]
        self.stretch: tuple[float, float] = facts["stretch"]
        """Square px per level-0 px; places on this slide count in square px."""
        self.peak_memory = 0
        """Bytes that the process took at most; known once it is closed."""

    def pixel_size_candidates(self) -> list[tuple[str, float]]:
        """Sources and their um per level-0 px, unchecked."""
        if isinstance(self._candidates, tuple):
            kind, message, hint = self._candidates
            raise kind(message, hint)
        return list(self._candidates)

    def tile_size(self, level: int) -> tuple[int, int] | None:
        """Width and height of the storage tiles of a level in px; None where there are none."""
        return self._tile_sizes[level]

    def read_region(self, x: int, y: int, w: int, h: int, level: int) -> Pixels:
        """Reads a rectangle; see `Slide.read_region`."""
        pixels: Pixels = self._ask("read", x, y, w, h, level)
        return pixels

    def digest(self) -> str:
        """Identity of the content of every file of the slide, as they are now."""
        digest: str = self._ask("digest")
        return digest

    def call(self, function: Callable[Concatenate[Slide, P], R], *arguments: P.args, **named: P.kwargs) -> R:
        """Calls a function of this package on the slide over there.

        Raises:
            SlideError: where it fails.
        """
        result: R = self._ask("call", function, arguments, named)
        return result

    def tiles(
        self, grid: TileGrid, rows: Ints, batch: int, workers: int, ahead: int, *, bursts: bool = False,
        lasting: bool = True,
    ) -> Generator[TileBatch, None, None]:  # fmt: skip
        """Reads the tiles of a grid, see `slides.tiles.read_tiles`; bad tiles are named, not raised."""
        stream = self.begin_tiles(grid, rows, batch, workers, ahead)
        try:
            yield from stream.batches(bursts=bursts, lasting=lasting)
        finally:
            stream.end()

    def begin_tiles(self, grid: TileGrid, rows: Ints, batch: int, workers: int, ahead: int) -> "TileStream":
        """Begins to read tiles ahead of whoever will take them; end it."""
        self._streams += 1
        return TileStream(self._own(), self._streams, self.path, grid, rows, batch, workers, ahead)

    def close(self) -> None:
        """Lets go of the slide; closing again does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.expect_alive(self.path)
            self.peak_memory = process.ask(self.path, "close", stoppable=False)
        except SlideError:
            process.kill()
        else:
            process.give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):  # Ctrl-C: an answer may be on its way
            self._drop()
        self.close()

    def _ask(self, what: str, *arguments: Any) -> Any:
        return self._own().ask(self.path, what, *arguments)

    def _own(self) -> Decoder:
        if self._process is None:
            raise SlideError(f"{self.path}: closed already")
        return self._process

    def _drop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None


class TileStream:
    """Tiles that are being read over there; as many batches ahead as were asked for, and not one more."""

    def __init__(
        self, process: Decoder, number: int, path: Path, grid: TileGrid, rows: Ints, batch: int, workers: int,
        ahead: int,
    ) -> None:  # fmt: skip
        self._process, self._number, self._path = process, number, path
        self._rows, self._batch, self._ahead, self._workers = rows, batch, ahead, workers
        self._shape = (batch, grid.tile_px, grid.tile_px, 3)
        self._total = -(-len(rows) // batch)
        self._free = list(range(ahead + 2))
        self._asked = self._came = 0
        self._arrived: deque[tuple[TileBatch, int]] = deque()
        self._cpu_s = 0.0
        self._ended = False
        self._memory = process.share(len(self._free) * int(np.prod(self._shape)))
        process.send("tiles", number, grid, rows, batch, workers, len(self._memory))
        self._ask_for(ahead)

    def batches(self, *, bursts: bool = False, lasting: bool = True) -> Generator[TileBatch, None, None]:
        """Gives all batches in order; `bursts` and `lasting` are as `read_tiles` says."""
        waiting = bursts and self._fill()
        while self._came < self._total or self._arrived:
            if waiting and not self._arrived and self._asked == self._came:
                self._ask_for(self._ahead)
                waiting = self._fill()
            elif not waiting:
                self._ask_for(1 + self._ahead - (self._asked - self._came) - len(self._arrived))
            while not self._arrived:
                self._take()
            tiles, slot = self._arrived.popleft()
            if lasting:
                tiles = replace(tiles, pixels=tiles.pixels.copy())
                self._free.append(slot)
            yield tiles
            if not lasting:
                self._free.append(slot)

    def end(self) -> None:
        """Ends the reading; nothing is being read over there afterwards."""
        if self._ended:
            return
        self._ended = True
        self._arrived.clear()
        if not self._process.alive:
            return
        self._process.send("end", self._number)
        with contextlib.suppress(SlideError):  # of a process that died; nothing is being read there either
            while self._process.receive(self._path, stoppable=False) != ("ended", self._number):
                pass

    def _ask_for(self, n: int) -> None:
        for _ in range(min(n, len(self._free), self._total - self._asked)):
            self._process.send("more", self._number, self._free.pop())
            self._asked += 1

    def _fill(self) -> bool:
        """Waits until all that was asked for is here; whether the CPUs were busy meanwhile, so that it cost nothing."""
        began, busy = time.perf_counter(), self._cpu_s
        while self._came < self._asked:
            self._take()
        spent = time.perf_counter() - began
        return self._cpu_s - busy > 0.5 * self._workers * spent or spent < 1e-3

    def _take(self) -> None:
        while True:
            what, *rest = self._process.next_batch(self._path)
            if what == "batch" and rest[0] == self._number:
                break
        _, slot, n, bad, self._cpu_s = rest
        each = int(np.prod(self._shape))
        pixels = np.frombuffer(self._memory, np.uint8, n * int(np.prod(self._shape[1:])), slot * each)
        rows = self._rows[self._came * self._batch :][:n]
        self._arrived.append((TileBatch(rows, pixels.reshape(n, *self._shape[1:]), bad), slot))
        self._came += 1
