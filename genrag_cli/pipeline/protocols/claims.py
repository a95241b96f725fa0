"""Whether what a tuned bank claims of genes and spots holds on sections that it has not seen."""

from typing import Any

import numpy as np

from genrag_cli.evaluation.metrics import pearson_per_gene
from genrag_cli.evaluation.trust import coverage, flagged_error, rank_agreement
from genrag_cli.pipeline.protocols.fold import FoldResult
from genrag_cli.pipeline.tuning.trust import LEVEL, mean_over, percentile_of
from genrag_cli.pipeline.tuning.tuning import OUT_OF_BANK


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
        "sections": len(result.whole), "spearman_all": rho_all, "genes_all": n_all, "spearman_global": rho,
        "genes_global": n,
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
    realised = pearson_per_gene(predicted, truth)
    expected = trust.expected_pcc[genes]
    wide = result.fit.wide
    rho_all, n_all = rank_agreement(expected, realised)
    rho, n = rank_agreement(expected[wide], realised[wide])
    known = np.isfinite(trust.low[genes]) & np.isfinite(trust.high[genes])
    low, high = (predicted[:, known] + v[genes][known] for v in (trust.low, trust.high))
    by_gene, mean = coverage(truth[:, known], low, high)
    in_wide, _ = coverage(truth[:, wide], predicted[:, wide] + trust.low[genes][wide],
                          predicted[:, wide] + trust.high[genes][wide])  # fmt: skip
    flagged = percentile_of(result.residual[section], trust.morphology) > OUT_OF_BANK
    error = np.sqrt(np.mean((predicted[:, wide] - truth[:, wide]) ** 2, axis=1))
    flags = flagged_error(error, flagged)
    predictable = trust.predictable[genes]
    return {
        "section": name, "fold": result.held.name, "spearman_all": rho_all, "genes_all": n_all, "spearman_global": rho,
        "genes_global": n, "level": LEVEL, "coverage_all": mean, "coverage_global": float(np.nanmean(in_wide)),
        "coverage_worst_tenth": float(np.nanquantile(by_gene, 0.1)) if known.any() else None,
        "n_predictable": int(predictable.sum()), "pcc_predictable": _mean(realised[predictable]),
        "pcc_others": _mean(realised[~predictable]), "n_flagged": flags.n_flagged, "error_flagged": flags.flagged,
        "error_others": flags.unflagged,
    }  # fmt: skip


def _mean(values: Any) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
