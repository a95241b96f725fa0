"""Pictures of a prediction: genes over the slide, and correlations by rank.

Each kind of picture is a function of a `PlotRequest`; `KINDS` is the table of them.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from genrag_cli.errors import CohortError, UsageError, nearest
from genrag_cli.evaluation.baselines import shuffle_spots
from genrag_cli.genes.align import columns
from genrag_cli.outputs import keys
from genrag_cli.outputs.figures import MAX_GENES, draw_gene_ranks, draw_maps, figure_format
from genrag_cli.outputs.prediction import StoredPrediction
from genrag_cli.pipeline.export import open_bank_of
from genrag_cli.pipeline.protocols.open import is_bank
from genrag_cli.pipeline.stored import read_stored
from genrag_cli.pipeline.truth import SideBySide, lay_beside, read_expression, read_measured
from genrag_cli.pipeline.tuning.curves import draw_tuning
from genrag_cli.pipeline.tuning.tuning import Tuning
from genrag_cli.stores.bank import Bank, read_manifest
from genrag_cli.types import Doubles, Listener, Strings

N_PICKED = 3
"""Genes of a picture where none are named."""
_LOOKED_AT = 300
"""How many genes are looked through for these."""


Drawing = tuple[str, Callable[[], None]]
"""What is on a picture in words, and what draws it."""


@dataclass(frozen=True)
class PlotRequest:
    """What is to be drawn of what."""

    path: Path
    """The prediction."""
    out: Path
    """Ends in .png, .pdf or .svg."""
    genes: tuple[str, ...] = ()
    """None: some are picked."""
    truth: str | None = None
    """Measured counts: an .h5ad, or COHORT:SECTION."""
    seed: int = 0
    """Of the shuffled spots."""
    dry_run: bool = False
    """Say what would be drawn, and draw nothing."""
    listener: Listener = field(default_factory=Listener)


def plot(request: PlotRequest, kind: str) -> Path:
    """`generag plot`.

    Args:
        request: what is to be drawn.
        kind: one of `KINDS`.

    Returns:
        The file that was written, or would be; one that was there is replaced.

    Raises:
        UsageError: for an unknown kind, and for what a kind does not take or lacks.
        OutputError: for a prediction without expression or another ending of the file's name.
        CohortError: for truth that cannot be read, shares no spots, or did not measure a gene asked for.
    """
    if kind not in KINDS:
        raise UsageError(f"--kind {kind} asked", f"Known: {', '.join(KINDS)}")
    figure_format(request.out)
    said, draw = KINDS[kind](request)
    if request.dry_run:
        request.listener.say(f"would write {request.out}: {said}")
        return request.out
    request.out.parent.mkdir(parents=True, exist_ok=True)
    draw()
    request.listener.say(f"{request.out}: {said}")
    return request.out


def plot_maps(request: PlotRequest) -> Drawing:
    """Expression over the slide, beside the measured one where that is given."""
    if len(request.genes) > MAX_GENES:
        raise UsageError(f"{len(request.genes)} genes asked; one picture shows at most {MAX_GENES}", "Draw several.")
    genes, draw = prepare_maps(
        request.out, read_expression(request.path), request.genes, truth=request.truth, listener=request.listener
    )
    return f"{', '.join(genes)}, predicted" + (" and measured" if request.truth else ""), draw


def plot_ranks(request: PlotRequest) -> Drawing:
    """Correlation of all predicted and measured genes by rank, beside that of shuffled spots."""
    if request.truth is None:
        raise UsageError("--kind ranks compares with measured counts", "Give them: --truth FILE|COHORT:SECTION")
    if request.genes:
        raise UsageError("--kind ranks draws all genes", "Leave --genes out.")
    prediction = read_expression(request.path)
    measured = read_measured(request.truth, prediction, request.listener)
    both = lay_beside(prediction.expression, measured, prediction.expression.genes)
    if not len(both.genes):
        raise CohortError(f"none of the predicted genes was measured in {request.truth}")

    def draw() -> None:
        curves = [("prediction", both.correlate()), ("shuffled spots", shuffled_ranks(both, request.seed))]
        draw_gene_ranks(request.out, curves, title=prediction.slide_id)

    return f"{len(both.genes)} genes at {len(both.rows)} measured spots", draw


def plot_tuning(request: PlotRequest) -> Drawing:
    """What was tried when a bank was tuned, of a bank or of the bank of a prediction."""
    if request.genes or request.truth is not None:
        raise UsageError("--kind tuning draws settings", "Leave --genes and --truth out.")
    if is_bank(request.path):
        tuned = [
            name for name, entry in read_manifest(request.path)["backbones"].items()
            if entry["versions"] and entry["versions"][-1].get("tunings")
        ]  # fmt: skip
        found = Tuning.read(Bank.open(request.path, tuned[0])) if tuned else None
    else:
        _, found = open_bank_of(read_stored(request.path), None)
    if found is None:
        raise UsageError(f"--kind tuning asked; {request.path} is not tuned", "Tune the bank: generag tune BANK")
    said = f"{len(found.about['tried'])} settings, {found.about['n_folds']} folds ({found.about['rule']})"
    return said, functools.partial(draw_tuning, request.out, found.about)


KINDS: dict[str, Callable[[PlotRequest], Drawing]] = {"maps": plot_maps, "ranks": plot_ranks, "tuning": plot_tuning}
"""Reads what a kind of picture needs, and refuses what cannot be drawn."""


def draw_prediction(
    out: Path, prediction: StoredPrediction, genes: Sequence[str] = (), *, truth: str | None, listener: Listener
) -> tuple[str, ...]:
    """Draws predicted and, where truth is given, measured expression of some genes over the slide.

    Args:
        out: file to write.
        prediction: with expression.
        genes: which; none: `pick_genes`.
        truth: an .h5ad of counts, or COHORT:SECTION, with spots of the prediction; those that it lacks stay grey.
        listener: told what the reader of the truth has to say.

    Returns:
        The genes that were drawn.

    Raises:
        GeneragError: as `prepare_maps`.
    """
    chosen, draw = prepare_maps(out, prediction, genes, truth=truth, listener=listener)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw()
    return chosen


def prepare_maps(
    out: Path, prediction: StoredPrediction, genes: Sequence[str] = (), *, truth: str | None, listener: Listener
) -> tuple[tuple[str, ...], Callable[[], None]]:
    """Everything of `draw_prediction` but the drawing.

    Args:
        out: file to write.
        prediction: with expression.
        genes: which; none: `pick_genes`.
        truth: an .h5ad of counts, or COHORT:SECTION.
        listener: told what the reader of the truth has to say.

    Returns:
        The genes, and what draws them.

    Raises:
        UsageError: for genes that the prediction does not have.
        CohortError: for truth that cannot be read, shares no spots, or did not measure a gene asked for.
    """
    expression = prediction.expression
    _expect_predicted(prediction, genes)
    measured = None if truth is None else read_measured(truth, prediction, listener)
    if measured is not None:
        _expect_measured(str(truth), measured.genes, genes)
    chosen = tuple(genes) or pick_genes(prediction, among=None if measured is None else measured.genes)
    if not chosen:
        raise CohortError(f"none of the {len(expression.genes)} predicted genes was measured in {truth}")
    place = columns(expression.genes, list(chosen))
    predicted = expression.values[:, place].astype(np.float64)
    if expression.present is not None:
        predicted[~expression.present[:, place]] = np.nan
    beside, r = None, None
    if measured is not None:
        both = lay_beside(expression, measured, np.array(chosen, np.str_))
        beside, r = np.full(predicted.shape, np.nan), both.correlate().tolist()
        beside[both.rows] = both.measured
    images, factors = prediction.spatial.get("images"), prediction.spatial["scalefactors"]
    return chosen, functools.partial(
        draw_maps, out, prediction.centres, chosen, predicted, beside, r,
        thumbnail=None if images is None else np.asarray(images["hires"]),
        thumb_scale=1.0 if images is None else 1 / float(factors["tissue_hires_scalef"]),
        unit=expression.scale.name, title=prediction.slide_id,
    )  # fmt: skip


def pick_genes(prediction: StoredPrediction, n: int = N_PICKED, among: Strings | None = None) -> tuple[str, ...]:
    """Genes of large variance over the bank whose predictions differ from each other; truth's values are not looked at.

    Anchor genes come first, then the others by their rank in the bank.

    Args:
        prediction: with expression.
        n: how many, or fewer where there are fewer.
        among: only these; None: any.
    """
    expression = prediction.expression
    there = set(expression.genes.tolist()) if among is None else {*expression.genes.tolist()} & {*among.tolist()}
    rank = prediction.var[keys.VAR_RANK].to_numpy(np.int64)
    order = np.argsort(np.where(rank < 0, len(rank), rank), kind="stable")
    every = dict.fromkeys([*prediction.y_init.genes.tolist(), *expression.genes[order].tolist()])
    names = [gene for gene in every if gene in there][:_LOOKED_AT]
    values = expression.values[:, columns(expression.genes, names)].astype(np.float64)
    values = values - values.mean(0)
    values /= np.maximum(np.linalg.norm(values, axis=0), 1e-12)
    chosen: list[int] = []
    for i in range(len(names)):
        if len(chosen) < n and all(abs(float(values[:, i] @ values[:, j])) < 0.5 for j in chosen):
            chosen.append(i)
    chosen += [i for i in range(len(names)) if i not in chosen][: n - len(chosen)]
    return tuple(names[i] for i in chosen)


def shuffled_ranks(both: SideBySide, seed: int) -> Doubles:
    """(k,) correlations of shuffled spots, rank by rank the mean over ten permutations; NaN for what is undefined."""
    sorted_r = np.array(
        [
            -np.sort(-both.correlate(np.asarray(values, np.float64)))  # undefined ones come last
            for values in shuffle_spots(both.predicted, seed=seed, present=both.present)
        ]
    )
    return np.asarray(sorted_r.mean(axis=0))


def _expect_predicted(prediction: StoredPrediction, genes: Sequence[str]) -> None:
    known = prediction.expression.genes.tolist()
    if unknown := [gene for gene in genes if gene not in set(known)]:
        shown = ", ".join(unknown[:5])
        raise UsageError(
            f"--genes: {prediction.path} holds no expression of {shown}; it has {len(known)} genes",
            f"{nearest(unknown[0], known)}\nOther genes of its bank: generag export {prediction.path} --genes {shown}",
        )


def _expect_measured(truth: str, known: Strings, genes: Sequence[str]) -> None:
    if unknown := [gene for gene in genes if gene not in set(known.tolist())]:
        raise CohortError(f"{', '.join(unknown[:5])} was not measured in {truth}", nearest(unknown[0], known.tolist()))
