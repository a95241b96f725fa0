"""Columns by name, never by position.

Knows names only; whether two names are one gene is known in `identity`.
"""

import numpy as np
from numpy.typing import ArrayLike

from genrag_cli.errors import GeneragError, nearest
from genrag_cli.types import Ints, Strings


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
