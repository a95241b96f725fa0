"""Neighbourhood in an embedding: a share of the mean embedding of the spots around.

A spot of legacy ST or Visium is smaller than what shapes its expression, and one tile's embedding is noisy; the tiles
around it say more of the same tissue. This module knows places and numbers, no grids and no files.
"""

import numpy as np
from numpy.typing import NDArray

from genrag_cli.types import Doubles, Floats, Ints

REACH = 1.5
"""Radius of the neighbourhood in pitches: 8 neighbours on a square lattice, 6 on a hexagonal one."""


def mix_neighbours(features: Floats, centres: Doubles, radius: float, share: float) -> tuple[Floats, Ints]:
    """(1 - share) x the spot's own embedding + share x the mean over its neighbours.

    A spot without neighbours keeps its own embedding.

    Args:
        features: (n, d).
        centres: (n, 2) x, y in any unit.
        radius: neighbours lie within it, in that unit.
        share: 0..1; 0 leaves the features as they are.

    Returns:
        (n, d) float32, and how many neighbours each spot has (n,).
    """
    import scipy.sparse as sp
    from scipy.spatial import cKDTree

    n = len(features)
    pairs: NDArray[np.int64] = (
        cKDTree(centres).query_pairs(radius, output_type="ndarray") if n > 1 else np.zeros((0, 2), np.int64)
    )
    rows, columns = np.concatenate([pairs[:, 0], pairs[:, 1]]), np.concatenate([pairs[:, 1], pairs[:, 0]])
    count = np.bincount(rows, minlength=n).astype(np.int64)
    if share == 0 or not len(rows):
        return np.asarray(features, np.float32), count
    near = sp.csr_matrix((1.0 / count[rows], (rows, columns)), shape=(n, n))
    mixed = np.where(
        (count > 0)[:, None], (1 - share) * features + share * (near @ features.astype(np.float64)), features
    )
    return mixed.astype(np.float32), count
