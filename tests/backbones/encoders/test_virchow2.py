"""Virchow2 on random weights in its published layout."""

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
    "width": 1280,
    "patch": 14,
    "positions": 261,
    "hidden": 6832,
    "gated": True,
    "scaled": True,
    "registers": 4,
}
"""paige-ai/Virchow2 model.safetensors: 32 blocks of these; class and register tokens have positions too."""


class TestVirchow2KeepsTheContract(BackboneContract):
    name = "virchow2"

    @pytest.fixture(scope="class")
    @classmethod
    def tensors(cls) -> dict[str, torch.Tensor]:
        return plain.fill(plain.name_shapes(**PUBLISHED))

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Loading:
        path = save_weights(tmp_path_factory.mktemp("virchow2") / "model.safetensors", tensors)
        return Loading(path.parent)  # a folder with the file as it is called on the hub

    def test_embedding_is_the_class_token_and_the_mean_of_patches_without_registers(
        self, backbone: Backbone, tensors: dict[str, torch.Tensor]
    ) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
        tokens = plain.forward(tensors, pixels, heads=16, gated=True)
        assert tokens.shape[1] == 1 + 4 + 16 * 16
        expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1)
        assert expected.shape == (1, 2560)
        np.testing.assert_allclose(backbone.encode(pixels), expected, rtol=1e-4, atol=1e-4)

    def test_field_of_view_is_224_px_at_half_a_micrometre(self, backbone: Backbone) -> None:
        assert (backbone.card.fov_um, backbone.card.tile_px) == (112, 224)


def test_weights_of_the_first_virchow_are_refused(tmp_path: Path) -> None:
    first = PUBLISHED | {"positions": 257, "registers": 0}
    path = save_weights(tmp_path / "virchow.bin", plain.hollow(plain.name_shapes(**first)))
    with pytest.raises(BackboneError, match="does not fit virchow2: 1 missing: reg_token; 1 misshapen: pos_embed"):
        load_backbone("virchow2", loading=Loading(path))
