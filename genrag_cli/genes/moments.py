"""Mean, spread and detection of genes over spots, section by section, in float64."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrag_cli.errors import GeneragError
from genrag_cli.genes.scales import to_scale
from genrag_cli.types import Doubles, Scale


@dataclass(frozen=True, eq=False)
class GeneStatistics:
    """What panels and standardisation need to know of G genes over some spots, in one scale."""

    n_spots: int
    mean: Doubles
    """(G,)"""
    sd: Doubles
    """(G,) population standard deviation (divided by n)."""
    detected: Doubles
    """(G,) share of spots with a count."""

    @property
    def variance(self) -> Doubles:
        """(G,) square of `sd`."""
        return self.sd**2


def gene_statistics(sections: Iterable[tuple[Any, Doubles]], scale: Scale) -> GeneStatistics:
    """Statistics over the spots of all sections, holding one section at a time.

    Args:
        sections: (counts, total_counts) of each: CSR or dense (n, G) over the same genes, and (n,) library sizes over
            all genes of the section.
        scale: the scale in which mean and sd are taken.

    Raises:
        GeneragError: for no section or no spot, or sections of different width.
    """
    parts = [_section_statistics(counts, totals, scale) for counts, totals in sections]
    return pool_statistics(parts)


def pool_statistics(parts: Iterable[GeneStatistics]) -> GeneStatistics:
    """Statistics over all spots from those over disjoint groups of spots, in the same scale.

    Sums of squares are taken around each group's own mean (Chan, Golub and LeVeque 1983), so nothing cancels.

    Raises:
        GeneragError: for nothing to pool, or groups of different width.
    """
    groups = [part for part in parts if part.n_spots]
    if not groups:
        raise GeneragError("no spots to take gene statistics over")
    if len(widths := {len(part.mean) for part in groups}) > 1:
        raise GeneragError(f"gene statistics over different numbers of genes: {sorted(widths)}")
    n = sum(part.n_spots for part in groups)
    mean = np.sum([part.n_spots * part.mean for part in groups], axis=0) / n
    squares = np.sum([part.n_spots * (part.variance + (part.mean - mean) ** 2) for part in groups], axis=0)
    detected = np.sum([part.n_spots * part.detected for part in groups], axis=0) / n
    return GeneStatistics(n, mean, np.sqrt(squares / n), detected)


def _section_statistics(counts: Any, total_counts: Doubles, scale: Scale) -> GeneStatistics:
    from scipy import sparse

    scaled = sparse.csr_matrix(to_scale(counts, total_counts, scale))
    n, n_genes = scaled.shape
    if not n:
        return GeneStatistics(0, np.zeros(n_genes), np.zeros(n_genes), np.zeros(n_genes))
    values = scaled.data.astype(np.float64)
    stored = np.bincount(scaled.indices, minlength=n_genes)
    mean = np.bincount(scaled.indices, values, n_genes) / n
    # Around the mean: the stored entries, then the zeros that are not stored.
    around = np.bincount(scaled.indices, (values - mean[scaled.indices]) ** 2, n_genes) + (n - stored) * mean**2
    detected = np.bincount(scaled.indices, values > 0, n_genes) / n
    return GeneStatistics(n, mean, np.sqrt(around / n), detected)
