"""Tiles: where they lie on a slide, and their pixels.

Knows the square lattice, the best pyramid level for a tile, and how tiles are read ahead.
Does not know what a tile is for; `spots` makes grids of given spots, `tissue` says where tissue is.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Literal

import numpy as np

from genrag_cli.errors import SlideError, UsageError
from genrag_cli.slides.base import Pixels, Slide
from genrag_cli.slides.patches import PatchSlide, read_patches
from genrag_cli.slides.remote import RemoteSlide
from genrag_cli.slides.tissue import Tissue, find_tissue, tissue_share
from genrag_cli.types import Ints, PixelSize, TileBatch, TileGrid
from genrag_cli.units import Microns, TilePx

_LEVEL_SLACK = 1.01
"""A level of 4.0002 serves for a wanted 4: a scanner rounds the sizes of its levels."""


def plan_tiles(
    slide: Slide,
    pixel_size: PixelSize,
    *,
    fov_um: float,
    pitch_um: float,
    tile_px: int,
    min_tissue: float = 0.5,
    lattice: Literal["square"] = "square",
    tissue: Tissue | None = None,
) -> TileGrid:
    """Lays a square lattice over a slide and keeps the spots on tissue.

    The lattice starts at the slide's upper left corner and counts in um, so that it does not depend on the pyramid.
    Spots are called `SLIDE:ROW_COLUMN` and run row by row.

    Args:
        slide: to lay the lattice over.
        pixel_size: of level 0.
        fov_um: side of a tile.
        pitch_um: distance of neighbouring spots; a spot's area is the square of this side.
        tile_px: side of a tile as the backbone takes it.
        min_tissue: share of a spot's area that has to be tissue.
        lattice: `square` is the only one.
        tissue: of this slide, where it is known already.

    Raises:
        SlideError: for a slide without tissue, or smaller than one tile.
    """
    if lattice != "square":
        raise UsageError(f"unknown lattice {lattice!r}", "Known: square")
    width, height = slide.size
    side_px, pitch_px = fov_um / pixel_size.mpp, pitch_um / pixel_size.mpp
    if min(width, height) < side_px:
        raise SlideError(
            f"{slide.path}: {width} x {height} px is smaller than one tile of {fov_um:g} um = {side_px:.0f} px "
            f"at {pixel_size.mpp:g} um/px ({pixel_size.source})",
            "Is the pixel size right (--mpp)? Otherwise the field of view (--fov-um) is too large for it.",
        )
    tissue = tissue or find_tissue(slide, pixel_size)
    n_rows, n_cols = (int(np.ceil(side / pitch_px - 0.5)) for side in (height, width))
    rc = np.stack(np.meshgrid(np.arange(n_rows), np.arange(n_cols), indexing="ij"), axis=-1).reshape(-1, 2)
    centres = np.asarray((rc[:, ::-1] + 0.5) * pitch_px, np.float64)
    kept = tissue_share(tissue.mask, tissue.scale, centres, pitch_px) >= min_tissue
    if not kept.any():
        share = f"{tissue.mask.mean():.1%} of the slide is tissue, no square of {pitch_um:g} um is {min_tissue:.0%}"
        raise SlideError(
            f"{slide.path}: " + (share if tissue.mask.any() else "no tissue found"),
            "Look at the slide; where the tissue is real, name the spots yourself (--spots).",
        )
    rc = rc[kept]
    return TileGrid(
        slide_id=slide.slide_id,
        names=np.array([f"{slide.slide_id}:{row}_{column}" for row, column in rc], dtype=np.str_),
        centres=centres[kept],
        array_rc=rc.astype(np.int64),
        tile_px=TilePx(tile_px),
        fov_um=Microns(fov_um),
        pitch_um=Microns(pitch_um),
        pixel_size=pixel_size,
    )


def read_tiles(
    slide: Slide, grid: TileGrid, rows: Ints | None = None, batch: int = 64, workers: int = 1, ahead: int = 1,
    bursts: bool = False,
) -> Generator[TileBatch, None, None]:  # fmt: skip
    """Reads the tiles of a grid ahead of whoever takes them.

    A tile's pixels depend on the slide and the grid only: not on the batch, its neighbours or the workers. Closing the
    iterator waits for the tiles that are being read just then, and leaves no thread behind.

    Args:
        slide: open, or patches in its place; must stay open until the last batch is taken.
        grid: of that slide.
        rows: (m,) rows of the grid to read, in this order; None: all.
        batch: tiles per batch.
        workers: threads that read.
        ahead: batches that are read while the caller has one; memory holds at most two more, however many workers.
            Patches are read one batch ahead.
        bursts: for a caller who works on the same CPUs: the batches ahead are read all at once while the caller waits,
            for as long as that keeps the CPUs busy. Threads that share cores with a network's lose more than they gain;
            a slow disk or server, which leaves the CPUs idle, is read while the caller works.

    Raises:
        SlideError: in the caller's thread, where a tile cannot be read.
    """
    if min(batch, workers, ahead) < 1:
        raise UsageError(
            f"tiles are read at least 1 batch ahead by at least 1 worker in batches of at least 1, not {ahead}, "
            f"{workers} and {batch}"
        )
    rows = np.arange(len(grid), dtype=np.int64) if rows is None else np.asarray(rows, np.int64)
    if isinstance(slide, PatchSlide):
        yield from read_patches(slide, grid, rows, batch)
        return
    if isinstance(slide, RemoteSlide):
        yield from slide.tiles(grid, rows, batch, workers, ahead, bursts=bursts)
        return
    read = TileReader(slide, grid).read
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tiles")
    begun: deque[tuple[TileBatch, list[Future[None]]]] = deque()
    starts = iter(range(0, len(rows), batch))

    def begin(n_batches: int) -> None:
        for start in islice(starts, n_batches):
            chunk = rows[start : start + batch]
            pixels = np.empty((len(chunk), grid.tile_px, grid.tile_px, 3), np.uint8)
            tiles = [pool.submit(read, int(row), tile) for row, tile in zip(chunk, pixels, strict=True)]
            begun.append((TileBatch(chunk, pixels), tiles))

    try:
        begin(ahead)
        waiting = bursts and _finish(begun, workers)
        while begun:
            if not waiting:
                begin(1)
            elif len(begun) == 1:
                begin(ahead)
                waiting = _finish(begun, workers)
            taken, tiles = begun.popleft()
            for tile in tiles:
                tile.result()
            yield taken
    finally:  # an error, Ctrl-C, or a caller who has seen enough: drop what has not begun, wait for one tile a worker
        pool.shutdown(wait=True, cancel_futures=True)


def _finish(begun: Iterable[tuple[TileBatch, list[Future[None]]]], workers: int) -> bool:
    """Waits until all tiles are read; whether the CPUs were busy meanwhile, so that waiting cost nothing."""
    began, busy = time.perf_counter(), time.process_time()
    wait([tile for _, tiles in begun for tile in tiles])
    spent = time.perf_counter() - began
    return time.process_time() - busy > 0.5 * workers * spent or spent < 1e-3


def best_level(slide: Slide, grid: TileGrid) -> int:
    """The coarsest level that still has every px of a tile; level 0 where tiles are finer than the slide."""
    wanted = grid.side_px / grid.tile_px * _LEVEL_SLACK
    fine = [i for i, level in enumerate(slide.levels) if level.downsample <= wanted]
    return max(fine, key=lambda i: slide.levels[i].downsample, default=0)


class TileReader:
    """Reads single tiles of a grid; from several threads at once, as far as the slide allows.

    Args:
        slide: open.
        grid: of that slide.
    """

    def __init__(self, slide: Slide, grid: TileGrid) -> None:
        self.slide, self.grid = slide, grid
        self._corners, self._level = grid.xy, best_level(slide, grid)

    def read(self, row: int, into: Pixels) -> None:
        """Reads the tile of a row into (tile_px, tile_px, 3).

        Raises:
            SlideError: where it cannot be read.
        """
        into[:] = _read_tile(self.slide, self.grid, self._corners[row], self._level)


def _read_tile(slide: Slide, grid: TileGrid, corner: Ints, level: int) -> Pixels:
    """One tile, (tile_px, tile_px, 3), resampled from the px of a level that it touches."""
    from PIL import Image

    scale = slide.levels[level].downsample
    (x, y), side = corner / scale, grid.side_px / scale
    left, top = int(np.floor(x)), int(np.floor(y))
    width, height = int(np.ceil(x + side - 1e-6)) - left, int(np.ceil(y + side - 1e-6)) - top
    pixels = slide.read_region(left, top, width, height, level)
    box = (x - left, y - top, min(x - left + side, width), min(y - top + side, height))
    if box == (0, 0, grid.tile_px, grid.tile_px):
        return pixels
    image = Image.fromarray(pixels).resize((grid.tile_px, grid.tile_px), Image.Resampling.BILINEAR, box=box)
    return np.array(image)


def n_beyond_edge(slide: Slide, grid: TileGrid) -> int:
    """The number of tiles that reach past the edge of the slide by half a px or more; white stands for what is not."""
    low, high = grid.centres - grid.side_px / 2, grid.centres + grid.side_px / 2
    return int(((low <= -0.5) | (high >= np.asarray(slide.size) + 0.5)).any(axis=1).sum())


def sample_rows(grid: TileGrid, limit: int = 2000, seed: int = 0) -> Ints:
    """At most `limit` rows of a grid, ascending, the same for the same seed."""
    if len(grid) <= limit:
        return np.arange(len(grid), dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(len(grid), limit, replace=False)).astype(np.int64)
