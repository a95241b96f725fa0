"""Whether what a tuned bank claims of genes and spots holds on sections that it has not seen."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.evaluation.metrics import pearson_per_gene
from genrag_cli.evaluation.trust import coverage, flagged_error, rank_agreement
from genrag_cli.pipeline.protocols.fold import FoldResult
from genrag_cli.pipeline.tuning.trust import LEVEL, mean_over, percentile_of
from genrag_cli.pipeline.tuning.tuning import OUT_OF_BANK
from genrag_cli.types import Doubles, Ints


def rank_over_sections(result: FoldResult) -> dict[str, Any] | None:
    """Expected correlations against those realised in the mean over several held-out sections; None for one.

    The correlation of a gene over 200 spots errs by .07; over several sections less of that stands in the comparison.
    """
    if result.trust is None or len(result.whole) < 2:
        return None
    realised = mean_over([pearson_per_gene(p, t) for p, t in result.whole.values()])
    expected, wide = result.trust.expected_pcc[result.fit.genes], result.fit.wide
    rho_all, n_all = rank_agreement(expected, realised)
    rho, n = rank_agreement(expected[wide], realised[wide])
    return {
        "sections": len(result.whole), "spearman_all": _plain(rho_all), "genes_all": n_all,
        "spearman_global": _plain(rho), "genes_global": n,
    }  # fmt: skip


def check_claims(result: FoldResult, section: int, name: str) -> dict[str, Any] | None:
    """Expected against realised correlations, intervals against truth, flags against error; None without claims.

    Args:
        result: of a fold, with retrieval of every gene.
        section: by number.
        name: of the section.
    """
    if result.trust is None or section not in result.whole:
        return None
    predicted, truth = result.whole[section]
    genes, trust = result.fit.genes, result.trust
    claimed = Claims(
        trust.expected_pcc[genes], trust.predictable[genes], trust.low[genes], trust.high[genes],
        percentile_of(result.residual[section], trust.morphology) > OUT_OF_BANK,
    )  # fmt: skip
    return {"section": name, "fold": result.held.name, **judge(claimed, predicted, truth, result.fit.wide)}


@dataclass(frozen=True, eq=False)
class Claims:
    """What a prediction says of its genes (G,) and spots (n,)."""

    expected: Doubles
    predictable: NDArray[np.bool_]
    low: Doubles
    high: Doubles
    flagged: NDArray[np.bool_]


def judge(
    claimed: Claims, predicted: NDArray[Any], truth: NDArray[Any], wide: Ints, level: float = LEVEL,
    present: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Claims against the truth of one section.

    Args:
        claimed: of the prediction.
        predicted: (n, G).
        truth: (n, G) in the same scale.
        wide: genes of the global panel.
        level: of the intervals.
        present: (n, G) False where the prediction is missing and holds a filler; None where nothing is.
    """
    realised = pearson_per_gene(predicted, truth, present)
    here = np.ones(truth.shape, np.bool_) if present is None else present
    known_truth = np.where(here, truth, np.nan)
    rho_all, n_all = rank_agreement(claimed.expected, realised)
    rho, n = rank_agreement(claimed.expected[wide], realised[wide])
    known = np.flatnonzero(np.isfinite(claimed.low) & np.isfinite(claimed.high))
    by_gene, mean = coverage(
        known_truth[:, known], predicted[:, known] + claimed.low[known], predicted[:, known] + claimed.high[known]
    )
    in_wide = by_gene[np.isin(known, wide)]
    squares = np.where(here, (predicted - truth) ** 2, 0.0)[:, wide].sum(axis=1)
    error = np.sqrt(squares / np.maximum(here[:, wide].sum(axis=1), 1))
    flags = flagged_error(error, claimed.flagged)
    return {
        "spearman_all": _plain(rho_all), "genes_all": n_all, "spearman_global": _plain(rho), "genes_global": n,
        "level": level, "coverage_all": _plain(mean), "coverage_global": _mean(in_wide),
        "coverage_worst_tenth": _plain(np.nanquantile(by_gene, 0.1)) if len(known) else None,
        "n_predictable": int(claimed.predictable.sum()), "pcc_predictable": _mean(realised[claimed.predictable]),
        "pcc_others": _mean(realised[~claimed.predictable]), "n_flagged": flags.n_flagged,
        "error_flagged": flags.flagged, "error_others": flags.unflagged,
    }  # fmt: skip


def _mean(values: Any) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
