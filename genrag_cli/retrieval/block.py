"""The elastic net on a few atoms per query, from their Gram matrices: FISTA with restart, then an exact finish.

Padding is a used-mask: unused places hold zero rows and columns and keep weight 0. This module never sees the bank.
O'Donoghue and Candes 2015 (restart by the sign of the gradient).
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from genrag_cli.retrieval.objective import shrink

ITERATIONS = 40
"""FISTA iterations between two exact finishes."""
FINISHES = 25
"""Exact finishes before a block is given back as it is; its caller checks the gap anyway."""
DROPS = 12
"""How often a finish may drop atoms that the solution turns away."""


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
        for _ in range(FINISHES):
            g, h, lo, hi, mask = gram[todo], rhs[todo], l1[todo], l2[todo], used[todo]
            fast = _iterate(g, h, a[todo], mask, lo, hi, nonnegative)
            a[todo] = finish(g, h, fast, lo, hi, nonnegative)
            absolute, value = _block_gap(g, h, a[todo], lo, hi, nonnegative, mask)
            left = absolute > gap[todo] * (energy[todo] + value)
            todo = todo[left]
            if len(todo) == 0:
                break
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


def finish(g: Tensor, h: Tensor, a: Tensor, l1: Tensor, l2: Tensor, nonnegative: bool) -> Tensor:
    """The exact solution on the support of `a`, dropping the atoms that it turns away one walk at a time."""
    counts = (a != 0).sum(1)
    width = int(counts.max()) if len(a) else 0
    if width == 0:
        return a
    place = (a != 0).to(torch.int8).topk(width, dim=1).indices
    current = a.gather(1, place)
    used = current != 0
    sign = torch.ones_like(current) if nonnegative else current.sign()
    sub = g.gather(1, place[:, :, None].expand(-1, -1, g.shape[2])).gather(2, place[:, None, :].expand(-1, width, -1))
    target = h.gather(1, place) - l1[:, None] * sign
    ridge = l2[:, None] + 1e-13 * sub.diagonal(dim1=1, dim2=2)
    todo = torch.arange(len(a), device=a.device)
    for _ in range(DROPS):
        mask = used[todo]
        both = mask[:, :, None] & mask[:, None, :]
        system = torch.where(both, sub[todo], 0.0)
        system.diagonal(dim1=1, dim2=2).add_(torch.where(mask, ridge[todo], 1.0))
        factor, failed = torch.linalg.cholesky_ex(system)
        best = torch.cholesky_solve(torch.where(mask, target[todo], 0.0)[:, :, None], factor)[:, :, 0]
        now = current[todo]
        best = torch.where((failed == 0)[:, None], best, now)
        wrong = mask & (best * sign[todo] <= 0)
        # Walk towards the solution of this support only until the first weight reaches zero, and drop that one.
        ratio = torch.where(wrong, now / (now - best), torch.inf).amin(1).clamp(max=1.0)
        moved = torch.where(mask, now + ratio[:, None] * (best - now), 0.0)
        kept = mask & (moved * sign[todo] > 1e-12 * moved.abs().amax(1, keepdim=True))
        current[todo], used[todo] = torch.where(kept, moved, 0.0), kept
        todo = todo[wrong.any(1)]
        if len(todo) == 0:
            break
    return torch.zeros_like(a).scatter_(1, place, torch.where(used, current, 0.0))


def _block_gap(
    g: Tensor, h: Tensor, a: Tensor, l1: Tensor, l2: Tensor, nonnegative: bool, used: Tensor
) -> tuple[Tensor, Tensor]:
    """Absolute duality gap within the block, and the value less |b|^2 / 2.

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
    return torch.where(l2 > 0, young, slack), value
