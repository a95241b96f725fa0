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


def pool_gap(batch: Batch, weights: Tensor, residual: Tensor, c: Tensor, filled: Tensor) -> Tensor:
    """Gaps (q,) of queries whose other atoms all have D_j'r <= l1 (|D_j'r| when signed).

    Args:
        batch: the queries.
        weights: (q, K) float64 over each query's pool.
        residual: b - D a (q, m) float64.
        c: D'r over the pool (q, K) float64.
        filled: (q,) places of the pool in use.
    """
    wide = batch.double()
    valid = torch.arange(weights.shape[1], device=weights.device) < filled[:, None]
    size = c if batch.nonnegative else c.abs()
    excess = torch.where(valid, (size - wide.l1[:, None]).clamp(min=0), 0.0).square().sum(1)
    slack = c - wide.l2[:, None] * weights
    slack = torch.where(valid, slack if batch.nonnegative else slack.abs(), -torch.inf)
    top = torch.maximum(slack.amax(1), wide.l1)
    return relative_gap(wide.b, residual, weights, GapParts(excess, top), wide.l1, wide.l2)


def full_gap(atoms: Atoms, batch: Batch, index: Tensor, weights: Tensor) -> Tensor:
    """Gaps (q,) in float64 from one pass over the whole dictionary, knowing nothing.

    Args:
        atoms: the dictionary.
        batch: the queries.
        index: (q, p) atoms; anything where the weight is 0.
        weights: (q, p).
    """
    wide, a = batch.double(), weights.double()
    table, local = atoms.table(torch.where(weights != 0, index, 0))
    residual = wide.b.clone()
    for i in range(len(residual)):
        residual[i] -= a[i] @ table[local[i]].double()
    parts: GapParts | None = None
    for low, block in atoms.blocks(COLUMNS):
        inside = (index >= low) & (index < low + len(block)) & (weights != 0)
        codes = torch.zeros(len(a), len(block) + 1, dtype=torch.float64, device=a.device)
        codes.scatter_(1, torch.where(inside, index - low, len(block)), torch.where(inside, a, 0.0))
        some = GapParts.of(residual @ block.double().T, codes[:, :-1], wide.l1, wide.l2, wide.nonnegative)
        parts = some if parts is None else parts.join(some)
    assert parts is not None
    return relative_gap(wide.b, residual, a, parts, wide.l1, wide.l2)
