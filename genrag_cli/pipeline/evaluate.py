"""A prediction against measured counts: joined by spot name, scored with the baselines that belong beside it."""

from pathlib import Path

import numpy as np

from genrag_cli.cohorts import read_truth
from genrag_cli.errors import CohortError, OutputError
from genrag_cli.evaluation import evaluate
from genrag_cli.genes.panels import N_GLOBAL
from genrag_cli.genes.scales import to_scale
from genrag_cli.outputs import keys
from genrag_cli.outputs.prediction import StoredPrediction, read_prediction
from genrag_cli.pipeline.mix_ups import doubt_truth
from genrag_cli.pipeline.sections import AS_NAMED, GeneRules, name_like, tidy_measured
from genrag_cli.types import Expression, GeneNames, Listener, Score


def evaluate_prediction(
    path: Path, truth: str, *, allow_short: bool, seed: int, listener: Listener, rules: GeneRules = AS_NAMED
) -> tuple[list[Score], StoredPrediction]:
    """`generag evaluate`.

    Args:
        path: a prediction of `generag retrieve`.
        truth: an .h5ad of counts, or COHORT:SECTION.
        allow_short: let PCC-k average fewer than k genes where fewer are defined.
        seed: of the shuffled baseline.
        listener: told what happens.
        rules: when two names are one gene.

    Returns:
        the scores, and the prediction that they are of.

    Raises:
        OutputError: for a prediction without expression.
        CohortError: for truth that cannot be read, or shares no spots or no genes.
    """
    prediction = read_prediction(path)
    if len(prediction.expression.genes) == 0:
        raise OutputError(
            f"{path} holds weights but no expression", f"Write it first: generag export {path} --genes 5000"
        )
    var, scale = prediction.var, prediction.expression.scale
    genes = prediction.expression.genes
    measured = name_like(tidy_measured(read_truth(truth), rules, truth), _called(prediction))
    known = np.union1d(genes, prediction.y_init.genes)
    if not np.isin(known, measured.genes).any():
        raise CohortError(
            f"none of the {len(known)} predicted genes, such as {known[0]}, was measured in {truth}, which has "
            f"{len(measured.genes)}, such as {measured.genes[0]}",
            "Are they of one species, and named by one convention? Previous names need a table (--gene-aliases).",
        )
    for note in measured.notes:
        listener.say(f"{truth}: {note}")
    for text in doubt_truth(truth, measured, prediction):
        listener.warn(text)
    rank = var[keys.VAR_RANK].to_numpy(np.int64)
    in_global = np.flatnonzero((rank >= 0) & (rank < N_GLOBAL))
    mean = var[keys.VAR_MEAN].to_numpy(np.float64)[None].astype(np.float32)
    scores = evaluate(
        prediction.expression,
        measured.counts,
        measured.genes,
        measured.names,
        measured.total_counts,
        to_scale=to_scale,
        anchors=prediction.y_init.genes,
        global_panel=genes[in_global[np.argsort(rank[in_global])]],
        bank_mean=Expression(mean, np.array(["bank"]), genes, scale),
        bank_mean_total=float(prediction.about["bank_mean_total"]),
        y_init=_comparable(prediction, listener),
        allow_short=allow_short,
        seed=seed,
    )
    return scores, prediction


def _comparable(prediction: StoredPrediction, listener: Listener) -> Expression | None:
    """The first guess where it is in the prediction's scale; two scales are not compared."""
    first, scale = prediction.y_init, prediction.expression.scale
    if first.scale == scale:
        return first
    listener.warn(f"the first guess is in scale {first.scale.name}, the prediction in {scale.name}: it is not scored")
    return None


def _called(prediction: StoredPrediction) -> GeneNames:
    """Every gene that the prediction names, in X or among its anchors."""
    genes = prediction.expression.genes
    more = np.setdiff1d(prediction.y_init.genes, genes)
    names = np.concatenate([genes, more])
    if keys.VAR_IDS not in prediction.var:
        return GeneNames(names)
    ids = prediction.var[keys.VAR_IDS].to_numpy(np.str_)
    return GeneNames(names, np.concatenate([ids, np.full(len(more), "", np.str_)]))
