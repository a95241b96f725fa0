"""The elastic net on a few atoms per query, from their Gram matrices: FISTA with restart, then an exact active set.

FISTA finds most of the support in one short run; from there on, atoms that want in are added and each support is solved
exactly in float64, so that ill-conditioned problems (raw counts, tiny penalties) end too.

Padding is a used-mask: unused places hold zero rows and columns and keep weight 0. This module never sees the bank.
O'Donoghue and Candes 2015 (restart by the sign of the gradient).
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from genrag_cli.retrieval.objective import shrink

ITERATIONS = 60
"""Of the FISTA run."""
PIVOTS = 60
"""Exact solves with additions before a block is given back as it is; its caller checks the gap anyway."""
TOGETHER = 12
"""The first pivots add as many atoms as want in; later ones add one, which always lowers the value."""
DROPS = 40
"""How often one exact solve may drop atoms that the solution turns away."""


@contextlib.contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Many tiny factorisations run faster without threads that wait for each other (CPU only)."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if device.type == "cpu":
            torch.set_num_threads(threads)


def solve_block(
    gram: Tensor, rhs: Tensor, start: Tensor, used: Tensor, l1: Tensor, l2: Tensor, nonnegative: bool, gap: Tensor,
    energy: Tensor,
) -> Tensor:  # fmt: skip
    """Minimises 1/2 a'Ga - a'h + l1 |a|_1 + l2/2 |a|^2 per query.

    Args:
        gram: G (q, p, p) float64.
        rhs: h (q, p) float64.
        start: (q, p) float64.
        used: (q, p) places that hold an atom.
        l1: (q,) float64.
        l2: (q,) float64.
        nonnegative: one-sided problem.
        gap: (q,) duality gap, relative to the value, at which a query is done.
        energy: (q,) |b|^2 / 2, what the value has beside the sum above.

    Returns:
        (q, p) float64.
    """
    a = torch.where(used, start, 0.0)
    todo = torch.arange(len(a), device=a.device)
    with one_thread(a.device):
        fast = _iterate(gram, rhs, a, used, l1, l2, nonnegative)
        a = finish(gram, rhs, fast, fast.sign(), l1, l2)
        for pivot in range(PIVOTS):
            g, h, lo, hi, mask, now = gram[todo], rhs[todo], l1[todo], l2[todo], used[todo], a[todo]
            absolute, value, c = _block_gap(g, h, now, lo, hi, nonnegative, mask)
            left = absolute > gap[todo] * (energy[todo] + value)
            if not bool(left.any()):
                break
            todo, g, h, lo, hi, mask, now, c = (v[left] for v in (todo, g, h, lo, hi, mask, now, c))
            size = torch.where(mask & (now == 0), c if nonnegative else c.abs(), -torch.inf)
            wanting = size > lo[:, None]
            if pivot >= TOGETHER:
                wanting &= size == size.amax(1, keepdim=True)
            a[todo] = finish(g, h, now, torch.where(wanting, c.sign(), now.sign()), lo, hi)
    return a


def _iterate(g: Tensor, h: Tensor, a: Tensor, used: Tensor, l1: Tensor, l2: Tensor, nonnegative: bool) -> Tensor:
    """A run of FISTA in float32."""
    low, target, lo, hi = g.float(), h.float(), l1.float()[:, None], l2.float()[:, None]
    v = used.float()
    size = v.sum(1)
    for _ in range(8):
        v = torch.bmm(low, v[:, :, None])[:, :, 0]
        size = v.norm(dim=1)
        v = v / size.clamp(min=1e-30)[:, None]
    rate = 1.1 * size[:, None] + hi
    x = a.float()
    y, t = x, torch.ones(len(x), 1, device=x.device)
    for _ in range(ITERATIONS):
        slope = target - torch.bmm(low, y[:, :, None])[:, :, 0] - hi * y
        new = shrink(y + slope / rate, lo / rate, nonnegative)
        restart = ((y - new) * (new - x)).sum(1, keepdim=True) > 0
        t_new = torch.where(restart, 1.0, (1 + (1 + 4 * t.square()).sqrt()) / 2)
        y = new + torch.where(restart, 0.0, (t - 1) / t_new) * (new - x)
        x, t = new, t_new
    return torch.where(used, x, 0.0).double()


def finish(g: Tensor, h: Tensor, a: Tensor, sign: Tensor, l1: Tensor, l2: Tensor) -> Tensor:
    """The exact solution on a support with signs, dropping the atoms that it turns away.

    Args:
        g: G (q, p, p) float64.
        h: (q, p) float64.
        a: (q, p) float64, the start: non-zero only where `sign` is, and of that sign.
        sign: (q, p) -1, 0 or 1: the support; atoms that are to be added have a sign and weight 0.
        l1: (q,) float64.
        l2: (q,) float64.

    Returns:
        (q, p) float64 whose value is at most that of `a`.
    """
    width = int((sign != 0).sum(1).max()) if len(a) else 0
    if width == 0:
        return a
    place = (sign != 0).to(torch.int8).topk(width, dim=1).indices
    current, side = a.gather(1, place), sign.gather(1, place).to(a.dtype)
    used = side != 0
    sub = g.gather(1, place[:, :, None].expand(-1, -1, g.shape[2])).gather(2, place[:, None, :].expand(-1, width, -1))
    target = h.gather(1, place) - l1[:, None] * side
    ridge = l2[:, None] + 1e-13 * sub.diagonal(dim1=1, dim2=2)
    todo = torch.arange(len(a), device=a.device)
    for _ in range(DROPS):
        mask, now, toward = used[todo], current[todo], side[todo]
        both = mask[:, :, None] & mask[:, None, :]
        system = torch.where(both, sub[todo], 0.0)
        system.diagonal(dim1=1, dim2=2).add_(torch.where(mask, ridge[todo], 1.0))
        factor, failed = torch.linalg.cholesky_ex(system)
        best = torch.cholesky_solve(torch.where(mask, target[todo], 0.0)[:, :, None], factor)[:, :, 0]
        best = torch.where((failed == 0)[:, None], best, now)
        wrong = mask & (best * toward <= 0)
        # Newcomers that the solution turns away leave at once. Otherwise walk towards the solution until the first
        # weight reaches zero, and drop that one.
        refused = wrong & (now == 0)
        ratio = torch.where(wrong & ~refused, now / (now - best), torch.inf).amin(1).clamp(max=1.0)
        ratio = torch.where(refused.any(1), 0.0, ratio)
        moved = torch.where(mask, now + ratio[:, None] * (best - now), 0.0)
        gone = refused | (wrong & (ratio > 0)[:, None] & (moved * toward <= 1e-12 * moved.abs().amax(1, keepdim=True)))
        current[todo], used[todo] = torch.where(gone, 0.0, moved), mask & ~gone
        todo = todo[wrong.any(1)]
        if len(todo) == 0:
            break
    return torch.zeros_like(a).scatter_(1, place, torch.where(used, current, 0.0))


def _block_gap(
    g: Tensor, h: Tensor, a: Tensor, l1: Tensor, l2: Tensor, nonnegative: bool, used: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Absolute duality gap within the block, the value less |b|^2 / 2, and the correlations less l2 a.

    The gap is Fenchel-Young's; where l2 is 0, a bound made of the violations.
    """
    ga = torch.bmm(g, a[:, :, None])[:, :, 0]
    c = h - ga
    size = torch.where(used, c if nonnegative else c.abs(), -torch.inf)
    over = (size - l1[:, None]).clamp(min=0)
    penalty = l1[:, None] * a.abs() + l2[:, None] * a.square() / 2
    young = (penalty - a * c).sum(1) + over.square().sum(1) / (2 * l2).clamp(min=1e-300)
    slack = (over * a.abs().sum(1, keepdim=True)).sum(1) + (l1[:, None] * a.abs() - a * c).sum(1).clamp(min=0)
    value = (a * ga / 2 - a * h + penalty).sum(1)
    return torch.where(l2 > 0, young, slack), value, c - l2[:, None] * a
