"""Groups of spots that are left out together, and the principal components of the others.

The strength of a ridge head is the one with the least error on groups of spots (patients) that are left out one at a
time. Every fold finds its components anew from its own spots, within the `SPAN` leading eigenvectors of all spots: up
to d = SPAN that is the whole space, above it what lies outside is noise to a head of half as many components. (Five
sections of her2st, d = 1286, both scales, by patient and by section: the strength of folds in the whole space each
time, its error to 4 in 10,000.) So a fold costs an eigenproblem of SPAN, not of d, and hundreds of patients are little
work.

This module knows no targets: folds are cut once for several heads on the same features.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import BackboneError
from genrag_cli.types import Doubles, Ints, Strings

MAX_COMPONENTS = 128
SPAN = 256
"""Leading directions of all spots within which folds look for their components."""
N_BLOCKS = 5
_ROWS = 4096
"""Features brought to float64 at a time."""
_RANK_TOLERANCE = 1e-10
"""Components below this share of the largest eigenvalue are rounding, and dropped."""


@dataclass(frozen=True, eq=False)
class Fold:
    """One group left out, and the components of the others."""

    rows: slice
    """Of the group, in the order of `Folds`."""
    centre: Doubles
    """(q,) mean score of the others."""
    vectors: Doubles
    """(q, p) eigenvectors of the others' covariance, largest first."""
    values: Doubles
    """(p,)"""
    spread: Doubles
    """(p, p) sum over the group of z z', z its scores on these components around `centre`."""


@dataclass(frozen=True, eq=False)
class Folds:
    """Features cut into folds, before any target is seen: made once for several heads."""

    order: Ints
    """(n,) rows, one group after the other."""
    centre: Doubles
    """(d,)"""
    span: Doubles
    """(d, q) leading eigenvectors of the covariance of all spots, largest first."""
    values: Doubles
    """(q,)"""
    scores: Doubles
    """(n, q) features on `span`, around `centre`, in the order."""
    folds: tuple[Fold, ...]
    max_components: int
    rule: str
    """How the groups were made."""


def fold_groups(patients: Sequence[str | None] | Strings, sections: Strings, xy: Doubles) -> tuple[Strings, str]:
    """Says what to leave out together: patients, else sections, else blocks of one section.

    An unknown patient (None or '') may be any of the others, so one unknown is enough to go by sections.

    Args:
        patients: (n,) of the spots.
        sections: (n,) of the spots.
        xy: (n, 2) centres of the spots; used only for blocks (k-means into 5).

    Returns:
        (n,) labels, and the rule: `leave-one-patient-out`, `leave-one-section-out` or `spatial-blocks`.

    Raises:
        BackboneError: for one section with all its spots in one place.
    """
    known = np.array([patient or "" for patient in patients], dtype=np.str_)
    sections = np.asarray(sections, dtype=np.str_)
    if (known != "").all() and len(np.unique(known)) > 1:
        return known, "leave-one-patient-out"
    if len(np.unique(sections)) > 1:
        return sections, "leave-one-section-out"
    return np.char.add("block", _cut_blocks(np.asarray(xy, np.float64)).astype(np.str_)), "spatial-blocks"


def _cut_blocks(xy: Doubles) -> Ints:
    from scipy.cluster.vq import ClusterError, kmeans2

    n_blocks = min(N_BLOCKS, len(np.unique(xy, axis=0)))
    for seed in range(20):
        if n_blocks < 2:
            break
        try:
            _, labels = kmeans2(xy, n_blocks, minit="++", rng=np.random.default_rng(seed), missing="raise")
        except ClusterError:  # a block ran empty; another start will do
            continue
        if len(np.unique(labels)) == n_blocks:
            blocks: Ints = labels.astype(np.int64)
            return blocks
    raise BackboneError(
        f"cannot choose a ridge strength: one section of {len(xy)} spots at {n_blocks} different places has no blocks",
        "Give more sections, or more spots.",
    )


def cut_folds(
    features: NDArray[Any], groups: Strings, *, rule: str = "", max_components: int = MAX_COMPONENTS
) -> Folds:
    """Cuts features into folds and finds the components of each.

    Args:
        features: (n, d) embeddings, standardised per section.
        groups: (n,) labels of `fold_groups`, at least two different ones.
        rule: the name of how the groups were made.
        max_components: PCA to so many where d is larger.

    Raises:
        BackboneError: for shapes that do not fit, values that are not finite, or fewer than two groups.
    """
    x, groups = np.asarray(features), np.asarray(groups, np.str_)
    if x.ndim != 2 or len(x) != len(groups):
        raise BackboneError(
            f"ridge head: features {x.shape} and groups {groups.shape} do not fit", "Each needs one row per spot."
        )
    labels, which, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(labels) < 2:
        raise BackboneError(
            f"ridge head: {len(labels)} group cannot be left out of itself", "Make the groups with fold_groups."
        )
    if max_components < 1:
        raise BackboneError(f"ridge head: max_components {max_components} must be > 0")
    total, gram = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
    for _, part in _chunk_rows(x):
        if not np.isfinite(part).all():
            raise BackboneError("ridge head: the features hold values that are not finite numbers")
        total += part.sum(axis=0)
        gram += part.T @ part
    centre = total / len(x)
    values, span = _find_components(gram / len(x) - np.outer(centre, centre), max(SPAN, 2 * max_components))
    order = np.argsort(which, kind="stable")
    scores = np.empty((len(x), len(values)))
    for rows, part in _chunk_rows(x, order):
        scores[rows] = part @ span - centre @ span
    squares = scores.T @ scores
    ends = np.cumsum(sizes)
    cuts = [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]
    with one_thread():
        folds = tuple(_cut_fold(scores, rows, squares, max_components) for rows in cuts)
    return Folds(order, centre, span, values, scores, folds, max_components, rule)


def _cut_fold(scores: Doubles, rows: slice, squares: Doubles, max_components: int) -> Fold:
    """From all scores and their squares Z'Z; the scores' mean over all spots is 0."""
    held = scores[rows]
    n_held, total = len(held), held.sum(axis=0)
    n_train, own = len(scores) - n_held, held.T @ held
    centre = -total / n_train
    values, vectors = _find_components((squares - own) / n_train - np.outer(centre, centre), max_components)
    around = own - np.outer(centre, total) - np.outer(total, centre) + n_held * np.outer(centre, centre)
    return Fold(rows, centre, vectors, values, vectors.T @ around @ vectors)


def _find_components(covariance: Doubles, most: int) -> tuple[Doubles, Doubles]:
    """Leading eigenvalues (p,) and eigenvectors (d, p), largest first; each points where its largest entry is > 0."""
    from scipy.linalg import eigh

    if not len(covariance):
        return np.empty(0), np.empty((0, 0))
    # Divide and conquer finds all of them, several times as fast as the other driver finds half.
    values, vectors = eigh(covariance, driver="evd")
    values, vectors = values[::-1][:most], vectors[:, ::-1][:, :most]
    real = values > _RANK_TOLERANCE * max(values[0], np.finfo(float).tiny)
    values, vectors = values[real], vectors[:, real]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))])
    return values, vectors * signs


def one_thread() -> AbstractContextManager[Any]:
    """Linear algebra on one thread meanwhile.

    A fold's problems are small, and threads that wait for each other in each of them stretch ten milliseconds to
    hundreds where anybody else uses the machine.
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def _chunk_rows(x: NDArray[Any], order: Ints | None = None) -> Iterator[tuple[slice, Doubles]]:
    """Some rows of the features at a time, in float64."""
    for start in range(0, len(x), _ROWS):
        rows = slice(start, min(start + _ROWS, len(x)))
        yield rows, (x[rows] if order is None else x[order[rows]]).astype(np.float64)
