"""What a backbone is: raw RGB tiles in, one embedding a tile out, and a card that says which.

Knows no particular network and no torch. A plug-in implements `Backbone`, names its class under the entry-point group
`generag.backbones`, and inherits `genrag_cli.testing.backbone_contract.BackboneContract` to prove that it fits.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import BackboneError
from genrag_cli.types import BackboneCard, Floats


@runtime_checkable
class Backbone(Protocol):
    """Turns tiles into embeddings.

    It takes raw RGB and owns its preprocessing, so that nobody can normalise twice. An embedding must not depend on
    the other tiles of its batch beyond float rounding.
    """

    @property
    def card(self) -> BackboneCard:
        """What it is, what it needs and under which licence."""
        ...

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Embeds tiles.

        Args:
            pixels: (b, tile_px, tile_px, 3) uint8 RGB, `tile_px` as on the card; b may be 0.

        Returns:
            (b, d) float32.

        Raises:
            BackboneError: for another dtype or shape.
        """
        ...


BackboneFactory = Callable[..., Backbone]
"""What an entry point names: a class or function that takes `device` ('cpu', 'cuda', 'cuda:1', ...)."""


def expect_tiles(pixels: NDArray[Any], card: BackboneCard) -> None:
    """Refuses anything but a batch of tiles that the card describes.

    Raises:
        BackboneError: unless pixels are uint8 of shape (b, tile_px, tile_px, 3).
    """
    side = card.tile_px
    shape = tuple(np.shape(pixels))
    kind = getattr(pixels, "dtype", type(pixels).__name__)
    if len(shape) != 4 or shape[1:] != (side, side, 3) or kind != np.uint8:
        raise BackboneError(
            f"backbone {card.name} takes uint8 tiles of shape (b, {side}, {side}, 3), found {kind} of shape {shape}",
            "Give raw RGB tiles, values 0 to 255; the backbone normalises them itself.",
        )
