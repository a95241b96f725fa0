"""Published recipes for gene panels, to the letter: Stem's, GeneRAG's and HEST-bench's.

They take raw counts of sections over the genes that all of them have. The authors gave them every slide of a data set,
the one to be predicted included; here the caller gives the sections of the bank only. Single precision, thresholds and
quirks are those of the code that they come from (scanpy, HEST), so that lists can be compared.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genrag_cli.errors import GeneragError
from genrag_cli.genes.moments import gene_statistics, pool_statistics
from genrag_cli.genes.panels import N_CORE
from genrag_cli.types import COUNTS, Doubles, Floats, Ints, Strings

Sections = Callable[[], Iterable[Any]]
"""Gives, whenever it is called, the raw counts of one section after the other: scipy CSR (spots, G)."""
Choose = Callable[[ArrayLike, Sections, int | None], Ints]
"""(genes, sections, number or None for the published one) -> indices into the genes."""

STEM_DEPTH = 241
N_HEST_BENCH = 50
_N_VARIABLE = 2000
_N_HIGHEST = 3000
_N_BINS = 20
_MIN_DETECTED = 0.10
_LITERAL = ("MT", "mt", "RPS", "RPL")
_NO_GENES = ("BLANK", "Control")


@dataclass(frozen=True)
class Panel:
    """A recipe and how many genes it keeps when nobody says."""

    choose: Choose | None
    """None for `corrected`: `panels.core_panel`, which works on statistics in place of counts."""
    number: int | None
    """None: as many as the recipe gives. Recipes asked for no number give fewer where fewer pass."""


def stem_panel(genes: ArrayLike, sections: Sections, n: int | None = None) -> Ints:
    """Stem's core panel: genes among the 241 highest means and the 241 highest standard deviations of raw counts.

    Candidates, in each section by itself: spots with a count, genes with a count, counts normalised to the median
    library size of those spots, log1p, and the 2,000 genes of largest binned dispersion (scanpy's `seurat`); then the
    union over sections without names that start with MT, mt, RPS or RPL. Means and standard deviations are over all
    spots of all sections (pandas divides by n - 1, which changes no order). Stem took 241 so that its prostate slides
    gave 200 genes; other slides give another number. Ties go by name.

    Args:
        genes: (G,) symbols, common to all sections.
        sections: counts over these genes; asked for once.
        n: in place of 241 take the depth at which the two lists share n genes. None: 241, whatever it gives.

    Returns:
        Indices into `genes`, sorted by name.

    Raises:
        GeneragError: where no gene is left, or no depth gives n genes.
    """
    rows, mean, sd = _candidates(genes, sections)
    depth: Ints = np.maximum(_rank(mean[rows]), _rank(sd[rows])) + 1
    if n is not None and n > len(rows):
        raise _too_few("stem", n, len(rows))
    limit = STEM_DEPTH if n is None else int(np.sort(depth)[n - 1])
    kept: Ints = rows[depth <= limit]
    if not len(kept):
        raise GeneragError(f"no gene is among both the {limit} highest means and the {limit} highest sds of raw counts")
    if n is not None and len(kept) != n:
        raise GeneragError(
            f"panel stem has no list of {n} genes: at depth {limit} two genes come in at once and make it {len(kept)}",
            f"Ask for {f'{n - 1} or ' if n > 1 else ''}{len(kept)} genes with --anchors.",
        )
    return kept


def generag_panel(genes: ArrayLike, sections: Sections, n: int | None = None) -> Ints:
    """GeneRAG's core panel (notebook 02): of Stem's candidates those of largest variance of raw counts.

    Candidates as in `stem_panel`; of these, genes among both the 3,000 highest means and the 3,000 highest standard
    deviations of raw counts over all spots; of these the n of largest variance, in that order. Ties go by name.

    Args:
        genes: (G,) symbols, common to all sections.
        sections: counts over these genes; asked for once.
        n: how many to keep; None: 300, or all where fewer pass.

    Returns:
        Indices into `genes` by decreasing variance.

    Raises:
        GeneragError: where fewer than n genes pass, or none.
    """
    rows, mean, sd = _candidates(genes, sections)
    high = (_rank(mean[rows]) < _N_HIGHEST) & (_rank(sd[rows]) < _N_HIGHEST)
    rows = rows[high]
    if len(rows) < (n or 1):
        raise _too_few("generag", n or 1, len(rows))
    return rows[np.argsort(-sd[rows], kind="stable")][: n or N_CORE]


def hest_bench_panel(genes: ArrayLike, sections: Sections, n: int | None = None) -> Ints:
    """HEST-bench's panel: the most variable genes of all spots pooled, among those detected in every section.

    Genes with a count in at least ceil(0.1 x spots) spots of every section, without names that contain BLANK or
    Control; log1p of raw counts, all spots in one table, and the n genes of largest binned dispersion (scanpy's
    `seurat`). A tie at the end goes by name.

    Args:
        genes: (G,) symbols, common to all sections.
        sections: counts over these genes; asked for once.
        n: how many to keep; None: 50, or all where fewer pass.

    Returns:
        Indices into `genes`, sorted by name.

    Raises:
        GeneragError: where fewer than n genes pass, or none.
    """
    names = np.asarray(genes, dtype=np.str_)
    frequent = np.array([not any(part in name for part in _NO_GENES) for name in names.tolist()], dtype=bool)
    sums, squares, n_spots = np.zeros(len(names)), np.zeros(len(names)), 0
    for counts in sections():
        matrix = _as_csr(counts, len(names))
        spots = matrix.shape[0]
        # In floating point 0.1 x 30 is a little above 3 and its ceiling 4, there as here.
        frequent &= np.bincount(matrix.indices, minlength=len(names)) >= np.ceil(_MIN_DETECTED * spots)
        part_sums, part_squares = _sum_powers(matrix.indices, np.expm1(np.log1p(matrix.data)), len(names))
        sums, squares, n_spots = sums + part_sums, squares + part_squares, n_spots + spots
    if not n_spots:
        raise GeneragError("no spots to choose genes from")
    rows = _by_name(names, np.flatnonzero(frequent))
    if len(rows) < (n or 1):
        raise _too_few("hest-bench", n or 1, len(rows))
    wanted = n or N_HEST_BENCH
    chosen = _most_dispersed(*_moments(sums[rows], squares[rows], n_spots), wanted)
    if n is not None and chosen.sum() < n:
        raise _too_few("hest-bench", n, int(chosen.sum()))
    return rows[chosen][:wanted]


def variable_genes(counts: Any, n: int = _N_VARIABLE) -> NDArray[np.bool_]:
    """Which genes of one section scanpy finds most variable after normalisation, as in step one of `stem_panel`.

    Equals filter_cells(min_genes=1), filter_genes(min_cells=1), normalize_total, log1p and highly_variable_genes of
    scanpy 1.11, in single precision as there.

    Args:
        counts: (spots, G) CSR of raw counts.
        n: how many; those that tie with the last are taken too.

    Returns:
        (G,) booleans; all False for a section without counts.
    """
    matrix = _as_csr(counts, counts.shape[1])
    found = np.zeros(matrix.shape[1], dtype=bool)
    matrix = matrix[np.diff(matrix.indptr) > 0]
    present = np.flatnonzero(np.bincount(matrix.indices, minlength=len(found)))
    if not len(present):
        return found
    library = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel().astype(np.float32)
    factor = np.repeat(library / np.median(library), np.diff(matrix.indptr))
    values = np.expm1(np.log1p(matrix.data / factor))
    sums, squares = _sum_powers(matrix.indices, values, len(found))
    found[present] = _most_dispersed(*_moments(sums[present], squares[present], matrix.shape[0]), n)
    return found


def _candidates(genes: ArrayLike, sections: Sections) -> tuple[Ints, Doubles, Doubles]:
    """Genes variable in some section without literal prefixes, by name; and mean and sd of raw counts of all genes."""
    names = np.asarray(genes, dtype=np.str_)
    left = np.zeros(len(names), dtype=bool)
    parts = []
    for counts in sections():
        matrix = _as_csr(counts, len(names))
        left |= variable_genes(matrix)
        parts.append(gene_statistics([(matrix, np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel())], COUNTS))
    pooled = pool_statistics(parts)
    left &= np.array([not name.startswith(_LITERAL) for name in names.tolist()], dtype=bool)
    return _by_name(names, np.flatnonzero(left)), pooled.mean, pooled.sd


def _most_dispersed(mean: Doubles, variance: Doubles, n: int) -> NDArray[np.bool_]:
    """The n genes of largest dispersion within their bin of mean expression (scanpy's flavour `seurat`), with ties.

    The log of variance over mean is standardised in each of 20 bins of log1p mean, of equal width; a gene alone in its
    bin gets 1, one that does not vary is never chosen (Satija et al. 2015).
    """
    mean = np.where(mean == 0, 1e-12, mean)
    with np.errstate(invalid="ignore"):  # rounding can make a variance negative
        dispersion = np.log(np.where(variance == 0, np.nan, variance / mean))
    level = np.log1p(mean)
    bins = _assign_bins(level)
    score = np.full(len(mean), np.nan)
    for number in np.unique(bins):
        inside = np.flatnonzero((bins == number) & ~np.isnan(dispersion))
        values = dispersion[inside]
        if len(values) == 1 and values[0] != 0:
            score[inside] = 1.0
        elif len(values) and np.ptp(values) > 0:
            score[inside] = (values - values.mean()) / values.std(ddof=1)
    known = np.sort(score[~np.isnan(score)])[::-1]
    if not len(known):
        return np.zeros(len(mean), dtype=bool)
    chosen: NDArray[np.bool_] = np.nan_to_num(score, nan=-np.inf) >= known[min(n, len(known)) - 1]
    return chosen


def _assign_bins(level: Doubles) -> Ints:
    """Bins of equal width, closed on the right, the lowest value in the first (pandas.cut)."""
    low, high = level.min(), level.max()
    if low == high:
        return np.zeros(len(level), dtype=np.int64)
    return np.maximum(np.linspace(low, high, _N_BINS + 1).searchsorted(level, side="left"), 1)


def _moments(sums: Doubles, squares: Doubles, n: int) -> tuple[Doubles, Doubles]:
    """Mean and unbiased variance from sums over n spots."""
    mean = sums / n
    return mean, (squares / n - mean**2) * (n / (n - 1) if n > 1 else 1.0)


def _sum_powers(indices: NDArray[Any], values: Floats, n_genes: int) -> tuple[Doubles, Doubles]:
    """Sums per gene of values and of their squares, which scanpy takes in single precision before it adds them up."""
    sums, squares = (np.bincount(indices, weights, n_genes).astype(np.float64) for weights in (values, values * values))
    return sums, squares


def _as_csr(counts: Any, n_genes: int) -> Any:
    """The counts in single precision without stored zeros."""
    from scipy import sparse

    matrix = sparse.csr_matrix(counts, dtype=np.float32, copy=True)
    if matrix.shape[1] != n_genes:
        raise GeneragError(f"{n_genes} gene names for counts of {matrix.shape[1]} genes")
    if matrix.nnz and not matrix.data.min() >= 0:
        raise GeneragError("negative or undefined counts: the published panels are chosen from raw counts")
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def _rank(scores: Doubles) -> Ints:
    """The rank of each score from 0, highest first; ties in the order given."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return ranks


def _by_name(names: Strings, rows: Ints) -> Ints:
    return rows[np.argsort(names[rows], kind="stable")]


def _too_few(panel: str, wanted: int, found: int) -> GeneragError:
    return GeneragError(
        f"{wanted} genes of panel {panel} asked for; {found} pass its recipe",
        f"Ask for at most {found} with --anchors, or take another panel." if found else "Take another panel.",
    )


PANELS: dict[str, Panel] = {
    "corrected": Panel(None, N_CORE),
    "stem": Panel(stem_panel, None),
    "generag": Panel(generag_panel, N_CORE),
    "hest-bench": Panel(hest_bench_panel, N_HEST_BENCH),
}
"""The names of `--panel`."""
