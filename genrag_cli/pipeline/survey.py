"""What a cohort holds, before anything is built: `generag cohort info` and `generag cohort scan`.

Nothing is written but the table that `scan` was asked for, and no section that is bad hides the others.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.cohorts import Cohort, Measured, Reading, Section
from genrag_cli.cohorts.formats import choose_format, describe_counts
from genrag_cli.cohorts.names import find_alike, warn_of_patients, why_unusable
from genrag_cli.cohorts.slide_beside import SUFFIXES
from genrag_cli.errors import CohortError, GeneragError, SlideError
from genrag_cli.genes.identity import shared
from genrag_cli.pipeline.mix_ups import digest_counts, other_size, share_ground
from genrag_cli.pipeline.sections import (
    GeneRules,
    PixelRules,
    keep_imaged,
    lattice_pitch,
    load_section,
    open_image,
    read_genes,
    settle_pixel_size,
)
from genrag_cli.slides import RemoteSlide
from genrag_cli.slides.patches import PatchSlide
from genrag_cli.slides.placement import darkness_under_spots
from genrag_cli.types import Doubles, GeneNames, Listener, PixelSize, Progress, fingerprint

OFF_TISSUE = 0.75
"""A darkness under the spots below this is said to be doubtful; her2st has .99 and more, chance is .5."""
DEPTH = 4
"""Folders below the one given that `scan` looks into."""
UM_WITHOUT_SPOT = 50.0
"""Size of what is looked at under a spot of unknown size."""


@dataclass
class SectionSurvey:
    """What is known of one section; None is unknown."""

    name: str
    patient: str | None = None
    technology: str = "unknown"
    species: str | None = None
    counts: str = ""
    image: str | None = None
    n_spots: int | None = None
    n_genes: int | None = None
    mpp: float | None = None
    mpp_source: str = ""
    mpp_others: list[tuple[str, float]] = field(default_factory=list)
    """(source, um/px) of sources that did not decide."""
    pitch_um: float | None = None
    spot_um: float | None = None
    fov_um: float | None = None
    darkness: float | None = None
    """See `slides.placement.darkness_under_spots`."""
    dropped_genes: int | None = None
    """That not every section has."""
    problems: list[str] = field(default_factory=list)
    """Why it would not enter a bank, or what is doubtful."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Survey:
    """What a cohort holds."""

    root: str
    format: str
    sections: tuple[SectionSurvey, ...]
    skipped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    n_shared_genes: int | None
    """Genes that every readable section with an image has; what a bank of all would hold."""

    @property
    def patients(self) -> list[str]:
        """Known patients."""
        return sorted({s.patient for s in self.sections if s.patient})


def survey(cohort: Cohort, rules: GeneRules, pixels: PixelRules, *, fov_um: float | None, listener: Listener) -> Survey:
    """Reads every section and says what it found.

    Args:
        cohort: with slides and without.
        rules: when two names are one gene.
        pixels: what was said about pixel sizes.
        fov_um: side of a tile; None: twice the spot diameter.
        listener: told how far it is.
    """
    every = (*cohort.sections, *cohort.without_slide)
    reasons, found, genes = dict(cohort.skipped), [], {}
    # Hundreds of sections of one panel have one list between them.
    lists: dict[str, GeneNames] = {}
    seen = _Seen()
    for number, section in enumerate(every, 1):
        one, names = _look_at(section, rules, pixels, fov_um, seen)
        if section.name in reasons:
            one.problems.insert(0, f"skipped: {reasons.pop(section.name)}")
        elif names is not None:
            genes[section.name] = lists.setdefault(fingerprint(names.names, names.ids), names)
        found.append(one)
        listener.progress(Progress("look at sections", number, len(every)))
    warnings, n_shared = [*cohort.warnings, *warn_of_patients(s.patient for s in found)], None
    for one_name, other in find_alike(s.name for s in found):
        warnings.append(f"sections {one_name!r} and {other!r}: some computers take these names for one file's")
    if genes:
        try:
            common = shared(list(genes.values()), list(genes))
            n_shared = len(common.genes)
            lost = {name: len(d) for name, d in zip(genes, common.dropped, strict=True)}
            for one in found:
                one.dropped_genes = lost.get(one.name)
        except GeneragError as error:
            warnings.append(error.message)
    if len(species := {s.species for s in found if s.species}) > 1:
        warnings.append(f"{len(species)} species, {', '.join(sorted(species))}: a bank takes one")
    if unknown := [s.name for s in found if s.patient is None]:
        warnings.append(
            f"the patient of {len(unknown)} of {len(found)} sections is unknown: name them (--patients, or a table), "
            "else no patient can be held out"
        )
    return Survey(str(cohort.root), cohort.format, tuple(found), tuple(reasons.items()), tuple(warnings), n_shared)


@dataclass(frozen=True)
class _Seen:
    """What the sections before had, to see what is there twice."""

    contents: dict[str, str] = field(default_factory=dict)
    """`digest_counts` to the section's name."""
    places: dict[Path, list[tuple[str, Doubles]]] = field(default_factory=dict)
    """Image to the sections on it and their centres."""

    def doubt(self, section: Section, measured: Measured) -> list[str]:
        """What is wrong beside the sections before; remembers this one."""
        said = []
        content = digest_counts(measured)
        if content and (other := self.contents.setdefault(content, section.name)) != section.name:
            said.append(f"has the very counts of {other}: one section under two names")
        if section.slide is not None:
            on_it = self.places.setdefault(section.slide.resolve(), [])
            same = [name for name, centres in on_it if share_ground(centres, measured.centres)]
            said += [f"its spots lie in the same place of {section.slide.name} as those of {n}" for n in same[:1]]
            on_it.append((section.name, measured.centres))
        return said


def _look_at(
    section: Section, rules: GeneRules, pixels: PixelRules, fov_um: float | None, seen: _Seen
) -> tuple[SectionSurvey, GeneNames | None]:
    one = SectionSurvey(
        section.name, section.patient, section.technology, section.species, str(section.counts),
        None if section.image is None else str(section.image), spot_um=section.spot_diameter_um,
        pitch_um=section.spot_pitch_um, notes=list(section.notes),
        fov_um=fov_um or (2 * section.spot_diameter_um if section.spot_diameter_um else None),
    )  # fmt: skip
    names = None
    if why := why_unusable(section.name):
        one.problems.append(f"cannot be called so in a bank: {why}")
    try:
        found = read_genes(section, rules)
        names, one.species = found.names, found.species
        one.n_genes = len(names)
        measured = load_section(section, rules)
        one.n_spots = len(measured)
        one.notes += [n for n in measured.notes if n not in one.notes]
    except GeneragError as error:
        one.problems.append(error.message)
        return one, names
    try:
        pitch_px = lattice_pitch(section, measured)
        if section.image is None:
            # The array alone tells the pixel size of the image that is not here.
            if section.spot_pitch_um and pitch_px:
                one.mpp, one.mpp_source = section.spot_pitch_um / pitch_px, "spot pitch"
            return one, names
        with open_image(section) as image:
            kept = keep_imaged(section, image, measured)
            one.problems += [*seen.doubt(section, kept), *other_size(section, image)]
            one.notes += [n for n in kept.notes if n not in one.notes]
            one.n_spots = len(kept)
            size, warnings = settle_pixel_size(section, image, pitch_px, pixels)
            _note_size(one, size, warnings)
            if not isinstance(image, PatchSlide):
                _check_place(one, image, size, kept.centres)
    except (CohortError, SlideError) as error:
        one.problems.append(error.message)
    return one, names


def _note_size(one: SectionSurvey, size: PixelSize, warnings: Sequence[str]) -> None:
    one.mpp, one.mpp_source, one.mpp_others = float(size.mpp), size.source, list(size.others)
    one.notes += warnings


def _check_place(one: SectionSurvey, image: RemoteSlide, size: PixelSize, centres: Any) -> None:
    outside = ((centres < 0) | (centres >= np.asarray(image.size))).any(axis=1)
    if outside.any():
        one.problems.append(
            f"{int(outside.sum())} of {len(centres)} spots lie outside the {image.size[0]} x {image.size[1]} px of "
            f"{image.path}: is it the image that they were placed on?"
        )
    if not outside.all():
        diameter_um = one.spot_um or UM_WITHOUT_SPOT
        one.darkness = image.call(darkness_under_spots, size, centres[~outside], diameter_um)
    if one.darkness is not None and one.darkness < OFF_TISSUE:
        one.problems.append(f"spots are no darker than the rest of the image ({one.darkness:.2f}): do they lie on it?")


def scan(root: Path, reading: Reading) -> tuple[Cohort, dict[str, str]]:
    """The sections of any folder, and the layout of each, for a table that a person checks.

    A known layout is taken as it is; else every file and folder down to four levels is asked what it is, and images of
    the same name are taken for their slides.

    Raises:
        CohortError: where nothing is found that could be counts, or a layout's metadata cannot be read.
    """
    if not root.is_dir():
        raise CohortError(f"{root}: not a folder", "Give the folder that holds the measured sections.")
    try:
        known, layout = choose_format(root, None)
    except CohortError:
        known = None
    if known is not None:
        cohort = layout.read_cohort(root, reading)
        return cohort, {s.name: known for s in (*cohort.sections, *cohort.without_slide)}
    found = list(_find_counts(root, root, reading, 0))
    if not found:
        raise CohortError(
            f"{root}: nothing in it looks like counts", "Write the table by hand: columns section,slide,counts,patient"
        )
    images: dict[str, list[Path]] = {}
    for folder, _, files in os.walk(root):
        for name in files:
            if Path(name).suffix.lower() in SUFFIXES and Path(folder).name != "spatial":
                images.setdefault(Path(name).stem.lower(), []).append(Path(folder) / name)
    sections, skipped, formats, taken = [], [], {}, set()
    for known, one in found:
        name = one.name if one.name not in taken else f"{one.counts.parent.name}.{one.name}"
        taken.add(name)
        section = replace(one, name=name)
        same = images.get(section.counts.stem.split(".")[0].lower(), []) or images.get(name.lower(), [])
        if section.image is None and len(same) == 1:
            sections.append(replace(section, slide=same[0]))
            formats[name] = known
            continue
        if section.image is None:
            why = f"{len(same)} images are called like it" if same else "no image is called like it"
            skipped.append((name, f"no slide: {why}; {sum(map(len, images.values()))} images in all"))
        sections.append(section)
        formats[name] = known
    ready = tuple(s for s in sections if s.image is not None)
    bare = tuple(s for s in sections if s.image is None)
    return Cohort(root, "scan", ready, tuple(skipped), (), bare), formats


def _find_counts(root: Path, folder: Path, reading: Reading, depth: int) -> Iterator[tuple[str, Section]]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.exists():
            continue
        found = describe_counts(path, reading)
        if found is not None:
            yield found
        elif path.is_dir() and depth < DEPTH:
            yield from _find_counts(root, path, reading, depth + 1)
