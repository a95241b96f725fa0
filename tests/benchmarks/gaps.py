"""Relative duality gaps by the definition, in float64: what an answer is worth, whoever gives it.

It shares nothing with the solver, reads a dictionary slice by slice (an array, or a store on disk), and needs numpy
alone.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ROWS, QUERIES = 4096, 256
"""Bank spots turned to float64 at a time; queries that share a look."""


class Codes(NamedTuple):
    """Weights of some queries over a bank: CSR."""

    indptr: NDArray[Any]
    indices: NDArray[Any]
    weights: NDArray[Any]

    @staticmethod
    def of_dense(weights: NDArray[Any]) -> "Codes":
        """From rows of weights (q, N)."""
        rows, columns = np.nonzero(weights)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(weights)))])
        return Codes(indptr, columns, weights[rows, columns])


def relative_gaps(
    atoms: Any, queries: NDArray[Any], codes: Codes, l1: float, l2: float, nonnegative: bool
) -> NDArray[np.float64]:
    """(P - best valid dual bound) / P of every query.

    With r = b - D a and c = D'r there are two bounds: the Fenchel-Young sum, and the dual value of s r for the best
    admissible scale s. The better one counts; where P is 0 the weights are 0 and the gap is 0.

    Args:
        atoms: (N, m), anything with a shape and slices of rows.
        queries: (q, m).
        codes: weights (q, N).
        l1: weight of |a|_1.
        l2: weight of |a|^2 / 2.
        nonnegative: one-sided problem.
    """
    found = []
    for first in range(0, len(queries), QUERIES):
        some = slice(first, min(first + QUERIES, len(queries)))
        found.append(_gaps(atoms, queries[some].astype(np.float64), _Part(codes, some), l1, l2, nonnegative))
    return np.concatenate(found)


class _Part:
    """Weights of a few queries, in the order of bank spots, so that a block's are together."""

    def __init__(self, codes: Codes, some: slice) -> None:
        bounds = codes.indptr[some.start : some.stop + 1]
        inside, self.size = slice(int(bounds[0]), int(bounds[-1])), some.stop - some.start
        order = np.argsort(codes.indices[inside], kind="stable")
        self.row = np.repeat(np.arange(self.size), np.diff(bounds))[order]
        self.column = codes.indices[inside][order].astype(np.int64)
        self.weight = codes.weights[inside][order].astype(np.float64)

    def block(self, low: int, high: int) -> NDArray[np.float64]:
        """Weights over some bank spots, dense."""
        at = slice(*np.searchsorted(self.column, (low, high)))
        out = np.zeros((self.size, high - low))
        out[self.row[at], self.column[at] - low] = self.weight[at]
        return out

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Per query."""
        return np.bincount(self.row, values, minlength=self.size)


def _gaps(
    atoms: Any, b: NDArray[np.float64], part: _Part, l1: float, l2: float, nonnegative: bool
) -> NDArray[np.float64]:
    n = atoms.shape[0]
    bounds = [(low, min(low + ROWS, n)) for low in range(0, n, ROWS)]
    r = b.copy()
    for low, high in bounds:
        a = part.block(low, high)
        used = np.flatnonzero(a.any(0))
        if len(used):
            r -= a[:, used] @ atoms[low:high][used].astype(np.float64)
    excess, largest = np.zeros(len(b)), np.full(len(b), -np.inf)
    for low, high in bounds:
        c = r @ atoms[low:high].astype(np.float64).T
        slack = c - l2 * part.block(low, high)
        if not nonnegative:
            c, slack = np.abs(c), np.abs(slack)
        excess += (np.maximum(c - l1, 0) ** 2).sum(1)
        largest = np.maximum(largest, slack.max(1))
    residual, size, square = (r**2).sum(1), part.sums(np.abs(part.weight)), part.sums(part.weight**2)
    primal = residual / 2 + l1 * size + l2 * square / 2
    gap = np.full(len(b), np.inf)
    if l2 > 0:  # sum_j a_j c_j = (D a)'r
        gap = l1 * size + l2 * square / 2 + excess / (2 * l2) - ((b - r) * r).sum(1)
    br, q = (b * r).sum(1), residual + l2 * square
    with np.errstate(divide="ignore", invalid="ignore"):
        s = np.where(q > 0, np.clip(br / q, 0, np.where(largest > 0, l1 / largest, np.inf)), 0)
        gap = np.minimum(gap, primal - (s * br - s**2 * q / 2))
        return np.where(primal > 0, gap / primal, 0.0)
