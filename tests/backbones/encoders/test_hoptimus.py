"""H-optimus-0 on random weights in its published layout."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genrag_cli.backbones.base import Backbone, Loading
from genrag_cli.testing.backbone_contract import BackboneContract
from genrag_cli.testing.random_weights import save_weights

plain = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("plain_vit.py"))))

PUBLISHED = {
    "width": 1536,
    "patch": 14,
    "positions": 256,
    "hidden": 8192,
    "gated": True,
    "scaled": True,
    "registers": 4,
}
"""bioptimus/H-optimus-0 pytorch_model.bin: 40 blocks of these; class and register tokens have no position."""
MEAN, SD = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)


class TestHOptimus0KeepsTheContract(BackboneContract):
    name = "h-optimus-0"

    @pytest.fixture(scope="class")
    @classmethod
    def tensors(cls) -> dict[str, torch.Tensor]:
        return plain.fill(plain.name_shapes(**PUBLISHED))

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Loading:
        return Loading(save_weights(tmp_path_factory.mktemp("hoptimus") / "pytorch_model.bin", tensors))

    def test_embedding_is_the_published_arithmetic(self, backbone: Backbone, tensors: dict[str, torch.Tensor]) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
        expected = plain.forward(tensors, pixels, heads=24, gated=True, mean=MEAN, sd=SD)[:, 0]
        np.testing.assert_allclose(backbone.encode(pixels), expected, rtol=1e-4, atol=1e-4)

    def test_field_of_view_is_224_px_at_half_a_micrometre(self, backbone: Backbone) -> None:
        assert (backbone.card.fov_um, backbone.card.tile_px) == (112, 224)
