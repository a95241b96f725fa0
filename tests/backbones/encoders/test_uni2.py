"""UNI2-h on random weights in its published layout."""

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
from genrag_cli.testing.random_weights import save_weights

plain = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("plain_vit.py"))))

PUBLISHED = {
    "width": 1536,
    "patch": 14,
    "positions": 256,
    "hidden": 8192,
    "gated": True,
    "scaled": True,
    "registers": 8,
}
"""MahmoodLab/UNI2-h pytorch_model.bin: 24 blocks of these; class and register tokens have no position."""


class TestUni2KeepsTheContract(BackboneContract):
    name = "uni2-h"

    @pytest.fixture(scope="class")
    @classmethod
    def tensors(cls) -> dict[str, torch.Tensor]:
        return plain.fill(plain.name_shapes(**PUBLISHED))

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Loading:
        return Loading(save_weights(tmp_path_factory.mktemp("uni2") / "pytorch_model.bin", tensors))

    def test_embedding_is_the_published_arithmetic(self, backbone: Backbone, tensors: dict[str, torch.Tensor]) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
        expected = plain.forward(tensors, pixels, heads=24, gated=True)[:, 0]
        np.testing.assert_allclose(backbone.encode(pixels), expected, rtol=1e-4, atol=1e-4)

    def test_field_of_view_is_256_px_at_half_a_micrometre(self, backbone: Backbone) -> None:
        assert (backbone.card.fov_um, backbone.card.tile_px) == (128, 224)


def test_weights_of_the_first_uni_are_refused(tmp_path: Path) -> None:
    first = {"width": 1024, "patch": 16, "positions": 197, "hidden": 4096, "gated": False, "scaled": True}
    path = save_weights(tmp_path / "uni.bin", plain.hollow(plain.name_shapes(**first)))
    with pytest.raises(BackboneError, match=r"does not fit uni2-h: 1 missing: reg_token; \d+ misshapen: cls_token"):
        load_backbone("uni2-h", loading=Loading(path))
