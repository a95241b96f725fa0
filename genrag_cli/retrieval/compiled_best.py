"""The best k of many scores per query as compiled code for CPUs: what `best.py` runs on each block of a pass."""

from typing import Any

import numpy as np

from genrag_cli.retrieval.compiled import Array, jit


@jit
def widen(bits: Array) -> Any:
    """bfloat16 numbers, given as int16 (q, b), as float32."""
    q, b = bits.shape
    out = np.empty((q, b), np.uint32)
    for i in range(q):
        for j in range(b):
            out[i, j] = np.uint32(np.uint16(bits[i, j])) << np.uint32(16)
    return out.view(np.float32)


@jit
def _cut_row(k: int, score: Array, place: Array, n: int) -> float:
    """Moves the k largest of n scores, with their places, to the front; returns the least of them."""
    least = np.partition(score[:n], n - k)[n - k]
    equal = k
    for j in range(n):
        if score[j] > least:
            equal -= 1
    m = 0
    for j in range(n):
        if score[j] > least or (score[j] == least and equal > 0):
            if score[j] == least:
                equal -= 1
            score[m], place[m] = score[j], place[j]
            m += 1
    return float(least)


@jit
def keep_best(
    values: Array, l1: Array, inverse: Array, nonnegative: bool, low: int, k: int, score: Array, place: Array,
    count: Array, edge: Array,
) -> None:  # fmt: skip
    """Takes products (q, b) of atoms low, low + 1, ... into what is kept of each query: scores above its edge."""
    room = score.shape[1]
    for i in range(values.shape[0]):
        n, least, strong = count[i], edge[i], l1[i]
        for j in range(values.shape[1]):
            v = values[i, j] if nonnegative else abs(values[i, j])
            s = (v - strong) * inverse[j]
            if np.isnan(s):  # overflowed: nobody knows, so it is looked at again
                s = np.float32(np.inf)
            if s > least or n < k:
                score[i, n] = s
                place[i, n] = low + j
                n += 1
                if n == room:
                    least = _cut_row(k, score[i], place[i], n)
                    n = k
        count[i], edge[i] = n, least


@jit
def cut_down(k: int, score: Array, place: Array, count: Array, edge: Array) -> None:
    """Leaves the k best of each query, at the front."""
    for i in range(score.shape[0]):
        if count[i] > k:
            edge[i] = _cut_row(k, score[i], place[i], count[i])
            count[i] = k
