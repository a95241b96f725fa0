"""Ridge regression to every gene.

Where `probe` fits a head to some hundred anchors, this goes to a whole transcriptome: it needs no more than sums over
groups of spots (`Moments`), which take sparse expression. It knows no gene names and no scale.

With scores z (n, p) on principal components and centred sums C = Z'Z / n, B = Z'Y / n, coefficients at strength s are
(C + s)^-1 B, as in `probe`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.folds import MAX_COMPONENTS, one_thread
from genrag_cli.backbones.probe import STRENGTHS
from genrag_cli.errors import BackboneError
from genrag_cli.types import Doubles, Floats, Ints

_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Basis:
    """Principal directions of features."""

    centre: Floats
    """(d,)"""
    directions: Floats
    """(d, p) largest first."""

    @staticmethod
    def of(features: Floats, max_components: int = MAX_COMPONENTS) -> "Basis":
        """The leading directions of features (n, d); at most `max_components`, and none that is rounding."""
        n, d = features.shape
        centre = features.mean(axis=0, dtype=np.float64)
        gram = np.zeros((d, d))
        for low in range(0, n, _ROWS):
            part = features[low : low + _ROWS].astype(np.float64) - centre
            gram += part.T @ part
        from scipy.linalg import eigh

        least = max(0, d - max_components)
        values, vectors = eigh(gram / n, subset_by_index=(least, d - 1))
        kept = values > 1e-10 * max(float(values[-1]), 1e-30)
        if not kept.any():
            raise BackboneError("the embeddings of the bank do not vary: nothing can be regressed on them")
        return Basis(centre.astype(np.float32), np.ascontiguousarray(vectors[:, kept][:, ::-1], np.float32))

    def scores(self, features: Floats) -> Floats:
        """(n, p) of features (n, d)."""
        out = np.empty((len(features), self.directions.shape[1]), np.float32)
        for low in range(0, len(features), _ROWS):
            out[low : low + _ROWS] = (features[low : low + _ROWS] - self.centre) @ self.directions
        return out


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over a group of spots of scores z (p,) and expression y (G,)."""

    n: int
    z: Doubles
    zz: Doubles
    y: Doubles
    zy: Doubles
    """(p, G)"""
    yy: Doubles
    """(G,) of squares."""

    @staticmethod
    def of(scores: Floats, expression: Any) -> "Moments":
        """Of scores (n, p) and expression (n, G), dense or CSR."""
        wide = scores.astype(np.float64)
        if hasattr(expression, "tocsr"):
            # In float64 throughout: scipy sums float32 in float32, and a variance is what is left of two such sums.
            values = expression.astype(np.float64)
            zy, y = np.asarray((values.T @ wide).T), np.asarray(values.sum(axis=0)).ravel()
            yy = np.asarray(values.power(2).sum(axis=0)).ravel()
        else:
            values = np.asarray(expression, np.float64)
            zy, y, yy = wide.T @ values, values.sum(axis=0), (values**2).sum(axis=0)
        return Moments(len(wide), wide.sum(axis=0), wide.T @ wide, y, zy, yy)

    def __add__(self, other: "Moments") -> "Moments":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Moments(*(a + b for a, b in pairs))

    def __sub__(self, other: "Moments") -> "Moments":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Moments(*(a - b for a, b in pairs))

    def genes(self, columns: Ints) -> "Moments":
        """Of some genes."""
        return Moments(self.n, self.z, self.zz, self.y[columns], self.zy[:, columns], self.yy[columns])


@dataclass(frozen=True, eq=False)
class Regression:
    """A regression of every gene on scores."""

    coef: Floats
    """(p + 1, G); the last row is the value at the centre."""
    strength: float
    curve: tuple[tuple[float, float], ...]
    """(strength, error): mean over genes of squared error / variance over the spots left out."""

    def predict(self, scores: Floats, columns: Any = slice(None)) -> Floats:
        """(n, G) of scores (n, p)."""
        coef = self.coef[:, columns]
        out: Floats = scores @ coef[:-1] + coef[-1]
        return out


def regress(
    scores: Floats,
    expression: Any,
    folds: Ints,
    *,
    judged: Ints | None = None,
    strengths: Sequence[float] = STRENGTHS,
    times: float = 1.0,
) -> Regression:
    """Fits every gene, at the strength with the least error on folds left out one at a time.

    Args:
        scores: (n, p).
        expression: (n, G) dense or CSR.
        folds: (n,) numbers from 0, at least two different ones.
        judged: genes whose errors choose the strength; None: all. Genes that do not vary do not count.
        strengths: to choose from.
        times: multiple of the chosen one that is fitted.

    Raises:
        BackboneError: for fewer than two folds, or genes of which none varies.
    """
    n_folds = int(folds.max(initial=-1)) + 1
    if n_folds < 2:
        raise BackboneError(f"regression: {n_folds} folds, two are needed")
    parts = [Moments.of(scores[folds == k], expression[folds == k]) for k in range(n_folds)]
    whole = sum(parts[1:], parts[0])
    grid = np.asarray(strengths, np.float64)
    with one_thread():
        errors = _draw_curve(parts, whole, grid, judged)
    best = times * float(grid[int(np.argmin(errors))])
    return Regression(
        coef=fit_moments(whole, best),
        strength=best,
        curve=tuple((float(s), float(e)) for s, e in zip(grid, errors, strict=True)),
    )


def fit_moments(m: Moments, strength: float) -> Floats:
    """Coefficients (p + 1, G) at a strength."""
    centre, mean = m.z / m.n, m.y / m.n
    covariance = m.zz / m.n - np.outer(centre, centre)
    slopes = np.linalg.solve(covariance + strength * np.eye(len(centre)), m.zy / m.n - np.outer(centre, mean))
    return np.vstack([slopes, mean - centre @ slopes]).astype(np.float32)


def _draw_curve(parts: Sequence[Moments], whole: Moments, grid: Doubles, judged: Ints | None) -> Doubles:
    """(s,) mean over genes of squared error / variance on the folds left out.

    With R = Y - mean of the others, z around their centre and B their covariances with Y, the error of a fold is
    sum_g w_g |R_g - Z D B_g|^2, D = diag(1 / (v + s)) on the others' eigenvectors: once expanded, strengths stand only
    before sums over genes.
    """
    if judged is not None:
        parts, whole = [part.genes(judged) for part in parts], whole.genes(judged)
    variance = whole.yy / whole.n - (whole.y / whole.n) ** 2
    varies = variance > 1e-12
    if not varies.any():
        raise BackboneError(f"regression: none of {len(variance)} genes varies over the spots")
    weights = np.divide(1.0, variance, out=np.zeros_like(variance), where=varies)
    loss = np.zeros(len(grid))
    for part in parts:
        rest = whole - part
        centre, mean = rest.z / rest.n, rest.y / rest.n
        values, vectors = np.linalg.eigh(rest.zz / rest.n - np.outer(centre, centre))
        b = vectors.T @ (rest.zy / rest.n - np.outer(centre, mean))
        spread = part.zz - np.outer(part.z, centre) - np.outer(centre, part.z) + part.n * np.outer(centre, centre)
        spread = vectors.T @ spread @ vectors
        away = part.y - part.n * mean
        zr = vectors.T @ (part.zy - np.outer(part.z, mean) - np.outer(centre, away))
        constant = float((part.yy - 2 * part.y * mean + part.n * mean**2) @ weights)
        shrink = 1.0 / (np.maximum(values, 0.0)[None, :] + grid[:, None])
        square = spread * ((b * weights) @ b.T)
        loss += constant - 2 * shrink @ ((zr * b) @ weights) + ((shrink @ square) * shrink).sum(axis=1)
    return np.asarray(loss / (whole.n * np.count_nonzero(varies)))


def number_folds(labels: NDArray[Any], most: int = 5) -> Ints:
    """Labels as fold numbers, at most `most`: groups go, largest first, to the fold with the fewest spots so far."""
    names, which, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    fold = np.zeros(len(names), np.int64)
    held = np.zeros(min(most, len(names)))
    for group in np.argsort(-sizes, kind="stable"):
        fold[group] = int(np.argmin(held))
        held[fold[group]] += sizes[group]
    return np.asarray(fold[which], np.int64)
