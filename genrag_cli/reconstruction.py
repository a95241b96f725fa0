"""From sparse codes to expression, Eq. 2: y = mu + sum_i a_i (y_i - mu), or y = sum_i a_i y_i.

Rows of the bank stream through in blocks, and the output leaves in blocks of rows, so memory depends on neither the
number of genes nor of spots. This module knows no files and no scales; its caller brings the bank's rows to a scale.

A gene g that some sections of the bank did not measure is reconstructed from the references that did. With
A = sum_i |a_i| over all references of a spot, A_g = sum_i |a_i| over those whose section measured g, f_g = A / A_g and
mu_g the mean of g over the bank's spots that measured it,

    y_g = mu_g + f_g sum_{i measured g} a_i (y_ig - mu_g)       or       y_g = f_g sum_{i measured g} a_i y_ig.

Where A_g < MIN_SHARE A the gene is missing at that spot: its presence is False and its value a filler, mu_g in both
forms. A gene that no section measured is missing everywhere. A spot without references (A = 0) has mu_g, or 0, as ever.

With a `Blend` the value is a mean of what references say and of what a regression h of every gene says of the spot:

    y_g = (1 - share) h_g(x) + share (the above).

Genes that some section did not measure have no regression, and stay as above.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.types import Doubles, Floats, Ints, SparseCodes

BLOCK_VALUES = 8_000_000
"""Values of the output held at once (float64 while they are added up: 64 MB)."""
CHUNK_ROWS = 64
"""Blocks of output end where chunks of as many rows do, so that a file gets every chunk once and whole."""
PRODUCT_VALUES = 1_000_000
"""Values of the output that are looked at for missing genes at a time (20 MB)."""
MIN_SHARE = 0.1
"""A gene is missing at a spot where sections that measured it hold a smaller share of the spot's weight."""
KEEP_VALUES = 32_000_000
"""Non-zero values of the bank that are kept where the output has several blocks (with indices: 256 MB); above it, the
bank is read again for each."""

Block = tuple[Floats, NDArray[np.bool_] | None]
"""(b, G) values of consecutive spots, and (b, G) whether each is present, None where all are."""

BankBlocks = Callable[[], Iterable[tuple[int, Any]]]
"""Called for each walk over the bank: (first row, CSR (b, G) of the wanted genes in the output's scale).

Genes that a row's section did not measure hold nothing there."""


@dataclass(frozen=True, eq=False)
class Presence:
    """Which genes the section of each bank spot measured; sections that measured the same genes are one kind."""

    columns: Ints
    """(k,) genes that some section did not measure."""
    lacks: Doubles
    """(P, k) 1 where a kind of section did not measure the gene, else 0."""
    kinds: Any
    """CSR (N, P) 1 where a bank spot is of a kind of section."""
    filler: Doubles
    """(G,) stands where a gene is missing."""

    @staticmethod
    def of(measured: NDArray[np.bool_], section_of: Ints, filler: Doubles) -> "Presence | None":
        """From (S, G) what each section measured and the (N,) section of each bank spot; None where all is measured."""
        import scipy.sparse as sp

        columns = np.flatnonzero(~measured.all(axis=0))
        if not len(columns):
            return None
        lacks, kind = np.unique(~measured[:, columns], axis=0, return_inverse=True)
        n = len(section_of)
        kinds = sp.csr_matrix((np.ones(n), kind.ravel()[section_of], np.arange(n + 1)), shape=(n, len(lacks)))
        return Presence(columns, lacks.astype(np.float64), kinds, np.asarray(filler, np.float64))


@dataclass(frozen=True, eq=False)
class Blend:
    """A regression beside the references."""

    scores: Floats
    """(n, p) of the spots that are predicted."""
    coef: Floats
    """(p + 1, G) of h; the last row is the value at the centre."""
    share: Doubles
    """(G,) of the references; 1 where a gene has no regression."""

    def regression(self, rows: slice) -> Doubles:
        """(b, G) h of some of the spots."""
        coef = self.coef.astype(np.float64)
        return np.asarray(self.scores[rows].astype(np.float64) @ coef[:-1] + coef[-1])


def reconstruct(
    codes: SparseCodes,
    bank: BankBlocks,
    n_genes: int,
    mean: Doubles | None,
    presence: Presence | None = None,
    blend: Blend | None = None,
    threads: int = 1,
) -> Iterator[Block]:
    """Yields the prediction in blocks of rows.

    Args:
        codes: weights of n spots over N bank spots.
        bank: walks the bank's rows, from first to last.
        n_genes: G.
        mean: mu (G,), for the centred form; None for the plain one.
        presence: where sections of the bank lack genes; None: nowhere.
        blend: a regression beside the references; None: they speak alone.
        threads: that add up rows of a block, each its own.

    Yields:
        (b, G) float32 values, all of them together (n, G), and (b, G) whether each is present, None without `presence`.
        Sizes of these blocks and threads change no value, and `presence` changes none whose gene was measured by all
        references of the spot.
    """
    import scipy.sparse as sp

    weights = sp.csr_matrix((codes.weights, codes.indices, codes.indptr), shape=(len(codes), codes.n_bank))
    step = rows_of_a_block(n_genes)
    walk = _Walk(bank) if len(codes) > step else bank
    for low in range(0, len(codes), step):
        part = weights[low : low + step].astype(np.float64)
        part.sort_indices()
        out = np.zeros((part.shape[0], n_genes))
        if mean is not None:
            out += (1.0 - np.asarray(part.tocsc().sum(axis=1)).ravel())[:, None] * mean
        _add_all(out, part, walk(), threads)
        if blend is not None:
            out = (1 - blend.share) * blend.regression(slice(low, low + part.shape[0])) + blend.share * out
        present = None if presence is None else _settle_missing(out, part, mean, presence)
        yield out.astype(np.float32), present


def rows_of_a_block(n_genes: int) -> int:
    """Spots whose expression is put together in one walk over the bank."""
    step = max(1, BLOCK_VALUES // max(1, n_genes))
    return step - (step % CHUNK_ROWS if step > CHUNK_ROWS else 0)


class _Walk:
    """Walks the bank again and again; a bank that fits in `KEEP_VALUES` is read only once."""

    def __init__(self, bank: BankBlocks) -> None:
        self.bank = bank
        self.kept: list[tuple[int, Any]] | None = None

    def __call__(self) -> Iterator[tuple[int, Any]]:
        if self.kept is not None:
            yield from self.kept
            return
        kept: list[tuple[int, Any]] = []
        held = 0
        for block in self.bank():
            held += block[1].nnz
            if held <= KEEP_VALUES:
                kept.append(block)
            else:
                kept.clear()
            yield block
        if held <= KEEP_VALUES:
            self.kept = kept


def _add_all(out: Doubles, weights: Any, blocks: Iterable[tuple[int, Any]], threads: int) -> None:
    """Adds weights (b, N) times the bank to `out` (b, G), some of its rows in each thread."""
    add, begun = _compiled_add(), weights.indptr[:-1].copy()
    cuts = np.linspace(0, len(out), min(max(1, threads), max(1, len(out))) + 1).astype(int)
    parts = [slice(low, high) for low, high in itertools.pairwise(cuts)]
    sums = np.zeros((len(parts), out.shape[1]))
    with ThreadPoolExecutor(len(parts)) as pool:
        for first, values in blocks:
            bank, ends = (first, values.indptr, values.indices, values.data), weights.indptr[1:]
            used = (weights.indices, weights.data)

            def work(i: int, bank: Any = bank, ends: Any = ends, used: Any = used) -> None:
                add(out[parts[i]], begun[parts[i]], ends[parts[i]], *used, *bank, sums[i])

            list(pool.map(work, range(len(parts))))
    out += 0.0  # no value is -0


@functools.cache
def _compiled_add() -> Callable[..., None]:
    """`_add_rows`, compiled at the first call; kept on disk where a folder can be written."""
    from numba import njit

    try:
        made: Callable[..., None] = njit(nogil=True, cache=True)(_add_rows)
    except RuntimeError:
        made = njit(nogil=True)(_add_rows)
    return made


def _add_rows(
    out: Any, begun: Any, ends: Any, columns: Any, weights: Any, first: int, starts: Any, genes: Any, values: Any,
    sums: Any,
) -> None:  # fmt: skip
    """Adds what one block of the bank contributes to some rows, summed up on its own and then added.

    Args:
        out: (b, G) changed in place.
        begun: (b,) where the rows' weights on this block and later ones begin; moved on.
        ends: (b,) where the rows' weights end.
        columns: bank rows of all weights, ascending within a row.
        weights: beside them.
        first: bank row of the block's first.
        starts: indptr (r + 1,) of the block.
        genes: its indices.
        values: its data.
        sums: (G,) zeros, and zeros again at the end.
    """
    last = first + len(starts) - 1
    for row in range(len(out)):
        low = begun[row]
        high = low
        while high < ends[row] and columns[high] < last:
            high += 1
        begun[row] = high
        if high == low + 1:  # alone, a product is its own sum
            reference = columns[low] - first
            for j in range(starts[reference], starts[reference + 1]):
                out[row, genes[j]] += weights[low] * values[j]
            continue
        for k in range(low, high):
            reference = columns[k] - first
            for j in range(starts[reference], starts[reference + 1]):
                sums[genes[j]] += weights[k] * values[j]
        for k in range(low, high):
            reference = columns[k] - first
            for j in range(starts[reference], starts[reference + 1]):
                out[row, genes[j]] += sums[genes[j]]
                sums[genes[j]] = 0.0


def _settle_missing(out: Doubles, weights: Any, mean: Doubles | None, presence: Presence) -> NDArray[np.bool_]:
    """Corrects in place what references without the gene left out, fills what is missing; returns what is present.

    With s and l the sums of a_i over all references and over those without g, `out` holds
    (1 - s) mu_g + sum_i a_i y_ig, so what is wanted is mu_g + f_g (out - (1 - l) mu_g); where l has no terms, `out`.
    """
    columns = presence.columns
    somewhere = ~presence.lacks.all(axis=0)
    centre = np.zeros(len(columns)) if mean is None else mean[columns]
    present = np.ones(out.shape, np.bool_)
    step = max(1, PRODUCT_VALUES // len(columns))
    for low in range(0, len(out), step):
        rows, part = slice(low, low + step), weights[low : low + step]
        size = abs(part)
        # Products of sparse rows: what they give does not depend on the other rows of the block.
        lost_size = (size @ presence.kinds) @ presence.lacks
        lost = (part @ presence.kinds) @ presence.lacks if part.data.min(initial=0) < 0 else lost_size
        total = np.asarray(size.sum(axis=1))
        held = total - lost_size
        here = somewhere & (held >= MIN_SHARE * total)
        values = out[rows, columns]
        raised = here & (lost_size > 0)
        factor = np.divide(total, held, out=np.ones_like(held), where=raised)
        corrected = centre + factor * (values - (1.0 - lost) * centre)
        values = np.where(raised, corrected, values)
        out[rows, columns] = np.where(here, values, presence.filler[columns])
        present[rows, columns] = here
    return present
