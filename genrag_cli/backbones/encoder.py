"""Encoders that are a network and a transform: the recipe that an adapter fills in, and what runs it.

Knows how tiles become inputs (resize, crop, mean and sd) and how a recipe is loaded. Knows no particular network: each
adapter is a file of its own with an `EncoderRecipe`, which is what its entry point names.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.base import BackboneSheet, expect_tiles
from genrag_cli.backbones.weights import find_or_fetch
from genrag_cli.errors import BackboneError
from genrag_cli.types import Floats

if TYPE_CHECKING:
    import torch

    from genrag_cli.backbones.checkpoints import Checkpoint

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Transform:
    """Tile to network input: resize the shorter side, crop the centre, to 0..1, subtract mean, divide by sd."""

    mean: tuple[float, float, float]
    sd: tuple[float, float, float]
    resize: int | None = None
    """Side in px; None, or a tile of that side: nothing is resampled."""
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    """Pillow's filter, antialiased as torchvision's Resize is on Pillow images."""
    crop: int | None = None
    """Side of the centre that is kept; None: all."""

    def __call__(self, pixels: NDArray[np.uint8], device: "torch.device | None" = None) -> "torch.Tensor":
        """(b, s, s, 3) uint8 RGB to (b, 3, t, t) float32 on a device (None: the CPU); bytes travel, not floats."""
        import torch

        from genrag_cli.backbones.batches import to_device

        if self.resize is not None:
            pixels = resize_tiles(pixels, self.resize, self.interpolation)
        if self.crop is not None:
            low = round((pixels.shape[1] - self.crop) / 2)
            pixels = pixels[:, low : low + self.crop, low : low + self.crop]
        inputs = to_device(pixels, device or torch.device("cpu")).permute(0, 3, 1, 2).to(torch.float32) / 255
        mean, sd = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (self.mean, self.sd))
        return (inputs - mean) / sd


def resize_tiles(pixels: NDArray[np.uint8], side: int, filter_name: str) -> NDArray[np.uint8]:
    """(b, s, s, 3) tiles resampled to (b, side, side, 3) by Pillow; tiles of that side are returned as they are."""
    from PIL import Image

    if pixels.shape[1] == side:
        return pixels
    out = np.empty((len(pixels), side, side, 3), np.uint8)
    for row, tile in enumerate(pixels):
        out[row] = np.asarray(Image.fromarray(tile).resize((side, side), Image.Resampling[filter_name.upper()]))
    return out


@dataclass(frozen=True)
class EncoderRecipe:
    """All that makes an encoder of a checkpoint. Calling it loads one; it is what an entry point names."""

    sheet: BackboneSheet
    build: "Callable[[Checkpoint], torch.nn.Module]"
    """The network that these tensors belong to, its sizes read from them; may be made on torch's meta device."""
    pool: "Callable[[Any, torch.Tensor], torch.Tensor]"
    """(network, inputs (b, 3, t, t)) to features (b, d)."""
    transform: Transform
    read: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `read_checkpoint`."""
    select: "Callable[[Checkpoint], Checkpoint] | None" = None
    """Picks and renames the tensors that the network takes; None: all, as they are."""

    def __call__(self, device: str = "cpu", weights: Path | None = None) -> "Encoder":
        """Loads the encoder.

        Args:
            device: 'cpu', 'cuda', 'cuda:1', ...
            weights: its file, or a folder that holds it; None: this machine's copy, else the hub.

        Raises:
            BackboneError: for weights that cannot be had or do not fit.
        """
        from genrag_cli.backbones.checkpoints import load_into, read_checkpoint

        path = find_or_fetch(self.sheet, self.sheet.weights[0], weights)
        checkpoint = read_checkpoint(path, **self.read)
        if self.select is not None:
            checkpoint = self.select(checkpoint)
        net = load_into(lambda: self.build(checkpoint), checkpoint, self.sheet.name)
        return Encoder(self, net, checkpoint.sha256, device)


class Encoder:
    """A loaded recipe."""

    def __init__(self, recipe: EncoderRecipe, net: "torch.nn.Module", sha256: str, device: str) -> None:
        from genrag_cli.backbones.batches import Batcher, open_device

        self._device = open_device(device)
        self._net = net.to(self._device)
        self._recipe = recipe
        sheet = recipe.sheet
        self._batcher = Batcher(self._device, sheet.precision)
        dim = sheet.dim or self._measure_dim()
        self.card = sheet.card(dim=dim, weights_sha256=sha256)

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Embeds tiles; see `Backbone.encode`."""
        expect_tiles(pixels, self.card)
        return self._batcher.run(len(pixels), self.card.dim, lambda rows: self._features(pixels[rows]))

    def _features(self, pixels: NDArray[np.uint8]) -> "torch.Tensor":
        inputs = self._recipe.transform(pixels, self._device)
        features = self._recipe.pool(self._net, inputs)
        if features.ndim != 2 or len(features) != len(pixels):
            raise BackboneError(f"backbone {self._recipe.sheet.name}: features of shape {tuple(features.shape)}")
        return features

    def _measure_dim(self) -> int:
        from genrag_cli.backbones.batches import exactly

        side = self._recipe.sheet.tile_px
        with exactly(self._device, self._recipe.sheet.precision):
            return int(self._features(np.full((1, side, side, 3), 255, np.uint8)).shape[1])
