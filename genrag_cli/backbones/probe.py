"""Closed-form ridge head: standardised embeddings -> expression.

Knows ridge regression on principal components, how its strength is chosen, and what a fold is. It does not
standardise (features come standardised per section), knows no gene names and no expression scale, and loads no torch.

The regression. With centred features X (n, d) and targets Y (n, A), V the leading eigenvectors of X'X / n and v their
eigenvalues, the coefficients on the components Z = X V are

    W = argmin_W  |Y - Z W|^2 / n + s |W|^2,    i.e.    W_j = (Z'Y / n)_j / (v_j + s)

for the strength s. With standardised features v has mean 1 before the cut, so s means the same for every d and n.

Folds. The strength is the one with the least error on groups of spots (patients) that are left out one at a time. Every
fold finds its components anew from its own spots, within the `SPAN` leading eigenvectors of all spots: up to d = SPAN
that is the whole space, above it what lies outside is noise to a head of half as many components. (Five sections of
her2st, d = 1286, both scales, by patient and by section: the strength of folds in the whole space each time, its error
to 4 in 10,000.) So a fold costs an eigenproblem of SPAN, not of d, hundreds of patients are little work,
and everything that a fold needs is in sums over its spots.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import BackboneError
from genrag_cli.types import Doubles, Floats, Ints, Strings

MAX_COMPONENTS = 128
STRENGTHS = tuple(float(s) for s in np.logspace(-4, 5, 37))
"""Four per decade. The eigenvalues that they are weighed against run from about .1 to some hundreds."""
SPAN = 256
"""Leading directions of all spots within which folds look for their components."""
SPAN_SPOTS = 20_000
"""Spots that these directions are found on at most; which of them lead is then settled on all."""
N_BLOCKS = 5
_ROWS = 4096
"""Features brought to float64 at a time."""
_CHUNK_ELEMENTS = 16_000_000
"""Targets held in float64 at a time: 128 MB."""
_RANK_TOLERANCE = 1e-10
"""Components below this share of the largest eigenvalue are rounding, and dropped."""


@dataclass(frozen=True, eq=False)
class Head:
    """A fitted head: y = (x - centre) components coef + intercept.

    All arrays are float32, so a stored head predicts what the fitted one does.
    """

    centre: Floats
    """(d,) mean of the features that it was fitted on."""
    components: Floats | None
    """(d, p) principal directions, or None where there were no more features than components allowed."""
    coef: Floats
    """(p, A), or (d, A) where components is None."""
    intercept: Floats
    """(A,) mean of the targets."""
    strength: float
    rule: str
    """What was left out to choose the strength: the second result of `fold_groups`."""
    curve: tuple[tuple[float, float], ...]
    """(strength, error): mean over genes of squared error / variance, over the spots left out; ascending strength."""

    def predict(self, features: NDArray[Any]) -> Floats:
        """Predicts (n, A) float32 from (n, d) standardised embeddings.

        Raises:
            BackboneError: where d is not the head's.
        """
        if features.ndim != 2 or features.shape[1] != len(self.centre):
            raise BackboneError(f"this head takes features of shape (n, {len(self.centre)}), found {features.shape}")
        inputs = features.astype(np.float64) - self.centre
        if self.components is not None:
            inputs = inputs @ self.components
        predicted: Doubles = inputs @ self.coef + self.intercept
        return predicted.astype(np.float32)


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


def fit_head(
    features: NDArray[Any],
    targets: Any,
    groups: Strings,
    *,
    rule: str = "",
    max_components: int = MAX_COMPONENTS,
    strengths: Sequence[float] = STRENGTHS,
) -> Head:
    """Fits a ridge head, its strength chosen by leaving out one group at a time.

    The chosen strength has the least mean over genes of squared error / variance, pooled over the spots left out; genes
    that do not vary are not counted.

    Args:
        features: (n, d) embeddings, standardised per section.
        targets: (n, A) expression, an array or a scipy sparse matrix; read in chunks of genes.
        groups: (n,) labels of `fold_groups`, at least two different ones.
        rule: the name of how the groups were made, kept in the head.
        max_components: PCA to so many where d is larger.
        strengths: the strengths to choose from, all > 0.

    Raises:
        BackboneError: for shapes that do not fit, values that are not finite, fewer than two groups, targets that do
            not vary, or a strength <= 0.
    """
    return fit_folds(cut_folds(features, groups, rule=rule, max_components=max_components), targets, strengths)


def cut_folds(
    features: NDArray[Any], groups: Strings, *, rule: str = "", max_components: int = MAX_COMPONENTS
) -> Folds:
    """Cuts features into folds and finds the components of each; arguments and errors as `fit_head`."""
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
    centre = sum(part.sum(axis=0) for _, part in _chunk_rows(x)) / len(x)
    if not np.isfinite(centre).all():
        raise BackboneError("ridge head: the features hold values that are not finite numbers")
    values, span = _find_span(x, max(SPAN, 2 * max_components))
    order = np.argsort(which, kind="stable")
    scores = np.empty((len(x), len(values)))
    for rows, part in _chunk_rows(x, order):
        scores[rows] = part @ span - centre @ span
    squares = scores.T @ scores
    if len(x) > SPAN_SPOTS:  # what the others say of directions that some spots found
        values, turn = _find_components(squares / len(x), len(values))
        turn *= _find_signs(span @ turn)
        span, scores, squares = span @ turn, scores @ turn, turn.T @ squares @ turn
    ends = np.cumsum(sizes)
    cuts = [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]
    with _one_thread():
        folds = tuple(_cut_fold(scores, rows, squares, max_components) for rows in cuts)
    return Folds(order, centre, span, values, scores, folds, max_components, rule)


def fit_folds(folds: Folds, targets: Any, strengths: Sequence[float] = STRENGTHS) -> Head:
    """Fits a head to the targets of spots whose features are cut into folds; arguments and errors as `fit_head`."""
    targets = targets.tocsc() if hasattr(targets, "tocsc") else np.asarray(targets)
    grid = np.unique(np.asarray(strengths, np.float64))
    n, (d, q) = len(folds.order), folds.span.shape
    if targets.ndim != 2 or targets.shape[0] != n:
        raise BackboneError(
            f"ridge head: targets {tuple(targets.shape)} and features of {n} spots do not fit",
            "Each needs one row per spot.",
        )
    if not len(grid) or grid[0] <= 0:
        raise BackboneError(f"ridge head: strengths {grid.tolist()} must be > 0")
    weights = _weigh_genes(targets)
    loss = np.zeros(len(grid))
    intercept = np.empty(targets.shape[1])
    products = np.empty((q, targets.shape[1]))
    for columns, part in _chunk_targets(targets):
        y = part[folds.order]
        intercept[columns] = y.mean(axis=0)
        y -= intercept[columns]
        products[:, columns] = folds.scores.T @ y
        with _one_thread():
            for fold in folds.folds:
                loss += _draw_curve(folds.scores, y, products[:, columns], fold, weights[columns], grid)
    errors = loss / (n * np.count_nonzero(weights))
    best = float(grid[np.argmin(errors)])
    p = min(folds.max_components, q)
    coef = products[:p] / n / (folds.values[:p] + best)[:, None]
    components = folds.span[:, :p]
    reduced = d > folds.max_components
    return Head(
        centre=folds.centre.astype(np.float32),
        components=components.astype(np.float32) if reduced else None,
        coef=(coef if reduced else components @ coef).astype(np.float32),
        intercept=intercept.astype(np.float32),
        strength=best,
        rule=folds.rule,
        curve=tuple((float(s), float(e)) for s, e in zip(grid, errors, strict=True)),
    )


def _cut_fold(scores: Doubles, rows: slice, squares: Doubles, max_components: int) -> Fold:
    """From all scores and their squares Z'Z; the scores' mean over all spots is 0."""
    held = scores[rows]
    n_held, total = len(held), held.sum(axis=0)
    n_train, own = len(scores) - n_held, held.T @ held
    centre = -total / n_train
    values, vectors = _find_components((squares - own) / n_train - np.outer(centre, centre), max_components)
    around = own - np.outer(centre, total) - np.outer(total, centre) + n_held * np.outer(centre, centre)
    return Fold(rows, centre, vectors, values, vectors.T @ around @ vectors)


def _draw_curve(scores: Doubles, y: Doubles, products: Doubles, fold: Fold, weights: Doubles, grid: Doubles) -> Doubles:
    """(s,) weighted squared error on the spots left out, at every strength.

    With R = Y - mean(Y_train) of the spots left out and B = Z_train' Y_train / n_train, the error at strength s is
    sum_a w_a |R_a - Z D B_a|^2, D = diag(1 / (v + s)). Expanded, s stands only before a vector (p,) and a matrix (p, p)
    that are sums over genes: the whole curve costs one pass over the targets.

    Args:
        scores: (n, q) of all spots.
        y: (n, k) some targets of all spots, each with mean 0.
        products: (q, k) scores' y.
        fold: which spots are left out.
        weights: (k,) w.
        grid: (s,) strengths.
    """
    held, z = y[fold.rows], scores[fold.rows]
    n_held, total, own = len(held), held.sum(axis=0), z.T @ held
    n_train = len(y) - n_held
    mean = -total / n_train
    b = fold.vectors.T @ ((products - own) / n_train - np.outer(fold.centre, mean))
    residual = total - n_held * mean
    zr = fold.vectors.T @ (own - np.outer(z.sum(axis=0), mean) - np.outer(fold.centre, residual))
    constant = float(((held - mean) ** 2).sum(axis=0) @ weights)
    cross = (zr * b) @ weights
    square = fold.spread * ((b * weights) @ b.T)
    shrink = 1.0 / (fold.values[None, :] + grid[:, None])
    errors: Doubles = constant - 2 * shrink @ cross + ((shrink @ square) * shrink).sum(axis=1)
    return errors


def _find_span(x: NDArray[Any], most: int) -> tuple[Doubles, Doubles]:
    """Leading eigenvalues (q,) and eigenvectors (d, q) of the covariance of all spots, or of `SPAN_SPOTS` of them."""
    few = None
    if len(x) > SPAN_SPOTS:
        few = np.sort(np.random.default_rng(0).permutation(len(x))[:SPAN_SPOTS])
    n, total, gram = 0, np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
    for _, part in _chunk_rows(x, few):
        n, total = n + len(part), total + part.sum(axis=0)
        gram += part.T @ part
    return _find_components(gram / n - np.outer(total / n, total / n), most)


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
    return values, vectors * _find_signs(vectors)


def _find_signs(vectors: Doubles) -> Doubles:
    """(p,) what makes the largest entry of each column (d, p) positive."""
    signs: Doubles = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    return signs


def _one_thread() -> AbstractContextManager[Any]:
    """Linear algebra on one thread meanwhile.

    A fold's problems are small, and threads that wait for each other in each of them stretch ten milliseconds to
    hundreds where anybody else uses the machine.
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def _chunk_rows(x: NDArray[Any], order: Ints | None = None) -> Iterator[tuple[slice, Doubles]]:
    """Some rows of the features at a time, in float64."""
    n = len(x) if order is None else len(order)
    for start in range(0, n, _ROWS):
        rows = slice(start, min(start + _ROWS, n))
        yield rows, (x[rows] if order is None else x[order[rows]]).astype(np.float64)


def _chunk_targets(targets: Any) -> Iterator[tuple[slice, Doubles]]:
    """Some columns of the targets at a time, dense, in float64."""
    step = max(1, _CHUNK_ELEMENTS // max(1, targets.shape[0]))
    for start in range(0, targets.shape[1], step):
        columns = slice(start, min(start + step, targets.shape[1]))
        part = targets[:, columns]
        dense = part.toarray() if hasattr(part, "toarray") else part
        yield columns, dense.astype(np.float64)


def _weigh_genes(targets: Any) -> Doubles:
    """1 / variance of every gene over all spots; 0 where it does not vary."""
    variance = np.empty(targets.shape[1])
    for columns, y in _chunk_targets(targets):
        if not np.isfinite(y).all():
            raise BackboneError("ridge head: the targets hold values that are not finite numbers")
        spread = y.std(axis=0)
        # A constant gene's sd comes out as rounding of its mean, not as 0.
        variance[columns] = np.where(spread > 1e-7 * np.abs(y).max(axis=0, initial=0.0), spread**2, 0.0)
    if not variance.any():
        raise BackboneError(f"ridge head: none of the {len(variance)} target genes varies over the spots")
    return np.divide(1.0, variance, out=np.zeros_like(variance), where=variance > 0)
