"""Measured sections as the pipeline wants them: genes under one name each, spots that have an image, one pixel size."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.cohorts import Measured, Section
from genrag_cli.errors import CohortError, GeneragError, SlideError, UsageError
from genrag_cli.genes.identity import Tidied, match, read_aliases, sum_columns, tidy
from genrag_cli.genes.species import settle_species, species_of
from genrag_cli.pipeline.lay_out import name_source
from genrag_cli.pipeline.options import Repeats
from genrag_cli.slides import RemoteSlide, Slide, resolve_pixel_size
from genrag_cli.slides.base import content_digest
from genrag_cli.slides.patches import PatchSlide, match_patches, open_patches
from genrag_cli.stores.atomic import digest_file
from genrag_cli.types import GeneNames, Ints, Listener, PixelSize, fingerprint


@dataclass(frozen=True)
class GeneRules:
    """When two names are one gene."""

    aliases: Path | None = None
    """Table of previous symbols (or ids) and the symbols that they go by here."""
    repeats: Repeats = "sum"
    """What becomes of columns that are one gene."""

    def __post_init__(self) -> None:
        if self.repeats not in ("sum", "refuse"):
            raise UsageError(f"--duplicate-genes {self.repeats} asked", "Known: sum, refuse")

    @cached_property
    def table(self) -> dict[str, str]:
        """The table's content; empty where there is none."""
        return read_aliases(self.aliases) if self.aliases else {}


POOLED = ("xenium", "visium-hd")
"""Technologies whose spots are squares that were laid over something smaller."""
AS_NAMED = GeneRules()


@dataclass(frozen=True, eq=False)
class SectionGenes:
    """What a section measures, before its counts are read."""

    names: GeneNames
    species: str | None
    why: str
    """What the species rests on."""
    notes: tuple[str, ...] = ()


def read_genes(section: Section, rules: GeneRules) -> SectionGenes:
    """Names and species of a section's genes.

    Raises:
        CohortError: for gene lists that cannot be read, and metadata that contradict the genes.
    """
    tidied = tidy(section.read_genes(), rules.table)
    evidence = species_of(tidied.names)
    with naming(section.name):
        species = settle_species(section.species, evidence)
    why = evidence.why if section.species is None else "stated"
    return SectionGenes(tidied.names, species, why, tuple(tidied.notes))


def load_section(section: Section, rules: GeneRules) -> Measured:
    """Counts of a section with one column per gene, as the rules have it.

    Raises:
        CohortError: as `Section.load`, and for repeated genes where the rules refuse them.
    """
    return tidy_measured(section.load(), rules, section.name)


def tidy_measured(measured: Measured, rules: GeneRules, name: str) -> Measured:
    """The same counts with one column per gene, as the rules have it."""
    tidied: Tidied = tidy(measured.gene_names, rules.table)
    n_repeated = measured.n_repeated + len(measured.genes) - len(tidied.names)
    if n_repeated and rules.repeats == "refuse":
        raise CohortError(
            f"section {name}: {n_repeated} columns repeat a gene that another column has",
            "Correct the source, or let them be summed (--duplicate-genes sum).",
        )
    return replace(
        measured,
        counts=sum_columns(measured.counts, tidied.into, len(tidied.names)),
        genes=tidied.names.names,
        gene_ids=tidied.names.ids,
        notes=(*measured.notes, *tidied.notes),
        n_repeated=n_repeated,
    )


def name_like(measured: Measured, genes: GeneNames) -> Measured:
    """The same counts with genes called as `genes` calls them, for joins by name.

    A column that is called like one of them and is another gene (another id) gets its id behind its name.

    Raises:
        GeneragError: where one side names its genes by id and the other has no ids.
    """
    found = match(genes, measured.gene_names)
    here = found.columns >= 0
    called: list[str] = measured.genes.tolist()
    wanted = dict(zip(found.columns[here].tolist(), genes.names[here].tolist(), strict=True))
    ids = measured.gene_ids
    taken = set(genes.names.tolist())
    for column, name in enumerate(called):
        if column in wanted:
            called[column] = wanted[column]
        elif name in taken:
            called[column] = f"{name} ({ids[column] if ids is not None else 'not matched'})"
    return replace(measured, genes=np.array(called, np.str_))


def open_image(section: Section) -> RemoteSlide | PatchSlide:
    """The slide of a section, read by another process, else its patches.

    Raises:
        CohortError: for a section with neither.
        SlideError: for a file that cannot be opened.
    """
    if section.slide is not None:
        return RemoteSlide(section.slide, pictures=True, square=False)
    if section.patches is not None:
        return open_patches(section.patches)
    raise CohortError(f"section {section.name} has no image")


def keep_imaged(section: Section, image: Slide | PatchSlide, measured: Measured) -> Measured:
    """The spots that have a tile, all of them where the image is a slide; what the image has to say joins the notes.

    Raises:
        CohortError: where none has.
    """
    measured = replace(measured, notes=(*measured.notes, *image.notes))
    if not isinstance(image, PatchSlide):
        return measured
    rows, how = match_patches(image, measured.names)
    kept = np.flatnonzero(rows >= 0)
    if not len(kept):
        raise CohortError(
            f"section {section.name}: none of its {len(measured)} spots, such as {measured.names[0]}, has a patch in "
            f"{image.path}, which has {len(image.names)}, such as {image.names[0]}",
            "Are counts and patches of the same section?",
        )
    measured = replace(measured, notes=(*measured.notes, how)) if how else measured
    if len(kept) == len(measured):
        return measured
    note = f"{len(measured) - len(kept)} of {len(measured)} spots have no patch in {image.path.name} and are left out"
    return replace(take_spots(measured, kept), notes=(*measured.notes, note))


def lattice_pitch(section: Section, measured: Measured) -> float | None:
    """Distance of neighbouring spots in level-0 px; None where the technology says nothing about it in um.

    Raises:
        CohortError: where it cannot be measured, naming the section.
    """
    if not section.spot_pitch_um:
        return None
    try:
        return measured.pitch_px
    except CohortError as error:
        raise CohortError(
            f"section {section.name}: {error.message}",
            error.hint or "The pixel size is measured by it. Leave the section out (--exclude).",
        ) from error


def take_spots(measured: Measured, rows: Ints) -> Measured:
    """Some of the spots, in the order given; the lattice stays what it was."""
    pitch = measured.pitch_px if len(measured) > 1 else measured.lattice_pitch_px
    return replace(
        measured, names=measured.names[rows], centres=measured.centres[rows], array_rc=measured.array_rc[rows],
        counts=measured.counts[rows], total_counts=measured.total_counts[rows], lattice_pitch_px=pitch,
    )  # fmt: skip


@dataclass(frozen=True)
class PixelRules:
    """What a person said about pixel sizes."""

    mpp: float | None = None
    strict: bool = False


def settle_pixel_size(
    section: Section, image: Slide | PatchSlide, pitch_px: float | None, rules: PixelRules
) -> tuple[PixelSize, list[str]]:
    """The pixel size of a section with its source, and what a person should read about it.

    Args:
        section: gives the pitch in um and what its metadata state.
        image: of the section.
        pitch_px: distance of neighbouring spots in level-0 px; None where it is unknown.
        rules: what was given.

    Raises:
        SlideError: where no source is left, or two differ and the rules are strict.
    """
    candidates = [*image.pixel_size_candidates(), *section.pixel_size_candidates]
    pitch = section.spot_pitch_um / pitch_px if section.spot_pitch_um and pitch_px else None
    if section.technology in POOLED and pitch is not None:
        # These spots were laid out in um by a pixel size, so they tell which one was used then and no more.
        candidates = [*section.pixel_size_candidates, *image.pixel_size_candidates(), ("pooled spots", pitch)]
        pitch = None
    given = section.mpp_given if rules.mpp is None else rules.mpp
    try:
        return resolve_pixel_size(candidates, given=given, pitch=pitch, strict=rules.strict)
    except SlideError as error:
        raise name_source(error, image.path) from error


@dataclass(frozen=True)
class SectionIdentity:
    """What a section's store depends on, cheap to compare as long as no file is touched."""

    how: str
    """Digest of how its files are read and of what was asked."""
    files: dict[str, list[int]]
    """Size and time of change (ns) of every file that is read; nothing for slides that are folders."""

    @staticmethod
    def of(section: Section, asked: Sequence[Any]) -> "SectionIdentity":
        """Looks at the files' directory entries only."""
        reader = section.reader
        how = {k: v for k, v in vars(reader).items() if isinstance(v, str | int | float | tuple | None)}
        stated = (
            section.mpp_given, section.spot_pitch_um, section.pixel_size_candidates, section.metadata,
            section.technology, section.species,
        )  # fmt: skip
        files = {}
        for path in _inputs(section):
            try:
                found = path.stat()
            except OSError as error:
                raise CohortError(f"section {section.name}: {path} cannot be read ({error.strerror})") from error
            files[str(path)] = [found.st_size, found.st_mtime_ns]
        return SectionIdentity(fingerprint(type(reader).__name__, how, stated, list(asked)), files)

    def matches(self, entry: dict[str, Any]) -> bool:
        """Whether a bank's entry was made of these very files, untouched since, in this way."""
        whole = all(not Path(path).is_dir() for path in self.files)
        return whole and entry.get("how") == self.how and entry.get("files") == self.files

    def key(self, section: Section) -> str:
        """Digest of everything that the store depends on, by the content of the files; reads them."""
        images = [path for path in (section.slide, section.patches) if path is not None]
        digests = [digest_file(f) for f in section.reader.files()] + [_digest_image(path) for path in images]
        return fingerprint(digests, self.how)


def _inputs(section: Section) -> list[Path]:
    # An image may hold the pixel size, and patches say which spots have a tile.
    images = [path for path in (section.slide, section.patches) if path is not None]
    return list(dict.fromkeys([*section.reader.files(), *images]))


def _digest_image(path: Path) -> str:
    if not path.is_dir():
        return content_digest([path])
    with RemoteSlide(path) as slide:
        return slide.digest()


@contextlib.contextmanager
def naming(section: str) -> Iterator[None]:
    """Names the section in an expected error that does not."""
    try:
        yield
    except GeneragError as error:
        if section in error.message:
            raise
        raise CohortError(f"section {section}: {error.message}", error.hint) from error


def tell(listener: Listener, name: str, notes: Sequence[str]) -> None:
    """Says each note once, with the section's name."""
    for note in dict.fromkeys(notes):
        listener.say(f"{name}: {note}")
