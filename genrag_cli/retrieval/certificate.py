"""The certificate: relative duality gaps of float32 weights, in float64.

Either from a pool, where the rest of the dictionary is known to stay below the threshold, or from one float64 pass over
everything. Definitions section 1 has the two bounds; `objective.py` computes them.
"""

import torch
from torch import Tensor

from genrag_cli.retrieval.atoms import Atoms
from genrag_cli.retrieval.objective import GapParts, relative_gap
from genrag_cli.retrieval.problem import Batch

COLUMNS = 4096
"""Atoms turned to float64 at a time."""


def pool_gap(batch: Batch, weights: Tensor, residual: Tensor, c: Tensor, filled: Tensor, rest: Tensor) -> Tensor:
    """Gaps (q,) of queries whose other atoms all have D_j'r <= l1 (|D_j'r| when signed).

    Args:
        batch: the queries.
        weights: (q, K) float64 over each query's pool.
        residual: b - D a (q, m) float64.
        c: D'r over the pool (q, K) float64.
        filled: (q,) places of the pool in use.
        rest: (q,) no other atom has a larger D_j'r, which is at most l1; -inf where there is no other.
    """
    wide = batch.double()
    valid = torch.arange(weights.shape[1], device=weights.device) < filled[:, None]
    size = c if batch.nonnegative else c.abs()
    excess = torch.where(valid, (size - wide.l1[:, None]).clamp(min=0), 0.0).square().sum(1)
    slack = c - wide.l2[:, None] * weights
    slack = torch.where(valid, slack if batch.nonnegative else slack.abs(), -torch.inf)
    top = torch.maximum(slack.amax(1), rest)
    return relative_gap(wide.b, residual, weights, GapParts(excess, top), wide.l1, wide.l2)


def bank_parts(atoms: Atoms, first: int, batch: Batch, residual: Tensor, index: Tensor, weights: Tensor) -> GapParts:
    """What gaps are made of, from one float64 pass that knows nothing of pools.

    Args:
        atoms: the dictionary, or some of its columns.
        first: number of the first of them.
        batch: the queries.
        residual: b - D a (q, m) float64.
        index: (q, p) atoms of the whole dictionary; anything where the weight is 0.
        weights: (q, p).
    """
    wide, parts = batch.double(), None
    for low, block in atoms.blocks(COLUMNS):
        at = index - first - low
        inside = (at >= 0) & (at < len(block)) & (weights != 0)
        codes = torch.zeros(len(at), len(block) + 1, dtype=torch.float64, device=at.device)
        codes.scatter_(1, torch.where(inside, at, len(block)), torch.where(inside, weights.double(), 0.0))
        some = GapParts.of(residual @ block.double().T, codes[:, :-1], wide.l1, wide.l2, wide.nonnegative)
        parts = some if parts is None else parts.join(some)
    assert parts is not None
    return parts


def combined(batch: Batch, table: Tensor, local: Tensor, weights: Tensor) -> Tensor:
    """b - D a (q, m) in float64, of weights (q, p) on rows `local` of a table."""
    residual = batch.b.double()
    for i in range(len(residual)):
        used = weights[i] != 0
        residual[i] -= weights[i, used].double() @ table[local[i, used]].double()
    return residual


def gap_from(batch: Batch, residual: Tensor, weights: Tensor, parts: GapParts) -> Tensor:
    """Relative gaps (q,) in float64."""
    wide = batch.double()
    return relative_gap(wide.b, residual, weights.double(), parts, wide.l1, wide.l2)
