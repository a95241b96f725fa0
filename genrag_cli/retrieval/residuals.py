"""How well each block of a query was matched: what the certificate does not say."""

import numpy as np

from genrag_cli.types import Floats, SparseCodes


def block_residuals(rows: Floats, queries: Floats, codes: SparseCodes, dim: int) -> tuple[Floats, Floats]:
    """|b - D a| / |b| of the embedding block and of the anchor block, per query; 0 where the block has no weight.

    Args:
        rows: D' (N, m).
        queries: (n, m) of the n queries of `codes`.
        codes: their weights.
        dim: d, rows of D that belong to the embedding.

    Returns:
        (n,) morphology and (n,) anchor residuals.
    """
    out = np.zeros((2, len(queries)), np.float32)
    for i, query in enumerate(queries):
        used = slice(codes.indptr[i], codes.indptr[i + 1])
        left = query - codes.weights[used] @ rows[codes.indices[used]]
        for block, part in enumerate((slice(None, dim), slice(dim, None))):
            size = np.linalg.norm(query[part])
            out[block, i] = np.linalg.norm(left[part]) / size if size > 0 else 0.0
    return out[0], out[1]
