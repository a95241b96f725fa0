"""Tiles: where they lie on a slide, and their pixels.

Knows the square and the hexagonal lattice, the best pyramid level for a tile, and how tiles are read ahead.
Does not know what a tile is for; `spots` makes grids of given spots, `tissue` says where tissue is.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Literal, get_args

import numpy as np

from genrag_cli.errors import SlideError, UsageError
from genrag_cli.slides.base import Pixels, Slide
from genrag_cli.slides.patches import PatchSlide, read_patches
from genrag_cli.slides.remote import RemoteSlide
from genrag_cli.slides.tissue import Tissue, find_tissue, tissue_share
from genrag_cli.types import Doubles, Ints, PixelSize, TileBatch, TileGrid
from genrag_cli.units import Microns, TilePx

Lattice = Literal["square", "hex"]
LATTICES: tuple[Lattice, ...] = get_args(Lattice)
_ROW_STEP: dict[Lattice, float] = {"square": 1.0, "hex": 0.75**0.5}
"""Distance of rows over the pitch; so also the area of a spot over the square of the pitch."""
_LEVEL_SLACK = 1.01
"""A level of 4.0002 serves for a wanted 4: a scanner rounds the sizes of its levels."""


def plan_tiles(
    slide: Slide,
    pixel_size: PixelSize,
    *,
    fov_um: float,
    pitch_um: float | None = None,
    overlap: float | None = None,
    tile_px: int,
    min_tissue: float = 0.5,
    lattice: Lattice = "square",
    tissue: Tissue | None = None,
) -> TileGrid:
    """Lays a lattice over a slide and keeps the spots on tissue; none where there is no tissue.

    The lattice starts at the slide's upper left corner and counts in um, so that it does not depend on the pyramid.
    Spots are called `SLIDE:ROW_COLUMN` and run row by row. In a hexagonal lattice rows lie closer together than spots
    within a row, odd rows are shifted by half a pitch, and columns count as Visium's do: by two from spot to spot, even
    ones in even rows and odd ones in odd rows.

    Args:
        slide: to lay the lattice over.
        pixel_size: of level 0.
        fov_um: side of a tile.
        pitch_um: distance of neighbouring spots.
        overlap: of neighbouring tiles, in place of the pitch; see `choose_pitch`.
        tile_px: side of a tile as the backbone takes it.
        min_tissue: share of a spot's area that has to be tissue, 0 to 1. A spot's area is the square, or a square as
            large as the hexagon, of what is nearer to it than to its neighbours.
        lattice: `square` or `hex`.
        tissue: of this slide, where it is known already.

    Raises:
        UsageError: for options that cannot be right.
        SlideError: for a slide smaller than one tile.
    """
    if lattice not in LATTICES:
        raise UsageError(f"unknown lattice {lattice!r}", f"Known: {', '.join(LATTICES)}")
    if not 0 <= min_tissue <= 1:
        raise UsageError(f"the least share of tissue is between 0 and 1, not {min_tissue:g}")
    pitch_um = choose_pitch(fov_um, pitch_um=pitch_um, overlap=overlap)
    width, height = slide.size
    side_px, pitch_px = fov_um / pixel_size.mpp, pitch_um / pixel_size.mpp
    if min(width, height) < side_px:
        raise SlideError(
            f"{slide.path}: {width} x {height} px is smaller than one tile of {fov_um:g} um = {side_px:.0f} px "
            f"at {pixel_size.mpp:g} um/px ({pixel_size.source})",
            "Is the pixel size right (--mpp)? Otherwise the field of view (--fov-um) is too large for it.",
        )
    tissue = tissue or find_tissue(slide, pixel_size)
    rc, centres = _lay(lattice, slide.size, pitch_px)
    kept = tissue_share(tissue.mask, tissue.scale, centres, pitch_px * _ROW_STEP[lattice] ** 0.5) >= min_tissue
    rc = rc[kept]
    return TileGrid(
        slide_id=slide.slide_id,
        names=np.array([f"{slide.slide_id}:{row}_{column}" for row, column in rc], dtype=np.str_),
        centres=centres[kept],
        array_rc=rc,
        tile_px=TilePx(tile_px),
        fov_um=Microns(fov_um),
        pitch_um=Microns(pitch_um),
        pixel_size=pixel_size,
    )


def choose_pitch(fov_um: float, *, pitch_um: float | None = None, overlap: float | None = None) -> float:
    """The distance of neighbouring spots: as given, or so that tiles overlap by a share of their side; else the side.

    Raises:
        UsageError: where both are given, for a share below 0 or from 1 on, and for lengths that are not above 0.
    """
    if pitch_um is not None and overlap is not None:
        raise UsageError(
            f"both a pitch of {pitch_um:g} um and an overlap of {overlap:g} were given", "Give one of them."
        )
    if overlap is not None and not 0 <= overlap < 1:
        raise UsageError(f"tiles overlap by a share from 0 to below 1 of their side, not {overlap:g}")
    pitch = fov_um * (1 - (overlap or 0.0)) if pitch_um is None else pitch_um
    if not (0 < fov_um < np.inf and 0 < pitch < np.inf):
        raise UsageError(f"a field of view of {fov_um:g} um every {pitch:g} um; both must be lengths above 0")
    return pitch


def _lay(lattice: Lattice, size: tuple[int, int], pitch_px: float) -> tuple[Ints, Doubles]:
    """(n, 2) row, column and (n, 2) centres x, y of every spot of a lattice whose centre is on the slide."""
    (width, height), row_px, parts = size, pitch_px * _ROW_STEP[lattice], 2 if lattice == "hex" else 1
    rows = np.arange(np.ceil(height / row_px - 0.5), dtype=np.int64)
    columns = np.arange(np.ceil((width / pitch_px - 0.5) * parts), dtype=np.int64)
    rc = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    rc = rc[rc.sum(axis=1) % parts == 0]
    return rc, np.stack([(rc[:, 1] / parts + 0.5) * pitch_px, (rc[:, 0] + 0.5) * row_px], axis=1)


def read_tiles(
    slide: Slide, grid: TileGrid, rows: Ints | None = None, batch: int = 64, workers: int = 1, ahead: int = 1,
    bursts: bool = False, lasting: bool = True,
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
        lasting: give each batch pixels of its own; else they are overwritten once the next batch is asked for.

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
        yield from slide.tiles(grid, rows, batch, workers, ahead, bursts=bursts, lasting=lasting)
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


def expect_whole(batch: TileBatch) -> TileBatch:
    """The same tiles, for a caller who cannot do without one.

    Raises:
        SlideError: where one could not be read.
    """
    for why in batch.bad.values():
        raise SlideError(why, "The file is damaged or incomplete; copy it again.")
    return batch


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
        self._level = best_level(slide, grid)
        scale = slide.levels[self._level].downsample
        self._side = grid.side_px / scale
        corners = grid.xy / scale
        first = np.floor(corners)
        size = np.ceil(corners + self._side - 1e-6) - first
        # Of every tile: the px of the level that it touches, and where in them it begins.
        self._windows = np.concatenate([first, size], axis=1).astype(np.int64).tolist()
        self._begins = (corners - first).tolist()

    def read(self, row: int, into: Pixels) -> None:
        """Reads the tile of a row into (tile_px, tile_px, 3), resampled from the px of a level that it touches.

        Raises:
            SlideError: where it cannot be read.
        """
        (left, top, width, height), (x, y), side = self._windows[row], self._begins[row], self.grid.tile_px
        pixels = self.slide.read_region(left, top, width, height, self._level)
        box = (x, y, min(x + self._side, width), min(y + self._side, height))
        into[:] = pixels if box == (0, 0, side, side) else _resample(pixels, box, side)


def _resample(pixels: Pixels, box: tuple[float, float, float, float], side: int) -> Pixels:
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR, box=box))


def n_beyond_edge(slide: Slide, grid: TileGrid) -> int:
    """The number of tiles that reach past the edge of the slide by half a px or more; white stands for what is not."""
    low, high = grid.centres - grid.side_px / 2, grid.centres + grid.side_px / 2
    return int(((low <= -0.5) | (high >= np.asarray(slide.size) + 0.5)).any(axis=1).sum())


def sample_rows(grid: TileGrid, limit: int = 2000, seed: int = 0) -> Ints:
    """At most `limit` rows of a grid, ascending, the same for the same seed."""
    if len(grid) <= limit:
        return np.arange(len(grid), dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(len(grid), limit, replace=False)).astype(np.int64)
