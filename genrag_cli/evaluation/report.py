"""One prediction against the measured counts of one section: every score, beside its baselines.

It does not pool sections, does not know how banks are split, and cannot see whether the section's patient is in the
bank.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import GeneragError
from genrag_cli.evaluation import baselines, metrics
from genrag_cli.evaluation.join import ToScale, Truth, join_spots, rows_of, take_truth
from genrag_cli.types import Doubles, Expression, Ints, Scale, Score, Strings

PCC_KS = (10, 50, 300, 1000, 2000, 3000, 5000)


class _Figure(NamedTuple):
    metric: str
    value: float | None
    note: str = ""


@dataclass(frozen=True, eq=False)
class _Method:
    """A way to predict: which genes, and the (n, k) values of some of its columns, once or several times over.

    `predict` is also told what of those columns the scored prediction has: (n, k), None where that is everything.
    """

    name: str
    genes: Strings
    predict: Callable[[Ints, NDArray[np.bool_] | None], Iterable[NDArray[np.floating] | None]]
    panels: tuple[str, ...] = ("core", "global")
    note: str = ""


def evaluate(
    prediction: Expression,
    truth_counts: Any,
    truth_genes: Strings,
    truth_names: Strings,
    truth_totals: Doubles,
    *,
    to_scale: ToScale,
    anchors: Strings,
    global_panel: Strings,
    bank_mean: Expression,
    bank_mean_total: float | None = None,
    y_init: Expression | None = None,
    allow_short: bool = False,
    seed: int = 0,
) -> list[Score]:
    """Scores a prediction on the core and the global panel.

    Methods: `retrieval`; `y_init` (core only, where given); `shuffled` (mean over 10 permutations of the predicted
    spots); `bank_mean`; `library_size` (true library size times mean profile). Metrics: `PCC-k` for every k of `PCC_KS`
    up to the size of the panel, `PCC-all` (mean over all defined genes of the panel), `MSE`, `MAE`, `RVD`, and
    `undefined` (genes without a correlation). Truth is brought to the prediction's scale; raw counts are scored as
    ln(1 + x), see `metrics.log_counts`. What is undefined or refused stays in the list with value None and a note.
    Values that are missing in the prediction are scored in no method, so that all are compared over the same ones.

    Args:
        prediction: (n, G) at named spots. Of all expression given, only this may have values that are missing.
        truth_counts: (N, H) CSR or dense raw counts.
        truth_genes: (H,) unique symbols.
        truth_names: (N,) spot names.
        truth_totals: (N,) counts of a spot over all genes of its section.
        to_scale: brings counts to a scale; `genes.scales.to_scale`.
        anchors: names of the core panel.
        global_panel: names of the global panel.
        bank_mean: (1, B) mean over the bank's spots in the prediction's scale.
        bank_mean_total: sum of that mean over all genes of the bank; None where `bank_mean` holds them all.
        y_init: (n', A) first prediction of the anchors, in the prediction's scale, for all joined spots.
        allow_short: see `metrics.pcc_k`.
        seed: of the permutations.

    Raises:
        CohortError: where fewer than 3 spots join.
        GeneragError: for another scale in y_init or bank_mean, spots missing from y_init, or non-finite values.
    """
    join = join_spots(prediction.names, truth_names)
    for what, other in (("y_init", y_init), ("bank_mean", bank_mean)):
        if other is not None and other.scale != prediction.scale:
            raise GeneragError(f"{what} is in scale {other.scale.name}, the prediction in {prediction.scale.name}")
    if len(bank_mean.values) != 1:
        raise GeneragError(f"bank_mean: expected one row, found {len(bank_mean.values)}")
    panels = {"core": [str(g) for g in anchors], "global": [str(g) for g in global_panel]}
    wanted = np.array(list(dict.fromkeys(panels["core"] + panels["global"])), dtype=np.str_)
    truth = take_truth(
        truth_counts,
        truth_genes,
        truth_totals,
        rows=join.truth_rows,
        prediction=prediction,
        wanted=wanted,
        to_scale=to_scale,
    )
    totals = truth_totals[join.truth_rows]
    present = None if prediction.present is None else prediction.present[join.prediction_rows]
    methods = _methods(
        prediction,
        join.prediction_rows,
        y_init=y_init,
        bank_mean=bank_mean,
        mean_total=bank_mean_total,
        totals=totals,
        seed=seed,
    )
    return [
        score
        for method in methods
        for panel in method.panels
        for score in _score_method(
            method,
            truth,
            present=present,
            present_genes=prediction.genes,
            panel=panel,
            genes=panels[panel],
            scale=prediction.scale,
            allow_short=allow_short,
            join_note=join.note,
        )
    ]


def _methods(
    prediction: Expression,
    rows: Ints,
    *,
    y_init: Expression | None,
    bank_mean: Expression,
    mean_total: float | None,
    totals: Doubles,
    seed: int,
) -> list[_Method]:
    """Everything that is scored, in the order of the table."""
    scale, predicted, mean = prediction.scale, prediction.values[rows], bank_mean.values[0]
    mean_sum = float(mean.sum(dtype=np.float64)) if mean_total is None else mean_total
    methods = [_Method("retrieval", prediction.genes, lambda c, _: [predicted[:, c]])]
    if y_init is not None:
        first = y_init.values[rows_of(y_init, prediction.names[rows], "y_init")]
        methods.append(_Method("y_init", y_init.genes, lambda c, _: [first[:, c]], panels=("core",)))
    methods += [
        _Method(
            "shuffled",
            prediction.genes,
            lambda c, present: baselines.shuffle_spots(predicted[:, c], seed=seed, present=present),
        ),
        _Method("bank_mean", bank_mean.genes, lambda c, _: [baselines.repeat_mean(mean[c], len(rows))]),
        _Method(
            "library_size",
            bank_mean.genes,
            lambda c, _: [baselines.spread_library(mean[c], mean_sum, totals, scale)],
            note=f"{scale.name} divides the library size out: the mean profile" if scale.library != "none" else "",
        ),
    ]
    return methods


def _score_method(
    method: _Method,
    truth: Truth,
    *,
    present: NDArray[np.bool_] | None,
    present_genes: Strings,
    panel: str,
    genes: list[str],
    scale: Scale,
    allow_short: bool,
    join_note: str,
) -> list[Score]:
    """The scores of one method on one panel: averaged where the method predicts several times."""
    column = {gene: i for i, gene in enumerate(method.genes.tolist())}
    kept = [gene for gene in genes if gene in column and gene in truth.place]
    own = np.array([column[gene] for gene in kept], dtype=np.int64)
    measured = truth.values[:, [truth.place[gene] for gene in kept]].astype(np.float64)
    here = _presence_of(kept, present, present_genes)
    notes = [join_note, method.note, _gene_note(genes, column, truth.place)]
    if here is not None:
        notes.append(f"{int(here.size - here.sum())} of {here.size} values are missing in the prediction, not scored")
    tables: list[list[_Figure]] = []
    for values in method.predict(own, here) if kept else []:
        if values is None:
            notes.append(f"not defined in scale {scale.name}")
            continue
        predicted, target, clipped = values.astype(np.float64), measured, 0
        if scale.log == "none":
            predicted, target, clipped = metrics.log_counts(values, measured, here)
            said = "scored as ln(1 + x)" + (f", {clipped} predictions below 0 taken as 0" if clipped else "")
            notes += [said] if said not in notes else []
        tables.append(_score_values(predicted, target, here, len(genes), allow_short))
    figures = [_average(same) for same in zip(*tables, strict=True)] or _nothing(len(genes))
    undefined = next(f.value for f in figures if f.metric == "undefined")
    return [
        Score(
            method=method.name,
            panel=panel,
            metric=figure.metric,
            value=figure.value,
            n_spots=len(truth.values),
            n_genes=len(kept),
            n_undefined=len(kept) if undefined is None else int(undefined),
            note="; ".join(filter(None, [figure.note, *notes])),
        )
        for figure in figures
    ]


def _presence_of(
    genes: list[str], present: NDArray[np.bool_] | None, present_genes: Strings
) -> NDArray[np.bool_] | None:
    """(n, k) what the prediction has of some genes, those that it does not predict included; None: everything."""
    if present is None:
        return None
    column = {gene: i for i, gene in enumerate(present_genes.tolist())}
    ours = [i for i, gene in enumerate(genes) if gene in column]
    out = np.ones((len(present), len(genes)), np.bool_)
    out[:, ours] = present[:, [column[genes[i]] for i in ours]]
    return None if out.all() else out


def _score_values(
    predicted: Doubles, measured: Doubles, present: NDArray[np.bool_] | None, panel_size: int, allow_short: bool
) -> list[_Figure]:
    r = metrics.pearson_per_gene(predicted, measured, present)
    undefined = int(np.isnan(r).sum())
    figures = [_Figure(f"PCC-{k}", *metrics.pcc_k(r, k, allow_short=allow_short)) for k in PCC_KS if k <= panel_size]
    over_all = metrics.pcc_k(r, len(r), allow_short=True)
    rvd = metrics.relative_variance_distance(predicted, measured, present)
    return [
        *figures,
        _Figure("PCC-all", over_all.value, over_all.reason),
        _Figure("MSE", metrics.mean_squared_error(predicted, measured, present)),
        _Figure("MAE", metrics.mean_absolute_error(predicted, measured, present)),
        _Figure("RVD", rvd, "no gene varies in the truth" if rvd is None else ""),
        _Figure("undefined", float(undefined)),
    ]


def _average(same: tuple[_Figure, ...]) -> _Figure:
    """The mean of one metric over repeats; None where any repeat has none."""
    values = [f.value for f in same if f.value is not None]
    value = float(np.mean(values)) if len(values) == len(same) else None
    return same[0]._replace(value=value)


def _nothing(panel_size: int) -> list[_Figure]:
    """Every metric without a value, for a method that has nothing to score."""
    names = [f"PCC-{k}" for k in PCC_KS if k <= panel_size]
    return [_Figure(name, None) for name in [*names, "PCC-all", "MSE", "MAE", "RVD", "undefined"]]


def _gene_note(genes: list[str], predicted: dict[str, int], measured: dict[str, int]) -> str:
    said = [
        f"{n} {what}"
        for n, what in (
            (sum(gene not in predicted for gene in genes), "not predicted"),
            (sum(gene not in measured for gene in genes), "not measured"),
        )
        if n
    ]
    return f"of {len(genes)} genes of the panel, {' and '.join(said)}" if said else "" if genes else "an empty panel"
