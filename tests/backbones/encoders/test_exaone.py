"""EXAONE-Path 2.5's patch encoder on random weights in its published layout."""

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

PUBLISHED = {"width": 768, "patch": 14, "positions": 257, "hidden": 3072, "gated": False, "scaled": False}
"""LGAI-EXAONE/EXAONE-Path-2.5 patch-encoder: 12 blocks of these, no layer scale."""
PREFIX = "patch_encoder.backbone."


class TestExaonePathKeepsTheContract(BackboneContract):
    name = "exaone-path-2.5"

    @pytest.fixture(scope="class")
    @classmethod
    def tensors(cls) -> dict[str, torch.Tensor]:
        return plain.fill(plain.name_shapes(**PUBLISHED, depth=2))

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Loading:
        folder = tmp_path_factory.mktemp("exaone")
        save_weights(folder / "patch-encoder" / "model.safetensors", tensors, prefix=PREFIX)
        return Loading(folder)

    def test_embedding_is_the_published_arithmetic_on_the_central_224_px(
        self, backbone: Backbone, tensors: dict[str, torch.Tensor]
    ) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
        expected = plain.forward(tensors, pixels[:, 16:240, 16:240], heads=12, gated=False)[:, 0]
        np.testing.assert_allclose(backbone.encode(pixels), expected, rtol=1e-4, atol=1e-4)

    def test_card_says_that_it_is_the_patch_encoder_before_the_alignment(self, backbone: Backbone) -> None:
        assert "patch encoder" in backbone.card.feature
        assert "before the alignment" in backbone.card.feature
        assert (backbone.card.fov_um, backbone.card.tile_px) == (128, 256)

    @pytest.mark.parametrize(
        "prefix", ["", "backbone.", "patch_encoder.", "backbone.patch_encoder.", f"model.{PREFIX}"]
    )
    def test_wrapping_classes_in_the_names_make_no_difference(
        self, backbone: Backbone, tensors: dict[str, torch.Tensor], tmp_path: Path, prefix: str
    ) -> None:
        path = save_weights(tmp_path / "weights.bin", tensors, prefix=prefix)
        pixels = np.random.default_rng(1).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
        found = load_backbone("exaone-path-2.5", loading=Loading(path)).encode(pixels)
        np.testing.assert_array_equal(found, backbone.encode(pixels))


def test_weights_with_layer_scale_are_refused(tmp_path: Path) -> None:
    path = save_weights(tmp_path / "other.bin", plain.hollow(plain.name_shapes(**PUBLISHED | {"scaled": True})))
    with pytest.raises(BackboneError, match=r"2 extra: blocks\.0\.ls1\.gamma, blocks\.0\.ls2\.gamma"):
        load_backbone("exaone-path-2.5", loading=Loading(path))
