"""Closed-form ridge head: standardised embeddings -> expression.

Knows ridge regression on principal components, and how its strength is chosen; `folds` knows what is left out for that.
It does not standardise (features come standardised per section), knows no gene names and no expression scale, and loads
no torch.

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

from genrag_cli.backbones.folds import MAX_COMPONENTS, Fold, Folds, cut_folds, one_thread
from genrag_cli.errors import BackboneError
from genrag_cli.types import Doubles, Floats, Strings

STRENGTHS = tuple(float(s) for s in np.logspace(-4, 5, 37))
"""Four per decade. The eigenvalues that they are weighed against run from about .1 to some hundreds."""
_CHUNK_ELEMENTS = 16_000_000
"""Targets held in float64 at a time: 128 MB."""
ROWS_AT_ONCE = 4096
"""Rows of features that are predicted from at a time, in float64: 50 MB for 1,536 dimensions."""


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
        predicted = np.empty((len(features), self.coef.shape[1]), np.float32)
        for low in range(0, len(features), ROWS_AT_ONCE):
            inputs = features[low : low + ROWS_AT_ONCE].astype(np.float64) - self.centre
            if self.components is not None:
                inputs = inputs @ self.components
            predicted[low : low + ROWS_AT_ONCE] = inputs @ self.coef + self.intercept
        return predicted


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
        with one_thread():
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
        raise BackboneError(
            f"ridge head: none of the {len(variance)} target genes varies over the spots",
            "Are there counts? Look at the sections (generag cohort info), and leave out those that are empty.",
        )
    return np.divide(1.0, variance, out=np.zeros_like(variance), where=variance > 0)
