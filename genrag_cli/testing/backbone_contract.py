"""What every backbone must do, as tests to inherit.

A plug-in's whole test file:

    from genrag_cli.testing.backbone_contract import BackboneContract

    class TestMine(BackboneContract):
        name = "mine"

Knows the protocol and the registry, not how good an embedding is.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from genrag_cli.backbones.base import Backbone, ExpressionModel, Loading, Reference, SpotContext
from genrag_cli.backbones.registry import load_backbone, names, read_sheet
from genrag_cli.errors import BackboneError, GeneragError
from genrag_cli.types import Floats, Strings, TileBatch


class BackboneContract:
    """Inherit, set `name`, and run pytest. Weights are loaded once a class.

    A backbone whose weights are not on this machine overrides the fixture `loading` (of scope `class`) to say where
    they are, such as random ones that it saved in the layout of the real ones.
    """

    name: str
    device = "cpu"

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls) -> Loading:
        """Where the weights are."""
        return Loading()

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, loading: Loading) -> Backbone:
        """The backbone under test."""
        return load_backbone(cls.name, cls.device, loading)

    @pytest.fixture(scope="class")
    @classmethod
    def tiles(cls, backbone: Backbone) -> NDArray[np.uint8]:
        """Three unlike tiles: noise, one flat colour, a gradient with a dark block."""
        side = backbone.card.tile_px
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        flat = np.full((side, side, 3), (238, 231, 240), np.uint8)
        ramp = np.broadcast_to(np.linspace(120, 250, side).astype(np.uint8)[:, None, None], (side, side, 3)).copy()
        ramp[: side // 3, : side // 2] = (90, 60, 140)
        return np.stack([noise, flat, ramp])

    @pytest.fixture(scope="class")
    @classmethod
    def embedded(cls, backbone: Backbone, tiles: NDArray[np.uint8]) -> Floats:
        """The tiles' embeddings, computed once a class: encoders are large."""
        return backbone.encode(tiles)

    def test_registry_lists_it(self) -> None:
        """Its name is found without loading it."""
        assert self.name.partition(":")[0] in {known.partition(":")[0] for known in names()}

    def test_card_is_filled_in(self, backbone: Backbone) -> None:
        """The card says what files and licences need to know."""
        card = backbone.card
        assert card.name == self.name
        assert card.revision
        assert card.licence
        assert card.dim > 0
        assert card.tile_px > 0
        assert len(card.weights_sha256) in (0, 64)

    def test_sheet_says_what_the_card_says(self, backbone: Backbone) -> None:
        """What is shown before the weights are loaded holds after."""
        sheet, card = read_sheet(self.name), backbone.card
        if sheet is None:
            return
        assert (sheet.name, sheet.tile_px, sheet.licence) == (card.name, card.tile_px, card.licence)
        assert sheet.dim in (None, card.dim)
        assert sheet.feature == card.feature
        assert bool(sheet.weights) == bool(card.weights_sha256)

    def test_embeddings_are_finite_float32_of_the_carded_length(
        self, backbone: Backbone, tiles: NDArray[np.uint8], embedded: Floats
    ) -> None:
        """Shape, dtype and values."""
        assert embedded.shape == (len(tiles), backbone.card.dim)
        assert embedded.dtype == np.float32
        assert np.isfinite(embedded).all()

    def test_unlike_tiles_have_unlike_embeddings(self, embedded: Floats) -> None:
        """It looks at its input."""
        assert not np.allclose(embedded[0], embedded[1])
        assert not np.allclose(embedded[0], embedded[2])

    def test_embedding_does_not_depend_on_its_batch(
        self, backbone: Backbone, tiles: NDArray[np.uint8], embedded: Floats
    ) -> None:
        """Alone, together and in another order come to the same."""
        alone = backbone.encode(tiles[1:2])
        turned = backbone.encode(tiles[::-1])[::-1]
        size = np.abs(embedded).max()
        np.testing.assert_allclose(alone, embedded[1:2], rtol=1e-3, atol=1e-4 * size)
        np.testing.assert_allclose(turned, embedded, rtol=1e-3, atol=1e-4 * size)

    def test_same_tiles_give_the_same_embeddings(
        self, backbone: Backbone, tiles: NDArray[np.uint8], embedded: Floats
    ) -> None:
        """Bit for bit where the card says deterministic."""
        again = backbone.encode(tiles)
        if backbone.card.deterministic:
            np.testing.assert_array_equal(again, embedded)
        else:
            assert again.shape == embedded.shape

    def test_input_is_left_as_it_was(self, backbone: Backbone, tiles: NDArray[np.uint8]) -> None:
        """The caller's pixels are not written to."""
        given = tiles[:1].copy()
        backbone.encode(given)
        np.testing.assert_array_equal(given, tiles[:1])

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


class ExpressionModelContract(BackboneContract):
    """The same for a model that predicts genes by itself.

    A model that retrieves overrides `reference` to give it a bank.
    """

    n_spots = 5

    @pytest.fixture
    def reference(self, backbone: Backbone) -> Reference | None:  # noqa: ARG002 - for those who override it
        """The bank, for models that need one."""
        return None

    @pytest.fixture
    def spots(self, backbone: Backbone, reference: Reference | None) -> SpotContext:
        """Spots in a row of a lattice, with noise for tiles."""
        rng = np.random.default_rng(1)
        side, n = backbone.card.tile_px, self.n_spots
        pixels = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        array_rc = np.stack([np.arange(n) // 3, np.arange(n) % 3], axis=1)

        def tiles(fov_um: float, tile_px: int) -> Iterator[TileBatch]:  # noqa: ARG001 - noise at any scale
            other = np.random.default_rng(2).integers(0, 256, (n, tile_px, tile_px, 3), dtype=np.uint8)
            yield TileBatch(np.arange(n), other)

        return SpotContext(
            features=backbone.encode(pixels),
            centres=(array_rc[:, ::-1] * 200 + 150).astype(np.float64),
            array_rc=array_rc,
            mpp=0.5,
            pitch_um=100.0,
            fov_um=112.0,
            tiles=tiles,
            reference=reference,
        )

    @pytest.fixture
    def asked(self, backbone: Backbone, reference: Reference | None) -> Strings:
        """Some genes, not in the model's order."""
        assert isinstance(backbone, ExpressionModel)
        genes = backbone.genes if len(backbone.genes) or reference is None else reference.expression.genes
        return genes[::-2]

    def test_prediction_declares_genes_and_scale(
        self, backbone: Backbone, spots: SpotContext, asked: Strings, reference: Reference | None
    ) -> None:
        """What was asked, in the order asked, in the scale declared."""
        assert isinstance(backbone, ExpressionModel)
        found = backbone.predict(spots, asked)
        assert found.genes.tolist() == asked.tolist()
        assert found.values.shape == (len(spots), len(asked))
        assert found.values.dtype == np.float32
        assert np.isfinite(found.values).all()
        wanted = backbone.scale or (reference.expression.scale if reference else None)
        assert found.scale == wanted
        assert backbone.card.scale == (backbone.scale.name if backbone.scale else "")
        assert not isinstance(backbone.scale, type(None)) or "bank" in backbone.card.needs

    def test_one_gene_alone_is_the_same(self, backbone: Backbone, spots: SpotContext, asked: Strings) -> None:
        """Which genes are asked for changes none of them."""
        assert isinstance(backbone, ExpressionModel)
        every, one = backbone.predict(spots, asked), backbone.predict(spots, asked[1:2])
        np.testing.assert_allclose(one.values[:, 0], every.values[:, 1], rtol=1e-4, atol=1e-5)

    def test_same_seed_gives_the_same(self, backbone: Backbone, spots: SpotContext, asked: Strings) -> None:
        """Bit for bit."""
        assert isinstance(backbone, ExpressionModel)
        np.testing.assert_array_equal(backbone.predict(spots, asked).values, backbone.predict(spots, asked).values)

    def test_no_spots_and_one_spot_are_predicted_too(
        self, backbone: Backbone, spots: SpotContext, asked: Strings
    ) -> None:
        """A slide may hold little tissue."""
        assert isinstance(backbone, ExpressionModel)
        for n in (0, 1):

            def tiles(fov_um: float, tile_px: int, n: int = n) -> Iterator[TileBatch]:
                assert spots.tiles is not None
                for batch in spots.tiles(fov_um, tile_px):
                    yield TileBatch(batch.rows[:n], batch.pixels[:n])

            few = dataclasses.replace(
                spots, features=spots.features[:n], centres=spots.centres[:n], array_rc=spots.array_rc[:n], tiles=tiles
            )
            found = backbone.predict(few, asked).values
            assert found.shape == (n, len(asked))
            assert np.isfinite(found).all()

    def test_unknown_gene_is_refused(self, backbone: Backbone, spots: SpotContext) -> None:
        """By name."""
        assert isinstance(backbone, ExpressionModel)
        with pytest.raises(GeneragError, match="NO-SUCH-GENE"):
            backbone.predict(spots, np.array(["NO-SUCH-GENE"]))
