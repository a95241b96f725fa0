"""Tiles from a slide into a backbone without either waiting for the other, as long as memory allows.

Threads read tiles into batches, a bounded number of them ahead and across the borders of blocks; the caller's thread
encodes. Knows batches, blocks and threads. Does not know how a tile is read, how many tiles fit into a network at once
(`backbones.batches` does) or what becomes of a finished block.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

import numpy as np

from genrag_cli.backbones.base import Backbone
from genrag_cli.errors import BackboneError
from genrag_cli.slides import Slide, TileStream, expect_whole, read_tiles
from genrag_cli.types import Floats, Ints, Listener, TileBatch, TileGrid

AHEAD = 128
"""Tiles that are read while others are encoded, or a batch where that is more: enough to bridge a block being written
or a slow corner of the slide."""


def encode_blocks(
    slide: Slide, grid: TileGrid, backbone: Backbone, blocks: Sequence[Ints], *, batch: int, workers: int = 1,
    bursts: bool = False, told: Callable[[int], None] = lambda _: None, begun: TileStream | None = None,
    bad: dict[int, str] | None = None, listener: Listener | None = None,
) -> Generator[Floats, None, None]:  # fmt: skip
    """Reads and encodes blocks of tiles, one after the other.

    Reading does not stop at the end of a block, nor while the caller has one. A batch never spans two blocks, so that
    the same block is always computed in the same batches, whichever blocks come before it.

    Close the iterator (`contextlib.closing`) where an error or Ctrl-C may end its use: that ends the reading too.

    Args:
        slide: open; must stay open until the iterator ends or is closed.
        grid: of that slide.
        backbone: gets batches of raw tiles, in this thread.
        blocks: rows of the grid; all but the last hold a multiple of `batch`.
        batch: tiles that are given to the backbone at a time.
        workers: threads that read.
        bursts: see `read_tiles`; for backbones that work on the CPUs.
        told: after each batch, given the number of tiles so far.
        begun: the same tiles in the same batches, which are being read already.
        bad: takes rows that could not be read, and why; None: the first of them is an error.
        listener: notes the seconds of reading (waiting for tiles) and encoding.

    Yields:
        (b, d) embeddings of each block.

    Raises:
        BackboneError: where the backbone gives values that are no finite numbers.
        SlideError: where a tile cannot be read, once the tiles before it are encoded.
    """
    if not blocks:
        return
    if any(len(block) % batch for block in blocks[:-1]):
        raise ValueError(f"blocks of {[len(block) for block in blocks]} tiles do not end where batches of {batch} do")
    clock, n = listener or Listener(), 0
    if begun is None:
        rows, ahead = np.concatenate(blocks), ahead_of(batch)
        reading = read_tiles(slide, grid, rows, batch, workers, ahead, bursts, lasting=False)
    else:
        reading = begun.batches(bursts=bursts, lasting=False)
    with closing(reading) as batches:
        for block in blocks:
            done = []
            for _ in range(0, len(block), batch):
                with clock.timed("read"):
                    tiles = next(batches)
                if bad is None:
                    expect_whole(tiles)
                else:
                    bad.update(tiles.bad)
                with clock.timed("encode"):
                    done.append(_expect_numbers(backbone.encode(tiles.pixels), backbone, tiles, grid))
                n += len(tiles.rows)
                told(n)
            yield np.concatenate(done)


def _expect_numbers(values: Floats, backbone: Backbone, tiles: TileBatch, grid: TileGrid) -> Floats:
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(wrong):
        raise BackboneError(
            f"{grid.slide_id}: {backbone.card.name} gave values that are no finite numbers for {len(wrong)} of "
            f"{len(values)} tiles, first {grid.names[tiles.rows[wrong[0]]]}",
            "Are its weights whole? `generag backbones check` tells; so does --device cpu of an ill GPU.",
        )
    return values


def ahead_of(batch: int) -> int:
    """Batches of a size that are read ahead."""
    return max(1, AHEAD // batch)
