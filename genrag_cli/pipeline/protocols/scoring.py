"""Scores of one method on one held-out section, and what a table says beside them."""

from typing import Any

import numpy as np

from genrag_cli.evaluation.metrics import log_counts, pcc_k, pearson_per_gene
from genrag_cli.pipeline.protocols.fold import Answer, FoldResult
from genrag_cli.pipeline.tuning.search import CORE_KS, GLOBAL_KS
from genrag_cli.types import COUNTS, Doubles, Floats, Scale


def score_answer(
    answer: Answer, truth: Floats, result: FoldResult, scale: Scale, *, allow_short: bool = False
) -> dict[str, Any]:
    """PCC-k by panel, undefined genes, and mean squared error over the global panel.

    Args:
        answer: of a method.
        truth: (n, g) of the same spots and genes.
        result: of the fold, for the panels.
        scale: of both sides; raw counts are scored as ln(1 + prediction) against log2(1 + truth), as published: the
            correlation is that of one base.
        allow_short: where fewer than k genes are defined, take the mean of those; refused (None) otherwise.

    Returns:
        `core 10`, ..., `global 5000`, `core all`, `global all` (None where undefined), `core undefined`, ...
    """
    panels = {"core": (result.core, CORE_KS), "global": (result.wide, GLOBAL_KS)}
    out: dict[str, Any] = {}
    for name, (places, ks) in panels.items():
        kept = [k for k in ks if k <= len(places)]
        if answer.genes == "core" and name == "global":
            out |= {f"{name} {k}": None for k in (*kept, "all", "undefined", "mse")}
            continue
        found = [_score(v[:, places], truth[:, places], kept, scale, allow_short) for v in answer.values]
        for key in (*kept, "all", "undefined", "mse"):
            values = [f[key] for f in found]
            known = [v for v in values if v is not None]
            out[f"{name} {key}"] = float(np.mean(known)) if known and len(known) == len(values) else None
    return out


def _score(
    prediction: Floats, truth: Floats, ks: list[int], scale: Scale, allow_short: bool
) -> dict[Any, float | None]:
    p, t = in_log(prediction, truth, scale)
    r = pearson_per_gene(p, t)
    out: dict[Any, float | None] = {k: pcc_k(r, k, allow_short=allow_short).value for k in ks}
    out["all"] = pcc_k(r, len(r), allow_short=True).value if len(r) else None
    out["undefined"] = float(np.isnan(r).sum())
    out["mse"] = float(np.mean((p - t) ** 2))
    return out


def in_log(prediction: Floats, truth: Floats, scale: Scale) -> tuple[Doubles, Doubles]:
    """Both sides as they are scored."""
    if scale == COUNTS:
        p, t, _ = log_counts(prediction, truth)
        return p, t
    return prediction.astype(np.float64), truth.astype(np.float64)
