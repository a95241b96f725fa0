"""Loki's average, and OmiCLIP's image tower on random weights in the layout of open_clip's `coca_ViT-L-14`."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genrag_cli.backbones.base import Backbone, ExpressionModel, Loading, Reference, SpotContext
from genrag_cli.backbones.checkpoints import read_checkpoint
from genrag_cli.backbones.registry import load_backbone, read_sheet
from genrag_cli.errors import BackboneError
from genrag_cli.testing.backbone_contract import ExpressionModelContract
from genrag_cli.testing.random_weights import random_tensors, save_weights
from genrag_cli.types import LOG1P_CP10K, Expression, Floats, Strings

WIDTH, DIM = 1024, 768


def coca_l14(depth: int = 1) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the image tower, and a few of the text towers."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (), "text.cls_emb": (768,), "text.positional_embedding": (76, 768),
        "text_decoder.ln_final.weight": (768,),
        "visual.class_embedding": (WIDTH,), "visual.positional_embedding": (257, WIDTH),
        "visual.conv1.weight": (WIDTH, 3, 14, 14), "visual.ln_pre.weight": (WIDTH,), "visual.ln_pre.bias": (WIDTH,),
        "visual.attn_pool.query": (256, DIM),
        "visual.attn_pool.attn.q_proj_weight": (DIM, DIM), "visual.attn_pool.attn.k_proj_weight": (DIM, WIDTH),
        "visual.attn_pool.attn.v_proj_weight": (DIM, WIDTH), "visual.attn_pool.attn.in_proj_bias": (3 * DIM,),
        "visual.attn_pool.attn.out_proj.weight": (DIM, DIM), "visual.attn_pool.attn.out_proj.bias": (DIM,),
        "visual.attn_pool.ln_q.weight": (DIM,), "visual.attn_pool.ln_q.bias": (DIM,),
        "visual.attn_pool.ln_k.weight": (WIDTH,), "visual.attn_pool.ln_k.bias": (WIDTH,),
        "visual.ln_post.weight": (DIM,), "visual.ln_post.bias": (DIM,), "visual.proj": (DIM, DIM),
    }  # fmt: skip
    for i in range(depth):
        block = {
            "ln_1.weight": (WIDTH,), "ln_1.bias": (WIDTH,), "ln_2.weight": (WIDTH,), "ln_2.bias": (WIDTH,),
            "attn.in_proj_weight": (3 * WIDTH, WIDTH), "attn.in_proj_bias": (3 * WIDTH,),
            "attn.out_proj.weight": (WIDTH, WIDTH), "attn.out_proj.bias": (WIDTH,),
            "mlp.c_fc.weight": (4 * WIDTH, WIDTH), "mlp.c_fc.bias": (4 * WIDTH,),
            "mlp.c_proj.weight": (WIDTH, 4 * WIDTH), "mlp.c_proj.bias": (WIDTH,),
        }  # fmt: skip
        shapes |= {f"visual.transformer.resblocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return random_tensors(coca_l14())


@pytest.fixture(scope="module")
def checkpoint(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As open_clip's training saves it, with a best score as numpy's scalar beside the tensors."""
    path = tmp_path_factory.mktemp("loki") / "checkpoint.pt"
    beside: dict[str, Any] = {"epoch": 10, "name": "omiclip", "best": np.float64(0.5), "optimizer": {"state": {}}}
    return save_weights(path, tensors, prefix="module.", container="state_dict", **beside)


@pytest.fixture(scope="module")
def loki(checkpoint: Path) -> ExpressionModel:
    loaded = load_backbone("loki", loading=Loading(checkpoint))
    assert isinstance(loaded, ExpressionModel)
    return loaded


def make_bank(features: Floats, n_genes: int = 6, present: Any = None, seed: int = 5) -> Reference:
    n, rng = len(features), np.random.default_rng(seed)
    values = rng.gamma(1.0, 1.0, (n, n_genes)).astype(np.float32)
    names = np.array([f"b{i}" for i in range(n)])
    expression = Expression(values, names, np.array([f"G{i}" for i in range(n_genes)]), LOG1P_CP10K, present)

    def counts(genes: Strings) -> Iterator[Any]:
        raise AssertionError("not needed")

    return Reference(features, expression, np.zeros(n, np.int64), counts)


def embeddings(n: int, seed: int) -> Floats:
    """Alike, as those of one tissue are, and of any length."""
    rng = np.random.default_rng(seed)
    common = np.random.default_rng(0).standard_normal(DIM)
    return ((common + 1.5 * rng.standard_normal((n, DIM))) * rng.uniform(0.5, 2, (n, 1))).astype(np.float32)


def context(features: Floats, reference: Reference | None) -> SpotContext:
    n = len(features)
    rc = np.stack([np.arange(n), np.arange(n)], axis=1)
    return SpotContext(features, rc * 10.0, rc, 0.5, 100.0, 112.0, reference=reference)


class TestLokiKeepsTheContract(ExpressionModelContract):
    name = "loki"
    n_spots = 3

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, checkpoint: Path) -> Loading:
        return Loading(checkpoint)

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, backbone: Backbone) -> Reference:
        pixels = np.random.default_rng(3).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
        return make_bank(backbone.encode(pixels))


def tower_by_hand(t: dict[str, torch.Tensor], pixels: np.ndarray) -> np.ndarray:
    """The published network, written out; the first pooled query, projected, at length 1."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    sd = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    x = ((torch.tensor(pixels) / 255 - mean) / sd).permute(0, 3, 1, 2).double()
    t = {k.removeprefix("visual."): v.double() for k, v in t.items()}
    norm, n = torch.nn.functional.layer_norm, len(x)
    x = x.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).reshape(n, 256, -1)
    x = x @ t["conv1.weight"].reshape(WIDTH, -1).T
    x = torch.cat([t["class_embedding"].expand(n, 1, -1), x], 1) + t["positional_embedding"]
    x = norm(x, (WIDTH,), t["ln_pre.weight"], t["ln_pre.bias"], 1e-5)
    for i in range(sum(k.endswith("c_fc.bias") for k in t)):
        b = {k.removeprefix(f"transformer.resblocks.{i}."): v for k, v in t.items()}
        h = norm(x, (WIDTH,), b["ln_1.weight"], b["ln_1.bias"], 1e-5)
        q, k, v = (h @ b["attn.in_proj_weight"].T + b["attn.in_proj_bias"]).split(WIDTH, dim=-1)
        q, k, v = (a.reshape(n, 257, 16, 64).transpose(1, 2) for a in (q, k, v))
        a = (torch.softmax(q @ k.transpose(-1, -2) / 8, -1) @ v).transpose(1, 2).reshape(n, 257, WIDTH)
        x = x + a @ b["attn.out_proj.weight"].T + b["attn.out_proj.bias"]
        h = norm(x, (WIDTH,), b["ln_2.weight"], b["ln_2.bias"], 1e-5)
        h = torch.nn.functional.gelu(h @ b["mlp.c_fc.weight"].T + b["mlp.c_fc.bias"])
        x = x + h @ b["mlp.c_proj.weight"].T + b["mlp.c_proj.bias"]
    p = {k.removeprefix("attn_pool."): v for k, v in t.items()}
    seen = norm(x, (WIDTH,), p["ln_k.weight"], p["ln_k.bias"], 1e-5)
    query = norm(p["query"], (DIM,), p["ln_q.weight"], p["ln_q.bias"], 1e-5)
    bias_q, bias_k, bias_v = p["attn.in_proj_bias"].split(DIM)
    q = (query @ p["attn.q_proj_weight"].T + bias_q).reshape(1, 256, 8, 96).transpose(1, 2)
    k = (seen @ p["attn.k_proj_weight"].T + bias_k).reshape(n, 257, 8, 96).transpose(1, 2)
    v = (seen @ p["attn.v_proj_weight"].T + bias_v).reshape(n, 257, 8, 96).transpose(1, 2)
    x = (torch.softmax(q @ k.transpose(-1, -2) / np.sqrt(96), -1) @ v).transpose(1, 2).reshape(n, 256, DIM)
    x = x @ p["attn.out_proj.weight"].T + p["attn.out_proj.bias"]
    x = norm(x, (DIM,), t["ln_post.weight"], t["ln_post.bias"], 1e-5)[:, 0] @ t["proj"]
    return (x / x.norm(dim=1, keepdim=True)).numpy()


def test_embedding_is_the_published_arithmetic(tmp_path: Path) -> None:
    tensors = random_tensors(coca_l14(depth=2), seed=3)
    tensors["visual.attn_pool.attn.k_proj_weight"] *= 4  # a peaked attention, so that wrong heads would show
    path = save_weights(tmp_path / "w.safetensors", tensors)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    found = load_backbone("loki", loading=Loading(path)).encode(pixels)
    np.testing.assert_allclose(found, tower_by_hand(tensors, pixels), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_numbers_of_numpy_beside_the_tensors_are_read_as_nothing(
    checkpoint: Path, tensors: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(Exception, match="weights_only"):
        torch.load(checkpoint, weights_only=True)
    found = read_checkpoint(checkpoint)
    assert found.container == "state_dict.module."
    assert found.tensors.keys() == tensors.keys()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("missing", "visual.proj"),
        ("extra", "visual.head.weight"),
        ("extra", "gene_encoder.weight"),
        ("misshapen", "visual.attn_pool.query"),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused_with_names(
    tmp_path: Path, tensors: dict[str, torch.Tensor], change: str, name: str
) -> None:
    other = {k: v for k, v in tensors.items() if change != "missing" or k != name}
    if change != "missing":
        other[name] = torch.zeros(3)
    with pytest.raises(BackboneError, match=f"1 {change}: {name}"):
        load_backbone("loki", loading=Loading(save_weights(tmp_path / "w.pt", other)))


def average_by_hand(queries: Floats, reference: Reference, genes: list[str]) -> np.ndarray:
    """Tile by tile and gene by gene, with every similarity written down."""
    e = reference.expression
    out = np.zeros((len(queries), len(genes)))
    for i, q in enumerate(queries.astype(float)):
        bank = reference.features.astype(float)
        similarity = np.array([q @ b / np.sqrt(q @ q) / np.sqrt(b @ b) for b in bank])
        for j, gene in enumerate(genes):
            column = e.genes.tolist().index(gene)
            there = np.ones(len(bank), bool) if e.present is None else e.present[:, column]
            out[i, j] = np.average(e.values[there, column], weights=similarity[there])
    return out


@pytest.mark.parametrize("n", [1, 300])
def test_prediction_is_the_average_weighted_by_similarity(loki: ExpressionModel, n: int) -> None:
    reference = make_bank(embeddings(40, seed=1))
    queries = embeddings(n, seed=2)
    found = loki.predict(context(queries, reference), np.array(["G4", "G0", "G5"]))
    np.testing.assert_allclose(found.values, average_by_hand(queries, reference, ["G4", "G0", "G5"]), rtol=1e-5)
    assert found.scale == LOG1P_CP10K
    assert found.present is None


def test_weights_are_neither_clipped_nor_sharpened(loki: ExpressionModel) -> None:
    # Cosines 1, 0.5 and -0.5: a negative one subtracts. (1*2 + 0.5*4 - 0.5*6) / (1 + 0.5 - 0.5) = 1.
    features = np.zeros((3, DIM), np.float32)
    features[:, 0], features[:, 1] = (1, 0.5, -0.5), (0, np.sqrt(0.75), np.sqrt(0.75))
    reference = make_bank(features, n_genes=1)
    reference.expression.values[:, 0] = (2, 4, 6)
    query = np.zeros((1, DIM), np.float32)
    query[0, 0] = 3
    np.testing.assert_allclose(loki.predict(context(query, reference), np.array(["G0"])).values, [[1]], rtol=1e-6)


def test_bank_and_section_beyond_one_block_come_to_the_same(loki: ExpressionModel) -> None:
    reference, queries = make_bank(embeddings(5000, seed=1), n_genes=3), embeddings(4100, seed=2)
    told: list[tuple[int, int]] = []
    spots = dataclasses.replace(context(queries, reference), progress=lambda *step: told.append(step))
    found = loki.predict(spots, reference.expression.genes).values
    rows = [0, 4095, 4096, 4099]
    np.testing.assert_allclose(found[rows], average_by_hand(queries[rows], reference, ["G0", "G1", "G2"]), rtol=1e-5)
    assert told == [(4096, 5000), (5000, 5000)]


def test_missing_values_do_not_enter_the_average(loki: ExpressionModel) -> None:
    present = np.random.default_rng(4).random((40, 6)) < 0.6
    reference = make_bank(embeddings(40, seed=1), present=present)
    reference.expression.values[~present] = np.nan
    queries = embeddings(5, seed=2)
    found = loki.predict(context(queries, reference), np.array(["G3", "G1"])).values
    np.testing.assert_allclose(found, average_by_hand(queries, reference, ["G3", "G1"]), rtol=1e-5)
    reference.expression.present[:, 2] = False
    with pytest.raises(BackboneError, match="no spot of the bank has a value of G2"):
        loki.predict(context(queries, reference), np.array(["G3", "G2"]))


def test_similarities_that_sum_to_nothing_are_refused(loki: ExpressionModel) -> None:
    bank = embeddings(40, seed=1)
    queries = embeddings(3, seed=2)
    queries[1] *= -1
    with pytest.raises(BackboneError, match=r"similarities of tile 1 to the bank have a mean of -0\.\d+"):
        loki.predict(context(queries, make_bank(bank)), np.array(["G0"]))
    queries[1] = 0
    with pytest.raises(BackboneError, match="embedding of tile 1 has length 0"):
        loki.predict(context(queries, make_bank(bank)), np.array(["G0"]))
    bank[7, 0] = np.nan
    with pytest.raises(BackboneError, match="embedding of bank spot 7 has length 0 or is not finite"):
        loki.predict(context(queries[:1], make_bank(bank)), np.array(["G0"]))


def test_no_bank_or_that_of_another_encoder_is_refused(loki: ExpressionModel) -> None:
    queries = embeddings(2, seed=2)
    with pytest.raises(BackboneError, match="averages over a bank, and was given none"):
        loki.predict(context(queries, None), np.array(["G0"]))
    with pytest.raises(BackboneError, match="embeddings of 768 numbers against a bank of 512"):
        loki.predict(context(queries, make_bank(embeddings(4, 1)[:, :512])), np.array(["G0"]))


def test_sheet_says_what_stands_in_for_text() -> None:
    sheet = read_sheet("loki")
    assert sheet is not None
    assert (sheet.kind, sheet.dim, sheet.tile_px, sheet.needs) == ("model", 768, 224, ("bank",))
    assert "text" in sheet.feature
    assert "not Loki's" in sheet.unchecked
