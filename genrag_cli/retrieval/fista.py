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

from genrag_cli.retrieval.atoms import HeldAtoms
from genrag_cli.retrieval.block import finish, one_thread
from genrag_cli.retrieval.certificate import bank_parts, combined, gap_from
from genrag_cli.retrieval.objective import GapParts, relative_gap, shrink
from genrag_cli.retrieval.problem import Batch, Solved, nearest

EVERY = 15
"""Iterations between two looks at the gap."""
START = 48
"""Nearest spots that a query without a warm start begins from."""
ROUGH = 5e-6
"""A float32 gap is not trusted below this: from here on float64 decides."""
SUPPORT_CAP = 256
"""Largest support that is solved for exactly; above it, iterations alone must shrink it."""
GATHER_BYTES = 256 << 20
"""Memory that exact solves of supports may gather at once."""


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


def solve_dense(
    atoms: Tensor,
    half_norms: Tensor,
    batch: Batch,
    *,
    gap: float,
    max_iter: int,
    step: float,
    start: Tensor | None = None,
    on_solved: Callable[[int], None] = lambda _: None,
) -> Solved:
    """Solves one batch over a dictionary that fits in memory.

    Args:
        atoms: D' (N, m) float32: one row per bank spot.
        half_norms: |D_j|^2 / 2 (N,).
        batch: queries in float32.
        gap: relative duality gap at which a query is done.
        max_iter: iterations after which an open query is returned as it stands.
        step: `lipschitz(atoms)`.
        start: (q, N) codes to begin from; None begins from the nearest spots.
        on_solved: told how many more queries are done.
    """
    n = len(batch)
    device = atoms.device
    done_codes = torch.zeros(n, len(atoms), device=device)
    done_gap = torch.full((n,), torch.inf, dtype=torch.float64, device=device)
    passes = torch.full((n,), 1.0 if start is None else 0.0, device=device)
    alive = torch.arange(n, device=device)
    a = _nearest_codes(atoms, half_norms, batch) if start is None else start.clone()
    y, t = a.clone(), torch.ones(n, device=device)
    now = batch
    for iteration in range(max_iter + 1):
        last = iteration == max_iter
        if iteration % EVERY == 0 or last:
            a = _sharpen(atoms, now, a)
            y, t = a.clone(), torch.ones(len(a), device=device)
            residual = now.b - combine(a, atoms)
            parts = GapParts.of(residual @ atoms.T, a, now.l1, now.l2, now.nonnegative)
            passes[alive] += 1
            close = (relative_gap(now.b, residual, a, parts, now.l1, now.l2) <= max(gap, ROUGH)) | last
            if bool(close.any()):
                exact = torch.full((len(a),), torch.inf, dtype=torch.float64, device=device)
                exact[close] = _certify(atoms, now.rows(close), a[close])
                passes[alive[close]] += 1
                ended = (exact <= gap) | last
                done_codes[alive[ended]], done_gap[alive[ended]] = a[ended], exact[ended]
                on_solved(int(ended.sum()))
                alive, a, y, t, now = alive[~ended], a[~ended], y[~ended], t[~ended], now.rows(~ended)
            if len(alive) == 0:
                break
        residual = now.b - combine(y, atoms)
        rate = (step + now.l2)[:, None]
        slope = residual @ atoms.T - now.l2[:, None] * y
        new = shrink(y + slope / rate, now.l1[:, None] / rate, now.nonnegative)
        passes[alive] += 1
        restart = ((y - new) * (new - a)).sum(1) > 0
        t_new = torch.where(restart, torch.ones_like(t), (1 + (1 + 4 * t.square()).sqrt()) / 2)
        momentum = torch.where(restart, torch.zeros_like(t), (t - 1) / t_new)
        y = new + momentum[:, None] * (new - a)
        a, t = new, t_new
    return Solved.of_dense(done_codes, done_gap, passes)


def _certify(atoms: Tensor, batch: Batch, codes: Tensor) -> Tensor:
    found = Solved.of_dense(codes, batch.l1, batch.l1)
    residual = combined(batch, atoms, found.index, found.weights)
    parts = bank_parts(HeldAtoms(atoms), 0, batch, residual, found.index, found.weights)
    return gap_from(batch, residual, found.weights, parts)


def _nearest_codes(atoms: Tensor, half_norms: Tensor, batch: Batch) -> Tensor:
    """Equal weights on the `START` nearest spots."""
    index = nearest(atoms, half_norms, batch.b, START)
    return torch.zeros(len(batch), len(atoms), device=atoms.device).scatter_(1, index, 1.0 / index.shape[1])


def _sharpen(atoms: Tensor, batch: Batch, codes: Tensor) -> Tensor:
    """Replaces codes by the exact solution on their support, which never raises the value, where that is small."""
    counts = (codes != 0).sum(1)
    small = ((counts > 0) & (counts <= SUPPORT_CAP)).nonzero()[:, 0]
    if len(small) == 0:
        return codes
    out = codes.clone()
    order = small[counts[small].argsort()]
    per_query = 8 * atoms.shape[1] * int(counts[small].max())
    for rows in torch.split(order, max(1, GATHER_BYTES // per_query)):
        some = batch.rows(rows).double()
        index = codes[rows].abs().topk(int(counts[rows].max()), dim=1).indices
        gathered = atoms[index].double()
        gram = gathered @ gathered.transpose(1, 2)
        rhs = (gathered @ some.b[:, :, None])[:, :, 0]
        with one_thread(atoms.device):
            start = codes[rows].gather(1, index).double()
            better = finish(gram, rhs, start, start.sign(), some.l1, some.l2)
        out[rows] = torch.zeros_like(codes[rows]).scatter_(1, index, better.float())
    return out
