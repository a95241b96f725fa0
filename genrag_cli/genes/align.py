"""Matching genes by name, never by position.

Knows names only; whether two symbols are one gene (aliases, versions of an annotation) is not known here.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from genrag_cli.errors import GeneragError, nearest
from genrag_cli.types import Ints, Strings


def common_genes(sections: Sequence[ArrayLike]) -> tuple[Strings, list[Strings]]:
    """The genes that every section has.

    Args:
        sections: one array of unique gene names per section.

    Returns:
        The shared genes in the order of the first section, and for each section the genes that it loses, in its order.

    Raises:
        GeneragError: for no section, repeated names, or sections that share no gene.
    """
    if not sections:
        raise GeneragError("no section to take genes from")
    named = [_unique(genes, f"section {i + 1}") for i, genes in enumerate(sections)]
    shared = set(named[0].tolist()).intersection(*(genes.tolist() for genes in named[1:]))
    if not shared:
        examples = ", ".join(str(genes[0]) for genes in named if len(genes))
        raise GeneragError(
            f"the {len(named)} sections share no gene; their first genes are {examples}",
            "Are some named by symbol and some by Ensembl id?",
        )
    kept = [np.array([gene in shared for gene in genes.tolist()], dtype=bool) for genes in named]
    return named[0][kept[0]], [genes[~mask] for genes, mask in zip(named, kept, strict=True)]


def columns(genes: ArrayLike, wanted: ArrayLike) -> Ints:
    """Where the wanted genes stand, in the order wanted.

    Args:
        genes: (G,) unique names of the columns at hand.
        wanted: (k,) unique names.

    Returns:
        (k,) indices into `genes`.

    Raises:
        GeneragError: for names that are absent (with those that they may mean) or repeated on either side.
    """
    have, want = _unique(genes, "the genes at hand"), _unique(wanted, "the genes asked for")
    place = {gene: i for i, gene in enumerate(have.tolist())}
    if missing := [gene for gene in want.tolist() if gene not in place]:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise GeneragError(
            f"{len(missing)} of {len(want)} genes asked for are not among the {len(have)} at hand: {shown}",
            nearest(missing[0], place),
        )
    return np.array([place[gene] for gene in want.tolist()], dtype=np.int64)


def _unique(genes: ArrayLike, where: str) -> Strings:
    names = np.asarray(genes, dtype=np.str_)
    unique, times = np.unique(names, return_counts=True)
    if len(repeated := unique[times > 1]):
        raise GeneragError(f"{where}: {len(repeated)} genes occur more than once, such as {', '.join(repeated[:5])}")
    return names
