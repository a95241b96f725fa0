"""Signs that files of two sections were mixed up, or that one section goes by two names.

What is certain is refused, what is only a sign is said. Nothing here repairs anything.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.cohorts import Measured, Section, open_section
from genrag_cli.cohorts.names import REMEDY, find_alike, why_unusable
from genrag_cli.errors import CohortError, SlideError
from genrag_cli.outputs.prediction import StoredPrediction
from genrag_cli.slides import RemoteSlide, Slide
from genrag_cli.slides.patches import PatchSlide
from genrag_cli.types import Doubles, fingerprint

_SIZE_SLACK = 0.01
_FULL_SIZE = (("fullres_px_width", "fullres_px_height"), ("fullres_width", "fullres_height"))
"""HEST's table, HEST's json."""


def refuse_names(sections: list[str], there: list[str]) -> None:
    """Refuses names that cannot be file names everywhere, and two that some computers take for one.

    Args:
        sections: that are to come into a bank.
        there: names of the bank's sections.

    Raises:
        CohortError: for the first such name.
    """
    for name in sections:
        if why := why_unusable(name):
            raise CohortError(f"section {name[:60]!r} cannot be called so in a bank: {why}", REMEDY)
    for one, other in find_alike([*there, *sections]):
        raise CohortError(f"sections {one!r} and {other!r}: some computers take these names for one file's", REMEDY)


def digest_counts(measured: Measured) -> str:
    """What tells one section's counts from another's, whatever its spots are called and whichever order they stand in.

    Empty where there are too few counts to tell.
    """
    matrix = measured.counts
    order = np.argsort(measured.genes)
    by_gene = np.asarray(matrix.sum(axis=0, dtype=np.float64)).ravel()[order]
    if len(measured) < 2 or np.count_nonzero(by_gene) < 2:
        return ""
    return fingerprint(measured.genes[order], by_gene, np.sort(measured.total_counts))


def refuse_twin(section: Section, content: str, there: Sequence[Mapping[str, Any]]) -> None:
    """Refuses a section whose counts a bank has under another name: it would count twice, or as two patients.

    Args:
        section: that is to come in.
        content: `digest_counts` of it.
        there: the bank's entries.

    Raises:
        CohortError: naming the other.
    """
    others = (s["name"] for s in there if s["name"] != section.name and s.get("content") == content)
    if content and (twin := next(others, None)):
        raise CohortError(
            f"section {section.name} ({section.counts}) has the very counts of section {twin}, which is in the bank: "
            "one section under two names",
            f"Leave one of them out (--exclude {section.name}).",
        )


def doubt_spots(spots: str | None, slide: Slide) -> str:
    """A line where spots are those of a section (COHORT:SECTION) that has another slide; empty otherwise."""
    section = named_section(spots or "")
    if section is None or (own := _own_digest(section)) is None or own == slide.digest():
        return ""
    return (
        f"{slide.slide_id}: the spots are those of section {section.name}, whose slide is {section.slide}, another "
        "file: do they lie where they should?"
    )


def doubt_truth(truth: str, measured: Measured, prediction: StoredPrediction) -> list[str]:
    """A line for each sign that a prediction is not of the section that it is compared with, or knew it.

    Args:
        truth: as given.
        measured: its counts.
        prediction: names the slide, the place of each spot and the sections of the bank.
    """
    said, about = [], prediction.about
    section = named_section(truth)
    if section is not None:
        own = _own_digest(section)
        if own is not None and own != about["slide_digest"]:
            said.append(f"the prediction is of {about['slide']}, the truth of {section.name} lies on {section.slide}")
        if np.char.startswith(prediction.bank_spots, f"{section.name}/").any():
            said.append(f"the bank of the prediction has a section {section.name}: was it predicted from itself?")
    place = {name: row for row, name in enumerate(measured.names.tolist())}
    rows = [(i, place[name]) for i, name in enumerate(prediction.names.tolist()) if name in place]
    if rows:
        ours, theirs = (np.array(side) for side in zip(*rows, strict=True))
        way = np.linalg.norm(prediction.centres[ours] - measured.centres[theirs], axis=1)
        far = way > 0.5 * about["pitch_um"] / about["mpp"]  # never where the truth has no places
        if far.any():
            said.append(
                f"{int(far.sum())} of {len(rows)} spots lie elsewhere in the truth than in the prediction, such as "
                f"{prediction.names[ours[int(np.argmax(far))]]}: spots of one name, but of one section?"
            )
    return said


def named_section(text: str) -> Section | None:
    """The section that COHORT:SECTION names; None for anything else."""
    return None if ":" not in text or Path(text).exists() else open_section(text)


def _own_digest(section: Section) -> str | None:
    """Identity of a section's slide; None where it has none that can be opened."""
    with contextlib.suppress(SlideError):
        if section.slide is not None:
            with RemoteSlide(section.slide, pictures=True) as slide:
                return slide.digest()
    return None


def other_size(section: Section, image: Slide | PatchSlide) -> tuple[str, ...]:
    """A line where metadata say that the slide has another size, so that coordinates may be of another one."""
    if isinstance(image, PatchSlide):
        return ()
    for keys in _FULL_SIZE:
        stated = [_number(section.metadata.get(key, "")) for key in keys]
        if all(stated) and any(abs(s / w - 1) > _SIZE_SLACK for s, w in zip(stated, image.size, strict=True)):
            return (
                f"metadata say that the slide has {stated[0]:g} x {stated[1]:g} px, {image.path.name} has "
                f"{image.size[0]} x {image.size[1]}: are the coordinates its own?",
            )
    return ()


def share_ground(one: Doubles, other: Doubles) -> bool:
    """Whether the spots (n, 2) of two sections on one slide lie in the same place: over half of the smaller's box."""
    low = np.maximum(one.min(axis=0), other.min(axis=0))
    high = np.minimum(one.max(axis=0), other.max(axis=0))
    areas = [float(np.prod(c.max(axis=0) - c.min(axis=0))) for c in (one, other)]
    return bool((high > low).all() and np.prod(high - low) > 0.5 * min(areas))


def _number(text: str) -> float:
    try:
        return max(float(text), 0.0) if np.isfinite(float(text)) else 0.0
    except ValueError:
        return 0.0
