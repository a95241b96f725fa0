"""STPath on random weights in the layout of stfm.pth, over GigaPath of one block."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genrag_cli.backbones.base import Backbone, Loading, SpotContext
from genrag_cli.backbones.registry import load_backbone
from genrag_cli.backbones.weights import digest_weights, join_digests
from genrag_cli.errors import BackboneError, UsageError
from genrag_cli.testing.backbone_contract import ExpressionModelContract
from genrag_cli.testing.random_weights import random_tensors, save_weights
from genrag_cli.types import LN_COUNTS, Doubles

WIDTH, HEADS, HIDDEN, FEATURES = 512, 4, 1024, 1536
SYMBOLS = {
    "TP53": "ENSG09", "ACTB": "ENSG03", "P53": "ENSG09", "VIM": "ENSG01", "GATA3": "ENSG07", "EPCAM": "ENSG05",
    "KRT8": "ENSG08", "PTPRC": "ENSG02", "CD45": "ENSG02",
}  # fmt: skip
IDS = ["ENSG01", "ENSG02", "ENSG03", "ENSG05", "ENSG07", "ENSG08", "ENSG09"]
"""What the outputs are, after two that are no genes."""
functional = torch.nn.functional


def stfm(depth: int = 2, n_genes: int = len(IDS) + 2, features: int = FEATURES) -> dict[str, tuple[int, ...]]:
    """Names and shapes of stfm.pth; the published one has 4 blocks and 38,984 outputs."""
    shapes: dict[str, tuple[int, ...]] = {
        "input_encoder.image_embed.weight": (WIDTH, features), "input_encoder.image_embed.bias": (WIDTH,),
        "input_encoder.gene_embed.weight": (WIDTH, n_genes), "input_encoder.tech_embed.weight": (5, WIDTH),
        "input_encoder.organ_embed.weight": (25, WIDTH), "gene_exp_head.0.weight": (WIDTH,),
        "gene_exp_head.0.bias": (WIDTH,), "gene_exp_head.1.weight": (n_genes, WIDTH),
        "gene_exp_head.1.bias": (n_genes,),
    }  # fmt: skip
    for i in range(depth):
        block = {
            "attn.layernorm_qkv.0.weight": (WIDTH,), "attn.layernorm_qkv.0.bias": (WIDTH,),
            "attn.layernorm_qkv.1.weight": (3 * WIDTH, WIDTH), "attn.layernorm_qkv.1.bias": (3 * WIDTH,),
            "attn.W_output.0.weight": (WIDTH, WIDTH), "attn.W_output.0.bias": (WIDTH,),
            "attn.edge_bias.0.weight": (HEADS, 3),
            "mlp.fc1.weight": (HIDDEN, WIDTH), "mlp.fc1.bias": (HIDDEN,),
            "mlp.norm.weight": (HIDDEN,), "mlp.norm.bias": (HIDDEN,),
            "mlp.fc2.weight": (WIDTH, HIDDEN), "mlp.fc2.bias": (WIDTH,),
        }  # fmt: skip
        shapes |= {f"model.blks.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def gigapath() -> dict[str, tuple[int, ...]]:
    """Names and shapes of GigaPath's pytorch_model.bin, of one block instead of 40."""
    w = FEATURES
    block = {
        "norm1.weight": (w,), "norm1.bias": (w,), "attn.qkv.weight": (3 * w, w), "attn.qkv.bias": (3 * w,),
        "attn.proj.weight": (w, w), "attn.proj.bias": (w,), "ls1.gamma": (w,), "norm2.weight": (w,),
        "norm2.bias": (w,), "mlp.fc1.weight": (8192, w), "mlp.fc1.bias": (8192,), "mlp.fc2.weight": (w, 4096),
        "mlp.fc2.bias": (w,), "ls2.gamma": (w,),
    }  # fmt: skip
    return {
        "cls_token": (1, 1, w), "pos_embed": (1, 197, w), "patch_embed.proj.weight": (w, 3, 16, 16),
        "patch_embed.proj.bias": (w,), "norm.weight": (w,), "norm.bias": (w,),
    } | {f"blocks.0.{name}": shape for name, shape in block.items()}  # fmt: skip


@functools.cache
def drawn() -> dict[str, torch.Tensor]:
    """Spatial biases are kept small, so that attention is not all on one spot."""
    tensors = random_tensors(stfm(), seed=4)
    return {name: tensor * 0.05 if "edge_bias" in name else tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Loading:
    folder = tmp_path_factory.mktemp("stpath")
    (folder / "symbol2ensembl.json").write_text(json.dumps(SYMBOLS))
    return Loading(
        save_weights(folder / "stfm.pth", drawn()),
        parts={"gigapath": save_weights(folder / "pytorch_model.bin", random_tensors(gigapath()))},
        options={"genes": str(folder / "symbol2ensembl.json")},
    )


def load(saved: Loading, weights: Path | None = None, **options: str) -> Any:
    told = {**saved.options, **options}
    return load_backbone("stpath", loading=dataclasses.replace(saved, weights=weights or saved.weights, options=told))


def make_spots(n: int, seed: int = 1) -> SpotContext:
    """Spots of a lattice that is not quite regular."""
    rng = np.random.default_rng(seed)
    array_rc = np.stack([np.arange(n) // 6, np.arange(n) % 6], axis=1)
    centres = array_rc[:, ::-1] * 200.0 + rng.random((n, 2)) * 30 + 5000
    return SpotContext(rng.standard_normal((n, FEATURES), dtype=np.float32), centres, array_rc, 0.5, 100.0, 128.0)


class TestStPathKeepsTheContract(ExpressionModelContract):
    name = "stpath"
    n_spots = 3

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, saved: Loading) -> Loading:
        return saved


def bias_by_hand(coordinates: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The published spatial bias (heads, n, n): the mean over four frames of a map of offsets and their lengths."""
    n = len(coordinates)
    out = torch.zeros(len(weight), n, n, dtype=torch.float64)
    for i in range(n):
        offsets = coordinates[i] - coordinates
        lengths = offsets.norm(dim=1, keepdim=True)
        centred = offsets - offsets.mean(dim=0)
        _, axes = torch.linalg.eigh(centred.T @ centred)
        for signs in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            turned = centred @ (axes * torch.tensor(signs))
            out[:, i] += (torch.cat([turned, lengths], dim=1) @ weight.T).T / 4
    return out


def by_hand(features: np.ndarray, centres: Doubles, organ: int = 0, tech: int = 0) -> np.ndarray:
    """All outputs (n, columns), in float64."""
    t = {k: v.double() for k, v in drawn().items()}
    moved = centres - centres.min(axis=0)
    coordinates = torch.tensor(100 * moved / np.maximum(moved.max(axis=0), 1e-300))
    masked = functional.one_hot(torch.ones(len(features), dtype=torch.long), len(IDS) + 2).double()
    e = {k.removeprefix("input_encoder."): v for k, v in t.items()}
    x = torch.tensor(features).double() @ e["image_embed.weight"].T + e["image_embed.bias"]
    x = x + masked @ e["gene_embed.weight"].T + e["tech_embed.weight"][tech] + e["organ_embed.weight"][organ]
    for i in range(2):
        b = {k.removeprefix(f"model.blks.{i}."): v for k, v in t.items()}
        h = functional.layer_norm(x, (WIDTH,), b["attn.layernorm_qkv.0.weight"], b["attn.layernorm_qkv.0.bias"])
        h = h @ b["attn.layernorm_qkv.1.weight"].T + b["attn.layernorm_qkv.1.bias"]
        bias, seen = bias_by_hand(coordinates, b["attn.edge_bias.0.weight"]), []
        for head in range(HEADS):
            q, k, v = (h[:, WIDTH * part + 128 * head : WIDTH * part + 128 * (head + 1)] for part in range(3))
            seen.append(torch.softmax(q @ k.T / np.sqrt(128) + bias[head], dim=-1) @ v)
        x = x + torch.cat(seen, dim=1) @ b["attn.W_output.0.weight"].T + b["attn.W_output.0.bias"]
        h = functional.gelu(x @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"])
        h = functional.layer_norm(h, (HIDDEN,), b["mlp.norm.weight"], b["mlp.norm.bias"])
        x = x + h @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    x = functional.layer_norm(x, (WIDTH,), t["gene_exp_head.0.weight"], t["gene_exp_head.0.bias"])
    return (x @ t["gene_exp_head.1.weight"].T + t["gene_exp_head.1.bias"]).numpy()


@pytest.mark.parametrize("n", [1, 40])
def test_prediction_is_the_published_arithmetic(saved: Loading, n: int) -> None:
    """40 spots are more than go through attention at a time."""
    model, spots = load(saved), make_spots(n)
    found = model.predict(spots, model.genes)
    wanted = by_hand(spots.features, spots.centres)
    assert model.genes.tolist() == list(SYMBOLS) + IDS
    for gene, values in zip(found.genes, found.values.T, strict=True):
        column = 2 + IDS.index(SYMBOLS.get(gene, gene))
        np.testing.assert_allclose(values, wanted[:, column], rtol=1e-4, atol=1e-4)
    assert found.scale == model.scale == LN_COUNTS


def test_a_spot_looks_at_the_others_and_at_how_far_they_are(saved: Loading) -> None:
    model, spots = load(saved), make_spots(12)
    usual = model.predict(spots, model.genes).values[0]
    features, centres = spots.features.copy(), spots.centres.copy()
    features[7] *= -1
    centres[7, 0] = spots.centres[6, 0] + 40
    for changed in (dataclasses.replace(spots, features=features), dataclasses.replace(spots, centres=centres)):
        assert np.abs(model.predict(changed, model.genes).values[0] - usual).max() > 1e-3


def test_only_the_layout_of_the_spots_counts_and_each_axis_by_itself(saved: Loading) -> None:
    model, spots = load(saved), make_spots(12)
    moved = dataclasses.replace(spots, centres=spots.centres * [3, 0.5] - [700, 40])
    found = [model.predict(s, model.genes).values for s in (spots, moved)]
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)


def test_spots_in_one_line_are_predicted_too(saved: Loading) -> None:
    model, spots = load(saved), make_spots(5)
    line = dataclasses.replace(spots, centres=spots.centres * [1, 0] + [0, 300])
    wanted = by_hand(line.features, line.centres)[:, 2 + IDS.index("ENSG03")]
    np.testing.assert_allclose(model.predict(line, np.array(["ACTB"])).values[:, 0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("organ", "tech", "rows"),
    [
        ("Kidney", "Visium", (9, 2)), ("breast", "ST", (5, 1)), ("ovary", "VisiumHD", (19, 4)),
        ("Ovary", "Visium HD", (24, 4)), ("Lymph node", "Xenium", (24, 3)),
        ("Stomach", "Spatial Transcriptomics", (22, 1)), ("24", "0", (24, 0)),
    ],
)  # fmt: skip
def test_organ_and_technology_are_the_rows_of_training(
    saved: Loading, organ: str, tech: str, rows: tuple[int, int]
) -> None:
    spots = make_spots(3)
    found = load(saved, organ=organ, tech=tech).predict(spots, np.array(["VIM"])).values[:, 0]
    np.testing.assert_allclose(found, by_hand(spots.features, spots.centres, *rows)[:, 2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"organ": "Kidny"}, "Kidney"), ({"organ": "<mask>"}, "not trained"), ({"organ": "25"}, "rows 0 to 24"),
        ({"tech": "visium"}, "Visium"), ({"tech": "5"}, "rows 0 to 4"),
    ],
)  # fmt: skip
def test_organs_and_technologies_that_it_does_not_know_are_refused(
    saved: Loading, options: dict[str, str], match: str
) -> None:
    with pytest.raises(UsageError, match=match):
        load(saved, **options)


def test_list_of_genes_is_taken_in_the_order_of_the_outputs(saved: Loading, tmp_path: Path) -> None:
    path = tmp_path / "genes.txt"
    path.write_text("\n".join(reversed(IDS)))
    model, spots = load(saved, genes=str(path)), make_spots(3)
    assert model.genes.tolist() == IDS[::-1]
    wanted = by_hand(spots.features, spots.centres)[:, 2:]
    np.testing.assert_allclose(model.predict(spots, model.genes).values, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (json.dumps({**SYMBOLS, "NEW": "ENSG04"}), "leads to 8 genes, the weights have 7"),
        (json.dumps(IDS), "does not say the id"), (json.dumps({"A": None}), "does not say the id"), ("{", "as JSON"),
        (None, "no gene vocabulary"),
    ],
)  # fmt: skip
def test_vocabulary_that_does_not_fit_is_refused(saved: Loading, tmp_path: Path, text: str | None, match: str) -> None:
    path = tmp_path / "symbol2ensembl.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BackboneError, match=match):
        load(saved, genes=str(path))


def test_missing_vocabulary_is_refused(saved: Loading) -> None:
    with pytest.raises(BackboneError, match="genes=FILE"):
        load_backbone("stpath", loading=dataclasses.replace(saved, options={}))


def test_tiles_are_embedded_by_gigapath_and_both_files_are_named(saved: Loading) -> None:
    model = load(saved)
    encoder: Backbone = load_backbone("gigapath", loading=Loading(saved.parts["gigapath"]))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    np.testing.assert_array_equal(model.encode(pixels), encoder.encode(pixels))
    assert saved.weights is not None
    digests = [digest_weights(path) for path in (saved.weights, saved.parts["gigapath"])]
    assert model.card.weights_sha256 == join_digests(*digests)


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen", "features"])
def test_checkpoint_that_does_not_fit_is_refused_with_names(saved: Loading, tmp_path: Path, change: str) -> None:
    tensors = dict(drawn())
    if change == "missing":
        del tensors["model.blks.1.mlp.norm.bias"]
    elif change == "extra":
        tensors["model.blks.0.attn.extra"] = torch.zeros(2)
    elif change == "misshapen":
        tensors["model.blks.0.attn.edge_bias.0.weight"] = torch.zeros(HEADS, 4)
    else:
        tensors["input_encoder.image_embed.weight"] = torch.zeros(WIDTH, 1024)
    match = {"missing": "1 missing: .*mlp.norm.bias", "extra": "1 extra", "misshapen": "1 misshapen: .*edge_bias"}
    with pytest.raises(BackboneError, match=match.get(change, "embeddings of 1024 numbers, GigaPath's have 1536")):
        load(saved, save_weights(tmp_path / "stfm.pth", tensors))


def test_embeddings_of_another_encoder_are_refused(saved: Loading) -> None:
    spots = make_spots(3)
    with pytest.raises(BackboneError, match="1536"):
        load(saved).predict(dataclasses.replace(spots, features=spots.features[:, :1024]), np.array(["VIM"]))
