"""Which features of an in situ panel are genes and which are controls.

Knows the feature types and the names that Xenium writes: negative control probes and codewords, blanks, unassigned and
deprecated codewords, antisense and intergenic probes. It does not judge genes.
"""

import re
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

GENE_EXPRESSION = "Gene Expression"
# As Xenium Onboard Analysis 1 to 4 names them; older files call some of them gene expression, so names count as well.
_CONTROL = re.compile(
    r"(NegControl(Probe|Codeword)|Negative ?Control\w*|UnassignedCodeword|DeprecatedCodeword|Intergenic_?Region"
    r"|GenomicControl\w*|antisense|BLANK|Blank)[_-].+",
)


def find_genes(names: ArrayLike, types: ArrayLike | None = None) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """(G,) which features are genes, and a note on what the others are.

    Args:
        names: (G,) symbols.
        types: (G,) feature types as 10x states them; None where the source has none.
    """
    listed = np.asarray(names, dtype=np.str_).tolist()
    stated: list[Any] = [GENE_EXPRESSION] * len(listed) if types is None else np.asarray(types).astype(str).tolist()
    kinds = [
        "control names" if kind == GENE_EXPRESSION and _CONTROL.fullmatch(name) else kind
        for name, kind in zip(listed, stated, strict=True)
    ]
    genes = np.array([kind == GENE_EXPRESSION for kind in kinds], dtype=bool)
    if genes.all():
        return genes, ()
    others = [kind for kind in kinds if kind != GENE_EXPRESSION]
    counted = ", ".join(f"{others.count(kind)} {kind}" for kind in sorted(set(others)))
    return genes, (f"{len(others)} features that are no genes are left out: {counted}",)
