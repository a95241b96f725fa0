"""Tiles into a backbone: the same numbers as block by block, neither side waiting, nothing left behind."""

import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from genrag_cli.errors import OutputError, SlideError
from genrag_cli.pipeline.embedding import embed_blocks
from genrag_cli.pipeline.feed import AHEAD, encode_blocks
from genrag_cli.pipeline.options import RunOptions
from genrag_cli.slides import open_patches, plan_spots, read_tiles
from genrag_cli.slides.base import Level
from genrag_cli.stores.atomic import Parts
from genrag_cli.types import Listener, PixelSize, TileGrid
from genrag_cli.units import Mpp

TILE, PATIENCE = 8, 20.0
ONE = PixelSize(Mpp(1.0), "test")


class Slide:
    """Noise, one tile after the other in a row; counts the tiles that were read and fails where it is told to."""

    path, slide_id = Path("noise"), "noise"

    def __init__(self, n, broken=None):
        self.image = np.random.default_rng(0).integers(0, 256, (TILE, n * TILE, 3), dtype=np.uint8)
        self.size = (n * TILE, TILE)
        self.levels = [Level(n * TILE, TILE, 1.0)]
        self.broken, self.read = broken, []

    def tile_size(self, level):
        return None

    def read_region(self, x, y, w, h, level):
        self.read.append(x // TILE)
        if self.broken == x // TILE:
            raise SlideError(f"tile {self.broken} is damaged")
        return self.image[y : y + h, x : x + w]

    def grid(self) -> TileGrid:
        n = self.size[0] // TILE
        centres = np.stack([(np.arange(n) + 0.5) * TILE, np.full(n, TILE / 2)], axis=1)
        return plan_spots(self, ONE, ([f"s{i}" for i in range(n)], centres), fov_um=TILE, pitch_um=TILE, tile_px=TILE)


class Encoder:
    """Mean colours; `meanwhile(number of the batch)` is called while it encodes."""

    def __init__(self, meanwhile=lambda number: None):
        self.batches, self.meanwhile = [], meanwhile

    def encode(self, pixels):
        self.batches.append(pixels.copy())
        self.meanwhile(len(self.batches) - 1)
        return pixels.mean(axis=(1, 2)).astype(np.float32)


def cut(n, block=32):
    return [np.arange(low, min(low + block, n)) for low in range(0, n, block)]


def wait_for(condition):
    """Whether it comes true within a long time; a test that passes does not wait it out."""
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("tiles")]


def embed_all(slide, encoder, parts, device="cpu"):
    options = RunOptions(device=device, workers=2)
    return embed_blocks(slide, slide.grid(), encoder, parts, options, Listener(), "embed")


@pytest.mark.parametrize("workers", [1, 3])
def test_blocks_are_computed_in_the_batches_of_each_block_by_itself(workers):
    slide, encoder, alone = Slide(75), Encoder(), []
    for block in cut(75):
        alone += [batch.pixels for batch in read_tiles(slide, slide.grid(), block, batch=8)]
    found = list(encode_blocks(slide, slide.grid(), encoder, cut(75), batch=8, workers=workers))
    assert [len(values) for values in found] == [32, 32, 11]
    assert [len(batch) for batch in encoder.batches] == [8, 8, 8, 8, 8, 8, 8, 8, 8, 3]
    for one, other in zip(encoder.batches, alone, strict=True):
        np.testing.assert_array_equal(one, other)
    expected = slide.image.reshape(TILE, 75, TILE, 3).mean(axis=(0, 2))
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-6)


def test_reading_goes_on_while_a_batch_is_encoded_and_over_the_end_of_its_block():
    slide, ahead = Slide(256), []

    def meanwhile(number):  # the last batch of the first block: the next block's tiles must come before it is done
        if number == 3:
            ahead.append(wait_for(lambda: len(slide.read) >= 32 + AHEAD))

    for _ in encode_blocks(slide, slide.grid(), Encoder(meanwhile), cut(256), batch=8):
        pass
    assert ahead == [True]


def test_reading_goes_on_while_the_caller_has_a_block():
    slide = Slide(256)
    blocks = encode_blocks(slide, slide.grid(), Encoder(), cut(256), batch=8)
    next(blocks)
    assert wait_for(lambda: len(slide.read) == 32 + AHEAD)
    blocks.close()


@pytest.mark.parametrize(("batch", "ahead"), [(8, AHEAD), (200, 200)])
def test_no_more_is_read_ahead_than_memory_was_planned_for(batch, ahead):
    slide, seen = Slide(800), []

    def meanwhile(number):
        if number == 1:
            wait_for(lambda: len(slide.read) >= 2 * batch + ahead)
            time.sleep(0.05)
            seen.append(len(slide.read))

    for _ in encode_blocks(slide, slide.grid(), Encoder(meanwhile), cut(800, 400), batch=batch, workers=4):
        pass
    assert seen == [2 * batch + ahead]


def test_an_error_while_reading_reaches_the_caller_after_the_tiles_before_it():
    slide, encoder = Slide(96, broken=50), Encoder()
    blocks = encode_blocks(slide, slide.grid(), encoder, cut(96), batch=8, workers=2)
    next(blocks)
    with pytest.raises(SlideError, match="tile 50 is damaged"):
        next(blocks)
    assert len(encoder.batches) == 6
    assert readers() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SlideError])
def test_an_end_while_encoding_leaves_no_thread_and_whole_parts_only(tmp_path, error):
    def stop(number):
        if number == 11:  # in the second block of 256, in batches of 32
            raise error("stop")

    slide, parts = Slide(700), Parts(tmp_path / "e", "key", "parts")
    with pytest.raises(error) as caught:
        list(embed_all(slide, Encoder(stop), parts))
    assert caught.value.__traceback__ is not None, "which holds on to the iterators, so that they must have been closed"
    assert readers() == []
    assert sorted(p.name for p in parts.folder.iterdir()) == ["000000.npz", "key"]


def test_a_part_that_cannot_be_written_ends_the_reading_too(tmp_path, monkeypatch):
    def full(number, **_):
        raise OutputError("disk full")

    slide, parts = Slide(700), Parts(tmp_path / "e", "key", "parts")
    monkeypatch.setattr(parts, "write", full)
    with pytest.raises(OutputError) as caught:
        list(embed_all(slide, Encoder(), parts))
    assert readers() == [], f"while {caught.value} holds on to the iterators"


def test_finished_blocks_are_neither_read_nor_encoded_and_the_result_is_the_same_to_the_bit(tmp_path):
    slide, encoder = Slide(700), Encoder()
    whole = np.concatenate(list(embed_all(slide, encoder, Parts(tmp_path / "whole", "key", "parts"))))
    parts = Parts(tmp_path / "resumed", "key", "parts")
    parts.write(1, values=whole[256:512])
    slide.read.clear()
    again = Encoder()
    resumed = np.concatenate(list(embed_all(slide, again, parts)))
    np.testing.assert_array_equal(resumed, whole)
    assert sorted(slide.read) == [*range(256), *range(512, 700)]
    for one, other in zip(again.batches, encoder.batches[:8] + encoder.batches[16:], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("device", "sizes"), [("cpu", [32] * 9 + [12]), ("cuda", [256, 44])])
def test_a_gpu_is_given_whole_blocks_to_take_as_many_at_a_time_as_fit(tmp_path, device, sizes):
    slide, encoder = Slide(300), Encoder()
    list(embed_all(slide, encoder, Parts(tmp_path / "e", "key", "parts"), device))
    assert [len(batch) for batch in encoder.batches] == sizes


def test_nothing_reads_while_blocks_are_given_so_that_the_slide_may_be_closed(tmp_path):
    slide = Slide(700)
    blocks = embed_all(slide, Encoder(), Parts(tmp_path / "e", "key", "parts"))
    next(blocks)
    assert readers() == []
    assert len(slide.read) == 700


def test_what_is_done_is_told_batch_by_batch():
    slide, told = Slide(40), []
    list(encode_blocks(slide, slide.grid(), Encoder(), cut(40), batch=16, told=told.append))
    assert told == [16, 32, 40]


def test_no_blocks_give_nothing_and_read_nothing():
    slide = Slide(8)
    assert list(encode_blocks(slide, slide.grid(), Encoder(), [], batch=8)) == []
    assert slide.read == []


def test_blocks_that_end_within_a_batch_are_refused():
    slide = Slide(40)
    with pytest.raises(ValueError, match="batches of 12"):
        list(encode_blocks(slide, slide.grid(), Encoder(), cut(40), batch=12))


def test_patches_in_place_of_a_slide_are_fed_across_blocks_too(tmp_path):
    n, rng = 40, np.random.default_rng(3)
    names, centres = [f"s{i}" for i in range(n)], rng.integers(10, 900, (n, 2)).astype(float)
    pixels = rng.integers(0, 256, (n, TILE, TILE, 3), dtype=np.uint8)
    order = rng.permutation(n)
    with h5py.File(tmp_path / "patches.h5", "w") as file:
        file["img"], file["coords"] = pixels[order], (centres - TILE / 2).astype(np.int64)[order]
        file["barcode"] = np.array([names[i].encode() for i in order]).reshape(-1, 1)
        file["img"].attrs.update(patch_size_src=TILE, pixel_size=1.0)
    with open_patches(tmp_path / "patches.h5") as slide:
        grid = plan_spots(slide, ONE, (names, centres), fov_um=TILE, pitch_um=TILE, tile_px=TILE)
        found = list(encode_blocks(slide, grid, Encoder(), cut(n, 16), batch=8, workers=3))
    np.testing.assert_allclose(np.concatenate(found), pixels.mean(axis=(1, 2)), rtol=1e-6)
    assert readers() == []
