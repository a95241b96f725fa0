"""From what a person typed to a cohort, a section, or the truth of an evaluation."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from genrag_cli.cohorts import hest, legacy_st
from genrag_cli.cohorts.base import Cohort, Measured, Section
from genrag_cli.cohorts.h5ad import CountsFile
from genrag_cli.cohorts.patients import assign_patients
from genrag_cli.errors import CohortError, UsageError, nearest


class Format(NamedTuple):
    """A layout that can be recognised and read."""

    layout: str
    looks_like: Callable[[Path], bool]
    read_cohort: Callable[[Path], Cohort]


FORMATS = {
    "legacy-st": Format(legacy_st.LAYOUT, legacy_st.looks_like, legacy_st.read_cohort),
    "hest": Format(hest.LAYOUT, hest.looks_like, hest.read_cohort),
}


def open_cohort(path: str | Path, *, patients: str | Path | None = None, format: str | None = None) -> Cohort:  # noqa: A002
    """Lists the measured sections of a folder; reads no counts.

    Args:
        path: the cohort's folder.
        patients: see `patients.assign_patients`; None keeps what the cohort itself says.
        format: a name in `FORMATS`; None finds out.

    Raises:
        CohortError: for a folder that is missing, has no known layout or several, or has no section with a slide.
        UsageError: for an unknown format.
    """
    cohort = _read(Path(path), patients, format)
    if not cohort.sections:
        shown = "; ".join(f"{name}: {reason}" for name, reason in cohort.skipped[:5])
        raise CohortError(f"no section of {cohort.root} ({cohort.format}) has both counts and a slide. {shown}")
    return cohort


def open_section(text: str, *, patients: str | Path | None = None, format: str | None = None) -> Section:  # noqa: A002
    """One section, given as COHORT:SECTION; it may lack a slide, as truth needs counts only.

    Raises:
        CohortError: as `open_cohort`, and for a section that is not there.
        UsageError: for a text that is not COHORT:SECTION.
    """
    folder, colon, name = text.rpartition(":")
    if not (folder and colon and name):
        raise UsageError(f"{text!r} is not COHORT:SECTION", "For example: data/her2st:C2")
    return _read(Path(folder), patients, format).section(name)


def read_truth(text: str | Path) -> Measured:
    """Measured counts to compare a prediction with.

    Args:
        text: an .h5ad of counts (then centres may be NaN, which a note says), or COHORT:SECTION.

    Raises:
        CohortError: for something that is neither, or cannot be read.
    """
    path = Path(text)
    if path.suffix == ".h5ad" or path.is_file():
        return CountsFile(path, needs_centres=False).load()
    if ":" in str(text):
        return open_section(str(text)).load()
    raise CohortError(f"truth {str(text)!r} is neither an .h5ad file nor COHORT:SECTION")


def _read(root: Path, patients: str | Path | None, name: str | None) -> Cohort:
    if not root.is_dir():
        found = "not a folder" if root.exists() else "no such folder"
        raise CohortError(f"cohort {root}: {found}", "Give the folder that holds the measured sections.")
    cohort = _choose(root, name).read_cohort(root)
    if patients is None:
        return cohort
    both = (*cohort.sections, *cohort.without_slide)
    given, said = assign_patients(both, patients)
    cut = len(cohort.sections)
    return dataclasses.replace(
        cohort, sections=given[:cut], without_slide=given[cut:], warnings=(*cohort.warnings, *said)
    )


def _choose(root: Path, name: str | None) -> Format:
    if name is not None:
        if name not in FORMATS:
            raise UsageError(f"unknown cohort format {name!r}", nearest(name, FORMATS))
        if not FORMATS[name].looks_like(root):
            raise CohortError(f"{root} is no {name} cohort: looked for {FORMATS[name].layout}")
        return FORMATS[name]
    fitting = [known for known, entry in FORMATS.items() if entry.looks_like(root)]
    if len(fitting) > 1:
        raise CohortError(f"{root} fits several layouts: {', '.join(fitting)}", "Say which with the format's name.")
    if not fitting:
        layouts = "; ".join(f"{known}: {entry.layout}" for known, entry in FORMATS.items())
        raise CohortError(f"{root}: no cohort of a known layout", f"Looked for {layouts}")
    return FORMATS[fitting[0]]
