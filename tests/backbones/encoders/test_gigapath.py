"""Prov-GigaPath's tile encoder on random weights in its published layout."""

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

PUBLISHED = {"width": 1536, "patch": 16, "positions": 197, "hidden": 8192, "gated": True, "scaled": True}
"""prov-gigapath/prov-gigapath pytorch_model.bin: 40 blocks of these; the class token has a position."""


class TestGigaPathKeepsTheContract(BackboneContract):
    name = "gigapath"

    @pytest.fixture(scope="class")
    @classmethod
    def tensors(cls) -> dict[str, torch.Tensor]:
        return plain.fill(plain.name_shapes(**PUBLISHED))

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Loading:
        return Loading(save_weights(tmp_path_factory.mktemp("gigapath") / "pytorch_model.bin", tensors))

    def test_embedding_is_the_published_arithmetic_on_the_central_224_px(
        self, backbone: Backbone, tensors: dict[str, torch.Tensor]
    ) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
        expected = plain.forward(tensors, pixels[:, 16:240, 16:240], heads=24, gated=True)[:, 0]
        np.testing.assert_allclose(backbone.encode(pixels), expected, rtol=1e-4, atol=1e-4)

    def test_field_of_view_is_256_px_at_half_a_micrometre(self, backbone: Backbone) -> None:
        assert (backbone.card.fov_um, backbone.card.tile_px) == (128, 256)


def test_weights_of_a_giant_with_patches_of_14_px_are_refused(tmp_path: Path) -> None:
    other = PUBLISHED | {"patch": 14, "positions": 257}
    path = save_weights(tmp_path / "dinov2.bin", plain.hollow(plain.name_shapes(**other)))
    with pytest.raises(BackboneError, match=r"does not fit gigapath: 2 misshapen: pos_embed .*, patch_embed"):
        load_backbone("gigapath", loading=Loading(path))
