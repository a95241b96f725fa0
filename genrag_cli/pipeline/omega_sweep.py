"""One spot of a prediction solved again at other weights of morphology, everything else as the prediction had it.

The query is put together from the embeddings that `retrieve` or `embed` left beside the prediction and from the first
guess within it. What was found is held against the residuals that the prediction recorded, so that another slide's
embeddings cannot pass for this one's.
"""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from genrag_cli.errors import FeaturesError
from genrag_cli.outputs import keys
from genrag_cli.outputs.prediction import StoredPrediction
from genrag_cli.pipeline.anchor_space import Guessed
from genrag_cli.pipeline.embedding import embeddings_path
from genrag_cli.pipeline.fit import identity
from genrag_cli.pipeline.options import RunOptions, SolveOptions
from genrag_cli.pipeline.query_space import QuerySpace, SlideStatistics
from genrag_cli.pipeline.tuning.tuning import Tuning
from genrag_cli.retrieval.strength import SLOPE, StrengthRule
from genrag_cli.slides import sample_rows
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.embeddings import read_about, read_embeddings
from genrag_cli.types import BackboneCard, Doubles, Embeddings, Floats, Ints, Listener, Progress, SparseCodes

OMEGAS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The present one comes on top."""
TRIES = 12
"""Strengths that are tried at an omega, at most."""
NEAR = 2e-3
"""By how much residuals of the prediction's own weights may differ from the recorded ones."""


@dataclass(frozen=True, eq=False)
class Solved:
    """The references of the spot at one omega."""

    omega: float
    rows: Ints
    """(r,) of the bank."""
    weights: Doubles
    """(r,)"""
    solved: bool
    """Whether the solver reached the gap that the prediction asked for."""


@dataclass(frozen=True, eq=False)
class QueryPixels:
    """Embeddings of a prediction's spots, as they were when it was made."""

    spots: Embeddings
    """In the order of the prediction."""
    statistics: SlideStatistics


def sweep_omega(
    stored: StoredPrediction, row: int, bank: Bank, tuning: Tuning | None, run: RunOptions, listener: Listener
) -> list[Solved]:
    """Solves one spot at several omegas, ascending, the present one among them.

    Strength is the prediction's own at the present omega. At another, it is scaled so that the spot keeps its number of
    references as nearly as may be; one of preset `paper` that was named and not searched stays as it is.

    Args:
        stored: the prediction.
        row: of the spot.
        bank: that it was made from.
        tuning: its settings; None where there were none.
        run: device, workers and memory.
        listener: told how far it is.

    Raises:
        FeaturesError: where the embeddings are not at hand, or not those that the prediction was made from; with what
            would bring them.
        BankError: where their file is damaged.
    """
    about = stored.about
    pixels = find_pixels(stored, bank, tuning)
    present = float(about["omega"])
    found: list[Solved] = []
    omegas = sorted({*OMEGAS, present}, key=lambda omega: (omega != present, omega))  # the present one is checked first
    for number, omega in enumerate(omegas, 1):
        codes = _solve(stored, row, bank, tuning, omega, pixels, run, listener)
        found.append(codes)
        listener.progress(Progress("omega sweep", number, len(omegas)))
    return sorted(found, key=lambda solved: solved.omega)


def find_pixels(stored: StoredPrediction, bank: Bank, tuning: Tuning | None) -> QueryPixels:
    """The embeddings of a prediction's spots from the files beside it, and what standardised them.

    Raises:
        FeaturesError: where there are none, with what would make them.
        BankError: where a file is damaged.
    """
    about = stored.about
    if "features_file" in about:
        raise FeaturesError(
            f"the prediction was made from features in {about['features_file']}, which are not kept beside it",
            "Only predictions from a slide can be solved again.",
        )
    found = {kind: _read(stored, bank, kind) for kind in ("", "spots")}
    spots = next((e for e in found.values() if e is not None and _same_spots(stored, e)), None)
    if spots is None:
        raise FeaturesError(f"{_place(stored, bank)} with the spots' embeddings is not there", _remedy(stored, bank))
    recorded = str(about["slide_statistics"])
    none = np.zeros((0, bank.card.dim), np.float32)
    whole_bank = tuning is not None and tuning.settings.standardise == "bank"
    if about["preset"] == "paper" or whole_bank or recorded.startswith("the bank's"):
        return QueryPixels(spots, SlideStatistics.of(none, bank))
    for sample in _samples(stored, bank, found[""]):
        statistics = SlideStatistics.of(sample, bank, recorded.split(" ", 1)[1].removesuffix(" of the slide"))
        if statistics.source == recorded:
            return QueryPixels(spots, statistics)
    raise FeaturesError(
        f"the embeddings that standardised the slide ({recorded}) are not beside the prediction", _remedy(stored, bank)
    )


def _samples(stored: StoredPrediction, bank: Bank, full: Embeddings | None) -> Iterator[Floats]:
    """Embeddings that may have stood for the slide: a sample of its tissue, taken now or when it was predicted."""
    if (sample := _read(stored, bank, "sample")) is not None:
        yield sample.values
    if full is not None:
        yield full.values[sample_rows(full.grid, seed=int(stored.about["seed"]))]


def _read(stored: StoredPrediction, bank: Bank, kind: str) -> Embeddings | None:
    """A file beside the prediction where it is there and of the same slide and backbone."""
    path = embeddings_path(stored.path.parent, stored.slide_id, bank.backbone, kind)
    if not path.is_file():
        return None
    there = read_about(path)
    asked = identity(BackboneCard(**json.loads(stored.about["backbone"])))
    if there.get("slide_digest") != stored.about["slide_digest"] or identity(BackboneCard(**there["card"])) != asked:
        return None
    return read_embeddings(path)


def _same_spots(stored: StoredPrediction, found: Embeddings) -> bool:
    grid = found.grid
    return np.array_equal(grid.names, stored.names) and np.allclose(grid.centres, stored.centres, atol=0.01)


def _place(stored: StoredPrediction, bank: Bank) -> str:
    kind = "spots" if _spots(stored) else ""
    return str(embeddings_path(stored.path.parent, stored.slide_id, bank.backbone, kind))


def named_slides(stored: StoredPrediction) -> list[str]:
    """What the command line of a prediction called its slide; as a rule one word, none where it gave a pattern."""
    name = str(stored.about["slide"])
    return [word for word in _words(stored) if Path(word).name == name]


def _words(stored: StoredPrediction) -> list[str]:
    try:
        return shlex.split(str(stored.about["argv"]))
    except ValueError:
        return []


def _named(stored: StoredPrediction, flag: str) -> list[str]:
    """An option of a prediction's command line with its value; empty where it was not given."""
    words = [part for word in _words(stored) for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return words[words.index(flag) : words.index(flag) + 2] if flag in words else []


def _spots(stored: StoredPrediction) -> list[str]:
    """`--spots` and its value, which may have come from a manifest; empty where there was none."""
    if "spots" not in stored.about:  # as earlier versions wrote it
        return _named(stored, "--spots")
    recorded = str(stored.about["spots"])
    return ["--spots", recorded] if recorded else []


def _remedy(stored: StoredPrediction, bank: Bank) -> str:
    """The commands that make the embeddings of the tissue and, where spots were given, those of the spots."""
    slide = (named_slides(stored) or [str(stored.about["slide"])])[0]
    words = ["generag", "embed", slide, "--backbone", bank.backbone, "--bank", str(bank.folder)]
    words += [*_named(stored, "--mpp"), *_named(stored, "--pitch-um"), "--out", str(stored.path.parent)]
    lines = [shlex.join(words)]
    if spots := _spots(stored):
        lines.append(shlex.join([*words, *spots]))
    return "Make them: " + " && ".join(lines)


def _solve(
    stored: StoredPrediction, row: int, bank: Bank, tuning: Tuning | None, omega: float, pixels: QueryPixels,
    run: RunOptions, listener: Listener,
) -> Solved:  # fmt: skip
    about = stored.about
    guessed = _guessed(stored)
    options = SolveOptions(
        about["preset"], omega, signed=bool(about["signed"]), gap=float(about["gap_asked"]), solver=about["solver"],
        anchor_scale="model" if guessed else "bank",
    )  # fmt: skip
    if tuning is not None:
        tuning = replace(tuning, settings=replace(tuning.settings, omega=omega))
    with QuerySpace.of(
        bank, options, run, listener, scratch=stored.path.parent, guessed=guessed, own_anchors=False, tuning=tuning
    ) as space:
        # Only where neighbours are mixed in do the other spots matter.
        rows = np.arange(len(stored.names)) if space.needs_places else np.array([row])
        ready, _ = space.features(pixels.spots.values[rows], pixels.statistics, pixels.spots.grid.rows(rows))
        query = space.queries(ready[rows == row], stored.y_init.values[row : row + 1])
        if omega == float(about["omega"]):
            _expect_same(stored, row, space, query)
        own = StrengthRule(float(about["l1_scale"]), float(about["l2_scale"]), float(about["l1_power"]))
        as_named = about["preset"] == "paper" and float(about["active_found_on_sample"]) < 0
        wanted = int(stored.codes.n_active[row])
        fixed = as_named or wanted == 0 or own.l1 == 0 or omega == float(about["omega"])
        codes = _at(space, query, own, options) if fixed else _keep_count(space, query, own, options, wanted)
    return Solved(
        omega, codes.indices.astype(np.int64), codes.weights.astype(np.float64), bool(codes.status[0] == "solved")
    )


def _at(
    space: QuerySpace, query: Floats, rule: StrengthRule, options: SolveOptions, start: SparseCodes | None = None
) -> SparseCodes:
    """The code of a query (1, d + A) at a strength."""
    l1, l2 = rule.of(query.T)
    return space.solver.solve(
        query.T, l1=l1, l2=l2, nonnegative=not options.signed, gap=options.gap, method=options.solver, start=start
    )


def _keep_count(
    space: QuerySpace, query: Floats, rule: StrengthRule, options: SolveOptions, wanted: int
) -> SparseCodes:  # fmt: skip
    """The code at the multiple of a rule that gives the number of references nearest to the wanted one.

    The steps are `retrieval.strength`'s in short: along a line in logs until two strengths stand on either side, then
    between these. One spot costs little, so each is solved to the end.
    """
    codes = best = None
    log_scale, weak, strong = 0.0, -np.inf, np.inf
    for _ in range(TRIES):
        codes = _at(space, query, rule.scaled(float(np.exp(log_scale))), options, codes)
        count = len(codes.indices)
        if best is None or abs(count - wanted) < abs(len(best.indices) - wanted):
            best = codes
        if abs(count - wanted) <= 0.01 * wanted:
            break
        if count > wanted:
            weak = max(weak, log_scale)
        else:
            strong = min(strong, log_scale)
        step = np.clip(np.log(max(count, 0.5) / wanted) / -SLOPE, -1.6, 1.6)
        log_scale = (weak + strong) / 2 if np.isfinite(weak + strong) else log_scale + step
    assert best is not None
    return best


def _guessed(stored: StoredPrediction) -> Guessed | None:
    """Whose first guess stands in the prediction; None where it is of the bank's own."""
    if stored.about.get("first_guess", "head") in ("head", "regression"):
        return None
    if stored.y_init.scale.library == "panel":
        raise FeaturesError(
            f"the first guess is in scale {stored.y_init.scale.name}, and the genes of its library are not recorded",
            "Predict with --anchor-scale bank.",
        )
    return Guessed("the first guess of the prediction", stored.y_init.genes, stored.y_init.scale)


def _expect_same(stored: StoredPrediction, row: int, space: QuerySpace, query: Floats) -> None:
    """Refuses a query to which the prediction's weights do not stand as the prediction says."""
    codes = stored.codes.rows(slice(row, row + 1))
    found = [float(part[0]) for part in space.solver.residuals(query, codes, space.dim)]
    recorded = [float(stored.obs[key].iloc[row]) for key in (keys.MORPHOLOGY_RESIDUAL, keys.ANCHOR_RESIDUAL)]
    if not np.allclose(found, recorded, rtol=0, atol=NEAR, equal_nan=True):
        raise FeaturesError(
            f"the embeddings beside {stored.path} are not those that it was made from: residuals of its weights are "
            f"{found[0]:.3f} and {found[1]:.3f}, it says {recorded[0]:.3f} and {recorded[1]:.3f}",
            "Predict again with the same files.",
        )
