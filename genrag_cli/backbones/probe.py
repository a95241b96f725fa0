"""Closed-form ridge head: standardised embeddings -> expression.

Knows ridge regression on principal components, how its strength is chosen, and what a fold is. It does not
standardise (features come standardised per section), knows no gene names and no expression scale, and loads no torch.

The regression. With centred features X (n, d) and targets Y (n, A), V the leading eigenvectors of X'X / n and v their
eigenvalues, the coefficients on the components Z = X V are

    W = argmin_W  |Y - Z W|^2 / n + s |W|^2,    i.e.    W_j = (Z'Y / n)_j / (v_j + s)

for the strength s. With standardised features v has mean 1 before the cut, so s means the same for every d and n.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import BackboneError
from genrag_cli.types import Doubles, Floats, Ints, Strings

MAX_COMPONENTS = 128
STRENGTHS = tuple(float(s) for s in np.logspace(-4, 5, 37))
"""Four per decade. The eigenvalues that they are weighed against run from about .1 to some hundreds."""
N_BLOCKS = 5
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

    The components are found anew within each fold. The chosen strength has the least mean over genes of
    squared error / variance, pooled over the spots left out; genes that do not vary are not counted.

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
    x = np.asarray(features, np.float64)
    groups = np.asarray(groups, np.str_)
    targets = targets.tocsc() if hasattr(targets, "tocsc") else np.asarray(targets)
    grid = np.unique(np.asarray(strengths, np.float64))
    _expect_problem(x, targets, groups, grid, max_components)
    weights = _weigh_genes(targets)

    total = x.T @ x
    loss = np.zeros(len(grid))
    for group in np.unique(groups):
        left_out = groups == group
        # The fold's X'X by subtraction: one pass over the features in all, not one a fold.
        held = x[left_out]
        basis = _find_basis(x, ~left_out, total - held.T @ held, max_components)
        loss += _sum_errors(basis, _project(x, basis), left_out, targets, weights).draw_curve(grid)
    errors = loss / (len(x) * np.count_nonzero(weights))
    best = float(grid[np.argmin(errors)])

    basis = _find_basis(x, np.ones(len(x), bool), total, max_components)
    scores = _project(x, basis)
    coef = np.empty((scores.shape[1], targets.shape[1]))
    intercept = np.empty(targets.shape[1])
    for columns, y in _chunk_targets(targets):
        intercept[columns] = y.mean(axis=0)
        coef[:, columns] = (scores.T @ (y - intercept[columns]) / len(x)) / (basis.values + best)[:, None]
    reduced = x.shape[1] > max_components
    return Head(
        centre=basis.centre.astype(np.float32),
        components=basis.vectors.astype(np.float32) if reduced else None,
        coef=(coef if reduced else basis.vectors @ coef).astype(np.float32),
        intercept=intercept.astype(np.float32),
        strength=best,
        rule=rule,
        curve=tuple((float(s), float(e)) for s, e in zip(grid, errors, strict=True)),
    )


@dataclass(frozen=True, eq=False)
class _Basis:
    centre: Doubles
    """(d,)"""
    vectors: Doubles
    """(d, p) eigenvectors of the covariance, largest first."""
    values: Doubles
    """(p,)"""


@dataclass(frozen=True, eq=False)
class _Sums:
    """What a fold's error needs at any strength.

    With R = Y - mean(Y_train) and B = Z_train' Y_train / n_train, the error at strength s is
    sum_a w_a |R_a - Z D B_a|^2, D = diag(1 / (v + s)). Expanded, s stands only before a vector (p,) and a matrix
    (p, p) that are sums over genes: the whole curve costs one pass over the targets.
    """

    values: Doubles
    """(p,) v"""
    constant: float
    """sum_a w_a |R_a|^2"""
    cross: Doubles
    """(p,) sum_a w_a (Z'R)_ja B_ja"""
    square: Doubles
    """(p, p) (Z'Z)_jk sum_a w_a B_ja B_ka"""

    def draw_curve(self, grid: Doubles) -> Doubles:
        """(s,) weighted squared error at every strength, summed over spots and genes."""
        shrink = 1.0 / (self.values[None, :] + grid[:, None])
        errors: Doubles = (
            self.constant - 2 * shrink @ self.cross + np.einsum("sp,pq,sq->s", shrink, self.square, shrink)
        )
        return errors


def _find_basis(x: Doubles, rows: NDArray[np.bool_], gram: Doubles, max_components: int) -> _Basis:
    """Principal components of some rows, whose X'X is `gram`; each points where its largest entry is positive."""
    from scipy.linalg import eigh

    n, d = int(rows.sum()), x.shape[1]
    centre = rows.astype(np.float64) @ x / n
    kept = min(max_components, d)
    values, vectors = eigh(gram / n - np.outer(centre, centre), subset_by_index=[d - kept, d - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    real = values > _RANK_TOLERANCE * max(values[0], np.finfo(float).tiny)
    values, vectors = values[real], vectors[:, real]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))])
    return _Basis(centre, vectors * signs, values)


def _project(x: Doubles, basis: _Basis) -> Doubles:
    scores: Doubles = x @ basis.vectors - basis.centre @ basis.vectors
    return scores


def _sum_errors(basis: _Basis, scores: Doubles, left_out: NDArray[np.bool_], targets: Any, weights: Doubles) -> _Sums:
    """Goes over the targets once for one fold; `scores` are all spots on the fold's components."""
    held, train = scores[left_out], scores[~left_out]
    constant = 0.0
    cross = np.zeros(len(basis.values))
    square = np.zeros((len(basis.values), len(basis.values)))
    for columns, y in _chunk_targets(targets):
        w = weights[columns]
        y_train = y[~left_out]
        mean = y_train.mean(axis=0)
        residual = y[left_out] - mean
        b = train.T @ (y_train - mean) / len(train)
        constant += float((residual**2).sum(axis=0) @ w)
        cross += ((held.T @ residual) * b) @ w
        square += (b * w) @ b.T
    return _Sums(basis.values, constant, cross, square * (held.T @ held))


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


def _expect_problem(x: Doubles, targets: Any, groups: Strings, grid: Doubles, max_components: int) -> None:
    n_groups = len(np.unique(groups))
    if x.ndim != 2 or targets.ndim != 2 or not len(x) == targets.shape[0] == len(groups):
        raise BackboneError(
            f"ridge head: features {x.shape}, targets {tuple(targets.shape)} and groups {groups.shape} do not fit",
            "Each needs one row per spot.",
        )
    if n_groups < 2:
        raise BackboneError(
            f"ridge head: {n_groups} group cannot be left out of itself", "Make the groups with fold_groups."
        )
    if not np.isfinite(x).all():
        raise BackboneError("ridge head: the features hold values that are not finite numbers")
    if not len(grid) or grid[0] <= 0 or max_components < 1:
        raise BackboneError(f"ridge head: strengths {grid.tolist()} and max_components {max_components} must be > 0")
