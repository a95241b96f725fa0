"""Working sets: each query is solved on a pool of atoms, and passes over the whole bank only fill and certify the pool.

A first guess comes from the nearest atoms of a sub-bank. Then, per round: one pass ranks every atom by how much it
wants in; the best join the pool with those in use; the pool is solved to the end; and what the pass left outside is
bounded again where the residual has moved to. Where nobody outside can want in, the optimum of the pool is the optimum
of the bank: the query is done, exactly, and no path to it shows in its weights. Two passes are the rule.

Every query has its own certificate. This module does not know how passes or pools are computed.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from genrag_cli.retrieval.block import one_thread
from genrag_cli.retrieval.certificate import combined, gap_from, pool_gap
from genrag_cli.retrieval.pools import Answer, Pools, settle, solve_pools, support
from genrag_cli.retrieval.problem import Batch, Solved
from genrag_cli.retrieval.scan import Look, Scan

START = 192
"""Nearest atoms of the sub-bank that a query without a warm start begins from."""
POOL, POOL_BANK, BROADEST = 192, 13_000, 512
"""Atoms that the first passes put into a pool, and the bank size from which on more pay off, with its root, up to."""
WIDEST = 2048
"""Atoms that a pass puts into a pool at most: the width doubles from the third pass on."""
ROUGHLY = 4
"""Passes that may use the faster precision; a query that is still open then gets float32."""
LOOPS, FIRST = 10, 2
"""Looks at a pool: in rounds, and for the first guess."""
PATIENCE = 4
"""Rounds without getting better after which a query is given back as it stands."""
EXACT, ROUGH = 1e-9, 1e-3
"""Accuracy of the optimality conditions on a pool: in rounds, and for the first guess."""


def solve_working_set(
    scan: Scan,
    batch: Batch,
    *,
    gap: float,
    max_rounds: int = 60,
    start: tuple[Tensor, Tensor] | None = None,
    certified: bool = True,
    on_solved: Callable[[int], None] = lambda _: None,
) -> Solved:
    """Solves one batch.

    Args:
        scan: the dictionary, ready for passes.
        batch: queries in float32.
        gap: relative duality gap at which a query is done.
        max_rounds: rounds after which an open query is returned as it stands.
        start: index (q, p) and weights (q, p) to begin from; None begins from the nearest atoms.
        certified: False leaves out the pass that finds the gap of queries that did not come to an end (it is inf).
        on_solved: told how many more queries are done.
    """
    n, device = len(batch), batch.b.device
    passes = torch.zeros(n, dtype=torch.float64, device=device)
    alive = torch.arange(n, device=device)
    pools, residual = _begin(scan, batch, start, passes)
    best = torch.full((n,), torch.inf, dtype=torch.float64, device=device)
    idle = torch.zeros(n, dtype=torch.long, device=device)
    finished: list[tuple[Tensor, Tensor, Tensor]] = []
    in_use = int((pools.weights != 0).sum(1).double().median()) if n else 0
    width = min(max(POOL, 3 * in_use, min(BROADEST, int(POOL * math.sqrt(scan.n / POOL_BANK)))), scan.n)
    for round_ in range(max_rounds):
        some = batch.rows(alive)
        look = scan.look(residual, some.l1, batch.nonnegative, width, exactly=round_ >= ROUGHLY)
        with one_thread(device):
            pools = Pools.of(look.index, scan.n, pools)
        table, local = scan.table(pools.index)
        answer = _solve(scan, table, local, some, pools, LOOPS, EXACT)
        with one_thread(device):
            closed = scan.ceiling(look, answer.residual - residual, batch.nonnegative) <= 0
        solved = replace(pools, weights=answer.weights)
        weights, found, looked = _certify(scan, look, residual, table, local, some, solved, closed)
        pools, residual = replace(pools, weights=weights), answer.residual
        passes[alive] += 1 + (answer.looked + looked).double() * (local.shape[1] / scan.n)
        # A pool that can still grow is not at its end.
        still = closed | (width >= min(WIDEST, scan.n))
        idle[alive] = torch.where(found < best[alive], 0, idle[alive] + still)
        best[alive] = torch.minimum(best[alive], found)
        ended = scan.agreed((found <= gap) | (idle[alive] > PATIENCE) | (round_ == max_rounds - 1))
        if bool(ended.any()):
            finished.append((alive[ended], *support(pools.index[ended], pools.weights[ended].float(), 0)))
            best[alive[ended]] = found[ended]
            on_solved(int(ended.sum()))
        alive, pools, residual = alive[~ended], pools.rows(~ended), residual[~ended]
        if len(alive) == 0:
            break
        if round_ >= 1:
            width = min(2 * width, WIDEST, scan.n)
    index, weights = _together(finished, n, device)
    unknown = best.isinf().nonzero()[:, 0]
    if certified and len(unknown):
        some, where, a = batch.rows(unknown), index[unknown], weights[unknown]
        rest = combined(some, *scan.table(where), a)
        best[unknown] = gap_from(some, rest, a, scan.gap_parts(some, rest, where, a))
        passes[unknown] += 1
    return Solved(index, weights, best, passes)


def _begin(scan: Scan, batch: Batch, start: tuple[Tensor, Tensor] | None, passes: Tensor) -> tuple[Pools, Tensor]:
    """Pools and residuals to begin from; adds what they cost to `passes`."""
    if start is not None:
        given = Pools(*support(start[0], start[1].double(), scan.n), torch.zeros(0))
        pools = Pools.of(torch.zeros(len(batch), 1, dtype=torch.long, device=passes.device), scan.n, given)
        passes += pools.index.shape[1] / scan.n
        return pools, combined(batch, *scan.table(pools.index), pools.weights)
    near = scan.nearest(batch.b, START)
    with one_thread(near.device):
        pools = Pools.of(near, scan.sub.n)
    answer = _solve(scan, *scan.sub.table(pools.index), batch, pools, FIRST, ROUGH)
    passes += (scan.sub.n + answer.looked.double() * pools.index.shape[1]) / scan.n
    return Pools(scan.sub_index[pools.index], answer.weights, pools.filled), answer.residual


def _solve(scan: Scan, table: Tensor, local: Tensor, batch: Batch, pools: Pools, loops: int, exact: float) -> Answer:
    def work(rows: Tensor) -> Answer:
        return solve_pools(table, local[rows], batch.rows(rows), pools.rows(rows), loops=loops, exact=exact)

    return scan.divided(len(batch), work)


def _certify(
    scan: Scan, look: Look, residual: Tensor, table: Tensor, local: Tensor, batch: Batch, pools: Pools, closed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rounds the weights of queries that nobody outside can join: weights, gaps (inf elsewhere), looks at the pool.

    `residual` is where the look was taken; whether nobody can join is asked again of the rounded weights.
    """
    found = torch.full(closed.shape, torch.inf, dtype=torch.float64, device=closed.device)
    looked, weights = torch.zeros(len(found), dtype=torch.long, device=closed.device), pools.weights.clone()
    rows = closed.nonzero()[:, 0]
    if len(rows):
        inside, some = pools.rows(rows), batch.rows(rows)
        answer = settle(table, local[rows], some, inside)
        with one_thread(found.device):
            ceiling = scan.ceiling(look.rows(rows), answer.residual - residual[rows], batch.nonnegative)
            rest = some.l1.double() + ceiling * scan.narrowest
            gaps = pool_gap(some, answer.weights, answer.residual, answer.c, inside.filled, rest)
        found[rows] = torch.where(ceiling <= 0, gaps, torch.inf)
        looked[rows], weights[rows] = answer.looked, answer.weights
    return weights, found, looked


def _together(finished: list[tuple[Tensor, Tensor, Tensor]], n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Atoms and weights (n, p) of queries that ended in different rounds."""
    width = max((i.shape[1] for _, i, _ in finished), default=0)
    index = torch.zeros(n, width, dtype=torch.long, device=device)
    weights = torch.zeros(n, width, device=device)
    for rows, i, w in finished:
        index[rows, : i.shape[1]], weights[rows, : w.shape[1]] = i, w
    return index, weights
