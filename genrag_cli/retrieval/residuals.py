"""How well each block of a query was matched: what the certificate does not say."""

import numpy as np
import torch

from genrag_cli.retrieval.certificate import combined
from genrag_cli.retrieval.problem import Batch
from genrag_cli.retrieval.scan import Scan
from genrag_cli.types import Floats, SparseCodes

TOGETHER = 256
"""Queries whose atoms are gathered at a time."""


def block_residuals(scan: Scan, queries: Floats, codes: SparseCodes, dim: int) -> tuple[Floats, Floats]:
    """|b - D a| / |b| of the embedding block and of the anchor block, per query; 0 where the block has no weight.

    Args:
        scan: the bank, from `prepare`.
        queries: (n, m) of the n queries of `codes`.
        codes: their weights.
        dim: d, rows of D that belong to the embedding.

    Returns:
        (n,) morphology and (n,) anchor residuals.
    """
    out = np.zeros((2, len(queries)), np.float32)
    for low in range(0, len(queries), TOGETHER):
        part = slice(low, min(low + TOGETHER, len(queries)))
        index, weights = codes.rows(part).padded()
        local_index = torch.from_numpy(index).to(scan.atoms.device)
        b = torch.from_numpy(np.ascontiguousarray(queries[part])).to(scan.atoms.device)
        nothing = torch.zeros(len(b), device=b.device)
        left = combined(
            Batch(b, nothing, nothing, True), *scan.table(local_index), torch.from_numpy(weights).to(b.device)
        ).cpu().numpy()  # fmt: skip
        for block, span in enumerate((slice(None, dim), slice(dim, None))):
            size = np.linalg.norm(queries[part, span], axis=1)
            out[block, part] = np.linalg.norm(left[:, span], axis=1) / np.where(size > 0, size, np.inf)
    return out[0], out[1]
