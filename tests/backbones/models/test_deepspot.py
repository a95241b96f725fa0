"""DeepSpot on random weights in its published layout, against its published equations written out in numpy."""

import importlib
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from genrag_cli.backbones.base import Loading, SpotContext
from genrag_cli.backbones.models.deepspot_encoder import KNOWN
from genrag_cli.backbones.registry import load_backbone
from genrag_cli.backbones.weights import digest_weights, join_digests
from genrag_cli.errors import BackboneError
from genrag_cli.testing.backbone_contract import ExpressionModelContract
from genrag_cli.testing.random_weights import random_tensors, save_weights
from genrag_cli.types import LOG1P_CP10K, TileBatch, fingerprint

layout = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("deepspot_layout.py"))))
GENES, WIDTH, HIDDEN, ENSEMBLE = layout.GENES, layout.WIDTH, layout.HIDDEN, layout.ENSEMBLE
deepspot, uni, save_genes = layout.deepspot, layout.uni, layout.save_genes
save, save_scaler = layout.save, layout.save_scaler
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("encoder") / "pytorch_model.bin", random_tensors(uni(), seed=1))


class TestDeepSpotKeepsTheContract(ExpressionModelContract):
    name = "deepspot"
    n_spots = 2

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Loading:
        return save(tmp_path_factory.mktemp("deepspot"), random_tensors(deepspot()), encoder)


def phi_by_hand(t: Tensors, x: np.ndarray) -> np.ndarray:
    """(b, D) to (b, 512): ReLU of a linear layer, ten times; the fifth smallest of the ten."""
    every = []
    for i in range(ENSEMBLE):
        w, b = (t[f"phi_spot.{i}.model.0.{k}"].double().numpy() for k in ("weight", "bias"))
        every.append(np.maximum(x.astype(float) @ w.T + b, 0))
    middle: np.ndarray = np.sort(every, axis=0)[ENSEMBLE // 2 - 1]
    return middle


def rho_by_hand(t: Tensors, x: np.ndarray) -> np.ndarray:
    every = []
    for i in range(ENSEMBLE):
        w, b = (t[f"rho.{i}.model.2.{k}"].double().numpy() for k in ("weight", "bias"))
        every.append(np.maximum(x, 0) @ w.T + b)
    mean: np.ndarray = np.mean(every, axis=0)
    return mean


def parts_by_hand(tile: np.ndarray) -> list[np.ndarray]:
    """The 3 x 3 parts of a tile, cut at its own resolution."""
    s = len(tile) // 3
    return [tile[i * s : (i + 1) * s, j * s : (j + 1) * s] for i in range(3) for j in range(3)]


def uni_by_hand(path: Path, parts: list[np.ndarray]) -> np.ndarray:
    """UNI of parts that become floats first and are then resized, bilinear with antialiasing."""
    backbone: Any = load_backbone("uni", loading=Loading(path))
    net = backbone._net
    mean, sd = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    out = []
    for part in parts:
        x = torch.tensor(part).permute(2, 0, 1)[None].float() / 255
        x = torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True, align_corners=False)
        out.append(net((x - mean.view(1, 3, 1, 1)) / sd.view(1, 3, 1, 1))[0].numpy())
    return np.stack(out)


def neighbours_by_hand(array_rc: np.ndarray, row: int, radius: int = 1) -> list[int]:
    near = (np.abs(array_rc - array_rc[row]) <= radius).all(axis=1)
    return [i for i in np.flatnonzero(near) if i != row]


def reader(tiles: list[np.ndarray], fov_um: float) -> Callable[[float, int], Any]:
    def read(fov: float, tile_px: int) -> Iterator[TileBatch]:
        assert (fov, tile_px) == (fov_um, len(tiles[0]))
        for low in range(0, len(tiles), 4):
            yield TileBatch(np.arange(low, min(low + 4, len(tiles))), np.stack(tiles[low : low + 4]))

    return read


def test_single_spot_is_the_published_arithmetic_and_its_missing_neighbours_are_black(
    tmp_path: Path, encoder: Path
) -> None:
    tensors = random_tensors(deepspot(), seed=3)
    given = save(tmp_path, tensors, encoder)
    model: Any = load_backbone("deepspot", loading=given)
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 256, (1100, 1100, 3), dtype=np.uint8)  # 55 um at 0.05 um: 3 does not divide it
    spot = rng.integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    features = model.encode(spot)
    np.testing.assert_array_equal(features, load_backbone("uni", loading=Loading(encoder)).encode(spot))
    spots = SpotContext(
        features=features, centres=np.array([[300.0, 300]]), array_rc=np.array([[4, 4]]), mpp=0.05, pitch_um=100,
        fov_um=55, tiles=reader([tile], 55),
    )  # fmt: skip
    found = model.predict(spots, np.array(["MUC2", "EPCAM"]))

    parts = uni_by_hand(encoder, parts_by_hand(tile))
    black = uni_by_hand(encoder, [np.zeros((1100, 1100, 3), np.uint8)])
    bags = [phi_by_hand(tensors, features)[0], phi_by_hand(tensors, parts).sum(0), phi_by_hand(tensors, black)[0]]
    _, mean, scale = save_scaler(tmp_path)
    expected = np.maximum(rho_by_hand(tensors, np.concatenate(bags)[None]) * scale + mean, 0)
    assert parts_by_hand(tile)[0].shape == (366, 366, 3)
    np.testing.assert_allclose(found.values, expected[:, [2, 0]], rtol=1e-4, atol=1e-4)
    assert found.scale == LOG1P_CP10K
    assert model.card.genes_sha256 == fingerprint(np.array(GENES))
    files = [given.weights, encoder, tmp_path / "scaler.npz"]
    assert model.card.weights_sha256 == join_digests(*(digest_weights(path) for path in files if path))


class MeanColour:
    """An encoder that costs nothing: fixed projections of a tile's mean colour."""

    dim = WIDTH

    def __init__(self) -> None:
        self.towards = np.random.default_rng(8).standard_normal((3, WIDTH)).astype(np.float32)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        embedded: np.ndarray = (pixels.mean(axis=(1, 2)) / 255 - 0.5).astype(np.float32) @ self.towards
        return embedded


@pytest.mark.parametrize("radius", [1, 2])
def test_whole_section_is_the_published_arithmetic(tmp_path: Path, encoder: Path, radius: int) -> None:
    tensors = random_tensors(deepspot(), seed=4)
    model: Any = load_backbone("deepspot", loading=save(tmp_path, tensors, encoder, radius=str(radius)))
    model.encoder = MeanColour()
    rng, n = np.random.default_rng(1), 30
    rows, steps = np.divmod(np.arange(n - 1), 6)
    array_rc = np.concatenate([np.stack([rows, 2 * steps + rows % 2], 1), [[40, 40]]])  # Visium; the last is alone
    tiles = [rng.integers(0, 256, (37, 37, 3), dtype=np.uint8) for _ in range(n)]
    features = rng.standard_normal((n, WIDTH), dtype=np.float32)
    spots = SpotContext(
        features=features, centres=array_rc[:, ::-1] * 100.0, array_rc=array_rc, mpp=1.5, pitch_um=100, fov_um=55,
        tiles=reader(tiles, 55),
    )  # fmt: skip
    found = model.predict(spots, np.array(GENES)).values

    own, black = phi_by_hand(tensors, features), phi_by_hand(tensors, MeanColour().encode(np.zeros((1, 9, 9, 3))))
    parts = np.stack([
        phi_by_hand(tensors, MeanColour().encode(np.stack(parts_by_hand(tile)))).sum(0) for tile in tiles
    ])  # fmt: skip
    near = [neighbours_by_hand(array_rc, i, radius) for i in range(n)]
    assert len(near[7]) == (4 if radius == 1 else 9)
    assert not near[-1]
    largest = np.stack([own[others].max(0) if others else black[0] for others in near])
    _, mean, scale = save_scaler(tmp_path)
    expected = np.maximum(rho_by_hand(tensors, np.concatenate([own, parts, largest], 1)) * scale + mean, 0)
    assert (expected == 0).any()
    assert (expected > 0).any()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("context", ["spot", "spot_subspot", "spot_neighbors"])
def test_fewer_bags_are_joined_in_upstreams_order(tmp_path: Path, encoder: Path, context: str) -> None:
    bags = context.count("_") + 1
    tensors = random_tensors(deepspot(bags), seed=6)
    model: Any = load_backbone("deepspot", loading=save(tmp_path, tensors, encoder, context=context, scaler="none"))
    model.encoder = MeanColour()
    rng = np.random.default_rng(2)
    features, array_rc = rng.standard_normal((3, WIDTH), dtype=np.float32), np.array([[0, 0], [0, 1], [1, 0]])
    tiles = [rng.integers(0, 256, (55, 55, 3), dtype=np.uint8) for _ in range(3)]
    spots = SpotContext(
        features=features, centres=array_rc * 100.0, array_rc=array_rc, mpp=1, pitch_um=100, fov_um=55,
        tiles=reader(tiles, 55) if "subspot" in context else None,
    )  # fmt: skip
    found = model.predict(spots, np.array(GENES)).values

    own = phi_by_hand(tensors, features)
    parts = [phi_by_hand(tensors, MeanColour().encode(np.stack(parts_by_hand(t)))).sum(0) for t in tiles]
    largest = np.stack([own[neighbours_by_hand(array_rc, i)].max(0) for i in range(3)])
    joined = {"spot": [own], "spot_subspot": [own, np.stack(parts)], "spot_neighbors": [own, largest]}[context]
    expected = np.maximum(rho_by_hand(tensors, np.concatenate(joined, 1)), 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert model.card.needs == (("neighbours", "positions") if "neighbors" in context else ())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"genes": ""}, "6 genes and not their names"),
        ({"scaler": ""}, "do not say how training scaled"),
        ({"scaler": "nowhere.npz"}, r"nowhere\.npz cannot be read as a scaler"),
        ({"encoder": "unii"}, "unknown encoder 'unii'"),
        ({"radius": "one"}, "radius 'one' is not a whole number"),
        ({"context": "spot"}, "context 'spot' asked, its tensors are of spot_subspot_neighbors"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, encoder: Path, options: dict[str, str], told: str) -> None:
    with pytest.raises(BackboneError, match=told):
        load_backbone("deepspot", loading=save(tmp_path, random_tensors(deepspot()), encoder, **options))


def test_two_bags_without_a_context_are_refused(tmp_path: Path, encoder: Path) -> None:
    with pytest.raises(BackboneError, match="two bags") as told:
        load_backbone("deepspot", loading=save(tmp_path, random_tensors(deepspot(2)), encoder))
    assert "spot_subspot or spot_neighbors" in told.value.hint


def test_gene_table_of_another_model_and_scaler_of_another_length_are_refused(tmp_path: Path, encoder: Path) -> None:
    given = save(tmp_path, random_tensors(deepspot()), encoder)
    table = Path(given.options["genes"])
    table.write_text(table.read_text().replace("OTHER0,,False", "OTHER0,,True"))
    with pytest.raises(BackboneError, match="7 predicted genes, 7 of them unlike; the weights have 6"):
        load_backbone("deepspot", loading=given)
    given = save(tmp_path, random_tensors(deepspot()), encoder)
    np.savez(given.options["scaler"], mean=np.zeros(5), scale=np.ones(5))
    with pytest.raises(BackboneError, match=r"mean of the scaler .* shape \(5,\)"):
        load_backbone("deepspot", loading=given)


def test_slide_that_is_missing_or_too_coarse_is_refused(tmp_path: Path, encoder: Path) -> None:
    model: Any = load_backbone("deepspot", loading=save(tmp_path, random_tensors(deepspot()), encoder))
    held: dict[str, Any] = {
        "features": np.zeros((1, WIDTH), np.float32), "centres": np.zeros((1, 2)), "array_rc": np.zeros((1, 2), int),
        "pitch_um": 100.0, "fov_um": 55.0,
    }  # fmt: skip
    with pytest.raises(BackboneError, match="no slide to read") as told:
        model.predict(SpotContext(mpp=0.5, **held), np.array(GENES))
    assert "Give the slide" in told.value.hint
    with pytest.raises(BackboneError, match="is 2 px of this slide"):
        model.predict(SpotContext(mpp=30, tiles=reader([], 55), **held), np.array(GENES))


@pytest.mark.parametrize("name", ["uni", "h-optimus-0", "phikon-v2", "resnet50"])
def test_encoders_that_it_may_be_told_of_are_the_recipes_of_that_name(name: str) -> None:
    known = KNOWN[name]
    recipe = importlib.import_module(f"genrag_cli.backbones.encoders.{known.module}").RECIPE
    assert recipe.sheet.name == name
