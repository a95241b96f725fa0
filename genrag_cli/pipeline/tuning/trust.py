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
FEWEST_GENES = 200
"""Correlations by gene and fold from which on expectations are learned; with fewer they are the means."""


@dataclass(frozen=True, eq=False)
class Trust:
    """Of G genes and of residuals; NaN where nothing is known."""

    oof_pcc: Doubles
    """(G,) mean over sections within folds, then over folds, of the Pearson correlation over spots."""
    expected_pcc: Doubles
    """(G,) what to expect of another section, see `expect_pcc`."""
    q_value: Doubles
    """(G,) Benjamini-Hochberg, against turned sections."""
    low: Doubles
    """(G,) what an interval of `LEVEL` begins at, less the prediction."""
    high: Doubles
    morphology: Doubles
    """(`QUANTILES`,) quantiles of the morphology residual of spots left out, from 0 to 1."""
    anchor: Doubles
    scores: dict[str, float | None]
    """PCC-k on sections left out, mean over folds."""
    sections: dict[str, dict[str, float | None]]
    """The same by section."""
    n_spots: int

    @property
    def predictable(self) -> Any:
        """(G,) bool."""
        with np.errstate(invalid="ignore"):
            return (self.q_value <= Q) & (self.oof_pcc > 0)


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
    ratio_folds: list[Doubles] = []
    null_folds: list[Doubles] = []
    residuals: list[Floats] = []
    spots: list[tuple[Floats, Floats]] = []
    by_section: dict[str, dict[str, float | None]] = {}
    score_folds: list[dict[str, float | None]] = []
    centres = data.centres()
    for number, part in enumerate(splits):
        fitted = fit(data, settings, part.train, genes)
        retriever = Retriever.of(fitted, settings)
        r, ratio, null, scores = [], [], [], []
        for rows in part.asked:
            (codes,) = retriever.ask(rows)
            found = retriever.parts(rows, codes)
            whole = found.predict(settings.share)
            scores.append(scores_of(fitted, whole, found.truth))
            # A fold's anchors may be genes that only other sections lack.
            places = np.searchsorted(fitted.genes, genes)
            predicted, truth = whole[:, places], found.truth[:, places]
            r.append(pearson_per_gene(predicted, truth))
            sd = np.maximum(truth.std(axis=0, dtype=np.float64), 1e-9)
            ratio.append(np.minimum(predicted.std(axis=0, dtype=np.float64) / sd, 1.0))
            null.append(spin_null(predicted, truth, centres[rows], TURNS, seed=seed + int(rows[0])))
            residuals.append(truth - predicted)
            spots.append(retriever.residuals(rows, codes))
            name = str(data.names[data.section_of[rows[0]]])
            by_section[name if name not in by_section else f"{name} ({number + 1})"] = scores[-1]
        r_folds.append(mean_over(r))
        ratio_folds.append(mean_over(ratio))
        null_folds.append(mean_over(null))
        score_folds.append(_mean_scores(scores))
        listener.progress(Progress("predict spots left out", number + 1, len(splits)))
    observed, null_r = mean_over(r_folds), mean_over(null_folds)
    low, high = conformal_offsets(np.concatenate(residuals), LEVEL)
    steps = np.linspace(0, 1, QUANTILES)
    morphology, anchor = (np.quantile(np.concatenate([s[i] for s in spots]), steps) for i in (0, 1))
    n_genes = len(data.common)
    statistics = data.panels(np.unique(data.section_of[np.concatenate([part.train for part in splits])]))[2]
    expected = expect_pcc(np.stack(r_folds), np.stack(ratio_folds), statistics.mean[genes], statistics.detected[genes])
    q = q_values(p_values(observed, null_r))
    wide = [_spread(v, genes, n_genes) for v in (observed, expected, q, low, high)]
    return Trust(
        oof_pcc=wide[0], expected_pcc=wide[1], q_value=wide[2], low=wide[3], high=wide[4],
        morphology=morphology, anchor=anchor,
        scores=_mean_scores(score_folds), sections=by_section, n_spots=sum(len(r) for r in residuals),
    )  # fmt: skip


def expect_pcc(r: Doubles, ratio: Doubles, mean: Doubles, detected: Doubles) -> Doubles:
    """The correlation to expect of each gene on another section.

    A correlation over a few hundred spots is noisy. What the other folds say of a gene (its mean correlation, how much
    of its measured sd its predictions reach, log mean and detection) is regressed on the correlation in each fold, and
    the same line is then laid through what all folds say: genes are pulled to what genes like them reached.

    Args:
        r: (K, G) correlations by fold, NaN where undefined.
        ratio: (K, G) sd of predictions over sd of measurements, at most 1.
        mean: (G,) over the bank.
        detected: (G,) share of the bank's spots.

    Returns:
        (G,) NaN where no fold has a correlation; the mean correlation where there is too little to learn a line from.
    """
    n_folds, observed = len(r), mean_over(list(r))

    def say(folds: list[int]) -> Doubles:
        return np.column_stack([
            np.ones(len(mean)), mean_over([r[i] for i in folds]), mean_over([ratio[i] for i in folds]),
            np.log(mean + 1e-4), np.sqrt(detected),
        ])  # fmt: skip

    inputs = [say([i for i in range(n_folds) if i != held]) for held in range(n_folds)] if n_folds > 1 else []
    known = [np.isfinite(x).all(axis=1) & np.isfinite(r[held]) for held, x in enumerate(inputs)]
    if sum(int(k.sum()) for k in known) < FEWEST_GENES:
        return observed
    x = np.concatenate([i[k] for i, k in zip(inputs, known, strict=True)])
    y = np.concatenate([r[held][k] for held, k in enumerate(known)])
    line = np.linalg.lstsq(x, y, rcond=None)[0]
    return np.asarray(np.where(np.isfinite(observed), say(list(range(n_folds))) @ line, np.nan))


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


def _mean_scores(scores: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Means by metric over what is defined; None where nothing is."""
    known = {name: [v for s in scores if (v := s[name]) is not None] for name in (scores[0] if scores else ())}
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}


def _spread(values: Doubles, genes: Any, n: int) -> Doubles:
    out = np.full(n, np.nan)
    out[genes] = values
    return out
