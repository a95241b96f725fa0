"""Embeddings averaged over flips and rotations, against Pillow's own."""

import numpy as np
import pytest
from PIL import Image

from genrag_cli.backbones.views import PUBLISHED, VIEWS, with_views
from genrag_cli.errors import BackboneError, UsageError
from genrag_cli.types import BackboneCard, Expression

SIDE = 6
RNG = np.random.default_rng(5)
MIX = RNG.standard_normal((SIDE * SIDE * 3, 4))
TILES = RNG.integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
SEVEN = (
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270, Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE,
)  # fmt: skip


class Toy:
    """Tells every view from every other: weighted sums over pixels, squashed, so that order of mean and sum counts."""

    def __init__(self):
        self.card = BackboneCard("toy", "1", dim=4, tile_px=SIDE, licence="MIT", weights_sha256="a" * 64)

    def encode(self, pixels):
        return np.tanh(pixels.reshape(len(pixels), SIDE * SIDE * 3) / 255 @ MIX).astype(np.float32)


class Turned(Toy):
    """Mean and largest value of each channel's pixels: no flip or rotation changes them."""

    def encode(self, pixels):
        peak = pixels.max(axis=(1, 2)).max(axis=1, keepdims=True)
        return np.concatenate([pixels.astype(np.float64).mean(axis=(1, 2)), peak], axis=1).astype(np.float32)


class Model(Toy):
    genes = np.array(["A"])
    scale = None

    def predict(self, spots, genes):
        return Expression(np.zeros((0, 1), np.float32), np.array([]), self.genes, None)


def by_pillow(tiles, identity):
    toy = Toy()
    views = [[np.asarray(Image.fromarray(tile).transpose(turn)) for tile in tiles] for turn in SEVEN]
    views += [list(tiles)] * identity
    return np.mean([toy.encode(np.stack(view)).astype(np.float64) for view in views], axis=0)


@pytest.mark.parametrize(("name", "turn"), [(turn.name.lower(), turn) for turn in SEVEN])
def test_each_view_is_pillows_of_that_name(name, turn):
    found = PUBLISHED[name](TILES)
    for tile, view in zip(TILES, found, strict=True):
        np.testing.assert_array_equal(view, np.asarray(Image.fromarray(tile).transpose(turn)))


def test_seven_views_leave_the_tile_itself_out_and_eight_take_it_in():
    seven, eight = (with_views(Toy(), n).encode(TILES) for n in (7, 8))
    np.testing.assert_allclose(seven, by_pillow(TILES, identity=False), rtol=0, atol=1e-6)
    np.testing.assert_allclose(eight, by_pillow(TILES, identity=True), rtol=0, atol=1e-6)
    assert np.abs(seven - eight).max() > 1e-2
    assert seven.dtype == np.float32


def test_what_no_turn_changes_stays_the_same():
    np.testing.assert_allclose(with_views(Turned(), 7).encode(TILES), Turned().encode(TILES), rtol=1e-6)


@pytest.mark.parametrize("n", [7, 8])
def test_order_and_batch_change_no_bit(n):
    viewed = with_views(Turned(), n)
    together = viewed.encode(TILES)
    np.testing.assert_array_equal(viewed.encode(TILES[::-1])[::-1], together)
    np.testing.assert_array_equal(np.concatenate([viewed.encode(tile[None]) for tile in TILES]), together)
    np.testing.assert_array_equal(viewed.encode(TILES), together)


def test_no_tiles_give_no_embeddings():
    assert with_views(Toy(), 7).encode(TILES[:0]).shape == (0, 4)


def test_one_view_is_the_backbone_itself():
    toy = Toy()
    assert with_views(toy, 1) is toy
    assert toy.card.views == 1


@pytest.mark.parametrize("n", [7, 8])
def test_card_says_how_many_views_and_nothing_else_of_it_changes(n):
    card = with_views(Toy(), n).card
    assert card.views == n
    assert (card.name, card.dim, card.tile_px, card.weights_sha256) == ("toy", 4, SIDE, "a" * 64)


def test_tiles_are_left_as_they_were_and_others_refused():
    before = TILES.copy()
    with_views(Toy(), 8).encode(TILES)
    np.testing.assert_array_equal(TILES, before)
    with pytest.raises(BackboneError, match="takes uint8 tiles"):
        with_views(Toy(), 7).encode(TILES[:, :-1])


@pytest.mark.parametrize("n", [-1, 0, 2, 6, 9])
def test_other_numbers_of_views_are_refused(n):
    with pytest.raises(UsageError, match=f"--views {n} asked; 1, 7, 8"):
        with_views(Toy(), n)
    assert n not in VIEWS


def test_models_that_predict_from_the_tile_as_it_is_are_refused():
    assert with_views(Model(), 1).card.views == 1
    with pytest.raises(UsageError, match="predicts expression from the tile as it is"):
        with_views(Model(), 7)
