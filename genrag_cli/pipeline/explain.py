"""Why one spot of a prediction got its values: the terms they add up to, pictures of the references, other omegas."""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genrag_cli.cohorts import Measured
from genrag_cli.errors import CohortError, FeaturesError, SlideError, UsageError, nearest
from genrag_cli.genes.align import columns
from genrag_cli.outputs.figures import Explanation, OmegaSweep, Reference, draw_explanation, figure_format
from genrag_cli.outputs.figures.explanation import MAX_GENES, MAX_REFERENCES
from genrag_cli.outputs.prediction import StoredPrediction
from genrag_cli.pipeline.export import open_bank_of
from genrag_cli.pipeline.omega_sweep import Solved, named_slides, sweep_omega
from genrag_cli.pipeline.options import RunOptions
from genrag_cli.pipeline.plot import N_PICKED, pick_genes
from genrag_cli.pipeline.reported import patients_of
from genrag_cli.pipeline.stored import read_stored
from genrag_cli.pipeline.thumbnails import FROM_BANK, FROM_SLIDE, reference_tiles
from genrag_cli.pipeline.truth import lay_beside, read_measured
from genrag_cli.pipeline.tuning.tuning import Tuning
from genrag_cli.pipeline.value_terms import Formula, Terms
from genrag_cli.slides import RemoteSlide, read_tiles
from genrag_cli.slides.square import from_level0
from genrag_cli.stores.bank import Bank
from genrag_cli.types import Doubles, Expression, Ints, Listener, PixelSize, Strings, TileGrid
from genrag_cli.units import Microns, Mpp, TilePx

TILE_PX = 224
"""Side of the tiles that are drawn."""
ROUNDING = 1e-4
"""By how much, beside the largest term, the sum of the terms may differ from the value in a file."""


@dataclass(frozen=True)
class ExplainRequest:
    """Which spot of what is to be explained."""

    path: Path
    """The prediction."""
    spot: str
    out: Path
    """Ends in .png, .pdf or .svg."""
    genes: tuple[str, ...] = ()
    """None: some are picked."""
    bank: Path | None = None
    """None: where it was."""
    slide: Path | None = None
    """For the spot's own tile; None: looked for where it was."""
    top: int = MAX_REFERENCES
    """References that are told one by one."""
    truth: str | None = None
    """Measured counts: an .h5ad, or COHORT:SECTION."""
    sweep: bool = True
    run: RunOptions = field(default_factory=RunOptions)
    listener: Listener = field(default_factory=Listener)


@dataclass(frozen=True, eq=False)
class Swept:
    """The spot at several omegas."""

    solved: list[Solved]
    """Ascending by omega."""
    kept: Doubles
    """(w,) share of the weight on the references of the prediction; NaN where there is no weight."""
    predicted: Doubles
    """(w, k)"""
    present: float


@dataclass(frozen=True, eq=False)
class Explained:
    """Everything about one spot; references come by falling size of their weights."""

    slide: str
    spot: str
    unit: str
    genes: Strings
    """(k,)"""
    in_file: NDArray[np.bool_]
    """(k,) whether the prediction holds the gene."""
    predicted: Doubles
    """(k,) in X, or what `export` would write."""
    terms: Terms
    """Of all r references."""
    names: Strings
    """(r,) `section/spot`."""
    patients: Strings
    """(r,) empty where unknown."""
    weights: Doubles
    """(r,)"""
    measured: Doubles | None
    """(k,) NaN where it was not; None without truth."""
    sweep: Swept | None
    notes: tuple[str, ...]
    """What is missing, and why."""
    top: int

    @property
    def shares(self) -> Doubles:
        """(r,) of the weight."""
        size = np.abs(self.weights)
        return np.asarray(size / max(size.sum(), 1e-300), np.float64)

    def others(self, after: int) -> Doubles:
        """(k,) what the references after the first so many add together."""
        return np.asarray(self.terms.contributions[after:].sum(axis=0), np.float64)


class _Asked(NamedTuple):
    """What a request names, read."""

    stored: StoredPrediction
    bank: Bank
    tuning: Tuning | None
    truth: Measured | None
    row: int
    """Of the spot."""
    genes: Strings


def explain(request: ExplainRequest) -> Explained:
    """`generag explain`: explains a spot and draws it.

    Args:
        request: which.

    Returns:
        What was found; the picture stands at `request.out`, in the place of one that was there.

    Raises:
        UsageError: for an unknown spot or gene, or more genes than fit.
        BankError: where the bank is gone, or is another.
        OutputError: for something that is no prediction, or another ending of the picture's name.
        CohortError: for truth that cannot be read, or that did not measure a gene asked for.
    """
    asked = _settle(request)
    stored, bank, tuning, truth, row, genes, listener = (*asked, request.listener)
    formula = Formula.of(stored, bank, tuning, row, columns(bank.genes, genes))

    own = stored.codes.rows(slice(row, row + 1))
    order = np.argsort(-np.abs(own.weights), kind="stable")
    rows, weights = own.indices[order].astype(np.int64), own.weights[order].astype(np.float64)
    terms = formula.terms(rows, weights)
    predicted, in_file = _values(stored, row, genes, terms)

    notes = [f"no value: most of the weight lies where {g} was not measured" for g in genes[~terms.present].tolist()]
    off = np.abs(predicted - terms.total) > ROUNDING * np.maximum(1.0, np.abs(terms.contributions).max(initial=0))
    notes += [f"the terms of {g} do not add up to the value in the file" for g in genes[off].tolist()]
    swept = None
    if request.sweep:
        try:
            solved = sweep_omega(stored, row, bank, tuning, request.run, listener)
            swept = _lay_out(solved, formula, rows, float(stored.about["omega"]))
            notes += [f"omega {s.omega:g}: the accuracy asked for was not reached" for s in solved if not s.solved]
        except FeaturesError as error:
            notes.append(f"no omega sweep: {error.message}. {error.hint}")
    measured = None
    if truth is not None:
        values = np.zeros((len(stored.names), len(genes)), np.float32)
        both = lay_beside(Expression(values, stored.names, genes, stored.expression.scale), truth, genes)
        measured = np.full(len(genes), np.nan)
        if row in both.rows:
            measured[columns(genes, both.genes)] = both.measured[int(np.flatnonzero(both.rows == row)[0])]
        else:
            notes.append(f"the spot was not measured in {request.truth}")
    patients, patient_of = patients_of(bank)
    known = np.array([p.startswith("unknown:") for p in patients.tolist()], np.bool_)
    found = Explained(
        slide=stored.slide_id, spot=request.spot, unit=stored.expression.scale.name, genes=genes, in_file=in_file,
        predicted=predicted, terms=terms, names=stored.bank_spots[rows],
        patients=np.where(known, "", patients)[patient_of[rows]], weights=weights, measured=measured, sweep=swept,
        notes=tuple(notes), top=request.top,
    )  # fmt: skip
    return _draw(request, stored, bank, rows, found)


def plan_explanation(request: ExplainRequest) -> Strings:
    """The genes that `explain` would explain, with the same refusals; says what it would write, and writes nothing."""
    genes = _settle(request).genes
    request.listener.say(f"would write {request.out}: spot {request.spot}, {', '.join(genes.tolist())}")
    return genes


def _settle(request: ExplainRequest) -> _Asked:
    """Reads what a request names, and refuses what cannot be explained."""
    figure_format(request.out)
    stored = read_stored(request.path)
    row = _find_spot(stored, request.spot)
    bank, tuning = open_bank_of(stored, request.bank)
    truth = None if request.truth is None else read_measured(request.truth, stored, request.listener)
    genes = _choose_genes(request, stored, bank, None if truth is None else truth.genes)
    return _Asked(stored, bank, tuning, truth, row, genes)


def picture_path(path: Path, spot: str) -> Path:
    """Where the picture of a spot stands unless another place is asked for: beside the prediction."""
    safe = re.sub(r"[^\w.+-]+", "_", spot)
    return path.with_name(f"{path.name.removesuffix(path.suffix)}.{safe}.png")


def _find_spot(stored: StoredPrediction, spot: str) -> int:
    found = np.flatnonzero(stored.names == spot)
    if not len(found):
        raise UsageError(
            f"--spot {spot}: {stored.path} has no such spot among {len(stored.names)}",
            nearest(spot, stored.names.tolist()),
        )
    return int(found[0])


def _choose_genes(request: ExplainRequest, stored: StoredPrediction, bank: Bank, measured: Strings | None) -> Strings:
    """The genes asked for, or some."""
    if len(request.genes) > MAX_GENES:
        raise UsageError(
            f"--gene: {len(request.genes)} genes asked; one picture shows at most {MAX_GENES}", "Ask in several runs."
        )
    known = bank.genes[bank.measured.any(axis=0)].tolist()
    if unknown := [gene for gene in request.genes if gene not in set(known)]:
        raise UsageError(
            f"--gene: no section of the bank {bank.folder} measured {', '.join(unknown[:5])}",
            nearest(unknown[0], known),
        )
    if measured is not None and (lost := [gene for gene in request.genes if gene not in set(measured.tolist())]):
        raise CohortError(
            f"{', '.join(lost[:5])} was not measured in {request.truth}", nearest(lost[0], measured.tolist())
        )
    if request.genes:
        return np.array(request.genes, np.str_)
    if len(stored.expression.genes):
        picked = pick_genes(stored, N_PICKED, among=measured)
    else:
        anchors = stored.y_init.genes.tolist()
        picked = tuple(g for g in anchors if measured is None or g in set(measured.tolist()))[:N_PICKED]
    if not picked:
        raise CohortError(f"none of the predicted genes was measured in {request.truth}", "Name genes: --gene A,B")
    return np.array(picked, np.str_)


def _values(
    stored: StoredPrediction, row: int, genes: Strings, terms: Terms
) -> tuple[Doubles, NDArray[np.bool_]]:  # fmt: skip
    """(k,) values in X, or the sum of the terms where the prediction does not hold the gene; and whether it does."""
    place = {gene: i for i, gene in enumerate(stored.expression.genes.tolist())}
    in_file = np.array([gene in place for gene in genes.tolist()], np.bool_)
    values = terms.total.astype(np.float32).astype(np.float64)
    for i in np.flatnonzero(in_file):
        values[i] = stored.expression.values[row, place[str(genes[i])]]
    return values, in_file


def _lay_out(solved: list[Solved], formula: Formula, rows: Ints, present: float) -> Swept:
    kept, predicted = [], []
    for one in solved:
        size = np.abs(one.weights)
        kept.append(size[np.isin(one.rows, rows)].sum() / size.sum() if size.sum() > 0 else np.nan)
        predicted.append(formula.terms(one.rows, one.weights).total)
    return Swept(solved, np.array(kept, np.float64), np.array(predicted, np.float64), present)


def _draw(request: ExplainRequest, stored: StoredPrediction, bank: Bank, rows: Ints, found: Explained) -> Explained:
    """Draws what was found; returns it with what is to be said of the pictures."""
    shown = min(request.top, MAX_REFERENCES, len(rows))
    tiles, sources = reference_tiles(bank, rows[:shown], TILE_PX, workers=request.run.workers)
    tile, why = _own_tile(request, stored, int(np.flatnonzero(stored.names == request.spot)[0]))
    notes = [*found.notes, *([why] if why else []), *_tell_sources(sources)]
    split = [name.split("/", 1) for name in found.names[:shown].tolist()]
    references = [
        Reference(
            spot, section, str(found.patients[i]), float(found.weights[i]), found.terms.measured[i],
            found.terms.contributions[i], tiles[i],
        )
        for i, (section, spot) in enumerate(split)
    ]  # fmt: skip
    sweep = found.sweep
    drawn = Explanation(
        spot=found.spot, slide=found.slide, genes=found.genes.tolist(), unit=found.unit, predicted=found.predicted,
        base=found.terms.base, references=references, n_others=len(rows) - shown, others=found.others(shown),
        sweep=None if sweep is None else OmegaSweep(
            np.array([s.omega for s in sweep.solved]), sweep.kept, sweep.predicted, sweep.present
        ),
        measured=None if found.measured is None or not np.isfinite(found.measured).any() else found.measured,
        tile=tile, tile_um=float(stored.about["fov_um"]), notes=tuple(_shorten(note) for note in notes),
    )  # fmt: skip
    request.out.parent.mkdir(parents=True, exist_ok=True)
    draw_explanation(request.out, drawn)
    for note in notes:
        request.listener.say(note)
    request.listener.say(f"{request.out}: {found.slide}, spot {found.spot}, {', '.join(found.genes.tolist())}")
    return Explained(**{**vars(found), "notes": tuple(notes)})


def _shorten(note: str, most: int = 120) -> str:
    """A note as one line of the picture; all of it is said on the console."""
    line = note.splitlines()[0] if note else ""
    return line if len(line) <= most else f"{line[: most - 4].rsplit(' ', 1)[0]} ..."


def _tell_sources(sources: list[str]) -> list[str]:
    """A line for each reason why a reference's tile is not from its slide."""
    out = []
    for source, count in Counter(s for s in sources if s != FROM_SLIDE).items():
        kind, _, why = source.partition(": ")
        what = "from the bank's thumbnails" if kind == FROM_BANK else "without a picture"
        out.append(f"{count} of {len(sources)} references {what}: {why or 'neither slide nor thumbnail'}")
    return out


def _own_tile(request: ExplainRequest, stored: StoredPrediction, row: int) -> tuple[NDArray[np.uint8] | None, str]:
    """The spot's own tile, or None and why."""
    about, meta = stored.about, stored.spatial["metadata"]
    if not about["slide_digest"]:
        return None, "no tile of the spot: it was predicted from features without a slide"
    level0 = TileGrid(
        stored.slide_id, stored.names, stored.centres, np.zeros((len(stored.names), 2), np.int64), TilePx(TILE_PX),
        Microns(float(about["fov_um"])), Microns(float(about["pitch_um"])),
        PixelSize(Mpp(float(meta["mpp"])), str(meta["mpp_source"])),
    )  # fmt: skip
    why = "it is not beside the prediction, nor where it was"
    for path in [request.slide] if request.slide else _places(stored):
        try:
            with RemoteSlide(path, pictures=True) as slide:
                if slide.digest() != about["slide_digest"]:
                    why = f"{path} is another slide"
                    continue
                grid = replace(level0, centres=from_level0(level0.centres, slide.stretch), stretch=slide.stretch)
                (batch,) = read_tiles(slide, grid, np.array([row]))
                return batch.pixels[0], ""
        except (SlideError, OSError) as error:
            why = error.message if isinstance(error, SlideError) else f"{path}: {error.strerror or error}"
    return None, f"no tile of the spot: slide {about['slide']}: {why} (give it with --slide)"


def _places(stored: StoredPrediction) -> list[Path]:
    """Where a prediction's slide may lie: where its command line named it, else beside it."""
    places = [*map(Path, named_slides(stored)), stored.path.parent / str(stored.about["slide"])]
    return [path for path in dict.fromkeys(places) if path.exists()]
