"""Stain statistics: six numbers a tile, the floor that every network must beat.

Knows colour deconvolution with fixed stain vectors (Ruifrok and Johnston 2001, Anal Quant Cytol Histol 23:291).
It estimates nothing from the slide and normalises no stain.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.base import BackboneSheet, expect_tiles
from genrag_cli.types import Doubles, Floats
from genrag_cli.units import TilePx

STAIN_NAMES = ("haematoxylin_mean", "eosin_mean", "density_mean", "haematoxylin_sd", "eosin_sd", "density_sd")

HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
"""Optical density of haematoxylin in R, G, B (Ruifrok and Johnston), before normalisation to length 1."""
EOSIN = np.array([0.07, 0.99, 0.11])
"""The same of eosin."""


def _unmixing() -> Doubles:
    stains = np.stack([HAEMATOXYLIN / np.linalg.norm(HAEMATOXYLIN), EOSIN / np.linalg.norm(EOSIN)])
    residual = np.cross(stains[0], stains[1])
    unmix = np.linalg.inv(np.vstack([stains, residual / np.linalg.norm(residual)]))
    return np.column_stack([unmix[:, :2], np.full(3, 1 / 3)])


_UNMIX = _unmixing()
"""(3, 3): optical density in R, G, B -> haematoxylin, eosin, mean density of the three channels."""
_DENSITY = -np.log10(np.maximum(np.arange(256), 1) / 255.0)
"""(256,) optical density of a channel value; 0 counts as 1."""


def measure_stains(pixels: NDArray[np.uint8]) -> Doubles:
    """Measures haematoxylin, eosin and total optical density of tiles.

    With OD_c = -log10(max(I_c, 1) / 255) of the channels c = R, G, B of a pixel, the amounts (h, e, x) solve
    OD = h H + e E + x X, where H = (.65, .70, .29) and E = (.07, .99, .11), each scaled to length 1, are the stain
    vectors and X is the unit vector across both. The total density is the mean of OD over the three channels.

    Args:
        pixels: (b, height, width, 3) uint8 RGB.

    Returns:
        (b, 6) mean of h, e and total density over the tile's pixels, then their standard deviations (divisor: number
        of pixels). Each tile is measured by itself, in float64.
    """
    out = np.empty((len(pixels), 6))
    for row, tile in enumerate(pixels):
        density: NDArray[Any] = _DENSITY[tile].reshape(-1, 3)
        mean = density.mean(axis=0)
        centred = density - mean
        # The amounts are linear in OD, so three means and a 3 x 3 covariance hold everything that is asked for.
        covariance = centred.T @ centred / len(centred)
        variance = np.einsum("ij,ik,jk->i", _UNMIX.T, _UNMIX.T, covariance)
        out[row] = np.concatenate([mean @ _UNMIX, np.sqrt(np.maximum(variance, 0.0))])
    return out


class Stain:
    """The six stain statistics as a backbone; needs no weights and no accelerator."""

    sheet = BackboneSheet(
        name="stain",
        kind="encoder",
        dim=len(STAIN_NAMES),
        tile_px=TilePx(224),
        licence="MIT (no weights)",
        feature="mean and sd of haematoxylin, eosin and optical density",
        source="Ruifrok and Johnston 2001",
    )

    def __init__(self, device: str = "cpu") -> None:  # noqa: ARG002 - numpy does the work, whatever the device
        self.card = self.sheet.card()

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Measures tiles; see `measure_stains`."""
        expect_tiles(pixels, self.card)
        return measure_stains(pixels).astype(np.float32)
