"""Small units (cells, Visium HD bins) summed into square spots by where they lie.

Works on numbers only: it knows no file and no pixels, and takes nothing from array indices, which number rows and
columns unlike the geometry in some sources. Counts stay sparse throughout.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from genrag_cli.errors import CohortError
from genrag_cli.types import Doubles, Ints, Strings


@dataclass(frozen=True, eq=False)
class Pooled:
    """The n squares that hold at least one unit, by row and then by column."""

    counts: Any
    """(n, G) scipy CSR, sums over the units of a square; a square whose units hold no counts is there with zeros."""
    rc: Ints
    """(n, 2) row, column of the square, counted from the upper left of the units' extent; empty squares count too."""
    centres_um: Doubles
    """(n, 2) x, y of the middle of the square (not of its units), in the um that the units were given in."""
    n_units: Ints
    """(n,) units in the square."""

    @property
    def names(self) -> Strings:
        """(n,) `{row:04}x{col:04}`."""
        return np.array([f"{row:04}x{col:04}" for row, col in self.rc.tolist()], dtype=np.str_)


def pool(counts: Any, xy_um: Doubles, side_um: float, *, unit_um: float = 0.0, source: object = "the counts") -> Pooled:
    """Sums units into squares of a given side, along the axes of the coordinates.

    Args:
        counts: (m, G) scipy CSR of raw counts, a row per unit.
        xy_um: (m, 2) x, y of the centres of the units, in um.
        side_um: side of a square.
        unit_um: side of a unit that is itself a square (a bin). The squares then start at the outer edge of the first
            bins instead of at their centres, so that no centre lies on the edge between two squares.
        source: what to name in messages.

    Raises:
        CohortError: for a side that is not above 0, coordinates that are missing or do not fit the counts, and
            negative or non-finite counts, which a sum would hide.
    """
    from scipy import sparse

    m = counts.shape[0]
    if not side_um > 0:
        raise CohortError(f"spots of {side_um:g} um: a side must be above 0")
    if xy_um.shape != (m, 2) or not np.all(np.isfinite(xy_um)):
        raise CohortError(f"{source}: {m} rows of counts need as many finite x, y; found {xy_um.shape}")
    if counts.nnz and not (counts.data.min() >= 0 and counts.data.max() < np.inf):
        raise CohortError(
            f"{source}: negative or non-finite values among the counts", "Give raw counts, not scaled expression."
        )
    origin = (xy_um.min(axis=0) if m else np.zeros(2)) - unit_um / 2
    col, row = np.floor((xy_um - origin) / side_um).astype(np.int64).T
    width = int(col.max(initial=0)) + 1
    places, spot_of_unit, n_units = np.unique(row * width + col, return_inverse=True, return_counts=True)
    rc = np.stack(np.divmod(places, width), axis=1)
    # 8-bit counts would overflow in the sum; wide ones keep their width, as the matrix may be large.
    dtype = np.result_type(counts.dtype, np.int32) if counts.dtype.kind in "iub" else counts.dtype
    membership = (np.ones(m, dtype), (spot_of_unit, np.arange(m)))
    summed = sparse.csr_matrix(sparse.csr_matrix(membership, shape=(len(places), m)) @ counts)
    summed.sort_indices()
    return Pooled(
        counts=summed,
        rc=rc,
        centres_um=origin + (rc[:, ::-1] + 0.5) * side_um,
        n_units=n_units.astype(np.int64),
    )
