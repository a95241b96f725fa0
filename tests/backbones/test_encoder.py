"""From tiles to a network's inputs, against Pillow and numpy; and a recipe from end to end."""

import numpy as np
import pytest
import torch
from PIL import Image

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.backbones.encoder import HALVES, IMAGENET, OPENAI_CLIP, EncoderRecipe, Transform, resize_tiles
from genrag_cli.errors import BackboneError
from genrag_cli.testing.random_weights import save_weights

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
TILES = np.random.default_rng(2).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)


def by_hand(tile, resize, filter_name, crop, mean, sd):
    """One tile, the way torchvision's Resize, CenterCrop, ToTensor and Normalize describe it, in float64."""
    image = Image.fromarray(tile)
    if resize is not None and image.size != (resize, resize):
        image = image.resize((resize, resize), FILTERS[filter_name])
    if crop is not None:
        left = round((image.width - crop) / 2.0)
        top = round((image.height - crop) / 2.0)
        image = image.crop((left, top, left + crop, top + crop))
    values = np.asarray(image).astype(np.float64) / 255.0
    return np.stack([(values[..., c] - mean[c]) / sd[c] for c in range(3)])


@pytest.mark.parametrize("statistics", [IMAGENET, OPENAI_CLIP, HALVES], ids=["imagenet", "clip", "halves"])
@pytest.mark.parametrize(
    ("resize", "filter_name", "crop"),
    [
        (None, "bilinear", None),
        (24, "bicubic", None),
        (12, "bilinear", None),
        (12, "bicubic", None),
        (31, "lanczos", None),
        (None, "bilinear", 16),
        (16, "bicubic", 13),
        (17, "bicubic", 12),
    ],
)
def test_transform_is_resize_then_crop_then_normalise(statistics, resize, filter_name, crop):
    mean, sd = statistics
    found = Transform(mean, sd, resize, filter_name, crop)(TILES)
    expected = np.stack([by_hand(tile, resize, filter_name, crop, mean, sd) for tile in TILES])
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-6)


def test_published_statistics_are_these():
    assert IMAGENET == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert OPENAI_CLIP == ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    assert HALVES == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_filters_differ_so_that_the_wrong_one_would_be_noticed():
    made = [resize_tiles(TILES, 12, name) for name in FILTERS]
    assert all(np.abs(made[i].astype(int) - made[j]).max() > 3 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_tiles_of_the_right_side_are_not_resampled():
    assert resize_tiles(TILES, 24, "bicubic") is TILES


def test_read_only_and_strided_tiles_are_taken():
    flipped = TILES[:, ::-1]
    flipped.flags.writeable = False
    found = Transform(*HALVES)(flipped)
    np.testing.assert_array_equal(found.numpy(), Transform(*HALVES)(np.ascontiguousarray(flipped)).numpy())


def test_no_tiles_are_an_empty_input():
    assert Transform(*HALVES, resize=12, crop=10)(TILES[:0]).shape == (0, 3, 10, 10)


class Toy(torch.nn.Module):
    """Mean colour through a matrix."""

    def __init__(self, width):
        super().__init__()
        self.head = torch.nn.Linear(3, width)

    def forward(self, inputs):
        return self.head(inputs.mean(dim=(2, 3)))


def recipe(dim=5, pool=lambda net, inputs: net(inputs), **more):
    sheet = BackboneSheet(
        name="toy", kind="encoder", dim=dim, tile_px=24, licence="MIT", feature="mean colour", source="this test",
        weights=(WeightsFile(repo="made-up/toy", filenames=("toy.bin",), revision="abc"),),
    )  # fmt: skip
    build = lambda checkpoint: Toy(checkpoint.shape("head.weight")[0])  # noqa: E731
    return EncoderRecipe(sheet, build, pool, Transform(*IMAGENET), **more)


@pytest.fixture
def weights(tmp_path):
    rng = np.random.default_rng(1)
    tensors = {
        "head.weight": torch.tensor(rng.standard_normal((5, 3)), dtype=torch.float32),
        "head.bias": torch.tensor(rng.standard_normal(5), dtype=torch.float32),
    }
    return save_weights(tmp_path / "toy.bin", tensors), tensors


def expected_of(tensors):
    mean, sd = map(np.array, IMAGENET)
    colour = ((TILES / 255 - mean) / sd).mean(axis=(1, 2))
    return colour @ tensors["head.weight"].double().numpy().T + tensors["head.bias"].double().numpy()


def test_recipe_loads_an_encoder_whose_card_says_what_the_sheet_said(weights):
    path, tensors = weights
    encoder = recipe()(weights=path)
    np.testing.assert_allclose(encoder.encode(TILES), expected_of(tensors), rtol=1e-5, atol=1e-5)
    card = encoder.card
    assert (card.name, card.dim, card.tile_px, card.revision, card.feature) == ("toy", 5, 24, "abc", "mean colour")
    assert len(card.weights_sha256) == 64


def test_folder_that_holds_the_file_will_do(weights):
    path, tensors = weights
    np.testing.assert_allclose(recipe()(weights=path.parent).encode(TILES), expected_of(tensors), rtol=1e-5, atol=1e-5)


def test_dimension_that_the_sheet_leaves_open_is_measured(weights):
    assert recipe(dim=None)(weights=weights[0]).card.dim == 5


def test_tensors_can_be_picked_before_loading(weights, tmp_path):
    _, tensors = weights
    path = save_weights(
        tmp_path / "clip.bin", {"text.a": torch.zeros(2)} | {f"visual.{k}": v for k, v in tensors.items()}
    )
    found = recipe(select=lambda checkpoint: checkpoint.under("visual."))(weights=path)
    np.testing.assert_allclose(found.encode(TILES), expected_of(tensors), rtol=1e-5, atol=1e-5)
    with pytest.raises(BackboneError, match=r"no tensor head\.weight; it has 3 tensors"):
        recipe()(weights=path)


def test_features_of_another_width_than_the_sheet_says_are_refused(weights):
    with pytest.raises(BackboneError, match="shape"):
        recipe(dim=7)(weights=weights[0]).encode(TILES)
    with pytest.raises(BackboneError, match="shape"):
        recipe(dim=1)(weights=weights[0]).encode(TILES)


def test_features_that_are_no_row_a_tile_are_refused(weights):
    tokens = recipe(pool=lambda net, inputs: net(inputs)[:, None])
    with pytest.raises(BackboneError, match=r"backbone toy: features of shape \(3, 1, 5\)"):
        tokens(weights=weights[0]).encode(TILES)


def test_device_that_is_not_there_is_refused(weights):
    with pytest.raises(BackboneError, match="abacus"):
        recipe()("abacus", weights[0])
