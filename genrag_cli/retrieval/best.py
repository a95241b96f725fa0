"""The best k of many scores per query, block by block, so that the N x Q product is never kept.

A score is (c - l1) / v of a product c (its size when signed), with 1 / v given per atom. The compiled kind reads each
product once and keeps only what beats the query's k-th so far; the torch kind serves GPUs and CPUs without numba.
"""

import numpy as np
import torch
from torch import Tensor

from genrag_cli.retrieval.pools import in_threads


class TorchBest:
    """Scores in batched torch.

    Args:
        l1: (q,) float32.
        k: how many to keep; there must be as many in all.
        nonnegative: scores of products, or of their sizes.
    """

    def __init__(self, l1: Tensor, k: int, nonnegative: bool) -> None:
        self._l1, self._k, self._nonnegative = l1[:, None], k, nonnegative
        self._score = torch.empty(len(l1), 0, device=l1.device)
        self._place = torch.empty(len(l1), 0, dtype=torch.long, device=l1.device)

    def take(self, product: Tensor, inverse: Tensor, low: int) -> None:
        """Products (q, b) float32 or bfloat16 of the atoms from number `low` on; inverse: 1 / v (b,)."""
        score = product.float() if self._nonnegative else product.float().abs()
        score = score.sub(self._l1).mul_(inverse)
        top = score.topk(min(self._k, score.shape[1]), dim=1)
        self._score = torch.cat([self._score, top.values], 1)
        self._place = torch.cat([self._place, top.indices + low], 1)
        if self._score.shape[1] > self._k:
            top = self._score.topk(self._k, dim=1)
            self._score, self._place = top.values, self._place.gather(1, top.indices)

    def end(self) -> tuple[Tensor, Tensor]:
        """Scores and numbers (q, k), in any order."""
        return self._score, self._place


class CompiledBest:
    """As `TorchBest`, on CPUs."""

    def __init__(self, l1: Tensor, k: int, nonnegative: bool) -> None:
        q, room = len(l1), 3 * k
        self._l1, self._k, self._nonnegative = l1, k, nonnegative
        self._score, self._place = torch.empty(q, room), torch.empty(q, room, dtype=torch.long)
        self._count, self._edge = torch.zeros(q, dtype=torch.long), torch.full((q,), -torch.inf)

    def take(self, product: Tensor, inverse: Tensor, low: int) -> None:
        """As `TorchBest.take`."""
        from genrag_cli.retrieval.compiled_best import keep_best, widen

        given = product.view(torch.int16) if product.dtype == torch.bfloat16 else product
        steps = inverse.numpy()

        def work(at: slice, fixed: list[np.ndarray], out: list[np.ndarray]) -> None:
            values, l1 = fixed[0][at], fixed[1][at]
            if values.dtype == np.int16:
                values = widen(values)
            keep_best(values, l1, steps, self._nonnegative, low, self._k, *(v[at] for v in out))

        in_threads(work, [given, self._l1], [self._score, self._place, self._count, self._edge])

    def end(self) -> tuple[Tensor, Tensor]:
        """As `TorchBest.end`."""
        from genrag_cli.retrieval.compiled_best import cut_down

        in_threads(
            lambda at, _, out: cut_down(self._k, *(v[at] for v in out)), [self._l1],
            [self._score, self._place, self._count, self._edge],
        )  # fmt: skip
        return self._score[:, : self._k].contiguous(), self._place[:, : self._k].contiguous()
