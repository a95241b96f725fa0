"""What folds say of a bank's genes and spots, before anybody has seen the slide that is predicted.

Every number here is of spots that were left out, predicted in the chosen setting by the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrag_cli.evaluation.metrics import pearson_per_gene
from genrag_cli.evaluation.trust import conformal_offsets, p_values, q_values, spin_null
from genrag_cli.pipeline.tuning.data import BankData
from genrag_cli.pipeline.tuning.model import Retriever, fit
from genrag_cli.pipeline.tuning.search import Split, scores_of
from genrag_cli.pipeline.tuning.settings import Settings
from genrag_cli.types import Doubles, Floats, Listener, Progress

LEVEL = 0.9
"""Of the intervals."""
Q = 0.05
"""Share of false ones that is accepted among genes called predictable."""
TURNS = 20
"""Turned sections of the null, pooled over genes."""
QUANTILES = 1001


@dataclass(frozen=True, eq=False)
class Trust:
    """Of G genes and of residuals; NaN where nothing is known."""

    expected_pcc: Doubles
    """(G,) mean over sections within folds, then over folds, of the Pearson correlation over spots."""
    q_value: Doubles
    """(G,) Benjamini-Hochberg, against turned sections."""
    low: Doubles
    """(G,) what an interval of `LEVEL` begins at, less the prediction."""
    high: Doubles
    morphology: Doubles
    """(`QUANTILES`,) quantiles of the morphology residual of spots left out, from 0 to 1."""
    anchor: Doubles
    scores: dict[str, float]
    """PCC-k on sections left out, mean over folds."""
    sections: dict[str, dict[str, float]]
    """The same by section."""
    n_spots: int

    @property
    def predictable(self) -> Any:
        """(G,) bool."""
        with np.errstate(invalid="ignore"):
            return (self.q_value <= Q) & (self.expected_pcc > 0)


def assess(data: BankData, splits: Sequence[Split], settings: Settings, seed: int, listener: Listener) -> Trust:
    """Predicts the spots of every fold by the others, all genes that every section measured, and sums up.

    Args:
        data: the bank.
        splits: the folds.
        settings: as chosen.
        seed: of the null.
        listener: told how far it is.
    """
    genes = np.flatnonzero(data.common)
    r_folds: list[Doubles] = []
    null_folds: list[Doubles] = []
    residuals: list[Floats] = []
    spots: list[tuple[Floats, Floats]] = []
    by_section: dict[str, dict[str, float]] = {}
    score_folds: list[dict[str, float]] = []
    centres = data.centres()
    for number, part in enumerate(splits):
        fitted = fit(data, settings, part.train, genes)
        retriever = Retriever.of(fitted, settings)
        r, null, scores = [], [], []
        for rows in part.asked:
            (codes,) = retriever.ask(rows)
            found = retriever.parts(rows, codes)
            predicted = found.predict(settings.share)
            r.append(pearson_per_gene(predicted, found.truth))
            null.append(spin_null(predicted, found.truth, centres[rows], TURNS, seed=seed))
            residuals.append(found.truth - predicted)
            spots.append(retriever.residuals(rows, codes))
            scores.append(scores_of(fitted, predicted, found.truth))
            name = str(data.names[data.section_of[rows[0]]])
            by_section[name if name not in by_section else f"{name} ({number + 1})"] = scores[-1]
        r_folds.append(mean_over(r))
        null_folds.append(mean_over(null))
        score_folds.append(_mean_scores(scores))
        listener.progress(Progress("predict spots left out", number + 1, len(splits)))
    observed, null_r = mean_over(r_folds), mean_over(null_folds)
    low, high = conformal_offsets(np.concatenate(residuals), LEVEL)
    steps = np.linspace(0, 1, QUANTILES)
    morphology, anchor = (np.quantile(np.concatenate([s[i] for s in spots]), steps) for i in (0, 1))
    n_genes = len(data.common)
    wide = [_spread(v, genes, n_genes) for v in (observed, q_values(p_values(observed, null_r)), low, high)]
    return Trust(
        expected_pcc=wide[0], q_value=wide[1], low=wide[2], high=wide[3], morphology=morphology, anchor=anchor,
        scores=_mean_scores(score_folds), sections=by_section, n_spots=sum(len(r) for r in residuals),
    )  # fmt: skip


def mean_over(arrays: Sequence[Doubles]) -> Doubles:
    """Mean over arrays of equal shape, of what is defined; NaN where nothing is."""
    stacked = np.stack(arrays)
    known = np.isfinite(stacked)
    count = known.sum(axis=0)
    total = np.where(known, stacked, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0))


def percentile_of(values: Floats, quantiles: Doubles) -> Floats:
    """(n,) where values stand among quantiles (`QUANTILES`,): 0 below all, 100 above all."""
    place = np.searchsorted(quantiles, values, side="right") / len(quantiles)
    return np.asarray(100 * place, np.float32)


def _mean_scores(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([s[name] for s in scores])) for name in scores[0]} if scores else {}


def _spread(values: Doubles, genes: Any, n: int) -> Doubles:
    out = np.full(n, np.nan)
    out[genes] = values
    return out
