"""A pool of atoms per query, and the exact solution on it: by compiled threads on CPUs, by batched torch elsewhere.

Pools are sorted by bank row, so that the weights of a support do not depend on how it was found. Both engines end at
the optimum of the pool to `exact`; the torch engine is also what CPUs without numba use. `engine()` says which of the
two runs. This module does not look at the bank as a whole.
"""

import functools
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genrag_cli.retrieval.block import solve_block
from genrag_cli.retrieval.problem import Batch

ADD = 32
"""Atoms that join a working set per look at the pool."""
SLICE = 8
"""Queries that a thread takes at a time."""
GATHER_BYTES = 256 << 20
"""Memory that gathered atoms may take at once (torch engine)."""


@dataclass(frozen=True, eq=False)
class Pools:
    """Some atoms for every query.

    Args:
        index: (q, K) bank rows in rising order; places from `filled` on hold any row.
        weights: (q, K) float64.
        filled: (q,) places in use.
    """

    index: Tensor
    weights: Tensor
    filled: Tensor

    @staticmethod
    def of(place: Tensor, n: int, old: "Pools | None" = None) -> "Pools":
        """From atoms (q, k), joined with those of older pools that have a weight; n stands for nothing."""
        if old is None:
            kept, weights = place[:, :0], torch.zeros(len(place), 0, dtype=torch.float64, device=place.device)
        else:
            kept, weights = support(old.index, old.weights, n)
        both = torch.cat([place, kept], 1).sort(dim=1).values
        twice = both[:, 1:] == both[:, :-1]
        both[:, 1:][twice] = n
        both = both.sort(dim=1).values
        filled = (both < n).sum(1)
        both = both[:, : max(1, int(filled.max()))].contiguous() if len(both) else both
        out = torch.zeros(len(both), both.shape[1] + 1, dtype=torch.float64, device=place.device)
        at = torch.searchsorted(both, kept.contiguous())
        out.scatter_(1, torch.where(kept < n, at, both.shape[1]), weights)
        return Pools(both.clamp(max=n - 1), out[:, :-1].contiguous(), filled)

    def rows(self, rows: Tensor) -> "Pools":
        """Some of the queries: indices or a mask."""
        return Pools(self.index[rows], self.weights[rows], self.filled[rows])


def support(index: Tensor, weights: Tensor, nothing: int) -> tuple[Tensor, Tensor]:
    """Atoms (q, s) that have a weight, and the weights, in their order; padded with `nothing` and 0."""
    used = weights != 0
    width = int(used.sum(1).max()) if len(used) else 0
    order = (~used).to(torch.int8).sort(dim=1, stable=True).indices[:, :width]
    kept = used.gather(1, order)
    return torch.where(kept, index.gather(1, order), nothing), torch.where(kept, weights.gather(1, order), 0.0)


@dataclass(frozen=True, eq=False)
class Answer:
    """The optimum of every pool.

    Args:
        weights: (q, K) float64.
        residual: b - D a (q, m) float64.
        c: D'(b - D a) over the pool (q, K) float64.
        looked: (q,) how often the whole pool was looked at.
    """

    weights: Tensor
    residual: Tensor
    c: Tensor
    looked: Tensor


@functools.cache
def engine(device_type: str) -> str:
    """`compiled` on CPUs that have numba, else `torch`."""
    return "compiled" if device_type == "cpu" and importlib.util.find_spec("numba") else "torch"


def solve_pools(table: Tensor, local: Tensor, batch: Batch, pools: Pools, *, loops: int, exact: float) -> Answer:
    """Solves each query on its pool, from the weights that it has.

    Args:
        table: (M, m) float32 atoms.
        local: (q, K) where each pool's atoms stand in it.
        batch: the queries.
        pools: their atoms.
        loops: looks at the pool at most.
        exact: accuracy of the optimality conditions, relative to the largest correlation.
    """
    if engine(table.device.type) == "torch":
        return _solve_torch(table, local, batch, pools, loops, exact)
    from genrag_cli.retrieval.compiled import solve_range

    weights, residual, c, looked = pools.weights.clone(), *_room(batch, pools)

    def solve(at: slice, fixed: list[Any], out: list[Any]) -> None:
        arguments = [*(v[at] for v in fixed), batch.nonnegative, loops, ADD, exact, *(v[at] for v in out)]
        solve_range(rows, *arguments)

    rows = table.numpy()
    in_threads(
        solve, [local, pools.filled, batch.b, batch.l1.double(), batch.l2.double()], [weights, residual, c, looked]
    )
    return Answer(weights, residual, c, looked)


def settle(table: Tensor, local: Tensor, batch: Batch, pools: Pools) -> Answer:
    """Rounds weights to float32 and looks at the pools once more.

    The compiled engine makes weights a function of their support first, so that no path to it shows in their bits.
    """
    tiny = 1e-8 * pools.weights.abs().amax(1, keepdim=True)
    weights = torch.where(pools.weights.abs() > tiny, pools.weights, 0.0)
    if engine(table.device.type) == "torch":
        rounded = Pools(pools.index, weights.float().double(), pools.filled)
        return _solve_torch(table, local, batch, rounded, 0, 0.0)
    from genrag_cli.retrieval.compiled import settle_range

    residual, c, looked = _room(batch, pools)

    def solve(at: slice, fixed: list[Any], out: list[Any]) -> None:
        settle_range(rows, *(v[at] for v in fixed), *(v[at] for v in out))

    rows = table.numpy()
    in_threads(solve, [local, pools.filled, batch.b, batch.l1.double(), batch.l2.double()], [weights, residual, c])
    return Answer(weights, residual, c, looked + 1)


def _room(batch: Batch, pools: Pools) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty(batch.b.shape, dtype=torch.float64),
        torch.zeros(pools.index.shape, dtype=torch.float64),
        torch.zeros(len(batch), dtype=torch.long),
    )


def in_threads(work: Callable[[slice, list[Any], list[Any]], None], fixed: list[Tensor], out: list[Tensor]) -> None:
    """Runs compiled work over slices of the queries, as many at once as torch has threads."""
    n = len(fixed[0])
    given, made = [v.contiguous().numpy() for v in fixed], [v.numpy() for v in out]
    slices = [slice(low, low + SLICE) for low in range(0, n, SLICE)]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(lambda at: work(at, given, made), slices))


def _solve_torch(table: Tensor, local: Tensor, batch: Batch, pools: Pools, loops: int, exact: float) -> Answer:
    """Batched: Gram matrices in float32, residuals and correlations in float64, corrected until they fit."""
    weights, c = pools.weights.clone(), torch.zeros_like(pools.weights)
    residual = batch.b.double()
    looked = torch.zeros(len(batch), dtype=torch.long, device=table.device)
    step = max(1, GATHER_BYTES // (12 * local.shape[1] * table.shape[1]))
    for low in range(0, len(batch), step):
        part = slice(low, low + step)
        used = torch.arange(local.shape[1], device=table.device) < pools.filled[part][:, None]
        single = table[local[part]] * used[:, :, None]
        double = single.double()
        gram = torch.bmm(single, single.transpose(1, 2)).double() if loops else single.new_zeros(0)
        b, l1, l2 = residual[part], batch.l1[part].double(), batch.l2[part].double()
        energy, a = b.square().sum(1) / 2, weights[part]
        for loop in range(loops + 1):
            now = b - torch.bmm(a[:, None, :], double)[:, 0]
            slope = torch.bmm(double, now[:, :, None])[:, :, 0]
            looked[part] += 1
            tiny = exact * torch.maximum(l1, slope.abs().amax(1))
            if loop == loops or not bool((_offence(slope, a, used, l1, l2, batch.nonnegative) > tiny).any()):
                break
            rhs = slope + torch.bmm(gram, a[:, :, None])[:, :, 0]
            tight = torch.full_like(l1, 1e-13 if exact < 1e-6 else 1e-6)
            a = solve_block(gram, rhs, a, used, l1, l2, batch.nonnegative, tight, energy)
        weights[part], residual[part], c[part] = a, now, slope
    return Answer(weights, residual, c, looked)


def _offence(c: Tensor, a: Tensor, used: Tensor, l1: Tensor, l2: Tensor, nonnegative: bool) -> Tensor:
    """How far the optimality conditions are from holding, at worst (q,)."""
    inside = (c - l2[:, None] * a - l1[:, None] * a.sign()).abs()
    outside = ((c if nonnegative else c.abs()) - l1[:, None]).clamp(min=0)
    return torch.where(used, torch.where(a != 0, inside, outside), 0.0).amax(1)
