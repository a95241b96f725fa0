"""Phikon-v2 on random weights in its published layout, which is that of the transformers package."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genrag_cli.backbones.base import Backbone, Loading
from genrag_cli.backbones.registry import load_backbone
from genrag_cli.errors import BackboneError
from genrag_cli.testing.backbone_contract import BackboneContract
from genrag_cli.testing.random_weights import random_tensors, save_weights

plain = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("plain_vit.py"))))

WIDTH, HIDDEN = 1024, 4096


def dinov2_l16(depth: int = 1) -> dict[str, tuple[int, ...]]:
    """Names and shapes of owkin/phikon-v2 model.safetensors, a Dinov2Model of 24 layers for 224 px."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, WIDTH), "embeddings.mask_token": (1, WIDTH),
        "embeddings.position_embeddings": (1, 197, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 16, 16),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,), "layernorm.bias": (WIDTH,),
    }  # fmt: skip
    for i in range(depth):
        block = {
            "norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,),
            "attention.attention.query.weight": (WIDTH, WIDTH), "attention.attention.query.bias": (WIDTH,),
            "attention.attention.key.weight": (WIDTH, WIDTH), "attention.attention.key.bias": (WIDTH,),
            "attention.attention.value.weight": (WIDTH, WIDTH), "attention.attention.value.bias": (WIDTH,),
            "attention.output.dense.weight": (WIDTH, WIDTH), "attention.output.dense.bias": (WIDTH,),
            "layer_scale1.lambda1": (WIDTH,),
            "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,),
            "mlp.fc1.weight": (HIDDEN, WIDTH), "mlp.fc1.bias": (HIDDEN,),
            "mlp.fc2.weight": (WIDTH, HIDDEN), "mlp.fc2.bias": (WIDTH,),
            "layer_scale2.lambda1": (WIDTH,),
        }  # fmt: skip
        shapes |= {f"encoder.layer.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def make_tensors(depth: int = 1) -> dict[str, torch.Tensor]:
    tensors = random_tensors(dinov2_l16(depth), seed=5)
    for name in tensors:
        if name.endswith("lambda1"):
            tensors[name] += 1
        if name.startswith("embeddings."):  # small, so that the epsilon of the first norm shows
            tensors[name] *= 0.01
        if name in {"embeddings.cls_token", "embeddings.position_embeddings"}:
            tensors[name] *= np.sqrt(tensors[name][0].numel())
    return tensors


def by_hand(t: dict[str, torch.Tensor], pixels: np.ndarray, depth: int) -> torch.Tensor:
    """The equations of Dinov2Model: attention over three matrices; CLS token of the last hidden state."""
    named = {
        "cls_token": t["embeddings.cls_token"], "pos_embed": t["embeddings.position_embeddings"],
        "patch_embed.proj.weight": t["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": t["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": t["layernorm.weight"], "norm.bias": t["layernorm.bias"],
    }  # fmt: skip
    for i in range(depth):
        ours, theirs = f"blocks.{i}.", f"encoder.layer.{i}."
        for kind in ("weight", "bias"):
            q, k, v = (t[f"{theirs}attention.attention.{part}.{kind}"] for part in ("query", "key", "value"))
            named[f"{ours}attn.qkv.{kind}"] = torch.cat([q, k, v])
            named[f"{ours}attn.proj.{kind}"] = t[f"{theirs}attention.output.dense.{kind}"]
            for same in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                named[f"{ours}{same}.{kind}"] = t[f"{theirs}{same}.{kind}"]
        named[f"{ours}ls1.gamma"] = t[f"{theirs}layer_scale1.lambda1"]
        named[f"{ours}ls2.gamma"] = t[f"{theirs}layer_scale2.lambda1"]
    return plain.forward(named, pixels, heads=16, gated=False)[:, 0]


class TestPhikonV2KeepsTheContract(BackboneContract):
    name = "phikon-v2"

    @pytest.fixture(scope="class")
    @classmethod
    def tensors(cls) -> dict[str, torch.Tensor]:
        return make_tensors()

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Loading:
        return Loading(save_weights(tmp_path_factory.mktemp("phikon") / "model.safetensors", tensors))

    def test_embedding_is_the_published_arithmetic(self, backbone: Backbone, tensors: dict[str, torch.Tensor]) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
        expected = by_hand(tensors, pixels, depth=1)
        np.testing.assert_allclose(backbone.encode(pixels), expected, rtol=1e-4, atol=1e-4)

    def test_field_of_view_is_224_px_at_half_a_micrometre(self, backbone: Backbone) -> None:
        assert (backbone.card.fov_um, backbone.card.tile_px) == (112, 224)


def test_layers_keep_their_order(tmp_path: Path) -> None:
    tensors = make_tensors(depth=2)
    path = save_weights(tmp_path / "model.safetensors", tensors)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    found = load_backbone("phikon-v2", loading=Loading(path)).encode(pixels)
    np.testing.assert_allclose(found, by_hand(tensors, pixels, depth=2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"encoder.layer.0.attention.attention.key.bias": None}, r"no tensor encoder\S+key\.bias"),
        ({"layernorm.bias": None}, r"1 missing: norm\.bias"),
        ({"classifier.weight": torch.zeros(2, WIDTH)}, r"1 extra: classifier\.weight"),
    ],
)  # fmt: skip
def test_checkpoint_that_does_not_fit_is_refused_with_names(
    tmp_path: Path, change: dict[str, torch.Tensor | None], told: str
) -> None:
    tensors = {k: v for k, v in (plain.hollow(dinov2_l16()) | change).items() if v is not None}
    with pytest.raises(BackboneError, match=told):
        load_backbone("phikon-v2", loading=Loading(save_weights(tmp_path / "w.bin", tensors)))
