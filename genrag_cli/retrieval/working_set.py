"""Working sets: each query is solved on a pool of atoms, and passes over the whole bank only fill and certify the pool.

A first guess comes from the nearest atoms of a sub-bank. Then, per round: one pass ranks every atom by how much it
wants in; the best join the pool with those in use; the pool is solved to the end; and what the pass left outside is
bounded again where the residual has moved to. Where nobody outside can want in, the optimum of the pool is the optimum
of the bank: the query is done, exactly, and no path to it shows in its weights. Two passes are the rule.

Every query has its own certificate. This module does not know how passes or pools are computed.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genrag_cli.retrieval.certificate import full_gap, pool_gap
from genrag_cli.retrieval.pools import Pools, settle, solve_pools, support
from genrag_cli.retrieval.problem import Batch, Solved
from genrag_cli.retrieval.scan import Scan

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
    on_solved: Callable[[int], None] = lambda _: None,
) -> Solved:
    """Solves one batch.

    Args:
        scan: the dictionary, ready for passes.
        batch: queries in float32.
        gap: relative duality gap at which a query is done.
        max_rounds: rounds after which an open query is returned as it stands.
        start: index (q, p) and weights (q, p) to begin from; None begins from the nearest atoms.
        on_solved: told how many more queries are done.
    """
    n, atoms = len(batch), scan.atoms
    passes = torch.zeros(n, dtype=torch.float64, device=atoms.device)
    alive = torch.arange(n, device=atoms.device)
    pools, residual = _begin(scan, batch, start, passes)
    best = torch.full((n,), torch.inf, dtype=torch.float64, device=atoms.device)
    idle = torch.zeros(n, dtype=torch.long, device=atoms.device)
    finished: list[tuple[Tensor, Tensor, Tensor]] = []
    width = min(max(POOL, min(BROADEST, int(POOL * math.sqrt(atoms.n / POOL_BANK)))), atoms.n)
    for round_ in range(max_rounds):
        some = batch.rows(alive)
        look = scan.look(residual, some.l1, batch.nonnegative, width, exactly=round_ >= ROUGHLY)
        pools, moved, cost = _solve(scan, some, Pools.of(look.index, atoms.n, pools), LOOPS, EXACT)
        closed = look.outside + scan.moved(moved - residual, batch.nonnegative) <= 0
        pools, found, more = _certify(scan, some, pools, closed)
        passes[alive] += 1 + cost + more
        idle[alive] = torch.where(found < best[alive], 0, idle[alive] + 1)
        best[alive] = torch.minimum(best[alive], found)
        ended = (found <= gap) | (idle[alive] > PATIENCE) | (round_ == max_rounds - 1)
        if bool(ended.any()):
            finished.append((alive[ended], *support(pools.index[ended], pools.weights[ended].float(), 0)))
            best[alive[ended]] = found[ended]
            on_solved(int(ended.sum()))
        alive, pools, residual = alive[~ended], pools.rows(~ended), moved[~ended]
        if len(alive) == 0:
            break
        if round_ >= 1:
            width = min(2 * width, WIDEST, atoms.n)
    index, weights = _together(finished, n, atoms.device)
    unknown = best.isinf().nonzero()[:, 0]
    if len(unknown):
        best[unknown] = full_gap(atoms, batch.rows(unknown), index[unknown], weights[unknown])
        passes[unknown] += 1
    return Solved(index, weights, best, passes)


def _begin(scan: Scan, batch: Batch, start: tuple[Tensor, Tensor] | None, passes: Tensor) -> tuple[Pools, Tensor]:
    """Pools and residuals to begin from; adds what they cost to `passes`."""
    n = scan.atoms.n
    if start is None:
        pools, residual, cost = _solve(scan, batch, Pools.of(scan.nearest(batch.b, START), n), FIRST, ROUGH)
        passes += scan.sub_share + cost
        return pools, residual
    given = Pools(*support(start[0], start[1].double(), n), torch.zeros(0))
    nobody = torch.zeros(len(batch), 1, dtype=torch.long, device=passes.device)
    pools, residual, cost = _solve(scan, batch, Pools.of(nobody, n, given), 0, 0.0)
    passes += cost
    return pools, residual


def _solve(scan: Scan, batch: Batch, pools: Pools, loops: int, exact: float) -> tuple[Pools, Tensor, Tensor]:
    """Pools with their optimal weights, residuals (q, m), and the cost in passes (q,)."""
    answer = solve_pools(scan.atoms, batch, pools, loops=loops, exact=exact)
    cost = answer.looked.double() * (pools.index.shape[1] / scan.atoms.n)
    return Pools(pools.index, answer.weights, pools.filled), answer.residual, cost


def _certify(scan: Scan, batch: Batch, pools: Pools, closed: Tensor) -> tuple[Pools, Tensor, Tensor]:
    """Rounds the weights of queries that nobody outside can join: pools, their gaps (inf elsewhere), cost in passes."""
    found = torch.full(closed.shape, torch.inf, dtype=torch.float64, device=closed.device)
    cost = torch.zeros_like(found)
    rows = closed.nonzero()[:, 0]
    if len(rows) == 0:
        return pools, found, cost
    inside, some = pools.rows(rows), batch.rows(rows)
    answer = settle(scan.atoms, some, inside)
    found[rows] = pool_gap(some, answer.weights, answer.residual, answer.c, inside.filled)
    cost[rows] = answer.looked.double() * (inside.index.shape[1] / scan.atoms.n)
    weights = pools.weights.clone()
    weights[rows] = answer.weights
    return Pools(pools.index, weights, pools.filled), found, cost


def _together(finished: list[tuple[Tensor, Tensor, Tensor]], n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Atoms and weights (n, p) of queries that ended in different rounds."""
    width = max((i.shape[1] for _, i, _ in finished), default=0)
    index = torch.zeros(n, width, dtype=torch.long, device=device)
    weights = torch.zeros(n, width, device=device)
    for rows, i, w in finished:
        index[rows, : i.shape[1]], weights[rows, : w.shape[1]] = i, w
    return index, weights
