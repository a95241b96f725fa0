"""A prediction against measured counts: joined by spot name, scored with the baselines that belong beside it."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.cohorts import Measured
from genrag_cli.errors import BankError, UsageError, nearest
from genrag_cli.evaluation import evaluate
from genrag_cli.evaluation.codebases import SCORINGS
from genrag_cli.evaluation.leaks import CountedSection, Leak, find_leaks
from genrag_cli.genes.panels import N_GLOBAL
from genrag_cli.genes.scales import convert, to_scale
from genrag_cli.outputs import keys
from genrag_cli.outputs.prediction import StoredPrediction
from genrag_cli.pipeline.mix_ups import named_section
from genrag_cli.pipeline.protocols.claims import Claims, judge
from genrag_cli.pipeline.sections import AS_NAMED, GeneRules
from genrag_cli.pipeline.truth import lay_beside, read_expression, read_measured
from genrag_cli.stores.bank import Bank, SectionReader
from genrag_cli.types import COUNTS, Expression, Ints, Listener, Score


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A prediction with everything that truth says of it."""

    scores: list[Score]
    prediction: StoredPrediction
    claims: dict[str, Any] | None = None
    """What the prediction promised, as it came out (`protocols.claims.judge`); None where it promises nothing."""
    leaks: list[Leak] = field(default_factory=list)
    codebase: dict[str, Any] | None = None
    """Scores to the letter of a codebase, where one was asked for."""


def evaluate_prediction(
    path: Path, truth: str, *, allow_short: bool, seed: int, listener: Listener, rules: GeneRules = AS_NAMED,
    scoring: str | None = None, bank_folder: Path | None = None,
) -> Evaluated:  # fmt: skip
    """`generag evaluate`.

    Args:
        path: a prediction of `generag retrieve`.
        truth: an .h5ad of counts, or COHORT:SECTION.
        allow_short: let PCC-k average fewer than k genes where fewer are defined.
        seed: of the shuffled baseline.
        listener: told what happens.
        rules: when two names are one gene.
        scoring: a codebase by name, whose scores are wanted too.
        bank_folder: where the prediction's bank is now; None: where it was.

    Raises:
        OutputError: for a prediction without expression.
        CohortError: for truth that cannot be read, or shares no spots or no genes.
        UsageError: for an unknown scoring, or one that the prediction's scale cannot be brought to.
    """
    prediction = _read(path, scoring)
    var, scale = prediction.var, prediction.expression.scale
    genes = prediction.expression.genes
    measured = read_measured(truth, prediction, listener, rules)
    leaks = leaks_of(prediction, measured, truth, bank_folder, listener)
    for leak in leaks:
        listener.warn(leak.text)
    wide = global_places(prediction)
    mean = var[keys.VAR_MEAN].to_numpy(np.float64)[None].astype(np.float32)
    scores = evaluate(
        prediction.expression,
        measured.counts,
        measured.genes,
        measured.names,
        measured.total_counts,
        to_scale=to_scale,
        anchors=prediction.y_init.genes,
        global_panel=genes[wide],
        bank_mean=Expression(mean, np.array(["bank"]), genes, scale),
        bank_mean_total=float(prediction.about["bank_mean_total"]),
        y_init=_comparable(prediction, listener),
        allow_short=allow_short,
        seed=seed,
    )
    codebase = None if scoring is None else score_as(scoring, prediction, measured)
    return Evaluated(scores, prediction, claims_of(prediction, measured, wide), leaks, codebase)


def plan_evaluation(path: Path, truth: str, scoring: str | None, listener: Listener) -> None:
    """Says what `evaluate_prediction` would compare, with its refusals of prediction and truth; scores nothing."""
    prediction = _read(path, scoring)
    measured = read_measured(truth, prediction, listener, AS_NAMED)
    expression = prediction.expression
    shared = lay_beside(expression, measured, expression.genes[np.isin(expression.genes, measured.genes)])
    listener.say(
        f"would score {path} against {truth}: {len(shared.rows)} of {len(prediction.names)} spots and "
        f"{len(shared.genes)} of {len(expression.genes)} genes were measured; nothing is written"
    )


def _read(path: Path, scoring: str | None) -> StoredPrediction:
    """A prediction with expression; UsageError for an unknown scoring, before anything is read."""
    if scoring is not None and scoring not in SCORINGS:
        raise UsageError(f"--scoring {scoring} asked; no codebase is called so", nearest(scoring, SCORINGS))
    return read_expression(path)


def global_places(prediction: StoredPrediction) -> Ints:
    """Places of the global panel among the predicted genes, most variable first."""
    rank = prediction.var[keys.VAR_RANK].to_numpy(np.int64)
    inside = np.flatnonzero((rank >= 0) & (rank < N_GLOBAL))
    return np.asarray(inside[np.argsort(rank[inside])])


def claims_of(prediction: StoredPrediction, measured: Measured, wide: Ints) -> dict[str, Any] | None:
    """What a prediction from a tuned bank promised, against the truth; None for others."""
    var, expression = prediction.var, prediction.expression
    if keys.VAR_EXPECTED not in var:
        return None
    both = lay_beside(expression, measured, expression.genes[np.isin(expression.genes, measured.genes)])
    at = {gene: i for i, gene in enumerate(expression.genes.tolist())}
    own = np.array([at[gene] for gene in both.genes.tolist()], np.int64)
    column = {k: var[k].to_numpy()[own] for k in (keys.VAR_EXPECTED, keys.VAR_PREDICTABLE, keys.VAR_LOW, keys.VAR_HIGH)}
    claimed = Claims(
        column[keys.VAR_EXPECTED].astype(np.float64), column[keys.VAR_PREDICTABLE].astype(bool),
        column[keys.VAR_LOW].astype(np.float64), column[keys.VAR_HIGH].astype(np.float64),
        prediction.obs[keys.OUT_OF_BANK].to_numpy(bool)[both.rows],
    )  # fmt: skip
    level = float(prediction.about["interval_level"])
    return judge(claimed, both.predicted, both.measured, np.flatnonzero(np.isin(own, wide)), level, both.present)


def leaks_of(
    prediction: StoredPrediction, measured: Measured, truth: str, folder: Path | None, listener: Listener
) -> list[Leak]:
    """Spots of the truth that stand in the bank under any name; the bank is read where it can be."""
    about = prediction.about
    try:
        name = json.loads(about["backbone"])["name"]
        bank = Bank.open(folder or Path(about["bank"]), name, version=int(about["bank_version"]))
        if bank.fingerprint != about["bank_fingerprint"]:
            raise BankError(f"{bank.folder} is another bank")
    except BankError as error:
        listener.say(f"the bank of the prediction was not looked through for the truth's own spots: {error.message}")
        return []
    shared, ours, theirs = np.intersect1d(measured.genes, bank.genes, return_indices=True)
    if not len(shared):
        return []
    section = named_section(truth)
    test = CountedSection(truth, None if section is None else section.patient, measured.counts[:, ours])
    sections = [SectionReader.open(bank.folder, entry) for entry in bank.sections]
    return find_leaks([test], [CountedSection(s.name, s.patient, s.counts()[:, theirs]) for s in sections])


def score_as(scoring: str, prediction: StoredPrediction, measured: Measured) -> dict[str, Any]:
    """Scores to the letter of a codebase, on the panel that it is meant for.

    Raises:
        UsageError: where the prediction is not in counts, nor in a logarithm of them.
    """
    codebase, expression = SCORINGS[scoring], prediction.expression
    if expression.scale.library != "none":
        raise UsageError(
            f"--scoring {scoring} scores counts; the prediction is in {expression.scale.name}, which has lost the "
            "library size of every spot",
            "Predict with --preset paper.",
        )
    asked = expression.genes if codebase.panel != "core" else prediction.y_init.genes
    panel = asked[np.isin(asked, expression.genes)]
    if not np.isin(panel, measured.genes).any():
        raise UsageError(f"--scoring {scoring}: none of its {len(asked)} genes is both predicted and measured")
    both = lay_beside(convert(expression, COUNTS), measured, panel[np.isin(panel, measured.genes)])
    found = codebase.score(both.predicted, both.measured)
    plain = {k: _finite(v) for k, v in dataclasses.asdict(found).items()}
    if len(panel) < len(asked):
        plain["notes"].append(f"{len(asked) - len(panel)} of {len(asked)} genes of the panel are not in X")
    if both.present is not None and not both.present.all():
        plain["notes"].append(f"{int((~both.present).sum())} values are missing in X and scored as the bank's mean")
    named = "all predicted genes; the benchmark means its own 50" if codebase.panel == "50 genes" else codebase.panel
    return {**plain, "panel": named, "what": codebase.words}


def _finite(value: Any) -> Any:
    """NaN is not JSON: what a codebase leaves undefined is None."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _comparable(prediction: StoredPrediction, listener: Listener) -> Expression | None:
    """The first guess where it is in the prediction's scale; two scales are not compared."""
    first, scale = prediction.y_init, prediction.expression.scale
    if first.scale == scale:
        return first
    listener.warn(f"the first guess is in scale {first.scale.name}, the prediction in {scale.name}: it is not scored")
    return None
