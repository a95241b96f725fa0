"""BLEEP on random weights in the layout that its training code saves."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from genrag_cli.backbones.base import Backbone, Loading, Reference, SpotContext
from genrag_cli.backbones.registry import load_backbone
from genrag_cli.errors import BackboneError, GeneragError, UsageError
from genrag_cli.testing.backbone_contract import ExpressionModelContract
from genrag_cli.testing.random_weights import random_tensors, save_weights
from genrag_cli.types import LOG1P_CP10K, Doubles, Expression, Strings

GENES = np.array([f"HVG{i}" for i in range(40)])
ANCHORS = np.array(["ACTB", "EPCAM", "KRT8", "PTPRC", "VIM"])
functional = torch.nn.functional


def clip_model(n_genes: int = len(GENES), spots: str = "spot") -> dict[str, tuple[int, ...]]:
    """Names and shapes of best.pt without `module.`: timm's resnet50, of one block a stage here, and two heads."""
    shapes: dict[str, tuple[int, ...]] = {}

    def batch_norm(name: str, width: int) -> None:
        shapes.update({f"{name}.{k}": (width,) for k in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    net = "image_encoder.model"
    shapes[f"{net}.conv1.weight"] = (64, 3, 7, 7)
    batch_norm(f"{net}.bn1", 64)
    entering = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        block = f"{net}.layer{stage}.0"
        for i, shape in enumerate(((width, entering, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)), start=1):
            shapes[f"{block}.conv{i}.weight"] = shape
            batch_norm(f"{block}.bn{i}", shape[0])
        shapes[f"{block}.downsample.0.weight"] = (4 * width, entering, 1, 1)
        batch_norm(f"{block}.downsample.1", 4 * width)
        entering = 4 * width
    for head, entering in (("image", 2048), (spots, n_genes)):
        shapes |= {
            f"{head}_projection.projection.weight": (256, entering), f"{head}_projection.projection.bias": (256,),
            f"{head}_projection.fc.weight": (256, 256), f"{head}_projection.fc.bias": (256,),
            f"{head}_projection.layer_norm.weight": (256,), f"{head}_projection.layer_norm.bias": (256,),
        }  # fmt: skip
    return shapes


@functools.cache
def drawn(n_genes: int = len(GENES)) -> dict[str, torch.Tensor]:
    return random_tensors(clip_model(n_genes), seed=3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Loading:
    return save(tmp_path_factory.mktemp("bleep"), drawn())


def load(saved: Loading, **options: str) -> Any:
    return load_backbone("bleep", loading=dataclasses.replace(saved, options={**saved.options, **options}))


def save(folder: Path, tensors: dict[str, torch.Tensor], **options: str) -> Loading:
    """As training does: a plain state dict of DDP; the genes beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hvg.txt").write_text("\n".join(GENES))
    weights = save_weights(folder / "best.pt", tensors, prefix="module.")
    return Loading(weights, options={"genes": str(folder / "hvg.txt"), **options})


def make_bank(n: int = 64, seed: int = 5) -> tuple[Reference, list[np.ndarray], list[Doubles]]:
    """Two sections of unlike depth, one spot without counts; the counts of GENES and the totals beside the bank."""
    rng = np.random.default_rng(seed)
    sizes, depths = (n // 3, n - n // 3), (1.5, 6.0)
    dense = [rng.poisson(depth, (size, len(GENES))) for size, depth in zip(sizes, depths, strict=True)]
    dense[0][2] = 0
    totals = [d.sum(axis=1) + rng.integers(50, 400, len(d)).astype(np.float64) for d in dense]
    totals[0][2] = 0

    def counts(genes: Strings) -> Iterator[tuple[scipy.sparse.csr_matrix, Doubles]]:
        assert genes.tolist() == GENES.tolist()
        for some, total in zip(dense, totals, strict=True):
            yield scipy.sparse.csr_matrix(some), total

    values = rng.random((n, len(ANCHORS)), dtype=np.float32) * 4
    names = np.array([f"spot{i}" for i in range(n)])
    bank = Reference(
        features=rng.standard_normal((n, 256), dtype=np.float32),
        expression=Expression(values, names, ANCHORS, LOG1P_CP10K),
        section_of=np.repeat([0, 1], sizes),
        counts=counts,
    )
    return bank, dense, totals


def make_spots(features: np.ndarray, bank: Reference | None) -> SpotContext:
    n = len(features)
    array_rc = np.stack([np.arange(n) // 6, np.arange(n) % 6], axis=1)
    return SpotContext(
        features.astype(np.float32), array_rc[:, ::-1] * 200.0, array_rc, 0.5, 100.0, 68.0, reference=bank
    )


class TestBleepKeepsTheContract(ExpressionModelContract):
    name = "bleep"

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tmp_path_factory: pytest.TempPathFactory) -> Loading:
        return save(tmp_path_factory.mktemp("bleep"), drawn())

    @pytest.fixture
    def reference(self, backbone: Backbone) -> Reference | None:
        return make_bank()[0]


def head_by_hand(t: dict[str, torch.Tensor], head: str, x: torch.Tensor) -> torch.Tensor:
    w = {k.removeprefix(f"{head}_projection."): v for k, v in t.items() if k.startswith(head)}
    p = x @ w["projection.weight"].T + w["projection.bias"]
    y = functional.gelu(p) @ w["fc.weight"].T + w["fc.bias"] + p
    return functional.layer_norm(y, (256,), w["layer_norm.weight"], w["layer_norm.bias"])


def tile_by_hand(t: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """ResNet with the stride in the 3x3 convolution, pooled, then the head; in float64."""
    t = {k: v.double() for k, v in t.items()}
    w = {k.removeprefix("image_encoder.model."): v for k, v in t.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (w[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean[:, None, None]) / torch.sqrt(var + 1e-5)[:, None, None] * weight[:, None, None] + bias[
            :, None, None
        ]

    x = torch.relu(norm(functional.conv2d(inputs.double(), w["conv1.weight"], stride=2, padding=3), "bn1"))
    x = functional.max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        b, stride = f"layer{stage}.0", 1 if stage == 1 else 2
        y = torch.relu(norm(functional.conv2d(x, w[f"{b}.conv1.weight"]), f"{b}.bn1"))
        y = torch.relu(norm(functional.conv2d(y, w[f"{b}.conv2.weight"], stride=stride, padding=1), f"{b}.bn2"))
        y = norm(functional.conv2d(y, w[f"{b}.conv3.weight"]), f"{b}.bn3")
        x = norm(functional.conv2d(x, w[f"{b}.downsample.0.weight"], stride=stride), f"{b}.downsample.1")
        x = torch.relu(x + y)
    return head_by_hand(t, "image", x.mean(dim=(2, 3)))


@pytest.mark.parametrize("channels", ["bgr", "rgb"])
@pytest.mark.parametrize("mode", ["imagenet", "2023"])
def test_embedding_is_the_published_arithmetic(saved: Loading, mode: str, channels: str) -> None:
    backbone = load(saved, mode=mode, channels=channels)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    x = torch.tensor(pixels).double()
    x = x.flip(-1) if channels == "bgr" else x
    if mode == "imagenet":
        x = (x / 255 - torch.tensor([0.485, 0.456, 0.406]).double()) / torch.tensor([0.229, 0.224, 0.225]).double()
    wanted = tile_by_hand(drawn(), x.permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(backbone.encode(pixels), wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(backbone.encode(pixels[:1]), wanted[:1], rtol=1e-4, atol=1e-4)


def test_blue_comes_first_and_imagenet_is_subtracted_unless_asked_otherwise(saved: Loading) -> None:
    usual, told, other = load(saved), load(saved, mode="imagenet", channels="bgr"), load(saved, channels="rgb")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    np.testing.assert_array_equal(usual.encode(pixels), told.encode(pixels))
    assert np.abs(usual.encode(pixels) - other.encode(pixels)).max() > 0.01
    assert usual.card.revision == told.card.revision != other.card.revision


def keys_by_hand(tensors: dict[str, torch.Tensor], dense: list[np.ndarray], totals: list[Doubles]) -> Doubles:
    """log1p of counts scaled to the section's median total of the spots that have any, through the spot head."""
    logged = []
    for counts, total in zip(dense, totals, strict=True):
        median = np.median([t for t in total if t > 0])
        logged.append(np.log1p([c / t * median if t > 0 else c for c, t in zip(counts, total, strict=True)]))
    wide = {k: v.double() for k, v in tensors.items()}
    return head_by_hand(wide, "spot", torch.tensor(np.concatenate(logged))).numpy()


def retrieve_by_hand(query: Doubles, keys: Doubles, values: np.ndarray, retrieval: str, k: int) -> Doubles:
    """The three methods of BLEEP_inference.ipynb for one tile, in float64."""
    cosine = keys @ query / np.linalg.norm(keys, axis=1) / np.linalg.norm(query)
    best = np.argsort(-cosine, kind="stable")[: 1 if retrieval == "simple" else k]
    squares = ((keys[best] - query) ** 2).sum(axis=1)
    weights = np.exp(-(squares - squares[0] + 1)) if retrieval == "weighted" else np.ones(len(best))
    return np.average(values[best].astype(np.float64), axis=0, weights=weights)


@pytest.mark.parametrize("n", [1, 30])
@pytest.mark.parametrize("retrieval", ["average", "simple", "weighted"])
def test_prediction_is_the_published_retrieval(saved: Loading, retrieval: str, n: int) -> None:
    bank, dense, totals = make_bank()
    model = load(saved, retrieval=retrieval)
    keys = keys_by_hand(drawn(), dense, totals)
    rng = np.random.default_rng(2)
    features = (keys[rng.integers(0, len(keys), n)] + rng.standard_normal((n, 256)) * 0.7).astype(np.float32)
    asked = ANCHORS[[3, 0]]
    found = model.predict(make_spots(features, bank), asked)
    wanted = [retrieve_by_hand(f.astype(np.float64), keys, bank.expression.values, retrieval, 50) for f in features]
    np.testing.assert_allclose(found.values, np.array(wanted)[:, [3, 0]], rtol=1e-4, atol=1e-5)
    assert found.scale == LOG1P_CP10K
    assert model.scale is None


def test_k_is_how_many_spots_are_averaged(saved: Loading) -> None:
    bank, dense, totals = make_bank()
    model = load(saved, k="7")
    keys = keys_by_hand(drawn(), dense, totals)
    features = np.random.default_rng(4).standard_normal((9, 256)).astype(np.float32)
    wanted = [retrieve_by_hand(f.astype(np.float64), keys, bank.expression.values, "average", 7) for f in features]
    np.testing.assert_allclose(model.predict(make_spots(features, bank), ANCHORS).values, wanted, rtol=1e-4, atol=1e-5)


def test_spots_that_are_equally_near_are_taken_in_the_bank_s_order(saved: Loading) -> None:
    model = load(saved, k="3")
    bank, dense, _ = make_bank()

    def alike(genes: Strings) -> Iterator[tuple[scipy.sparse.csr_matrix, Doubles]]:
        for some in dense:
            yield scipy.sparse.csr_matrix(np.tile(dense[1][:1], (len(some), 1))), np.full(len(some), 500.0)

    features = np.random.default_rng(4).standard_normal((4, 256))
    found = model.predict(make_spots(features, dataclasses.replace(bank, counts=alike)), ANCHORS)
    np.testing.assert_allclose(found.values, np.tile(bank.expression.values[:3].mean(axis=0), (4, 1)), rtol=1e-6)


def test_older_names_of_the_spot_tower_are_read(saved: Loading, tmp_path: Path) -> None:
    old = {k.replace("spot_projection", "well_projection"): v for k, v in drawn().items()}
    assert set(old) == set(clip_model(spots="well"))
    spots = make_spots(np.random.default_rng(1).standard_normal((3, 256)), make_bank()[0])
    found = [load(loading).predict(spots, ANCHORS).values for loading in (saved, save(tmp_path, old))]
    np.testing.assert_array_equal(*found)


def test_gene_list_of_another_length_is_refused(tmp_path: Path) -> None:
    loading = save(tmp_path, drawn(39))
    with pytest.raises(BackboneError, match="has 40 genes, the weights have 39"):
        load_backbone("bleep", loading=loading)


def test_missing_gene_list_is_refused(saved: Loading) -> None:
    with pytest.raises(BackboneError, match="genes=FILE"):
        load_backbone("bleep", loading=Loading(saved.weights))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "2024"}, "no such mode"), ({"channels": "gbr"}, "no such channels"),
        ({"retrieval": "weighted_average"}, "no such retrieval"), ({"k": "0"}, "a number > 0"),
        ({"k": "five"}, "a number > 0"), ({"retrieval": "simple", "k": "2"}, "retrieval simple takes 1"),
    ],
)  # fmt: skip
def test_options_that_it_does_not_know_are_refused(saved: Loading, options: dict[str, str], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        load(saved, **options)


@pytest.mark.parametrize("lack", ["bank", "spots", "values", "counts"])
def test_bank_that_cannot_serve_is_refused(saved: Loading, lack: str) -> None:
    model = load(saved)
    bank: Reference | None = make_bank(n=49 if lack == "spots" else 64)[0]
    if bank is not None and lack == "values":
        present = np.ones(bank.expression.values.shape, np.bool_)
        present[5, 2] = False
        bank = dataclasses.replace(bank, expression=dataclasses.replace(bank.expression, present=present))
    elif bank is not None and lack == "counts":
        bank = dataclasses.replace(bank, counts=make_bank(n=63)[0].counts)
    elif lack == "bank":
        bank = None
    match = {"bank": "given none", "spots": "the bank has 49", "values": "KRT8", "counts": "63 spots for a bank of 64"}
    spots = make_spots(np.zeros((2, 256)), bank)
    with pytest.raises(GeneragError, match=match[lack]):
        model.predict(spots, ANCHORS)


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen", "tower"])
def test_checkpoint_that_does_not_fit_is_refused_with_names(tmp_path: Path, change: str) -> None:
    tensors = dict(drawn())
    if change == "missing":
        del tensors["image_encoder.model.bn1.bias"]
    elif change == "extra":
        tensors["image_encoder.model.fc.weight"] = torch.zeros(1000, 2048)
    elif change == "misshapen":
        tensors["spot_projection.fc.bias"] = torch.zeros(3)
    else:
        tensors = {k: v for k, v in tensors.items() if "layer4" not in k}
    match = {"missing": "1 missing: .*bn1.bias", "extra": "1 extra: .*fc.weight", "misshapen": "1 misshapen: .*fc.bias"}
    with pytest.raises(BackboneError, match=match.get(change, "no ResNet")):
        load_backbone("bleep", loading=save(tmp_path, tensors))
