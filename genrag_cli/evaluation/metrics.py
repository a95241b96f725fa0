"""Metrics over spots and genes, in float64: Pearson per gene, PCC-k, MSE, MAE, RVD.

Every function takes (n, G) arrays of one section whose rows are the same spots and whose columns are the same genes;
matching them is the caller's. Scales are not known here: the caller brings both sides to one. Where `present` (n, G) is
given, a value counts only where it says True.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genrag_cli.errors import GeneragError
from genrag_cli.types import Doubles

CONSTANT_SD = 1e-12
"""Genes that vary less than this on either side have no correlation."""
MIN_PRESENT = 3
"""Genes present in fewer spots have no correlation and no variance."""
Present = NDArray[np.bool_]
_GENES_AT_ONCE = 512


class MeanOfBest(NamedTuple):
    """A PCC-k, or why there is none."""

    value: float | None
    reason: str = ""


def pearson_per_gene(prediction: ArrayLike, truth: ArrayLike, present: Present | None = None) -> Doubles:
    """Pearson correlation over spots, gene by gene.

    Returns:
        (G,) r; NaN where the standard deviation on either side is below 1e-12, or fewer than 3 spots are present.

    Raises:
        GeneragError: for shapes that differ, or values that are not finite.
    """
    p, t = _check(prediction, truth, present)
    out = np.full(p.shape[1], np.nan)
    if not len(p):
        return out
    for start in range(0, p.shape[1], _GENES_AT_ONCE):
        part = slice(start, start + _GENES_AT_ONCE)
        here = None if present is None else present[:, part]
        p_c, t_c = (_centre(a[:, part], here) for a in (p, t))
        sd_p, sd_t = (np.sqrt(_mean(a**2, here)) for a in (p_c, t_c))
        defined = (sd_p >= CONSTANT_SD) & (sd_t >= CONSTANT_SD) & _enough(here)
        covariance = _mean(p_c * t_c, here)
        np.divide(covariance, sd_p * sd_t, out=out[part], where=defined)
    clipped: Doubles = np.clip(out, -1.0, 1.0)
    return clipped


def pcc_k(r: Doubles, k: int, *, allow_short: bool = False, strict: bool = False) -> MeanOfBest:
    """The mean of the k largest correlations (Stem, GeneRAG).

    The genes are picked by their correlation on the test section itself, so a chance prediction scores above 0 wherever
    k is below the number of genes: read it beside the shuffled baseline and PCC-all.

    Args:
        r: (G,) correlations, NaN where undefined.
        k: how many genes.
        allow_short: where fewer than k are defined, take the mean of those (as the published code does) and say so.
        strict: raise where the value is refused.

    Returns:
        The value; or None and the reason, where fewer than k genes are defined, or none.

    Raises:
        GeneragError: for k below 1, and with `strict` instead of a None.
    """
    if k < 1:
        raise GeneragError(f"PCC-{k}: k must be at least 1")
    defined = r[~np.isnan(r)]
    if not len(defined):
        reason = f"no correlation is defined for any of {len(r)} genes"
    elif len(defined) < k and not allow_short:
        reason = f"refused: {k} genes asked for, {len(defined)} of {len(r)} are defined"
    else:
        short = f"mean of all {len(defined)} defined genes, fewer than {k}" if len(defined) < k else ""
        return MeanOfBest(float(np.mean(np.sort(defined)[::-1][:k])), short)
    if strict:
        raise GeneragError(f"PCC-{k}: {reason}", "With --allow-short the mean of the defined genes is given.")
    return MeanOfBest(None, reason)


def mean_squared_error(prediction: ArrayLike, truth: ArrayLike, present: Present | None = None) -> float | None:
    """Mean over spots and genes of the squared difference; None where no value is present."""
    p, t = _check(prediction, truth, present)
    return _mean_of_all(np.square(p - t), present)


def mean_absolute_error(prediction: ArrayLike, truth: ArrayLike, present: Present | None = None) -> float | None:
    """Mean over spots and genes of the absolute difference; None where no value is present."""
    p, t = _check(prediction, truth, present)
    return _mean_of_all(np.abs(p - t), present)


def relative_variance_distance(prediction: ArrayLike, truth: ArrayLike, present: Present | None = None) -> float | None:
    """RVD: mean over genes of (var_p - var_t)^2 / var_t^2, population variances over spots.

    Returns:
        The mean over the genes present in 3 spots or more whose truth varies; None where there are none.
    """
    p, t = _check(prediction, truth, present)
    var_p, var_t = (np.var(a, axis=0) if present is None else _mean(_centre(a, present) ** 2, present) for a in (p, t))
    varies = (var_t > CONSTANT_SD**2) & _enough(present)
    if not varies.any():
        return None
    return float(np.mean(((var_p[varies] - var_t[varies]) / var_t[varies]) ** 2))


def log_counts(prediction: ArrayLike, truth: ArrayLike, present: Present | None = None) -> tuple[Doubles, Doubles, int]:
    """Brings raw counts on both sides to ln(1 + x), where they are scored.

    The published score takes ln(1 + prediction) against log2(1 + truth). A correlation does not see the base, so PCC
    is the same number; MSE, MAE and RVD are only meaningful with one base, and get one.

    Returns:
        ln(1 + prediction) with predictions below 0 taken as 0, ln(1 + truth), and how many predictions were below 0.
    """
    p, t = (np.asarray(a, dtype=np.float64) for a in (prediction, truth))
    return np.log1p(np.maximum(p, 0.0)), np.log1p(t), int(np.sum(p < 0, where=True if present is None else present))


def _mean(values: Doubles, present: Present | None) -> Doubles:
    """(G,) means over the spots present, 0 where there are none."""
    if present is None:
        return np.asarray(np.mean(values, axis=0))
    return np.asarray(np.sum(values, axis=0, where=present) / np.maximum(present.sum(axis=0), 1))


def _centre(values: Doubles, present: Present | None) -> Doubles:
    return values - _mean(values, present)


def _enough(present: Present | None) -> Any:
    return True if present is None else present.sum(axis=0) >= MIN_PRESENT


def _mean_of_all(values: Doubles, present: Present | None) -> float | None:
    if present is None:
        return float(np.mean(values))
    return float(np.mean(values, where=present)) if present.any() else None


def _check(prediction: ArrayLike, truth: ArrayLike, present: Present | None) -> tuple[Doubles, Doubles]:
    p, t = (np.asarray(a, dtype=np.float64) for a in (prediction, truth))
    if p.ndim != 2 or p.shape != t.shape:
        raise GeneragError(f"cannot score a prediction of shape {p.shape} against a truth of shape {t.shape}")
    if present is not None and present.shape != p.shape:
        raise GeneragError(f"cannot score a prediction of shape {p.shape} of which {present.shape} are said present")
    for side, values in (("prediction", p), ("truth", t)):
        if not np.all(np.isfinite(values)):
            raise GeneragError(f"{np.sum(~np.isfinite(values))} values of the {side} are not finite")
    return p, t
