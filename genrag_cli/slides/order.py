"""In which order tiles are read, so that what a slide is stored in is decoded as few times as possible.

Knows the pieces (tiles or strips) that a level is stored in. Does not read, and does not change what a tile shows.
"""

import math

import numpy as np

from genrag_cli.slides.base import Slide
from genrag_cli.slides.tiles import best_level
from genrag_cli.types import Ints, TileGrid

CACHE_BYTES = 32 << 20
"""Of decoded pieces; a quarter of what OpenSlide keeps here, since several tiles are read at once."""
_BYTES_PER_PX = 4


def reading_order(slide: Slide, grid: TileGrid, cache_bytes: int = CACHE_BYTES) -> Ints:
    """Orders the tiles of a grid by the pieces that they are read from.

    The level is cut into bands of as many rows of pieces as the cache holds while the band is walked from left to
    right, one column of pieces after the other; only pieces on the border of two bands are decoded twice. A file in
    strips is walked row by row. Where the pieces are unknown, or all is in memory, tiles stay in the order of the grid.

    Args:
        slide: that the grid is of.
        grid: (n spots).
        cache_bytes: of decoded pieces that the reader keeps.

    Returns:
        (n,) every row of the grid once.
    """
    level = best_level(slide, grid)
    piece = slide.tile_size(level)
    if piece is None:
        return np.arange(len(grid), dtype=np.int64)
    (wide, tall), scale = piece, slide.levels[level].downsample
    x, y = np.maximum(grid.centres - grid.side_px / 2, 0).T / scale
    across, down = (math.ceil(grid.side_px / scale / side) + 1 for side in piece)
    rows_kept = cache_bytes // (_BYTES_PER_PX * wide * tall * across)
    band = y // (tall * max(rows_kept - down, 1))
    return np.lexsort((x, y, x // wide, band)).astype(np.int64)
