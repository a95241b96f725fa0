"""UNI on random weights in its published layout."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genrag_cli.backbones.base import Loading
from genrag_cli.backbones.registry import load_backbone
from genrag_cli.errors import BackboneError
from genrag_cli.testing.backbone_contract import BackboneContract
from genrag_cli.testing.random_weights import random_tensors, save_weights, vit_shapes

WIDTH = 1024


def vit_l16(depth: int = 1) -> dict[str, tuple[int, ...]]:
    """Names and shapes of MahmoodLab/UNI pytorch_model.bin."""
    return vit_shapes(WIDTH, depth)


class TestUniKeepsTheContract(BackboneContract):
    name = "uni"

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tmp_path_factory: pytest.TempPathFactory) -> Loading:
        path = tmp_path_factory.mktemp("uni") / "pytorch_model.bin"
        return Loading(save_weights(path, random_tensors(vit_l16())))


def by_hand(t: dict[str, torch.Tensor], pixels: np.ndarray) -> torch.Tensor:
    """The published network, written out; CLS after the final norm."""
    mean, sd = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((torch.tensor(pixels) / 255 - mean) / sd).permute(0, 3, 1, 2).double()
    t = {k: v.double() for k, v in t.items()}
    n, heads = len(x), 16
    norm = torch.nn.functional.layer_norm
    patches = x.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).reshape(n, 196, -1)
    x = patches @ t["patch_embed.proj.weight"].reshape(WIDTH, -1).T + t["patch_embed.proj.bias"]
    x = torch.cat([t["cls_token"].expand(n, -1, -1), x], 1) + t["pos_embed"]
    for i in range(sum(k.endswith("ls1.gamma") for k in t)):
        b = {k.removeprefix(f"blocks.{i}."): v for k, v in t.items() if k.startswith(f"blocks.{i}.")}
        h = norm(x, (WIDTH,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        q, k, v = (h @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]).reshape(n, -1, 3, heads, 64).permute(2, 0, 3, 1, 4)
        a = torch.softmax(q @ k.transpose(-1, -2) / 8, -1) @ v
        a = a.transpose(1, 2).reshape(n, -1, WIDTH) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        x = x + b["ls1.gamma"] * a
        h = norm(x, (WIDTH,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        h = torch.nn.functional.gelu(h @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"])
        x = x + b["ls2.gamma"] * (h @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"])
    return norm(x, (WIDTH,), t["norm.weight"], t["norm.bias"], 1e-6)[:, 0]


def test_embedding_is_the_published_arithmetic(tmp_path: Path) -> None:
    tensors = random_tensors(vit_l16(depth=2), seed=3)
    path = save_weights(tmp_path / "uni.safetensors", tensors)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    found = load_backbone("uni", loading=Loading(path)).encode(pixels)
    np.testing.assert_allclose(found, by_hand(tensors, pixels).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen"])
def test_checkpoint_that_does_not_fit_is_refused_with_names(tmp_path: Path, change: str) -> None:
    tensors = random_tensors(vit_l16())
    if change == "missing":
        del tensors["norm.bias"]
    elif change == "extra":
        tensors["head.weight"] = torch.zeros(2, WIDTH)
    else:
        tensors["norm.bias"] = torch.zeros(3)
    path = save_weights(tmp_path / "w.bin", tensors)
    with pytest.raises(BackboneError, match=rf"1 {change}: (norm\.bias|head\.weight)"):
        load_backbone("uni", loading=Loading(path))
