"""Batched FISTA with restart over the whole bank, sharpened by exact solves on the support.

Each query stops on its own relative duality gap, checked in float64, so neither the chunk nor the company of a query
decides its result. Every `EVERY` iterations the few spots in use are solved for exactly (a Newton step of the support),
kept where the objective falls: on real banks plain FISTA needs thousands of iterations for the last digits.

This module knows one dense dictionary in memory. Banks, blocks on disk and devices are not its business.
Beck and Teboulle 2009 (FISTA); O'Donoghue and Candes 2015 (restart by the sign of the gradient).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from genrag_cli.retrieval.objective import GapParts, relative_gap, shrink

EVERY = 15
"""Iterations between two looks at the gap."""
START = 48
"""Nearest spots that a query without a warm start begins from."""
ROUGH = 5e-6
"""A float32 gap is not trusted below this: from here on float64 decides."""
SUPPORT_CAP = 128
"""Largest support that is solved for exactly; above it, iterations alone must shrink it."""
GATHER_BYTES = 256 << 20
"""Memory that exact solves of supports may gather at once."""
DENSE_COLUMNS = 4096
"""Columns of the bank turned to float64 at a time for the certificate."""


def lipschitz(atoms: Tensor, iterations: int = 60) -> float:
    """A slightly inflated largest eigenvalue of D'D by power iteration from a seeded start; atoms = D' (N, m)."""
    v = torch.randn(atoms.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    v = (v / v.norm()).to(atoms)
    value = 0.0
    for _ in range(iterations):
        v = atoms.T @ (atoms @ v)
        value = float(v.norm())
        if value == 0.0:
            return 1.0
        v = v / value
    return 1.05 * value


def combine(codes: Tensor, atoms: Tensor) -> Tensor:
    """D a for every query: codes (q, N) @ atoms (N, m), touching only non-zero codes where they are few."""
    rows, cols = codes.nonzero(as_tuple=True)
    if len(cols) * 8 > codes.numel():
        return codes @ atoms
    offsets = torch.searchsorted(rows, torch.arange(len(codes), device=codes.device))
    return torch.nn.functional.embedding_bag(cols, atoms, offsets, mode="sum", per_sample_weights=codes[rows, cols])


def certify(atoms: Tensor, queries: Tensor, codes: Tensor, l1: Tensor, l2: Tensor, nonnegative: bool) -> Tensor:
    """The relative duality gap of float32 codes (q, N), computed in float64 over the whole bank -> (q,) float64."""
    b, a, l1, l2 = queries.double(), codes.double(), l1.double(), l2.double()
    residual = b.clone()
    blocks = range(0, len(atoms), DENSE_COLUMNS)
    for j in blocks:
        residual -= a[:, j : j + DENSE_COLUMNS] @ atoms[j : j + DENSE_COLUMNS].double()
    parts: GapParts | None = None
    for j in blocks:
        correlations = residual @ atoms[j : j + DENSE_COLUMNS].double().T
        block = GapParts.of(correlations, a[:, j : j + DENSE_COLUMNS], l1, l2, nonnegative)
        parts = block if parts is None else parts.join(block)
    assert parts is not None
    return relative_gap(b, residual, a, parts, l1, l2)


def solve_support(
    atoms: Tensor, query: Tensor, codes: Tensor, l1: Tensor, l2: Tensor, nonnegative: bool, rounds: int = 30
) -> Tensor:
    """Solves each query exactly on the spots that it uses now, dropping those that the solution turns away.

    Args:
        atoms: D', (N, m).
        query: (q, m).
        codes: (q, N), the start; its non-zeros are the support and, when signed, the signs.
        l1: (q,).
        l2: (q,).
        nonnegative: one-sided problem.
        rounds: how often spots may be dropped.

    Returns:
        (q, N) codes of the same dtype; zero wherever `codes` was.
    """
    counts = (codes != 0).sum(1)
    width = int(counts.max())
    if width == 0:
        return codes.clone()
    index = codes.abs().topk(width, dim=1).indices
    start = codes.gather(1, index).double()
    used = start != 0
    sign = torch.ones_like(start) if nonnegative else start.sign()
    gathered = atoms[index].double()
    gram = gathered @ gathered.transpose(1, 2)
    rhs = (gathered @ query.double()[:, :, None])[:, :, 0] - l1.double()[:, None] * sign
    eye = torch.eye(width, dtype=torch.float64, device=atoms.device)
    ridge = l2.double()[:, None] + 1e-12 * gram.diagonal(dim1=1, dim2=2)
    current = start
    for _ in range(rounds):
        both = used[:, :, None] & used[:, None, :]
        system = torch.where(both, gram, 0.0) + eye * torch.where(used, ridge, 1.0)[:, :, None]
        factor, failed = torch.linalg.cholesky_ex(system)
        target = torch.cholesky_solve(torch.where(used, rhs, 0.0)[:, :, None], factor)[:, :, 0]
        target = torch.where((failed == 0)[:, None], target, current)
        wrong = used & (target * sign <= 0)
        # Walk towards the solution of this support only until the first weight reaches zero, and drop that one.
        ratio = torch.where(wrong, current / (current - target), torch.inf).amin(1).clamp(max=1.0)
        current = torch.where(used, current + ratio[:, None] * (target - current), 0.0)
        if not bool(wrong.any()):
            break
        used = used & (current * sign > 1e-12 * current.abs().amax(1, keepdim=True))
        current = torch.where(used, current, 0.0)
    return torch.zeros_like(codes).scatter_(1, index, torch.where(used, current, 0.0).to(codes.dtype))


def solve_dense(
    atoms: Tensor,
    queries: Tensor,
    l1: Tensor,
    l2: Tensor,
    *,
    nonnegative: bool,
    gap: float,
    max_iter: int,
    step: float,
    start: Tensor | None = None,
    on_solved: Callable[[int], None] = lambda _: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solves one chunk of queries over a dictionary that fits in memory.

    Args:
        atoms: D' (N, m) float32: one row per bank spot.
        queries: (q, m) float32.
        l1: (q,) float32.
        l2: (q,) float32.
        nonnegative: one-sided problem.
        gap: relative duality gap at which a query is done.
        max_iter: iterations after which an open query is returned as it stands.
        step: `lipschitz(atoms)`.
        start: (q, N) codes to begin from; None begins from the nearest spots.
        on_solved: told how many more queries are done.

    Returns:
        codes (q, N), gap (q,) float64, passes over the bank (q,) float32.
    """
    n_queries = len(queries)
    done_codes = torch.zeros(n_queries, len(atoms), dtype=torch.float32, device=atoms.device)
    done_gap = torch.full((n_queries,), torch.inf, dtype=torch.float64, device=atoms.device)
    passes = torch.zeros(n_queries, dtype=torch.float32, device=atoms.device)
    alive = torch.arange(n_queries, device=atoms.device)
    a = nearest_start(atoms, queries) if start is None else start.clone()
    if start is None:
        passes += 1
    y, t = a.clone(), torch.ones(n_queries, device=atoms.device)
    b, lo, hi = queries, l1, l2
    for iteration in range(max_iter + 1):
        if iteration % EVERY == 0 or iteration == max_iter:
            a, y, t = _sharpen(atoms, b, a, y, t, lo, hi, nonnegative)
            residual = b - combine(a, atoms)
            parts = GapParts.of(residual @ atoms.T, a, lo, hi, nonnegative)
            passes[alive] += 1
            rough = relative_gap(b, residual, a, parts, lo, hi)
            close = (rough <= max(gap, ROUGH)) if iteration < max_iter else torch.ones_like(rough, dtype=torch.bool)
            if bool(close.any()):
                exact = certify(atoms, b[close], a[close], lo[close], hi[close], nonnegative)
                passes[alive[close]] += 1
                ended = torch.ones_like(exact, dtype=torch.bool) if iteration == max_iter else exact <= gap
                rows = close.nonzero()[:, 0][ended]
                done_codes[alive[rows]], done_gap[alive[rows]] = a[rows], exact[ended]
                on_solved(len(rows))
                keep = torch.ones(len(alive), dtype=torch.bool, device=atoms.device)
                keep[rows] = False
                alive, a, y, t, b, lo, hi = (v[keep] for v in (alive, a, y, t, b, lo, hi))
            if len(alive) == 0:
                break
        residual = b - combine(y, atoms)
        rate = step + hi
        new = shrink(y + (residual @ atoms.T - hi[:, None] * y) / rate[:, None], (lo / rate)[:, None], nonnegative)
        passes[alive] += 1
        restart = ((y - new) * (new - a)).sum(1) > 0
        t_new = torch.where(restart, torch.ones_like(t), (1 + (1 + 4 * t.square()).sqrt()) / 2)
        momentum = torch.where(restart, torch.zeros_like(t), (t - 1) / t_new)
        y = new + momentum[:, None] * (new - a)
        a, t = new, t_new
    return done_codes, done_gap, passes


def nearest_start(atoms: Tensor, queries: Tensor) -> Tensor:
    """Equal weights on the `START` nearest spots: by D_j'b - |D_j|^2 / 2, so that a shared mean does not decide."""
    closeness = queries @ atoms.T - 0.5 * atoms.square().sum(1)
    index = closeness.topk(min(START, len(atoms)), dim=1).indices
    return torch.zeros_like(closeness).scatter_(1, index, 1.0 / index.shape[1])


def _sharpen(
    atoms: Tensor, b: Tensor, a: Tensor, y: Tensor, t: Tensor, l1: Tensor, l2: Tensor, nonnegative: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Replaces codes by the exact solution on their support, which never raises the value, with momentum forgotten."""
    counts = (a != 0).sum(1)
    small = (counts <= SUPPORT_CAP).nonzero()[:, 0]
    if len(small) == 0:
        return a, y, t
    order = small[counts[small].argsort()]
    per_query = 8 * atoms.shape[1] * max(int(counts[small].max()), 1)
    for rows in torch.split(order, max(1, GATHER_BYTES // per_query)):
        a[rows] = solve_support(atoms, b[rows], a[rows], l1[rows], l2[rows], nonnegative)
        y[rows], t[rows] = a[rows], 1.0
    return a, y, t
