"""Mean, spread and detection of genes over the spots that measured them, section by section, in float64.

A gene that a section did not measure is missing in all spots of that section: they are no zeros, they do not count.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import GeneragError
from genrag_cli.genes.scales import to_scale
from genrag_cli.types import Doubles, Ints, Scale

Measured = NDArray[np.bool_]
"""(G,) whether a section measured each gene."""


@dataclass(frozen=True, eq=False)
class GeneStatistics:
    """What panels and standardisation need to know of G genes over some spots, in one scale.

    Each gene's numbers are over the spots in which it was measured, and 0 where there are none.
    """

    n_spots: int
    mean: Doubles
    """(G,)"""
    sd: Doubles
    """(G,) population standard deviation (divided by n)."""
    detected: Doubles
    """(G,) share of spots with a count."""
    spots: Ints
    """(G,) in how many of the spots each gene was measured."""

    @property
    def variance(self) -> Doubles:
        """(G,) square of `sd`."""
        return self.sd**2


def gene_statistics(
    sections: Iterable[tuple[Any, Doubles] | tuple[Any, Doubles, Measured | None]], scale: Scale
) -> GeneStatistics:
    """Statistics over the spots of all sections, holding one section at a time.

    Args:
        sections: (counts, total_counts) of each: CSR or dense (n, G) over the same genes, and (n,) library sizes over
            all genes of the section. A third item (G,) says which genes the section measured; None or left out: all.
        scale: the scale in which mean and sd are taken.

    Raises:
        GeneragError: for no section or no spot, or sections of different width.
    """
    parts = [_section_statistics(*section, scale=scale) for section in sections]
    return pool_statistics(parts)


def pool_statistics(parts: Iterable[GeneStatistics]) -> GeneStatistics:
    """Statistics over all spots from those over disjoint groups of spots, in the same scale.

    Each gene weighs a group by the spots that measured it. Sums of squares are taken around each group's own mean
    (Chan, Golub and LeVeque 1983), so nothing cancels. One group is held at a time.

    Raises:
        GeneragError: for nothing to pool, or groups of different width.
    """
    n_spots, widths = 0, set()
    mean: Doubles = np.zeros(0)
    squares = detected = spots = mean
    for part in parts:
        if not part.n_spots:
            continue
        widths.add(len(part.mean))
        if len(widths) > 1:
            raise GeneragError(f"gene statistics over different numbers of genes: {sorted(widths)}")
        if not n_spots:
            mean, squares, detected, spots = (np.zeros(len(part.mean)) for _ in range(4))
        together = spots + part.spots
        n = np.maximum(together, 1)  # a gene that was measured nowhere has sums of 0
        squares += part.spots * (part.variance + spots / n * (part.mean - mean) ** 2)
        mean += part.spots / n * (part.mean - mean)
        detected += part.spots / n * (part.detected - detected)
        n_spots, spots = n_spots + part.n_spots, together
    if not n_spots:
        raise GeneragError("no spots to take gene statistics over")
    return GeneStatistics(n_spots, mean, np.sqrt(squares / np.maximum(spots, 1)), detected, spots.astype(np.int64))


def _section_statistics(
    counts: Any, total_counts: Doubles, measured: Measured | None = None, *, scale: Scale
) -> GeneStatistics:
    from scipy import sparse

    scaled = sparse.csr_matrix(to_scale(counts, total_counts, scale))
    n, n_genes = scaled.shape
    if measured is not None and measured.shape != (n_genes,):
        raise GeneragError(f"{n_genes} genes were counted, and {measured.shape} says which of them were measured")
    spots = np.full(n_genes, n, np.int64) if measured is None else np.where(measured, n, 0)
    if not n:
        return GeneStatistics(0, np.zeros(n_genes), np.zeros(n_genes), np.zeros(n_genes), spots)
    values = scaled.data.astype(np.float64)
    stored = np.bincount(scaled.indices, minlength=n_genes)
    mean = np.bincount(scaled.indices, values, n_genes) / n
    # Around the mean: the stored entries, then the zeros that are not stored.
    around = np.bincount(scaled.indices, (values - mean[scaled.indices]) ** 2, n_genes) + (n - stored) * mean**2
    detected = np.bincount(scaled.indices, values > 0, n_genes) / n
    here = spots > 0
    return GeneStatistics(
        n, np.where(here, mean, 0.0), np.where(here, np.sqrt(around / n), 0.0), np.where(here, detected, 0.0), spots
    )
