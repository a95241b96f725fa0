"""Networks of timm by name, on random weights under timm's own names."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from genrag_cli.backbones.base import Backbone, Loading
from genrag_cli.backbones.registry import load_backbone, read_sheet
from genrag_cli.errors import BackboneError
from genrag_cli.testing.backbone_contract import BackboneContract
from genrag_cli.testing.random_weights import random_tensors, save_weights


def make_network(name: str) -> torch.nn.Module:
    """The network with its classifier and random weights, in evaluation mode."""
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in timm.create_model(name).state_dict().items()}
    net = timm.create_model(name)
    net.load_state_dict(random_tensors(shapes))
    return net.eval()


def evaluate(net: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    """What timm itself makes of tiles: its own transform, and its own features before the classifier."""
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    inputs = torch.stack([transform(Image.fromarray(tile)) for tile in pixels])
    with torch.inference_mode():
        return net.forward_head(net.forward_features(inputs), pre_logits=True).numpy()


class OfTimm(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def network(cls) -> torch.nn.Module:
        return make_network(cls.name.removeprefix("timm:"))

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Loading:
        path = tmp_path_factory.mktemp("timm") / "model.safetensors"
        return Loading(save_weights(path, network.state_dict()))

    def test_embedding_is_what_timm_makes_of_the_tile(self, backbone: Backbone, network: torch.nn.Module) -> None:
        side = backbone.card.tile_px
        pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
        np.testing.assert_allclose(backbone.encode(pixels), evaluate(network, pixels), rtol=1e-4, atol=1e-5)


class TestResNet18KeepsTheContract(OfTimm):
    name = "timm:resnet18"

    def test_card_is_that_of_the_pretrained_configuration(self, backbone: Backbone) -> None:
        assert (backbone.card.dim, backbone.card.tile_px) == (512, 235)  # 224 px after a crop of 0.95
        assert backbone.card.licence == "apache-2.0"


class TestVitTinyKeepsTheContract(OfTimm):
    name = "timm:vit_tiny_patch16_224.augreg_in21k"

    def test_card_is_that_of_the_pretrained_configuration(self, backbone: Backbone) -> None:
        assert (backbone.card.dim, backbone.card.tile_px) == (192, 248)  # 224 px after a crop of 0.9


def test_weights_come_from_the_repository_of_the_pretrained_configuration() -> None:
    sheet = read_sheet("timm:resnet18")
    assert sheet is not None
    (file,) = sheet.weights
    assert file.repo == "timm/resnet18.a1_in1k"
    assert file.filenames == ("model.safetensors", "pytorch_model.bin")


def test_weights_without_a_classifier_are_as_good_and_foreign_ones_are_refused(tmp_path: Path) -> None:
    whole = make_network("resnet18").state_dict()
    headless = {k: v for k, v in whole.items() if k not in {"fc.weight", "fc.bias"}}
    pixels = np.zeros((1, 235, 235, 3), np.uint8)
    found = [
        load_backbone("timm:resnet18", loading=Loading(save_weights(tmp_path / name, tensors))).encode(pixels)
        for name, tensors in (("whole.pth", whole), ("headless.pth", headless))
    ]
    np.testing.assert_array_equal(*found)
    path = save_weights(tmp_path / "foreign.pth", headless | {"head.weight": torch.zeros(2)})
    with pytest.raises(BackboneError, match=r"does not fit timm:resnet18: 1 extra: head\.weight"):
        load_backbone("timm:resnet18", loading=Loading(path))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("timm:resnt18", "timm:resnet18"), ("timm:resnet18.tv_in2k", "timm:resnet18.tv_in1k"), ("timm:hf-hub:a/b", "")],
)
def test_unknown_network_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(BackboneError, match=name) as refused:
        load_backbone(name)
    assert nearest in refused.value.hint


def test_family_without_a_name_explains_itself() -> None:
    sheet = read_sheet("timm")
    assert sheet is not None
    assert sheet.name == "timm"
    assert sheet.dim is None
    with pytest.raises(BackboneError, match="a family of networks") as refused:
        load_backbone("timm")
    assert "timm:NAME" in refused.value.hint
