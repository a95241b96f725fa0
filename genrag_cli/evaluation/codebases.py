"""The scorings of four published codebases, to the letter, with what each of them does without a word.

| name | source | correlation | PCC-k | errors |
|---|---|---|---|---|
| `stem` | Stem `eval.ipynb` | `np.corrcoef` | Python `sorted`, NaN and all | all genes |
| `generag` | GeneRAG `metrics.py` | moments, NaN skipped | mean of what is there | 300 genes of best r |
| `hest-bench` | HEST `trainer.py` | `scipy.stats.pearsonr` | none, plain mean | quartiles of L2 and R2 |
| `genar` | GenAR `model_metrics.py` | norms above 1e-12, clipped | mean of what is there | all genes |

Every function takes raw counts of the same spots and genes on both sides and computes in float64. These are for
comparison with published tables; numbers to rely on are those of `metrics`. Choosing the genes is the caller's:
`Codebase.panel` says which ones the codebase means.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from genrag_cli.errors import GeneragError
from genrag_cli.types import Doubles

N_ERROR_GENES = 300
"""GeneRAG takes MSE, MAE and RVD over so many genes, the best by r on the test section."""
GENAR_EPS = 1e-12
Logarithm = Literal["ln", "log2"]


class _Errors(NamedTuple):
    mse: float | None = None
    mae: float | None = None
    rvd: float | None = None
    others: dict[str, float] = {}  # noqa: RUF012 - never written to
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CodebaseScores:
    """What a codebase would print for one section, or for one fold where it pools."""

    codebase: str
    pcc: dict[int, float]
    """k -> PCC-k; NaN where the codebase gives NaN, or a number that means nothing (`notes` says why)."""
    mean: float
    """Mean over the panel, with undefined genes treated as in PCC-k; only hest-bench prints it itself."""
    mse: float | None
    """None where the codebase has no such number; so with `mae` and `rvd`."""
    mae: float | None
    rvd: float | None
    others: dict[str, float]
    """Numbers that only this codebase has, under its names."""
    n_spots: int
    n_genes: int
    n_undefined: int
    """Genes whose r is NaN in this codebase's arithmetic."""
    notes: list[str]
    """What was done to these numbers without a word in the codebase."""


@dataclass(frozen=True)
class Codebase:
    """How one codebase scores."""

    name: str
    words: str
    """What it does, in words."""
    prediction_log: Logarithm
    """Raw counts x become log(1 + x) in this base; so with `truth_log`."""
    truth_log: Logarithm
    ks: tuple[int, ...]
    pools_slides: bool
    """Whether the spots of all test slides of a fold are thrown together."""
    panel: Literal["core", "50 genes", "all"]
    """Which genes it is meant for: the core panel, the benchmark's 50 genes, every column of the prediction."""
    refuses_non_finite: bool
    ranks_genes: bool
    """Whether it has a PCC-k at all."""
    drops_undefined: bool
    """Whether genes without a correlation are left out of means."""
    on_negative: str
    """What it does itself with predictions below 0, which are taken as 0 here."""
    correlate: Callable[[Doubles, Doubles], Doubles]
    """(n, G) logs of prediction and truth -> (G,) r."""
    take_errors: Callable[[Doubles, Doubles, Doubles], _Errors]
    """(n, G) logs of prediction and truth, (G,) r -> errors."""

    def score(
        self, prediction_counts: ArrayLike, truth_counts: ArrayLike, ks: Sequence[int] | None = None
    ) -> CodebaseScores:
        """Scores one section (one fold where the codebase pools slides).

        Args:
            prediction_counts: (n, G) in raw counts; values below 0 count as 0, and a note says how many there were.
            truth_counts: (n, G) raw counts.
            ks: in place of the codebase's own.

        Raises:
            GeneragError: for shapes that differ, fewer than 2 spots or no gene, a truth below 0, k below 1; for values
                that are not finite where the codebase refuses them.
        """
        p, t = _check(prediction_counts, truth_counts)
        wanted = self.ks if ks is None else tuple(ks)
        if any(k < 1 for k in wanted):
            raise GeneragError(f"{self.name}: k must be at least 1, found {min(wanted)}")
        for side, values in (("prediction", p), ("truth", t)):
            if self.refuses_non_finite and not np.isfinite(values).all():
                bad = int(np.sum(~np.isfinite(values)))
                raise GeneragError(f"{self.name} refuses values that are not finite: {bad} of the {side}")
        below = int(np.sum(p < 0))
        notes = [f"{below} predictions below 0 taken as 0; the codebase {self.on_negative}"] if below else []
        p_log, t_log = _log(np.maximum(p, 0.0), self.prediction_log), _log(t, self.truth_log)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            r = self.correlate(p_log, t_log)
            errors = self.take_errors(p_log, t_log, r)
        pcc = {k: self._mean_of_best(r, k) for k in wanted} if self.ranks_genes else {}
        if wanted and not self.ranks_genes:
            notes.append(f"{self.name} has no PCC-k, only the mean over its panel")
        notes += self._rank_notes(r, pcc) + _constant_notes(p_log, t_log, r) + list(errors.notes)
        if errors.mse is not None and self.prediction_log != self.truth_log:
            notes.append(f"MSE, MAE and RVD mix {self.prediction_log} (prediction) and {self.truth_log} (truth)")
        return CodebaseScores(
            codebase=self.name,
            pcc=pcc,
            mean=self._mean_of_best(r, len(r)),
            mse=errors.mse,
            mae=errors.mae,
            rvd=errors.rvd,
            others=dict(errors.others),
            n_spots=len(p),
            n_genes=len(r),
            n_undefined=int(np.isnan(r).sum()),
            notes=notes,
        )

    def _mean_of_best(self, r: Doubles, k: int) -> float:
        if self.drops_undefined:
            r = r[np.isfinite(r)]
        if not len(r) or np.isnan(r).any():
            return float("nan")
        return float(np.mean(np.sort(r)[::-1][:k]))

    def _rank_notes(self, r: Doubles, pcc: dict[int, float]) -> list[str]:
        undefined, notes = int(np.isnan(r).sum()), []
        if undefined and self.drops_undefined:
            counted = ", and counted" if self.name == "genar" else ""
            notes.append(f"{undefined} of {len(r)} genes without a correlation dropped{counted}")
        elif undefined and pcc:
            notes.append(
                f"{undefined} of {len(r)} correlations are NaN, which leaves the order of Python's sorted() undefined: "
                "the codebase prints some number or NaN, here every PCC-k is NaN"
            )
        elif undefined:
            notes.append(f"{undefined} of {len(r)} correlations are NaN, so the mean is NaN")
        ranked = len(r) - undefined if self.drops_undefined else len(r)
        if short := [k for k in pcc if k > ranked]:
            named = ", ".join(f"PCC-{k}" for k in short)
            notes.append(f"{named}: the mean of all {ranked} genes, as there are no more")
        return notes


def score_slides(
    codebase: Codebase, slides: Sequence[tuple[ArrayLike, ArrayLike]], ks: Sequence[int] | None = None
) -> list[CodebaseScores]:
    """Scores the test slides of a fold as a codebase does: one by one, or pooled into one.

    Args:
        codebase: one of `SCORINGS`.
        slides: (prediction (n_i, G), truth (n_i, G)) in raw counts, the same genes in all.
        ks: in place of the codebase's own.
    """
    if not codebase.pools_slides:
        return [codebase.score(prediction, truth, ks) for prediction, truth in slides]
    predictions, truths = zip(*slides, strict=True)
    return [codebase.score(np.concatenate(predictions), np.concatenate(truths), ks)]


def average_folds(folds: Sequence[CodebaseScores]) -> tuple[float, float]:
    """The task score of hest-bench: mean and population sd of the panel means over folds."""
    means = [fold.mean for fold in folds]
    return float(np.mean(means)), float(np.std(means))


def _check(prediction: ArrayLike, truth: ArrayLike) -> tuple[Doubles, Doubles]:
    p, t = (np.asarray(a, dtype=np.float64) for a in (prediction, truth))
    if p.ndim != 2 or p.shape != t.shape:
        raise GeneragError(f"cannot score a prediction of shape {p.shape} against a truth of shape {t.shape}")
    if len(p) < 2 or not p.shape[1]:
        raise GeneragError(f"at least 2 spots and 1 gene are needed, found {p.shape}")
    if (t < 0).any():
        raise GeneragError(f"{np.sum(t < 0)} values of the truth are below 0, which counts are not")
    return p, t


def _log(counts: Doubles, base: Logarithm) -> Doubles:
    return np.asarray(np.log1p(counts) if base == "ln" else np.log2(counts + 1.0))


def _constant_notes(p: Doubles, t: Doubles, r: Doubles) -> list[str]:
    """Constant genes get a correlation where rounding of the mean makes them vary by a hair."""
    constant = (np.ptp(p, axis=0) == 0) | (np.ptp(t, axis=0) == 0)
    if not constant.any():
        return []
    notes = [f"{constant.sum()} of {len(r)} genes are constant in prediction or truth"]
    if n := int(np.sum(constant & np.isfinite(r))):
        notes.append(f"{n} of them get a correlation from rounding alone")
    return notes


def _corrcoef(p: Doubles, t: Doubles) -> Doubles:
    return np.array([np.corrcoef(t[:, g], p[:, g])[0, 1] for g in range(p.shape[1])])


def _skipping_moments(p: Doubles, t: Doubles) -> Doubles:
    """GeneRAG: NaN skipped on each side by itself, no clip."""
    p_c, t_c = (a - np.nanmean(a, axis=0, keepdims=True) for a in (p, t))
    norm = np.sqrt(np.nansum(p_c**2, axis=0) * np.nansum(t_c**2, axis=0))
    return np.where(norm > 0, np.nansum(p_c * t_c, axis=0) / norm, np.nan)


def _scipy_pearson(p: Doubles, t: Doubles) -> Doubles:
    from scipy.stats import pearsonr

    return np.asarray(pearsonr(t, p, axis=0).statistic, dtype=np.float64)


def _guarded_norms(p: Doubles, t: Doubles) -> Doubles:
    """GenAR: norms (not sds) above 1e-12, clipped to [-1, 1]."""
    p_c, t_c = (a - a.mean(axis=0, keepdims=True) for a in (p, t))
    norm_p, norm_t = (np.sqrt(np.sum(np.square(a), axis=0)) for a in (p_c, t_c))
    defined = (norm_p > GENAR_EPS) & (norm_t > GENAR_EPS)
    return np.where(defined, np.clip(np.sum(p_c * t_c, axis=0) / (norm_p * norm_t), -1.0, 1.0), np.nan)


def _stem_errors(p: Doubles, t: Doubles, r: Doubles) -> _Errors:  # noqa: ARG001 - one signature for all
    var_p, var_t = np.var(p, axis=0), np.var(t, axis=0)
    rvd = float(np.mean((var_p - var_t) ** 2 / var_t**2))
    flat = int(np.sum(var_t == 0))
    note = f"RVD divides by the variance of {flat} genes that do not vary in the truth, without a guard"
    return _Errors(float(np.mean((t - p) ** 2)), float(np.mean(np.abs(t - p))), rvd, notes=(note,) if flat else ())


def _generag_errors(p: Doubles, t: Doubles, r: Doubles) -> _Errors:
    best = np.argsort(-np.nan_to_num(r, nan=-np.inf))[:N_ERROR_GENES]
    p, t = p[:, best], t[:, best]
    here = ~(np.isnan(p) | np.isnan(t))
    apart = (t - p)[here]
    mse, mae = (float(np.mean(apart**2)), float(np.mean(np.abs(apart)))) if here.any() else (np.nan, np.nan)
    var_p, var_t = np.nanvar(p, axis=0), np.nanvar(t, axis=0)
    used = np.isfinite(var_p) & np.isfinite(var_t) & (var_t > 0)
    rvd = float(np.mean(((var_p[used] - var_t[used]) / var_t[used]) ** 2)) if used.any() else float("nan")
    notes = [f"MSE, MAE and RVD are over {len(best)} of {len(r)} genes, those of largest r on the test section itself"]
    if undefined := int(np.isnan(r[best]).sum()):
        notes.append(f"{undefined} genes without a correlation are among them")
    if not used.all():
        notes.append(f"RVD leaves out {np.sum(~used)} genes that do not vary in the truth")
    return _Errors(mse, mae, rvd, notes=tuple(notes))


def _hest_errors(p: Doubles, t: Doubles, r: Doubles) -> _Errors:
    l2 = np.mean((p - t) ** 2, axis=0)
    r2 = 1 - np.sum((t - p) ** 2, axis=0) / np.sum((t - np.mean(t, axis=0)) ** 2, axis=0)
    others = {"pearson_std": float(np.std(r))}
    for name, values in (("l2_error", l2), ("r2_score", r2)):
        others |= {f"{name}_q{i}": float(np.percentile(values, 25 * i)) for i in (1, 2, 3)}
    return _Errors(others=others)


def _genar_errors(p: Doubles, t: Doubles, r: Doubles) -> _Errors:  # noqa: ARG001 - one signature for all
    var_p, var_t = np.var(p, axis=0), np.var(t, axis=0)
    used = var_t > GENAR_EPS
    rvd = float(np.mean(((var_p[used] - var_t[used]) / var_t[used]) ** 2)) if used.any() else float("nan")
    note = f"RVD leaves out {np.sum(~used)} genes whose truth has a variance of at most 1e-12"
    mse, mae = float(np.mean(np.square(t - p))), float(np.mean(np.abs(t - p)))
    return _Errors(mse, mae, rvd, notes=() if used.all() else (note,))


SCORINGS: dict[str, Codebase] = {
    scoring.name: scoring
    for scoring in (
        Codebase(
            name="stem",
            words="One test slide; np.corrcoef per gene in log2(1 + x); mean of the k largest r on that slide, NaN not "
            "looked at; MSE, MAE and RVD over all genes, RVD without a guard against genes that do not vary.",
            prediction_log="log2",
            truth_log="log2",
            ks=(10, 50, 200),
            pools_slides=False,
            panel="core",
            refuses_non_finite=False,
            ranks_genes=True,
            drops_undefined=False,
            on_negative="predicts logs, where they stand for less than no count",
            correlate=_corrcoef,
            take_errors=_stem_errors,
        ),
        Codebase(
            name="generag",
            words="One test slide, all columns of the prediction; r of ln(1 + prediction) with log2(1 + truth), genes "
            "without one dropped; mean of the k largest r on that slide, of all where there are fewer; MSE, MAE and "
            "RVD over the 300 genes of largest r, in mixed log bases.",
            prediction_log="ln",
            truth_log="log2",
            ks=(10, 50, 300, 1000, 2000, 3000, 5000, 10000),
            pools_slides=False,
            panel="all",
            refuses_non_finite=False,
            ranks_genes=True,
            drops_undefined=True,
            on_negative="takes ln(1 + x) of them, NaN below -1",
            correlate=_skipping_moments,
            take_errors=_generag_errors,
        ),
        Codebase(
            name="hest-bench",
            words="All spots of all test slides of a fold pooled; scipy's pearsonr per gene in ln(1 + x); plain mean "
            "over 50 fixed genes, NaN as soon as one gene is constant; no PCC-k; a task has the mean over folds.",
            prediction_log="ln",
            truth_log="ln",
            ks=(),
            pools_slides=True,
            panel="50 genes",
            refuses_non_finite=False,
            ranks_genes=False,
            drops_undefined=False,
            on_negative="predicts logs, where they stand for less than no count",
            correlate=_scipy_pearson,
            take_errors=_hest_errors,
        ),
        Codebase(
            name="genar",
            words="One test slide; r in log2(1 + x), clipped to [-1, 1], genes whose norm is at most 1e-12 dropped and "
            "counted; mean of the k largest r on that slide, of all where there are fewer; MSE and MAE over all genes, "
            "RVD over those that vary; values that are not finite are refused.",
            prediction_log="log2",
            truth_log="log2",
            ks=(10, 50, 200),
            pools_slides=False,
            panel="core",
            refuses_non_finite=True,
            ranks_genes=True,
            drops_undefined=True,
            on_negative="refuses them",
            correlate=_guarded_norms,
            take_errors=_genar_errors,
        ),
    )
}
"""Every scoring by its name."""
