"""From what a person typed to a cohort, a section, or the truth of an evaluation."""

import contextlib
import dataclasses
from pathlib import Path

from genrag_cli.cohorts.base import Cohort, Measured, Reading, Section
from genrag_cli.cohorts.formats import choose_format
from genrag_cli.cohorts.h5ad import CountsFile
from genrag_cli.cohorts.manifest import NAME, read_manifest
from genrag_cli.cohorts.patients import name_patients
from genrag_cli.errors import CohortError, UsageError

AS_IS = Reading()
MANIFEST = "manifest"


def open_cohort(
    path: str | Path,
    *,
    patients: str | Path | None = None,
    format: str | None = None,  # noqa: A002
    reading: Reading = AS_IS,
    needs_image: bool = True,
) -> Cohort:
    """Lists the measured sections of a folder or a table; reads no counts.

    Args:
        path: the cohort's folder, or a table of its sections (`manifest.COLUMNS`); a `cohort.csv` in the folder wins
            over its layout.
        patients: see `patients.assign_patients`; None keeps what the cohort itself says.
        format: a name of `formats.known_formats`, or `manifest`; None finds out.
        reading: where a layout leaves a choice.
        needs_image: refuse a cohort none of whose sections has an image.

    Raises:
        CohortError: for a folder that is missing, has no known layout or several, or has no section with a slide.
        UsageError: for an unknown format.
    """
    cohort = _read(Path(path), patients, format, reading)
    if not cohort.sections and (needs_image or not cohort.without_slide):
        shown = "; ".join(f"{name}: {reason}" for name, reason in cohort.skipped[:5])
        raise CohortError(f"no section of {cohort.root} ({cohort.format}) has both counts and an image. {shown}")
    return cohort


def open_section(
    text: str,
    *,
    patients: str | Path | None = None,
    format: str | None = None,  # noqa: A002
    reading: Reading = AS_IS,
) -> Section:
    """One section, given as COHORT:SECTION; it may lack a slide, as truth needs counts only.

    Raises:
        CohortError: as `open_cohort`, and for a section that is not there.
        UsageError: for a text that is not COHORT:SECTION.
    """
    folder, colon, name = text.rpartition(":")
    if not (folder and colon and name):
        raise UsageError(f"{text!r} is not COHORT:SECTION", "For example: data/her2st:C2")
    return _read(Path(folder), patients, format, reading).section(name)


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
    raise CohortError(f"truth {str(text)!r} is neither an .h5ad file nor COHORT:SECTION", "For example: data/her2st:C2")


def _read(root: Path, patients: str | Path | None, name: str | None, reading: Reading) -> Cohort:
    cohort = _list_sections(root, name, reading)
    return cohort if patients is None else name_patients(cohort, patients)


def _list_sections(root: Path, name: str | None, reading: Reading) -> Cohort:
    remedy = "Give the folder that holds the measured sections, or a table of them (cohort.csv)."
    if not root.exists():
        raise CohortError(f"cohort {root}: no such folder or table", remedy)
    # A table in the folder is what a person has checked, so it counts before any layout.
    table = root / NAME if root.is_dir() else root
    if name == MANIFEST or (name is None and table.is_file() and table.suffix.lower() in (".csv", ".tsv")):
        if not table.is_file():
            raise CohortError(f"{root} holds no {NAME}", f"Write one: generag cohort scan {root}")
        cohort = read_manifest(table, reading)
        return _compare(cohort, root, reading) if root.is_dir() else cohort
    if not root.is_dir():
        raise CohortError(f"cohort {root}: neither a folder nor a table that ends in .csv or .tsv", remedy)
    known, layout = choose_format(root, name)
    return dataclasses.replace(layout.read_cohort(root, reading), format=known)


def _compare(cohort: Cohort, root: Path, reading: Reading) -> Cohort:
    """The cohort of a table in a folder, with a word about sections that the folder has and the table has not."""
    listed = {s.counts.resolve() for s in (*cohort.sections, *cohort.without_slide)}
    more: list[str] = []
    with contextlib.suppress(CohortError):  # a folder of no known layout has nothing to compare
        found = choose_format(root, None)[1].read_cohort(root, reading)
        more = [s.name for s in (*found.sections, *found.without_slide) if s.counts.resolve() not in listed]
    if not more:
        return cohort
    shown = ", ".join(more[:5]) + (", ..." if len(more) > 5 else "")
    said = f"{cohort.root.name} has no row for {len(more)} of the sections in its folder, which are left out: {shown}"
    return dataclasses.replace(cohort, warnings=(*cohort.warnings, said))
