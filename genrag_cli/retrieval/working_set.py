"""Working sets: each query is solved on a few atoms, and the whole bank only certifies it.

Only about 50 of N spots end up with a weight, so the bank is looked at a handful of times: once for the nearest atoms,
then once per round, for the exact duality gap and for the atoms that still want in. A query is done when *its own*
relative gap, in float64, is at most what was asked. The gap needs float64 only for atoms near the threshold: float32
correlations carry a rigorous error bound, and an atom below the threshold by more than that adds nothing.

This module knows one dictionary in memory; blocks on disk and several devices are its caller's business.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from genrag_cli.retrieval.block import solve_block
from genrag_cli.retrieval.objective import GapParts, relative_gap
from genrag_cli.retrieval.problem import Batch, Solved, nearest

START = 48
ADD = 48
"""Atoms that a round may add to a query."""
SPARE = 16
"""Candidates of a pass beyond the set and what may be added."""
PATIENCE = 4
"""Rounds without anybody to add after which a query is given back as it stands."""
COLUMNS = 16_384
"""Bank rows per block of a pass."""
GATHER_BYTES = 256 << 20
"""Memory that gathered atoms may take at once."""
UNIT = 2.0**-24


def solve_working_set(
    atoms: Tensor,
    half_norms: Tensor,
    batch: Batch,
    *,
    gap: float,
    max_rounds: int = 60,
    start: tuple[Tensor, Tensor] | None = None,
    on_solved: Callable[[int], None] = lambda _: None,
) -> Solved:
    """Solves one batch.

    Args:
        atoms: D' (N, m) float32: one row per bank spot.
        half_norms: |D_j|^2 / 2 (N,).
        batch: queries in float32.
        gap: relative duality gap at which a query is done.
        max_rounds: rounds after which an open query is returned as it stands.
        start: index (q, p) and weights (q, p) to begin from; None begins from the nearest atoms.
        on_solved: told how many more queries are done.
    """
    n = len(batch)
    passes = torch.zeros(n, device=atoms.device)
    if start is None:
        index = nearest(atoms, half_norms, batch.b, START)
        weights = torch.zeros(index.shape, dtype=torch.float64, device=atoms.device)
        used = torch.ones_like(index, dtype=torch.bool)
        passes += 1
    else:
        index, weights = start[0], start[1].double()
        used = weights != 0
    residual = batch.b.double() if start is None else _residual(atoms, batch, index, weights)
    reached = torch.full((n,), torch.inf, dtype=torch.float64, device=atoms.device)
    alive = torch.arange(n, device=atoms.device)
    norms = (2 * half_norms).sqrt()
    tight = torch.full((n,), 0.2 * gap, dtype=torch.float64, device=atoms.device)
    spare, idle = SPARE, torch.zeros(n, dtype=torch.long, device=atoms.device)
    finished: list[tuple[Tensor, Tensor, Tensor]] = []
    for round_ in range(max_rounds):
        open_ = batch.rows(alive)
        weights = _solve_sets(atoms, open_, residual, index, weights, used, tight[alive])
        index, weights = _trim(index, weights.float())
        used = weights != 0
        residual = _residual(atoms, open_, index, weights)
        found, extra = _look(atoms, norms, open_, residual, index, weights, spare)
        passes[alive] += 1
        # A query that wants nobody in and still misses the gap was not solved well enough, or has too many atoms so
        # near the threshold that float32 cannot tell: solve it tighter, look at more candidates, and give up in time.
        stuck = (extra >= 0).sum(1) == 0
        idle[alive] += stuck
        tight[alive] = torch.where(stuck, tight[alive] * 0.1, tight[alive])
        if bool((stuck & found.isinf()).any()):
            spare *= 4
        ended = (found <= gap) | (idle[alive] > PATIENCE) | (round_ == max_rounds - 1)
        if bool(ended.any()):
            finished.append((alive[ended], index[ended], weights[ended]))
            reached[alive[ended]] = found[ended]
            on_solved(int(ended.sum()))
        keep = ~ended
        alive, index, weights, extra = alive[keep], index[keep], weights[keep].double(), extra[keep]
        residual = residual[keep]
        if len(alive) == 0:
            break
        index = torch.cat([index, extra.clamp(min=0)], 1)
        weights = torch.cat([weights, torch.zeros_like(extra, dtype=torch.float64)], 1)
        used = torch.cat([used[keep], extra >= 0], 1)
    width = max((i.shape[1] for _, i, _ in finished), default=0)
    out_index = torch.zeros(n, width, dtype=torch.long, device=atoms.device)
    out_weights = torch.zeros(n, width, device=atoms.device)
    for rows, i, w in finished:
        out_index[rows, : i.shape[1]], out_weights[rows, : w.shape[1]] = i, w
    return Solved(out_index, out_weights, reached, passes)


def _pieces(n: int, width: int, m: int, bytes_each: int) -> list[slice]:
    """Slices over n queries whose gathered atoms fit in memory."""
    step = max(1, GATHER_BYTES // max(1, width * m * bytes_each))
    return [slice(low, low + step) for low in range(0, n, step)]


def _solve_sets(
    atoms: Tensor, batch: Batch, residual: Tensor, index: Tensor, weights: Tensor, used: Tensor, gap: Tensor
) -> Tensor:
    """Solves each query on its own set, to a gap relative to its value.

    The Gram matrices are float32 products: on raw counts their rounding alone can exceed the gap. So h is not D'b but
    what makes the slope at the weights given, D'r of the float64 residual, exact: every round takes the error of the
    one before out again (iterative refinement).
    """
    out = torch.empty_like(weights)
    for part in _pieces(len(batch), index.shape[1], atoms.shape[1], 4):
        some = batch.rows(torch.arange(len(batch), device=atoms.device)[part])
        gathered = atoms[index[part]] * used[part][:, :, None]
        gram = torch.bmm(gathered, gathered.transpose(1, 2)).double()
        rhs = torch.bmm(gathered, residual[part].float()[:, :, None]) + torch.bmm(gram, weights[part][:, :, None])
        l1, l2 = some.l1.double(), some.l2.double()
        energy = some.b.double().square().sum(1) / 2
        out[part] = solve_block(
            gram, rhs[:, :, 0], weights[part], used[part], l1, l2, batch.nonnegative, gap[part], energy
        )
    return out


def _trim(index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Drops atoms without a weight, as far as the padding allows."""
    width = max(1, int((weights != 0).sum(1).max()))
    place = (weights != 0).to(torch.int8).topk(width, dim=1).indices
    return index.gather(1, place), weights.gather(1, place)


def _residual(atoms: Tensor, batch: Batch, index: Tensor, weights: Tensor) -> Tensor:
    """b - D a (q, m) in float64, of the float32 weights."""
    out = batch.b.double()
    for part in _pieces(len(batch), index.shape[1], atoms.shape[1], 8):
        gathered = atoms[index[part]].double()
        out[part] -= torch.bmm(weights[part].double()[:, None, :], gathered)[:, 0]
    return out


def _look(
    atoms: Tensor, norms: Tensor, batch: Batch, residual: Tensor, index: Tensor, weights: Tensor, spare: int
) -> tuple[Tensor, Tensor]:
    """One pass over the bank: the certified gap (q,) float64, and atoms that want in (q, ADD), -1 where none.

    The gap is a valid bound whatever the rounding. Atoms outside the candidates are below l1 by more than the error of
    a float32 product, or else the gap is given as inf and the query goes on.
    """
    low = residual.float()
    size_r = residual.norm(dim=1).float()
    bound = (atoms.shape[1] + 8) * UNIT * size_r[:, None] * norms[None, :]
    keep = min(len(atoms), index.shape[1] + ADD + spare)
    best = torch.empty(len(batch), 0, device=atoms.device)
    place = torch.empty(len(batch), 0, dtype=torch.long, device=atoms.device)
    for j in range(0, len(atoms), COLUMNS):
        c = low @ atoms[j : j + COLUMNS].T
        if not batch.nonnegative:
            c = c.abs_()
        upper = c.add_(bound[:, j : j + COLUMNS])
        top = upper.topk(min(keep, upper.shape[1]), dim=1)
        best, place = torch.cat([best, top.values], 1), torch.cat([place, top.indices + j], 1)
    if best.shape[1] > keep:
        top = best.topk(keep, dim=1)
        best, place = top.values, place.gather(1, top.indices)
    everyone = keep == len(atoms)
    outside = torch.full_like(size_r, -torch.inf) if everyone else best[:, -1]
    # Candidates above l1 (few once the set is good), with the set itself, in float64.
    hot = best > batch.l1[:, None]
    width = max(1, int(hot.sum(1).max()))
    place, hot = place[:, :width], hot[:, :width]
    member = (place[:, :, None] == torch.where(weights != 0, index, -1)[:, None, :]).any(2)
    fresh = hot & ~member
    exact = _exact(atoms, residual, place, fresh)
    own = _exact(atoms, residual, index, weights != 0)
    wide = batch.double()
    a = weights.double()
    parts = _parts(own, a, weights != 0, wide).join(_parts(exact, torch.zeros_like(exact), fresh, wide))
    parts = GapParts(parts.excess, torch.maximum(parts.top, torch.minimum(outside.double(), wide.l1)))
    found = relative_gap(wide.b, residual, a, parts, wide.l1, wide.l2)
    found = torch.where(outside.double() <= wide.l1, found, torch.inf)
    size = exact if batch.nonnegative else exact.abs()
    wanting = torch.where(fresh, size - wide.l1[:, None], -torch.inf)
    add = wanting.topk(min(ADD, wanting.shape[1]), dim=1)
    return found, torch.where(add.values > 0, place.gather(1, add.indices), -1)


def _parts(c: Tensor, a: Tensor, mask: Tensor, batch: Batch) -> GapParts:
    """Gap sums over the marked atoms."""
    size = c if batch.nonnegative else c.abs()
    excess = torch.where(mask, (size - batch.l1[:, None]).clamp(min=0), 0.0).square().sum(1)
    slack = c - batch.l2[:, None] * a
    slack = slack if batch.nonnegative else slack.abs()
    return GapParts(excess, torch.where(mask, slack, -torch.inf).amax(1))


def _exact(atoms: Tensor, residual: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    """D_j'r (q, p) in float64 of the marked atoms, 0 elsewhere."""
    out = torch.zeros(index.shape, dtype=torch.float64, device=atoms.device)
    rows, cols = mask.nonzero(as_tuple=True)
    step = max(1, GATHER_BYTES // (16 * atoms.shape[1]))
    for low in range(0, len(rows), step):
        r, c = rows[low : low + step], cols[low : low + step]
        out[r, c] = (atoms[index[r, c]].double() * residual[r]).sum(1)
    return out
