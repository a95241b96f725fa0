"""ResNet-50 on random weights in the layout that torchvision and timm share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from genrag_cli.backbones.base import Backbone, Loading
from genrag_cli.backbones.registry import load_backbone
from genrag_cli.errors import BackboneError
from genrag_cli.testing.backbone_contract import BackboneContract
from genrag_cli.testing.random_weights import random_tensors, save_weights

STAGES = (3, 4, 6, 3)
"""Bottlenecks of each stage (He et al. 2016, table 1)."""


def resnet50() -> dict[str, tuple[int, ...]]:
    """Names and shapes of timm/resnet50.tv_in1k model.safetensors."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (1000, 2048), "fc.bias": (1000,)}
    norms = {"bn1": 64}
    before = 64
    for stage, blocks in enumerate(STAGES):
        inner = 64 * 2**stage
        for i in range(blocks):
            at = f"layer{stage + 1}.{i}."
            shapes[at + "conv1.weight"] = (inner, before, 1, 1)
            shapes[at + "conv2.weight"] = (inner, inner, 3, 3)
            shapes[at + "conv3.weight"] = (4 * inner, inner, 1, 1)
            norms |= {at + "bn1": inner, at + "bn2": inner, at + "bn3": 4 * inner}
            if i == 0:
                shapes[at + "downsample.0.weight"] = (4 * inner, before, 1, 1)
                norms[at + "downsample.1"] = 4 * inner
            before = 4 * inner
    for name, width in norms.items():
        shapes |= {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.num_batches_tracked"] = ()
    return shapes


def by_hand(tensors: dict[str, torch.Tensor], pixels: np.ndarray) -> torch.Tensor:
    """The published network, written out: the last feature map, averaged."""
    t = {name: tensor.double() for name, tensor in tensors.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (
            t[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    mean, sd = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    x = ((torch.tensor(pixels).double() / 255 - mean) / sd).permute(0, 3, 1, 2)
    x = functional.relu(norm(functional.conv2d(x, t["conv1.weight"], stride=2, padding=3), "bn1"))
    x = functional.max_pool2d(x, 3, 2, padding=1)
    for stage, blocks in enumerate(STAGES):
        for i in range(blocks):
            at, stride = f"layer{stage + 1}.{i}.", 2 if i == 0 and stage > 0 else 1
            h = functional.relu(norm(functional.conv2d(x, t[at + "conv1.weight"]), at + "bn1"))
            h = functional.conv2d(h, t[at + "conv2.weight"], stride=stride, padding=1)
            h = norm(functional.conv2d(functional.relu(norm(h, at + "bn2")), t[at + "conv3.weight"]), at + "bn3")
            if i == 0:
                x = norm(functional.conv2d(x, t[at + "downsample.0.weight"], stride=stride), at + "downsample.1")
            x = functional.relu(x + h)
    return x.mean((2, 3))


class TestResNet50KeepsTheContract(BackboneContract):
    name = "resnet50"

    @pytest.fixture(scope="class")
    @classmethod
    def tensors(cls) -> dict[str, torch.Tensor]:
        tensors = random_tensors(resnet50())
        for name in tensors:
            if name.endswith("bn3.weight"):  # or sixteen sums would grow without end
                tensors[name] *= 0.2
        return tensors

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Loading:
        return Loading(save_weights(tmp_path_factory.mktemp("resnet50") / "model.safetensors", tensors))

    def test_embedding_is_the_published_arithmetic(self, backbone: Backbone, tensors: dict[str, torch.Tensor]) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
        expected = by_hand(tensors, pixels)
        assert expected.shape == (1, 2048)
        np.testing.assert_allclose(backbone.encode(pixels), expected, rtol=1e-4, atol=1e-4)

    def test_only_the_classifier_is_left_out(self, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
        path = save_weights(tmp_path / "w.pth", {**tensors, "head.weight": torch.zeros(2)})
        with pytest.raises(BackboneError, match=r"does not fit resnet50: 1 extra: head\.weight"):
            load_backbone("resnet50", loading=Loading(path))
