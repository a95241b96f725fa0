"""Whether what a prediction says about itself holds: expected ranks, flags, intervals, and more than smooth chance.

Pure functions over one section's spots and genes. They judge claims; they do not make them, but for the offsets of
split-conformal intervals, which need residuals of spots that nothing was fitted on.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genrag_cli.errors import GeneragError
from genrag_cli.evaluation.metrics import pearson_per_gene
from genrag_cli.types import Doubles, Ints

LEAST_TURN = np.pi / 6
"""Of sections that are not mirrored."""
MIN_RANKED = 3
"""Fewer genes have no rank correlation."""


@dataclass(frozen=True)
class FlaggedError:
    """The error of spots that were flagged against that of the others; None where there are none."""

    flagged: float | None
    unflagged: float | None
    ratio: float | None
    """Flagged over unflagged: above 1 where flags point at worse spots."""
    n_flagged: int


def rank_agreement(expected: ArrayLike, realised: ArrayLike) -> tuple[float, int]:
    """Spearman correlation of the scores that genes were expected to reach with those that they reached.

    Args:
        expected: (G,), NaN where nothing was claimed.
        realised: (G,), NaN where undefined.

    Returns:
        The correlation over genes that have both, and how many these are. NaN for fewer than 3, or equal values.
    """
    from scipy.stats import spearmanr

    e, r = (np.asarray(a, dtype=np.float64) for a in (expected, realised))
    _expect_equal("expected and realised scores", e, r)
    both = np.isfinite(e) & np.isfinite(r)
    n = int(both.sum())
    if n < MIN_RANKED or np.ptp(e[both]) == 0 or np.ptp(r[both]) == 0:
        return float("nan"), n
    return float(spearmanr(e[both], r[both]).statistic), n


def flagged_error(error: ArrayLike, flagged: ArrayLike) -> FlaggedError:
    """Compares the error of flagged spots with that of the others.

    Args:
        error: (n,) at least 0; spots without a finite one are left out.
        flagged: (n,) bool.
    """
    e, said = np.asarray(error, dtype=np.float64), np.asarray(flagged, dtype=bool)
    _expect_equal("errors and flags", e, said)
    known = np.isfinite(e)
    means = [float(e[known & here].mean()) if (known & here).any() else None for here in (said, ~said)]
    bad, fine = means
    ratio = bad / fine if bad is not None and fine else None
    return FlaggedError(bad, fine, ratio, int(np.sum(known & said)))


def coverage(truth: ArrayLike, low: ArrayLike, high: ArrayLike) -> tuple[Doubles, float]:
    """How often the truth lies within intervals, ends included.

    Args:
        truth: (n, G).
        low: (n, G), -inf where open; so is `high` with inf. Values where any of the three is NaN are left out.
        high: (n, G).

    Returns:
        (G,) shares, NaN for genes without a value, and the mean over the other genes.
    """
    t, lo, hi = (np.asarray(a, dtype=np.float64) for a in (truth, low, high))
    _expect_equal("truth and lower ends", t, lo)
    _expect_equal("truth and upper ends", t, hi)
    known = ~(np.isnan(t) | np.isnan(lo) | np.isnan(hi))
    counted = known.sum(axis=0)
    shares = np.full(t.shape[1], np.nan)
    np.divide(np.sum(known & (lo <= t) & (t <= hi), axis=0), counted, out=shares, where=counted > 0)
    return shares, float(np.mean(shares[counted > 0])) if (counted > 0).any() else float("nan")


def conformal_offsets(residuals: ArrayLike, level: float = 0.9) -> tuple[Doubles, Doubles]:
    """What to add to a prediction for an interval that holds a new truth with the probability `level`, per gene.

    Split-conformal with a tail on each side: with a = 1 - level and n residuals in order, the lower end is number
    floor((n + 1) a / 2) and the upper end number ceil((n + 1) (1 - a / 2)), counted from 1. Where spots are
    exchangeable, each tail is exceeded with a probability of at most a / 2.

    Args:
        residuals: (n, G) truth less prediction on held-out spots; NaN are left out, gene by gene.
        level: of the interval.

    Returns:
        (G,) lower and (G,) upper offsets; -inf and inf for genes with fewer than 2 / a - 1 residuals.

    Raises:
        GeneragError: for residuals that are not (n, G), or a level outside 0 to 1.
    """
    values = np.asarray(residuals, dtype=np.float64)
    if values.ndim != 2 or not 0 < level < 1:
        raise GeneragError(f"residuals (n, G) and a level in (0, 1) are needed, found {values.shape} and {level:g}")
    ordered = np.sort(values, axis=0)  # NaN last
    n = np.sum(~np.isnan(values), axis=0)
    # 1 - .9 is a hair less than .1, which must not cost a place. The upper place is n + 1 less the lower one.
    place = np.floor(np.round((n + 1) * (1 - level) / 2, 9)).astype(np.int64)
    enough = place >= 1
    low, high = np.full(values.shape[1], -np.inf), np.full(values.shape[1], np.inf)
    genes = np.flatnonzero(enough)
    low[genes] = ordered[place[genes] - 1, genes]
    high[genes] = ordered[n[genes] - place[genes], genes]
    return low, high


def spin_null(prediction: ArrayLike, truth: ArrayLike, centres: ArrayLike, times: int, seed: int = 0) -> Doubles:
    """Correlations of the truth with the prediction of the turned and mirrored section: chance that is smooth too.

    The section is turned about its middle by a random angle, and mirrored in half of the cases; each spot takes the
    prediction of the spot that lies nearest to where it lands. That keeps the prediction's smoothness, which a shuffle
    of spots destroys. Spots that land outside take the nearest one of the edge, so the null is the better the rounder
    the section is; angles below 30 degrees are not drawn without a mirror, as they leave the section nearly as it was.
    What only depends on the distance to the middle, such as edge against core, survives every turn:
    it counts as chance here.

    Args:
        prediction: (n, G).
        truth: (n, G).
        centres: (n, 2) x, y.
        times: how many turns.
        seed: equal seeds give equal turns.

    Returns:
        (times, G) correlations, NaN where undefined.

    Raises:
        GeneragError: for shapes that do not fit, or values that are not finite.
    """
    p, t, xy = (np.asarray(a, dtype=np.float64) for a in (prediction, truth, centres))
    if xy.shape != (len(p), 2) or not np.isfinite(xy).all():
        raise GeneragError(f"centres of shape ({len(p)}, 2) and finite are needed, found {xy.shape}")
    turns = _spin(xy, times, np.random.default_rng(seed))
    return np.array([pearson_per_gene(p[rows], t) for rows in turns]).reshape(times, t.shape[1])


def p_values(observed: ArrayLike, null: ArrayLike) -> Doubles:
    """One-sided p of each gene against a null that all genes share.

    Args:
        observed: (G,) correlations.
        null: (times, G) or any shape: pooled, NaN left out.

    Returns:
        (G,) (1 + null values at least as large) / (1 + null values); NaN stays NaN.
    """
    seen, pooled = np.asarray(observed, dtype=np.float64), np.asarray(null, dtype=np.float64).ravel()
    pooled = np.sort(pooled[~np.isnan(pooled)])
    as_large = len(pooled) - np.searchsorted(pooled, seen, side="left")
    out: Doubles = np.where(np.isnan(seen), np.nan, (1 + as_large) / (1 + len(pooled)))
    return out


def q_values(p: ArrayLike) -> Doubles:
    """Benjamini-Hochberg: the false discovery rate at which each gene is called.

    Args:
        p: (G,), NaN where undefined, which takes no part.

    Returns:
        (G,) at least p and rising with p; NaN stays NaN.
    """
    from scipy.stats import false_discovery_control

    values = np.asarray(p, dtype=np.float64)
    out = np.full(values.shape, np.nan)
    known = ~np.isnan(values)
    if known.any():
        out[known] = false_discovery_control(values[known], method="bh")
    return out


def _spin(centres: Doubles, times: int, random: np.random.Generator) -> Ints:
    """(times, n) for each turn, the spot that lies nearest to where a spot lands."""
    from scipy.spatial import cKDTree

    middle = centres.mean(axis=0)
    tree, own = cKDTree(centres), centres - middle
    mirrored = random.integers(2, size=times) * 2 - 1
    # A section that is neither mirrored nor turned by more than this is nearly itself, which is no chance.
    least = np.where(mirrored > 0, LEAST_TURN, 0.0)
    angles = random.uniform(least, 2 * np.pi - least)
    out = np.empty((times, len(centres)), np.int64)
    for i, (angle, mirror) in enumerate(zip(angles, mirrored, strict=True)):
        cos, sin = np.cos(angle), np.sin(angle)
        landed = (own * [mirror, 1]) @ np.array([[cos, sin], [-sin, cos]]) + middle
        out[i] = tree.query(landed)[1]
    return out


def _expect_equal(what: str, one: NDArray[np.generic], other: NDArray[np.generic]) -> None:
    if one.shape != other.shape:
        raise GeneragError(f"{what} of shapes {one.shape} and {other.shape} do not belong together")
