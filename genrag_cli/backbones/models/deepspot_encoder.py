"""The frozen encoders that DeepSpot looks through, with DeepSpot's own preparation of tiles.

Facts from ratschlab/DeepSpot, `deepspot/utils/utils_image.py`: tiles become 0..1 floats first and are resized then,
bilinear with antialiasing, which is not what the encoders' own transforms do. Knows which encoders; the networks are in
`genrag_cli.backbones.encoders`.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.backbones.encoder import EncoderRecipe
from genrag_cli.backbones.encoders import uni
from genrag_cli.backbones.weights import find_or_fetch
from genrag_cli.errors import BackboneError, nearest
from genrag_cli.types import Floats

if TYPE_CHECKING:
    import torch

PART = "encoder"
DEFAULT = "uni"
FILE: WeightsFile = dataclasses.replace(uni.RECIPE.sheet.weights[0], part=PART)


@dataclasses.dataclass(frozen=True)
class Known:
    """An encoder, and what DeepSpot does to a tile before it."""

    module: str
    """Within `genrag_cli.backbones.encoders`; its `RECIPE`."""
    resize: int | None = 224
    """Side that floats are resized to; None: the encoder's own transform, which takes 8-bit tiles."""
    crop: int = 224
    """Side of the centre that is kept."""
    file: WeightsFile | None = None
    """Its weights; None: those of `RECIPE`."""


KNOWN = {
    "uni": Known("uni"),
    "h-optimus-0": Known("hoptimus"),
    "phikon-v2": Known("phikon", resize=None),
    "resnet50": Known(
        "resnet50",
        resize=232,
        file=WeightsFile(repo="timm/resnet50.tv2_in1k", filenames=("model.safetensors", "pytorch_model.bin")),
    ),
}
"""By their names here; upstream calls them uni, hoptimus0, phikonv2 and resnet50. Its ResNet-50 has torchvision's
second weights, resized to 232 px and cut to 224, where the backbone resnet50 has the first."""


class SpotEncoder:
    """A loaded encoder that takes square tiles of any side."""

    def __init__(self, name: str, known: Known, recipe: EncoderRecipe, path: Path, device: str) -> None:
        from genrag_cli.backbones.batches import Batcher, exactly, open_device
        from genrag_cli.backbones.checkpoints import load_into, read_checkpoint

        checkpoint = read_checkpoint(path, **recipe.read)
        if recipe.select is not None:
            checkpoint = recipe.select(checkpoint)
        self.name, self.sha256 = name, checkpoint.sha256
        self._known, self._recipe = known, recipe
        self._device = open_device(device)
        self._net = load_into(lambda: recipe.build(checkpoint), checkpoint, name).to(self._device)
        self._batcher = Batcher(self._device, recipe.sheet.precision)
        with exactly(self._device, recipe.sheet.precision):
            self.dim = int(self._embed(np.zeros((1, 224, 224, 3), np.uint8)).shape[1])

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Embeds tiles (b, s, s, 3) uint8 RGB; returns (b, dim)."""
        return self._batcher.run(len(pixels), self.dim, lambda rows: self._embed(pixels[rows]))

    def _embed(self, pixels: NDArray[np.uint8]) -> "torch.Tensor":
        return self._recipe.pool(self._net, self._prepare(pixels))

    def _prepare(self, pixels: NDArray[np.uint8]) -> "torch.Tensor":
        import torch

        side = self._known.resize
        if side is None:
            return self._recipe.transform(pixels).to(self._device)
        inputs = torch.from_numpy(np.array(pixels, order="C")).to(self._device).permute(0, 3, 1, 2).float() / 255
        if inputs.shape[-1] != side:
            inputs = torch.nn.functional.interpolate(inputs, (side, side), mode="bilinear", antialias=True)
        low = (side - self._known.crop) // 2
        inputs = inputs[..., low : low + self._known.crop, low : low + self._known.crop]
        mean, sd = (
            torch.tensor(values, device=self._device).view(1, 3, 1, 1)
            for values in (self._recipe.transform.mean, self._recipe.transform.sd)
        )
        return (inputs - mean) / sd


def load_encoder(sheet: BackboneSheet, name: str, given: Path | None, device: str) -> SpotEncoder:
    """Loads the encoder of a name.

    Args:
        sheet: DeepSpot's.
        name: one of `KNOWN`.
        given: its file; None: this machine's copy, else the hub.
        device: 'cpu', 'cuda', ...

    Raises:
        BackboneError: for an unknown name, and where weights cannot be had or do not fit.
    """
    if name not in KNOWN:
        raise BackboneError(f"backbone deepspot: unknown encoder {name!r}", nearest(name, KNOWN))
    module: Any = importlib.import_module(f"genrag_cli.backbones.encoders.{KNOWN[name].module}")
    recipe: EncoderRecipe = module.RECIPE
    file = dataclasses.replace(KNOWN[name].file or recipe.sheet.weights[0], part=PART)
    path = find_or_fetch(sheet, file, given)
    return SpotEncoder(name, KNOWN[name], recipe, path, device)
