"""HisToGene on random weights in its published layout and container."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from genrag_cli.backbones.base import ExpressionModel, Loading, SpotContext
from genrag_cli.backbones.registry import load_backbone
from genrag_cli.errors import BackboneError, UsageError
from genrag_cli.testing.backbone_contract import ExpressionModelContract
from genrag_cli.testing.random_weights import random_tensors, save_weights
from genrag_cli.types import Scale

DIM, GENES, N_POS = 32, 7, 35
"""Published: 1024, 785 and 35; heads are 16 of 64 whatever the width."""
NAMES = [f"GENE{i}" for i in range(GENES)]


def layout(depth: int = 1) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `state_dict` in a checkpoint of maxpmx/HisToGene."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (DIM, 3 * 112 * 112), "patch_embedding.bias": (DIM,),
        "x_embed.weight": (N_POS, DIM), "y_embed.weight": (N_POS, DIM),
        "gene_head.0.weight": (DIM,), "gene_head.0.bias": (DIM,),
        "gene_head.1.weight": (GENES, DIM), "gene_head.1.bias": (GENES,),
    }  # fmt: skip
    for i in range(depth):
        layer = {
            "0.norm.weight": (DIM,), "0.norm.bias": (DIM,), "0.fn.to_qkv.weight": (3 * 1024, DIM),
            "0.fn.to_out.0.weight": (DIM, 1024), "0.fn.to_out.0.bias": (DIM,),
            "1.norm.weight": (DIM,), "1.norm.bias": (DIM,),
            "1.fn.net.0.weight": (2 * DIM, DIM), "1.fn.net.0.bias": (2 * DIM,),
            "1.fn.net.3.weight": (DIM, 2 * DIM), "1.fn.net.3.bias": (DIM,),
        }  # fmt: skip
        shapes |= {f"vit.transformer.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def random_weights(depth: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """Patch weights as small as raw pixels of 0..255 ask for, and positions as large as what they are added to."""
    tensors = random_tensors(layout(depth), seed)
    tensors["patch_embedding.weight"] /= 128
    for table in ("x_embed.weight", "y_embed.weight"):
        tensors[table] *= DIM**0.5
    return tensors


def save(folder: Path, tensors: dict[str, torch.Tensor], **options: str) -> Loading:
    """A Lightning checkpoint, and the gene list beside it."""
    path = save_weights(folder / "last.ckpt", tensors, container="state_dict", epoch=99, global_step=3100)
    np.save(folder / "genes.npy", np.array(NAMES, "<U9"))
    return Loading(path, options={"genes": str(folder / "genes.npy"), **options})


class TestHisToGeneKeepsTheContract(ExpressionModelContract):
    name = "histogene"

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tmp_path_factory: pytest.TempPathFactory) -> Loading:
        return save(tmp_path_factory.mktemp("histogene"), random_weights())


def by_hand(t: dict[str, torch.Tensor], pixels: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The published model in float64 numpy, a patch read as [x, y, channel]."""
    w = {k: v.double().numpy() for k, v in t.items()}
    erf = torch.special.erf

    def norm(h: np.ndarray, name: str) -> np.ndarray:
        centred = h - h.mean(-1, keepdims=True)
        return centred / np.sqrt(h.var(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    flat = np.empty((len(pixels), 3 * 112 * 112))
    for i, tile in enumerate(pixels):
        flat[i] = np.concatenate([tile[row, column] for column in range(112) for row in range(112)])
    h = flat @ w["patch_embedding.weight"].T + w["patch_embedding.bias"]
    h = h + w["x_embed.weight"][x] + w["y_embed.weight"][y]
    for i in range(sum(k.endswith("to_qkv.weight") for k in w)):
        at = f"vit.transformer.layers.{i}"
        q, k, v = np.split(norm(h, f"{at}.0.norm") @ w[f"{at}.0.fn.to_qkv.weight"].T, 3, axis=1)
        heads = []
        for j in range(16):
            own = slice(64 * j, 64 * (j + 1))
            logits = q[:, own] @ k[:, own].T / 8
            chances = np.exp(logits - logits.max(1, keepdims=True))
            heads.append(chances / chances.sum(1, keepdims=True) @ v[:, own])
        h = h + np.concatenate(heads, 1) @ w[f"{at}.0.fn.to_out.0.weight"].T + w[f"{at}.0.fn.to_out.0.bias"]
        z = norm(h, f"{at}.1.norm") @ w[f"{at}.1.fn.net.0.weight"].T + w[f"{at}.1.fn.net.0.bias"]
        z = z * 0.5 * (1 + erf(torch.tensor(z / np.sqrt(2))).numpy())
        h = h + z @ w[f"{at}.1.fn.net.3.weight"].T + w[f"{at}.1.fn.net.3.bias"]
    return norm(h, "gene_head.0") @ w["gene_head.1.weight"].T + w["gene_head.1.bias"]


def section(model: ExpressionModel, n: int, seed: int = 0) -> tuple[np.ndarray, SpotContext]:
    """Noise at n places of an array of 6 columns that starts, as her2st's do, at column 3 and row 5."""
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 112, 112, 3), dtype=np.uint8)
    array_rc = np.stack([5 + np.arange(n) // 6, 3 + np.arange(n) % 6], axis=1)
    context = SpotContext(
        features=model.encode(pixels), centres=array_rc[:, ::-1] * 300.0, array_rc=array_rc, mpp=0.67, pitch_um=200.0,
        fov_um=75.0,
    )  # fmt: skip
    return pixels, context


def load(loading: Loading) -> ExpressionModel:
    model = load_backbone("histogene", loading=loading)
    assert isinstance(model, ExpressionModel)
    return model


@pytest.mark.parametrize("n", [1, 31])
def test_prediction_is_the_published_arithmetic(tmp_path: Path, n: int) -> None:
    tensors = random_weights(depth=2, seed=1)
    model = load(save(tmp_path, tensors))
    pixels, spots = section(model, n)
    wanted = by_hand(tensors, pixels, x=spots.array_rc[:, 1], y=spots.array_rc[:, 0])
    asked = np.array(["GENE4", "GENE0", "GENE6"])
    found = model.predict(spots, asked)
    assert found.genes.tolist() == asked.tolist()
    assert wanted.std(0).min() > 0.1 or n == 1
    np.testing.assert_allclose(found.values, wanted[:, [4, 0, 6]], rtol=0, atol=1e-5)


def test_norms_of_faint_inputs_are_the_published_ones(tmp_path: Path) -> None:
    tensors = random_weights(seed=1)
    for name in ("patch_embedding.weight", "patch_embedding.bias", "x_embed.weight", "y_embed.weight"):
        tensors[name] *= 2e-3  # now the variance is about that which a norm adds to it
    model = load(save(tmp_path, tensors))
    pixels, spots = section(model, 6)
    wanted = by_hand(tensors, pixels, x=spots.array_rc[:, 1], y=spots.array_rc[:, 0])
    np.testing.assert_allclose(model.predict(spots, model.genes).values, wanted, rtol=0, atol=1e-5)


def test_a_tile_turned_over_its_diagonal_is_another_tile(tmp_path: Path) -> None:
    model = load(save(tmp_path, random_weights()))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 112, 112, 3), dtype=np.uint8)
    assert not np.allclose(model.encode(pixels), model.encode(pixels.transpose(0, 2, 1, 3)), rtol=0.1)


def test_spots_see_each_other_and_columns_are_not_rows(tmp_path: Path) -> None:
    model = load(save(tmp_path, random_weights()))
    _, spots = section(model, 8)
    every = model.predict(spots, model.genes).values
    half = dataclasses.replace(
        spots, features=spots.features[:4], centres=spots.centres[:4], array_rc=spots.array_rc[:4]
    )
    turned = dataclasses.replace(spots, array_rc=spots.array_rc[:, ::-1].copy())
    assert np.abs(model.predict(half, model.genes).values - every[:4]).max() > 1e-3
    assert np.abs(model.predict(turned, model.genes).values - every).max() > 1e-2


def test_more_spots_than_attend_at_a_time_give_what_all_at_once_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(save(tmp_path, random_weights()))
    _, spots = section(model, 20)
    together = model.predict(spots, model.genes).values
    monkeypatch.setattr("genrag_cli.backbones.models.histogene_network._QUERIES", 6)
    np.testing.assert_allclose(model.predict(spots, model.genes).values, together, rtol=1e-5, atol=1e-5)


def test_shifted_positions_start_at_the_first_row_and_column(tmp_path: Path) -> None:
    tensors = random_weights()
    model = load(save(tmp_path, tensors, positions="shifted"))
    pixels, spots = section(model, 8)
    far = dataclasses.replace(spots, array_rc=spots.array_rc + 70)
    wanted = by_hand(tensors, pixels, x=spots.array_rc[:, 1] - 3, y=spots.array_rc[:, 0] - 5)
    for context in (spots, far):
        np.testing.assert_allclose(model.predict(context, model.genes).values, wanted, rtol=1e-4, atol=1e-4)


def test_positions_beyond_the_tables_are_refused_with_a_remedy(tmp_path: Path) -> None:
    model = load(save(tmp_path, random_weights()))
    _, spots = section(model, 8)
    far = dataclasses.replace(spots, array_rc=spots.array_rc + np.array([0, 30]))
    with pytest.raises(BackboneError, match="knows x positions 0 to 34, these spots have 33 to 38") as caught:
        model.predict(far, model.genes)
    assert "positions=shifted" in caught.value.hint
    wide = dataclasses.replace(spots, array_rc=spots.array_rc * [9, 1])
    with pytest.raises(BackboneError, match="knows y positions 0 to 34, these spots have 45 to 54") as caught:
        model.predict(wide, model.genes)
    assert "positions=shifted" in caught.value.hint
    _, large = section(model, 12)
    with pytest.raises(BackboneError, match="y positions 0 to 34") as caught:
        model.predict(dataclasses.replace(large, array_rc=large.array_rc * [36, 1]), model.genes)
    assert "They span 37" in caught.value.hint


def test_scale_is_log10_of_ten_thousand_of_the_panel(tmp_path: Path) -> None:
    model = load(save(tmp_path, random_weights()))
    assert model.scale == Scale(library="panel", size_factor=1e4, log="log10")
    assert model.card.needs == ("positions", "slide")


def test_another_number_of_genes_is_refused(tmp_path: Path) -> None:
    loading = save(tmp_path, random_weights())
    np.save(tmp_path / "genes.npy", np.array(NAMES[1:]))
    with pytest.raises(BackboneError, match="has 6 genes, the weights have 7"):
        load(loading)


def test_genes_must_be_given(tmp_path: Path) -> None:
    loading = save(tmp_path, random_weights())
    with pytest.raises(BackboneError, match="7 genes and not their names") as caught:
        load(Loading(loading.weights))
    assert "--backbone-option genes=FILE" in caught.value.hint


def test_unknown_way_of_counting_positions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="positions=centred"):
        load(save(tmp_path, random_weights(), positions="centred"))


def test_weights_must_be_named() -> None:
    with pytest.raises(BackboneError, match="not published on a hub") as caught:
        load(Loading())
    assert "--weights FILE" in caught.value.hint


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen", "patch"])
def test_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, change: str) -> None:
    tensors = random_weights()
    told = rf"1 {change}: gene_head\.(0\.bias|2\.bias)"
    if change == "missing":
        del tensors["gene_head.0.bias"]
    elif change == "extra":
        tensors["gene_head.2.bias"] = torch.zeros(3)
    elif change == "misshapen":
        tensors["gene_head.0.bias"] = torch.zeros(3)
    else:
        tensors["patch_embedding.weight"] = torch.zeros(DIM, 1024)
        told = "embeds patches of 1024 numbers, not 3 x 112 x 112"
    with pytest.raises(BackboneError, match=told):
        load(save(tmp_path, tensors))
