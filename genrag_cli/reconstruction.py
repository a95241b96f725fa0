"""From sparse codes to expression, Eq. 2: y = mu + sum_i a_i (y_i - mu), or y = sum_i a_i y_i.

Rows of the bank stream through in blocks, and the output leaves in blocks of rows, so memory depends on neither the
number of genes nor of spots. This module knows no files and no scales; its caller brings the bank's rows to a scale.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from genrag_cli.types import Doubles, Floats, SparseCodes

BLOCK_VALUES = 8_000_000
"""Values of the output held at once (float32: 32 MB)."""
PRODUCT_VALUES = 1_000_000
"""Values of the output that one product with a block of the bank may touch (20 MB)."""
KEEP_VALUES = 32_000_000
"""Non-zero values of the bank that are kept where the output has several blocks (with indices: 256 MB); above it, the
bank is read again for each."""

BankBlocks = Callable[[], Iterable[tuple[int, Any]]]
"""Called for each walk over the bank: (first row, CSR (b, G) of the wanted genes in the output's scale)."""


def reconstruct(codes: SparseCodes, bank: BankBlocks, n_genes: int, mean: Doubles | None) -> Iterator[Floats]:
    """Yields the prediction in blocks of rows.

    Args:
        codes: weights of n spots over N bank spots.
        bank: walks the bank's rows, from first to last.
        n_genes: G.
        mean: mu (G,), for the centred form; None for the plain one.

    Yields:
        (b, G) float32, all of them together (n, G). Block sizes change no value.
    """
    import scipy.sparse as sp

    weights = sp.csr_matrix((codes.weights, codes.indices, codes.indptr), shape=(len(codes), codes.n_bank))
    step = max(1, BLOCK_VALUES // max(1, n_genes))
    walk = _Walk(bank) if len(codes) > step else bank
    for low in range(0, len(codes), step):
        part = weights[low : low + step].astype(np.float64).tocsc()
        out = np.zeros((part.shape[0], n_genes))
        if mean is not None:
            out += (1.0 - np.asarray(part.sum(axis=1)).ravel())[:, None] * mean
        for block in walk():
            _add(out, part, block)
        yield out.astype(np.float32)


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


def _add(out: Doubles, weights: Any, block: tuple[int, Any]) -> None:
    first, values = block
    used = weights[:, first : first + values.shape[0]].tocsr()
    if not used.nnz:
        return
    wide = values.astype(np.float64)
    # A product of two sparse matrices is nearly dense, and larger than that: some rows at a time.
    step = max(1, PRODUCT_VALUES // max(1, values.shape[1]))
    for low in range(0, len(out), step):
        part = used[low : low + step]
        if part.nnz:
            out[low : low + step] += (part @ wide).toarray()
