"""Measured counts beside a prediction: genes called as the prediction calls them, spots joined by name, one scale."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genrag_cli.cohorts import Measured, read_truth
from genrag_cli.errors import CohortError, OutputError
from genrag_cli.evaluation import metrics
from genrag_cli.evaluation.join import join_spots, take_truth
from genrag_cli.genes.scales import to_scale
from genrag_cli.outputs import keys
from genrag_cli.outputs.prediction import StoredPrediction
from genrag_cli.pipeline.apart import read_apart
from genrag_cli.pipeline.mix_ups import doubt_truth
from genrag_cli.pipeline.sections import AS_NAMED, GeneRules, name_like, tidy_measured
from genrag_cli.pipeline.stored import read_stored
from genrag_cli.types import Doubles, Expression, GeneNames, Ints, Listener, Strings


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Predicted and measured values of the same spots and genes, in the prediction's scale."""

    rows: Ints
    """(m,) spots of the prediction that were measured."""
    genes: Strings
    """(k,)"""
    predicted: Doubles
    """(m, k)"""
    measured: Doubles
    """(m, k)"""
    present: NDArray[np.bool_] | None
    """(m, k) False where the prediction is missing and holds a filler; None where nothing is."""
    raw: bool
    """Whether these are raw counts, which are scored as ln(1 + x)."""

    def correlate(self, predicted: Doubles | None = None) -> Doubles:
        """(k,) Pearson r of every gene as it is scored, NaN where undefined; `predicted` (m, k) may be another's."""
        values = self.predicted if predicted is None else predicted
        if self.raw:
            values, measured, _ = metrics.log_counts(values, self.measured, self.present)
        else:
            measured = self.measured
        return metrics.pearson_per_gene(values, measured, self.present)


def read_expression(path: Path) -> StoredPrediction:
    """A prediction that holds expression.

    Raises:
        OutputError: where it holds weights only, or is no prediction.
    """
    prediction = read_stored(path)
    if not len(prediction.expression.genes):
        raise OutputError(
            f"{path} holds weights but no expression", f"Write it first: generag export {path} --genes 5000"
        )
    return prediction


def read_measured(
    truth: str, prediction: StoredPrediction, listener: Listener, rules: GeneRules = AS_NAMED
) -> Measured:
    """Measured counts, their genes called as the prediction calls them; signs of a mix-up are said.

    Args:
        truth: an .h5ad of counts, or COHORT:SECTION.
        prediction: whose spots these are.
        listener: told what the reader has to say.
        rules: when two names are one gene.

    Raises:
        CohortError: for truth that cannot be read, or measured none of the predicted genes.
    """
    named = genes_named(prediction)
    measured = name_like(tidy_measured(read_apart(truth, CohortError, read_truth, truth), rules, truth), named)
    if not np.isin(named.names, measured.genes).any():
        raise CohortError(
            f"none of the {len(named)} predicted genes, such as {named.names[0]}, was measured in {truth}, which has "
            f"{len(measured.genes)}, such as {measured.genes[0]}",
            "Are they of one species, and named by one convention? Previous names need a table (--gene-aliases).",
        )
    for note in measured.notes:
        listener.say(f"{truth}: {note}")
    for text in doubt_truth(truth, measured, prediction):
        listener.warn(text)
    return measured


def genes_named(prediction: StoredPrediction) -> GeneNames:
    """Every gene that a prediction names, in X or among its anchors, with ids where it has them."""
    genes = prediction.expression.genes
    more = np.setdiff1d(prediction.y_init.genes, genes)
    names = np.concatenate([genes, more])
    if keys.VAR_IDS not in prediction.var:
        return GeneNames(names)
    ids = prediction.var[keys.VAR_IDS].to_numpy(np.str_)
    return GeneNames(names, np.concatenate([ids, np.full(len(more), "", np.str_)]))


def lay_beside(expression: Expression, measured: Measured, genes: Strings) -> SideBySide:
    """Predicted and measured values of the joined spots.

    Args:
        expression: predicted.
        measured: `read_measured`.
        genes: (k,) of the prediction; those that were not measured are left out.

    Raises:
        CohortError: where fewer than 3 spots share a name.
    """
    join = join_spots(expression.names, measured.names)
    truth = take_truth(
        measured.counts, measured.genes, measured.total_counts, rows=join.truth_rows, prediction=expression,
        wanted=genes, to_scale=to_scale,
    )  # fmt: skip
    place = {gene: i for i, gene in enumerate(expression.genes.tolist())}
    kept = np.array([gene for gene in genes.tolist() if gene in truth.place], np.str_)
    columns = np.array([place[gene] for gene in kept.tolist()], np.int64)
    where = np.ix_(join.prediction_rows, columns)
    return SideBySide(
        rows=join.prediction_rows,
        genes=kept,
        predicted=expression.values[where].astype(np.float64),
        measured=truth.values[:, [truth.place[gene] for gene in kept.tolist()]].astype(np.float64),
        present=None if expression.present is None else expression.present[where],
        raw=expression.scale.log == "none",
    )
