"""Affine maps of the plane as plain numbers, so that a reader that holds one can be hashed and sent.

Knows x, y only. Which file says which map, and between which images, is the business of whoever reads it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from genrag_cli.errors import CohortError
from genrag_cli.types import Doubles

Affine = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): x' = a x + b y + c, y' = d x + e y + f."""

IDENTITY: Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
LARGEST_STRETCH = 1.05
"""A map that stretches one direction by more than this against another turns squares into what no tile can be."""


def from_matrix(matrix: Any) -> Affine:
    """The map of a 2 x 3 or 3 x 3 matrix that acts on columns (x, y, 1).

    Raises:
        CohortError: for another shape, values that are not finite, or a last row other than 0 0 1.
    """
    values = np.asarray(matrix, dtype=np.float64)
    if values.shape not in ((2, 3), (3, 3)) or not np.all(np.isfinite(values)):
        raise CohortError(f"no affine map of the plane: {values.tolist()}")
    if len(values) == 3 and values[2].tolist() != [0, 0, 1]:
        raise CohortError(f"no affine map of the plane: its last row is {values[2].tolist()}, not 0 0 1")
    a, b, c, d, e, f = values[:2].ravel().tolist()
    return (a, b, c, d, e, f)


def to_matrix(affine: Affine) -> Doubles:
    """(3, 3) acting on columns (x, y, 1)."""
    return np.array([affine[:3], affine[3:], (0.0, 0.0, 1.0)])


def compose(maps: Sequence[Affine]) -> Affine:
    """The map that does the given ones in their order, first to last."""
    out = np.eye(3)
    for one in maps:
        out = to_matrix(one) @ out
    return from_matrix(out)


def invert(affine: Affine) -> Affine:
    """The way back.

    Raises:
        CohortError: for a map that flattens the plane.
    """
    if not abs(np.linalg.det(to_matrix(affine))) > 1e-12:
        raise CohortError(f"a map that cannot be inverted: {affine}")
    inverse = np.linalg.inv(to_matrix(affine))
    inverse[2] = (0, 0, 1)
    return from_matrix(inverse)


def apply(affine: Affine, xy: Doubles) -> Doubles:
    """(n, 2) x, y taken through the map."""
    matrix = to_matrix(affine)
    return np.asarray(xy @ matrix[:2, :2].T + matrix[:2, 2], dtype=np.float64)


def length_scale(affine: Affine) -> float:
    """By how much the map stretches lengths; turns and mirror images are allowed.

    Raises:
        CohortError: for a map that shears, or stretches one direction by more than `LARGEST_STRETCH` against another.
    """
    widest, narrowest = np.linalg.svd(to_matrix(affine)[:2, :2], compute_uv=False).tolist()
    if not narrowest > 0 or widest / narrowest > LARGEST_STRETCH:
        raise CohortError(
            f"the map shears or stretches unequally: lengths grow by {narrowest:.4g} to {widest:.4g}, by direction",
            "Align the images again with shifts, turns, mirror images and one scale only.",
        )
    return float(np.sqrt(widest * narrowest))
