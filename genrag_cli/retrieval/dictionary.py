"""From prepared embeddings and anchor genes to the rows that Eq. 1 compares.

D = [sqrt(w) S_f (F - f0); sqrt(1-w) S_y (Y - y0)], w = omega.

Bank and queries go through the same `Blocks`, so that they cannot end up in different spaces. This module does not know
where embeddings come from; standardising them per section is its caller's business (definitions section 1).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import SolverError, UsageError
from genrag_cli.types import Doubles, Floats

SPREAD_FLOOR = 0.01
"""A head whose guesses hardly vary is not blown up beyond this."""
SD_FLOOR = 0.01
"""A dimension's sd is never taken below this share of the root mean square sd over dimensions."""

ROWS_AT_ONCE = 4096
"""Rows that are float64 at a time: 50 MB for 1,536 dimensions."""


def floor_sd(sd: NDArray[np.floating]) -> Doubles:
    """Standard deviations (d,) with the floor applied, so that a dimension that hardly moves is not blown up."""
    values: Doubles = np.asarray(sd, np.float64)
    least = SD_FLOOR * np.sqrt(np.mean(values**2))
    return np.asarray(np.maximum(values, least if least > 0 else 1.0))


def standardise(features: Floats, mean: Doubles, sd: Doubles) -> Floats:
    """(F - mean) / floored sd, per dimension; features (n, d). In float64, some rows at a time."""
    out, floored = np.empty(features.shape, np.float32), floor_sd(sd)
    for low in range(0, len(features), ROWS_AT_ONCE):
        rows = slice(low, low + ROWS_AT_ONCE)
        out[rows] = (features[rows] - mean) / floored
    return out


@dataclass(frozen=True, eq=False)
class Blocks:
    """How the two blocks of a row are centred, scaled and weighed.

    Args:
        omega: weight of morphology, 0..1.
        feature_scale: S_f, one number (1/sqrt(d), or 1).
        anchor_centre: y0 (A,).
        anchor_scale: the diagonal of S_y (A,).
    """

    omega: float
    feature_scale: float
    anchor_centre: Doubles
    anchor_scale: Doubles

    def __post_init__(self) -> None:
        if not 0 <= self.omega <= 1:
            raise UsageError(f"omega {self.omega} asked; 0 <= omega <= 1 is possible (1: morphology alone)")

    @staticmethod
    def balanced(omega: float, dim: int, anchor_mean: Doubles, anchor_sd: Doubles, guess_sd: Doubles) -> "Blocks":
        """Preset `default`: blocks that have unit energy in a query, so that omega means what it says.

        Embeddings are standardised, so theirs is 1 / sqrt(d). A first guess of the anchors is far less spread than
        measured spots are (a ridge head shrinks what it cannot know: to a few percent of the sd on real tissue), so
        anchors are divided by their sd over the bank, by sqrt(k), and by how spread the head's guesses over the bank
        are beside it. Without the last, a query's anchors weigh next to nothing, whatever omega.

        Args:
            omega: weight of morphology.
            dim: d.
            anchor_mean: y0 (k,).
            anchor_sd: sd of the measured anchors over the bank (k,).
            guess_sd: sd of the head's guesses over the bank (k,).
        """
        sd = floor_sd(anchor_sd)
        spread = max(float(np.sqrt(np.mean((guess_sd / sd) ** 2))), SPREAD_FLOOR)
        return Blocks(omega, 1 / np.sqrt(dim), anchor_mean, 1 / sd / np.sqrt(len(sd)) / spread)

    @staticmethod
    def as_published(omega: float, n_anchors: int) -> "Blocks":
        """Preset `paper`: values as they are."""
        return Blocks(omega, 1.0, np.zeros(n_anchors), np.ones(n_anchors))

    def rows(self, features: Floats, anchors: Floats) -> Floats:
        """(n, d) features and (n, A) anchor expression as (n, d + A) rows of the problem; the weights are in."""
        if len(features) != len(anchors) or anchors.shape[1] != len(self.anchor_centre):
            raise SolverError(
                f"{features.shape} features, {anchors.shape} anchors given; {len(self.anchor_centre)} anchors expected"
            )
        d = features.shape[1]
        out = np.empty((len(features), d + anchors.shape[1]), np.float32)
        np.multiply(features, np.float32(np.sqrt(self.omega) * self.feature_scale), out=out[:, :d])
        np.subtract(anchors, self.anchor_centre.astype(np.float32), out=out[:, d:])
        out[:, d:] *= (np.sqrt(1 - self.omega) * self.anchor_scale).astype(np.float32)
        return out
