"""Test-time views: one embedding a tile, averaged over its flips and rotations.

Knows the seven views of the published GeneRAG embeddings and the tile itself as the eighth. Knows no backbone.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.base import Backbone, ExpressionModel, expect_tiles
from genrag_cli.errors import UsageError
from genrag_cli.types import BackboneCard, Floats

VIEWS = (1, 7, 8)
"""How many views there may be: the tile as it is, the seven published ones, or those and the tile."""

_Tiles = NDArray[np.uint8]

PUBLISHED: dict[str, Callable[[_Tiles], _Tiles]] = {
    "flip_left_right": lambda t: t[:, :, ::-1],
    "flip_top_bottom": lambda t: t[:, ::-1],
    "rotate_90": lambda t: np.rot90(t, 1, (1, 2)),
    "rotate_180": lambda t: np.rot90(t, 2, (1, 2)),
    "rotate_270": lambda t: np.rot90(t, 3, (1, 2)),
    "transpose": lambda t: t.swapaxes(1, 2),
    "transverse": lambda t: np.rot90(t, 2, (1, 2)).swapaxes(1, 2),
}
"""The seven views of the published code, which leaves the tile itself out; each takes (b, s, s, 3). Rotations are
counter-clockwise, as Pillow's of the same names."""


def _as_is(tiles: _Tiles) -> _Tiles:
    return tiles


class Viewed:
    """A backbone whose embeddings are means over views.

    Args:
        backbone: what embeds each view.
        n: 7 or 8.
    """

    def __init__(self, backbone: Backbone, n: int) -> None:
        self._backbone = backbone
        self._turns = list(PUBLISHED.values())
        if n > len(PUBLISHED):
            self._turns.append(_as_is)
        self.card: BackboneCard = replace(backbone.card, views=n)

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Embeds tiles; see `Backbone.encode`. Views are summed in float64, in the same order whatever the batch."""
        expect_tiles(pixels, self.card)
        total = np.zeros((len(pixels), self.card.dim), np.float64)
        for turn in self._turns:
            total += self._backbone.encode(np.ascontiguousarray(turn(pixels)))
        return (total / len(self._turns)).astype(np.float32)


def with_views(backbone: Backbone, n: int) -> Backbone:
    """The backbone as it is for one view, else one that averages over several.

    Raises:
        UsageError: for another number of views, or several of a model that predicts from the tile as it is.
    """
    if n not in VIEWS:
        raise UsageError(f"--views {n} asked; {', '.join(map(str, VIEWS))} are possible", "The usual number is 1.")
    if n == 1:
        return backbone
    if isinstance(backbone, ExpressionModel):
        raise UsageError(
            f"--views {n}: backbone {backbone.card.name} predicts expression from the tile as it is",
            "Leave --views out.",
        )
    return Viewed(backbone, n)
