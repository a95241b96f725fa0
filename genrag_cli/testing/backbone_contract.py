"""What every backbone must do, as tests to inherit.

A plug-in's whole test file:

    from genrag_cli.testing.backbone_contract import BackboneContract

    class TestMine(BackboneContract):
        name = "mine"

Knows the protocol and the registry, not how good an embedding is.
"""

import functools

import numpy as np
import pytest
from numpy.typing import NDArray

from genrag_cli.backbones.base import Backbone
from genrag_cli.backbones.registry import load_backbone, names
from genrag_cli.errors import BackboneError


@functools.cache
def _load_once(name: str, device: str) -> Backbone:
    return load_backbone(name, device)


class BackboneContract:
    """Inherit, set `name`, and run pytest. Weights are loaded once."""

    name: str
    device = "cpu"

    @pytest.fixture
    def backbone(self) -> Backbone:
        """The backbone under test."""
        return _load_once(self.name, self.device)

    @pytest.fixture
    def tiles(self, backbone: Backbone) -> NDArray[np.uint8]:
        """Three unlike tiles: noise, one flat colour, a gradient with a dark block."""
        side = backbone.card.tile_px
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        flat = np.full((side, side, 3), (238, 231, 240), np.uint8)
        ramp = np.broadcast_to(np.linspace(120, 250, side).astype(np.uint8)[:, None, None], (side, side, 3)).copy()
        ramp[: side // 3, : side // 2] = (90, 60, 140)
        return np.stack([noise, flat, ramp])

    def test_registry_lists_it(self) -> None:
        """Its name is found without loading it."""
        assert self.name in names()

    def test_card_is_filled_in(self, backbone: Backbone) -> None:
        """The card says what files and licences need to know."""
        card = backbone.card
        assert card.name == self.name
        assert card.revision
        assert card.licence
        assert card.dim > 0
        assert card.tile_px > 0
        assert len(card.weights_sha256) in (0, 64)

    def test_embeddings_are_finite_float32_of_the_carded_length(
        self, backbone: Backbone, tiles: NDArray[np.uint8]
    ) -> None:
        """Shape, dtype and values."""
        values = backbone.encode(tiles)
        assert values.shape == (len(tiles), backbone.card.dim)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()

    def test_unlike_tiles_have_unlike_embeddings(self, backbone: Backbone, tiles: NDArray[np.uint8]) -> None:
        """It looks at its input."""
        values = backbone.encode(tiles)
        assert not np.allclose(values[0], values[1])
        assert not np.allclose(values[0], values[2])

    def test_embedding_does_not_depend_on_its_batch(self, backbone: Backbone, tiles: NDArray[np.uint8]) -> None:
        """Alone, together and in another order come to the same."""
        together = backbone.encode(tiles)
        alone = np.concatenate([backbone.encode(tile[None]) for tile in tiles])
        turned = backbone.encode(tiles[::-1])[::-1]
        size = np.abs(together).max()
        np.testing.assert_allclose(alone, together, rtol=1e-3, atol=1e-4 * size)
        np.testing.assert_allclose(turned, together, rtol=1e-3, atol=1e-4 * size)

    def test_same_tiles_give_the_same_embeddings(self, backbone: Backbone, tiles: NDArray[np.uint8]) -> None:
        """Bit for bit where the card says deterministic."""
        first, second = backbone.encode(tiles), backbone.encode(tiles)
        if backbone.card.deterministic:
            np.testing.assert_array_equal(first, second)
        else:
            assert first.shape == second.shape

    def test_input_is_left_as_it_was(self, backbone: Backbone, tiles: NDArray[np.uint8]) -> None:
        """The caller's pixels are not written to."""
        before = tiles.copy()
        backbone.encode(tiles)
        np.testing.assert_array_equal(tiles, before)

    def test_empty_batch_gives_no_embeddings(self, backbone: Backbone, tiles: NDArray[np.uint8]) -> None:
        """Zero tiles are a batch too."""
        assert backbone.encode(tiles[:0]).shape == (0, backbone.card.dim)

    def test_other_dtypes_are_refused(self, backbone: Backbone, tiles: NDArray[np.uint8]) -> None:
        """Pixels that someone has normalised already are an error, not a surprise."""
        with pytest.raises(BackboneError):
            backbone.encode((tiles / 255).astype(np.float32))

    @pytest.mark.parametrize("cut", ["side", "channels", "batch"])
    def test_other_shapes_are_refused(self, backbone: Backbone, tiles: NDArray[np.uint8], cut: str) -> None:
        """A tile of another size, with alpha, or without a batch axis."""
        wrong = {
            "side": tiles[:, :-1, :-1],
            "channels": np.concatenate([tiles, tiles[..., :1]], axis=-1),
            "batch": tiles[0],
        }[cut]
        with pytest.raises(BackboneError):
            backbone.encode(wrong)
