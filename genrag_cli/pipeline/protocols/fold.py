"""One fold of a protocol: everything fitted and chosen on the training sections, every method on the held-out ones."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genrag_cli.errors import GeneragError
from genrag_cli.evaluation.baselines import N_SHUFFLES, repeat_mean, shuffle_spots, spread_library
from genrag_cli.genes.moments import GeneStatistics
from genrag_cli.pipeline.options import FoldsBy
from genrag_cli.pipeline.protocols.baselines import (
    Predict,
    bleep_uniform,
    nearest_neighbours,
    ridge_from_anchors,
    ridge_from_embedding,
)
from genrag_cli.pipeline.protocols.plan import Held
from genrag_cli.pipeline.tuning.data import BankData, split
from genrag_cli.pipeline.tuning.model import Fit, Retriever, fit
from genrag_cli.pipeline.tuning.search import Tried, make_splits, search
from genrag_cli.pipeline.tuning.settings import PAPER, Settings
from genrag_cli.pipeline.tuning.trust import Trust, assess
from genrag_cli.types import Doubles, Floats, Ints, Listener

OWN = "retrieval"
METHODS = {
    OWN: "the method: settings from folds within the training sections (preset paper: the published ones)",
    "first guess": "the ridge head's y_init of the anchors, on the same features",
    "untuned": "retrieval with the untuned defaults",
    "regression beside it": "the regression that retrieval is blended with, on the same features, alone",
    "ridge, embedding to all": "ridge regression from the embedding straight to every gene",
    "ridge, anchors to all": "ridge regression from the first guess of the anchors to every gene",
    "nearest neighbours": "50 nearest embeddings, weighed by 1 / distance",
    "BLEEP-style 50": "plain mean of the 50 most similar embeddings (cosine)",
    "omega 0": "retrieval by anchors alone",
    "omega 1": "retrieval by morphology alone",
    "same patient removed": "retrieval without the training sections of the test section's patient",
    "permuted bank": "retrieval from a bank whose expression was permuted over the spots of each section",
    "shuffled": f"retrieval's spots permuted, mean over {N_SHUFFLES} permutations",
    "library size": "true library size times the mean profile of the training spots",
    "mean profile": "the mean profile of the training spots",
}
"""Every row of the table, and what it is."""


@dataclass(frozen=True, eq=False)
class Answer:
    """One method's prediction of one held-out section, on the panels' genes."""

    method: str
    section: int
    values: list[Floats]
    """(n, g), or several whose scores are averaged; empty where it has none in this scale."""
    genes: str = "all"
    """`all`, or `core` where only these are predicted."""


@dataclass(frozen=True, eq=False)
class FoldResult:
    """What one fold gave."""

    held: Held
    fit: Fit
    genes: Ints
    """(g,) columns of the bank's genes that are scored: core and global panel."""
    core: Ints
    """Places in `genes`."""
    wide: Ints
    settings: Settings
    rule: str
    """What the folds within left out."""
    tried: list[Tried]
    trust: Trust | None
    whole: dict[int, tuple[Floats, Floats]]
    """Per section: retrieval and truth of every gene of the fit (n, G), where trust is known."""
    residual: dict[int, Floats]
    """Per section: morphology residual (n,)."""


def run_fold(
    data: BankData, held: Held, *, published: bool, by: FoldsBy, seed: int, listener: Listener
) -> tuple[FoldResult, Iterator[Answer]]:
    """Fits a fold and answers method by method.

    Args:
        data: the bank with all its sections and spots, in the preset's scale.
        held: which sections train and which are tested.
        published: preset paper.
        by: what folds within the training sections leave out.
        seed: of every choice.
        listener: told how far it is.
    """
    train = np.flatnonzero(np.isin(data.section_of, held.train))
    tried: list[Tried] = []
    trust, settings, rule = None, PAPER, "published values"
    if not published:
        folds, rule = inner_folds(data, train, by)
        try:
            splits = make_splits(data, train, folds, seed=seed)
        except GeneragError as error:
            listener.warn(
                f"{held.name}: untuned, as folds within the training sections are too small ({error.message})"
            )
            settings, rule = Settings(), "untuned: too few spots to fold"
        else:
            best, tried = search(data, splits, Settings(), lambda _: None)
            settings = best.settings
            trust = assess(data, splits, settings, seed, listener)
    everything = np.flatnonzero(data.common) if trust is not None else None
    fitted = fit(data, settings, train, everything)
    # Anchors that a test section did not measure are not scored.
    core = fitted.genes[fitted.core]
    core = core[data.common[core]]
    genes = np.union1d(core, fitted.genes[fitted.wide])
    result = FoldResult(
        held, fitted, genes, np.searchsorted(genes, core),
        np.searchsorted(genes, fitted.genes[fitted.wide]), settings, rule, tried, trust, {}, {},
    )  # fmt: skip
    return result, _answers(data, result, seed, listener)


def inner_folds(data: BankData, train: Ints, by: FoldsBy) -> tuple[Ints, str]:
    """Folds of the training spots; `sections` where there is one section only means its blocks."""
    one = len(np.unique(data.section_of[train])) < 2
    return split(data, train, "auto" if one else by)


def rows_of(data: BankData, section: int) -> Ints:
    """Rows of a section."""
    return np.flatnonzero(data.section_of == section)


def _answers(data: BankData, result: FoldResult, seed: int, listener: Listener) -> Iterator[Answer]:
    held, fitted, settings, genes = result.held, result.fit, result.settings, result.genes
    places = np.searchsorted(fitted.genes, genes)
    own: dict[int, Floats] = {}
    retriever = Retriever.of(fitted, settings)
    for section in held.test:
        rows = rows_of(data, section)
        (codes,) = retriever.ask(rows)
        parts = retriever.parts(rows, codes)
        predicted = parts.predict(settings.share)
        own[section] = predicted[:, places]
        if result.trust is not None:
            result.whole[section] = (predicted, parts.truth)
            result.residual[section] = retriever.residuals(rows, codes)[0]
        yield Answer(OWN, section, [own[section]])
        guess = fitted.regression.predict(fitted.basis.scores(fitted.features[rows]))
        first = np.zeros((len(rows), len(genes)), np.float32)
        first[:, result.core] = guess[:, np.searchsorted(fitted.genes, genes[result.core])]
        yield Answer("first guess", section, [first], genes="core")
        if not settings.published:
            yield Answer("regression beside it", section, [guess[:, places]])
        yield Answer("shuffled", section, list(shuffle_spots(own[section], seed=seed)))
    listener.say(f"  {held.name}: retrieval done; baselines follow")
    plain = fitted if settings.fitted == Settings().fitted else fit(data, Settings(), fitted.train, genes)
    for name, make in (
        ("ridge, embedding to all", ridge_from_embedding), ("ridge, anchors to all", ridge_from_anchors),
        ("nearest neighbours", nearest_neighbours), ("BLEEP-style 50", bleep_uniform),
    ):  # fmt: skip
        predict: Predict = make(plain, genes)
        for section in held.test:
            yield Answer(name, section, [predict(rows_of(data, section))])
    narrow = fitted if np.array_equal(fitted.genes, genes) else fit(data, settings, fitted.train, genes)
    variants: list[tuple[str, Fit, Settings]] = [
        ("omega 0", narrow, dataclasses.replace(settings, omega=0.0)),
        ("omega 1", narrow, dataclasses.replace(settings, omega=1.0)),
    ]
    if not settings.published:
        variants.append(("untuned", fit(data, Settings(), fitted.train, genes, as_head=True), Settings()))
    for name, model, used in variants:
        asked = Retriever.of(model, used)
        for section in held.test:
            yield Answer(name, section, [_ask(asked, rows_of(data, section), used, genes)])
    yield from _without_patient(data, result)
    yield from _permuted(data, result, seed)
    mean = fitted.mean[places]
    total = float(_all_means(data, held).sum())
    for section in held.test:
        rows = rows_of(data, section)
        yield Answer("mean profile", section, [repeat_mean(mean, len(rows)).astype(np.float32)])
        reader = data.sections[section]
        library = spread_library(mean, total, reader.totals[data.rows[section]], data.scale)
        yield Answer("library size", section, [] if library is None else [library.astype(np.float32)])


def _ask(retriever: Retriever, rows: Ints, settings: Settings, genes: Ints) -> Floats:
    (codes,) = retriever.ask(rows)
    predicted = retriever.parts(rows, codes).predict(settings.share)
    return predicted[:, np.searchsorted(retriever.fit.genes, genes)]


def _without_patient(data: BankData, result: FoldResult) -> Iterator[Answer]:
    """Retrieval without the training sections of each test section's patient; nothing where there are none."""
    for section in result.held.test:
        patient = data.patients[section]
        left = [i for i in result.held.train if data.patients[i] != patient or not patient]
        if len(left) == len(result.held.train) or not left:
            continue
        train = np.flatnonzero(np.isin(data.section_of, left))
        model = fit(data, result.settings, train, result.genes)
        values = _ask(Retriever.of(model, result.settings), rows_of(data, section), result.settings, result.genes)
        yield Answer("same patient removed", section, [values])


def _permuted(data: BankData, result: FoldResult, seed: int) -> Iterator[Answer]:
    """Retrieval from training sections whose spots' expression was permuted within each section."""
    order = np.arange(len(data))
    random = np.random.default_rng(seed)
    for section in result.held.train:
        rows = rows_of(data, section)
        order[rows] = random.permutation(rows)
    mixed = dataclasses.replace(data, expression=data.expression[order], cache={})
    model = fit(mixed, result.settings, result.fit.train, result.genes)
    retriever = Retriever.of(model, result.settings)
    for section in result.held.test:
        yield Answer("permuted bank", section, [_ask(retriever, rows_of(data, section), result.settings, result.genes)])


def _all_means(data: BankData, held: Held) -> Doubles:
    """(G,) mean of every gene over the training sections."""
    statistics: GeneStatistics = data.panels(np.array(held.train))[2]
    return statistics.mean


def truth_of(data: BankData, section: int, genes: Ints) -> Floats:
    """(n, g) measured."""
    return np.asarray(data.expression[rows_of(data, section)][:, genes].toarray(), np.float32)
