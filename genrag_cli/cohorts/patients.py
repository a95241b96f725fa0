"""Which patient a section is from, as a person states it. Nothing here guesses: None stays unknown."""

import csv
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from genrag_cli.cohorts.base import Cohort, Section
from genrag_cli.errors import CohortError, UsageError

SHORTHANDS = {"letter": r"^([A-Za-z]+)", "prefix": r"^([^_.-]+)[_.-]", "each": r"^(.+)$"}
"""`letter`: the leading letters of the section name (C2: C); `prefix`: what stands before the first _, - or dot
(P1_2: P1); `each`: every section is a patient of its own."""


def assign_patients(sections: Sequence[Section], patients: str | Path) -> tuple[tuple[Section, ...], list[str]]:
    """Gives sections the patients that a person stated.

    Args:
        sections: as the cohort's reader found them.
        patients: a CSV with columns section and patient; or a regular expression with one group, searched in the name
            of the section; or a name in `SHORTHANDS`.

    Returns:
        The sections in order, and warnings. A section that the rule leaves out keeps what its cohort says.

    Raises:
        CohortError: for a CSV that is missing or malformed, or a rule that fits no section.
        UsageError: for a pattern that is no regular expression or has not exactly one group.
    """
    path = Path(patients)
    if isinstance(patients, Path) or path.suffix.lower() == ".csv" or path.is_file():
        stated = _read_csv(path)
    else:
        stated = _match(patients, [s.name for s in sections])
    unmatched = [s.name for s in sections if not stated.get(s.name)]
    if sections and len(unmatched) == len(sections):
        raise CohortError(
            f"patients {str(patients)!r} name none of the {len(sections)} sections, such as {unmatched[0]!r}",
            "Give a CSV with columns section,patient, a pattern with one group, or one of: " + ", ".join(SHORTHANDS),
        )
    given = tuple(dataclasses.replace(s, patient=stated.get(s.name) or s.patient) for s in sections)
    unknown = [s.name for s in given if s.patient is None]
    said = [f"patient unknown for {', '.join(unknown)}: {str(patients)!r} does not name them"] if unknown else []
    return given, said


def name_patients(cohort: Cohort, patients: str | Path) -> Cohort:
    """The cohort with patients as `assign_patients` has them, and its warnings."""
    given, said = assign_patients((*cohort.sections, *cohort.without_slide), patients)
    cut = len(cohort.sections)
    return dataclasses.replace(
        cohort, sections=given[:cut], without_slide=given[cut:], warnings=(*cohort.warnings, *said)
    )


def _read_csv(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{path}: cannot be read as a table of patients ({error})") from error
    if not rows or not {"section", "patient"} <= set(rows[0]):
        found = ", ".join(map(str, rows[0])) if rows else "no rows"
        raise CohortError(f"{path}: expected columns section and patient, found {found}", "Separate with commas.")
    stated: dict[str, str] = {}
    for row in rows:
        section, patient = (row["section"] or "").strip(), (row["patient"] or "").strip()
        if stated.get(section, patient) != patient:
            raise CohortError(f"{path}: section {section!r} has two patients, {stated[section]!r} and {patient!r}")
        stated[section] = patient
    return stated


def _match(pattern: str, names: list[str]) -> dict[str, str]:
    try:
        rule = re.compile(SHORTHANDS.get(pattern, pattern))
    except re.error as error:
        raise UsageError(f"patients {pattern!r}: not a regular expression ({error})") from error
    if rule.groups != 1:
        raise UsageError(
            f"patients {pattern!r}: a pattern needs exactly one (group), this has {rule.groups}",
            f"Or a CSV file with columns section,patient, or one of: {', '.join(SHORTHANDS)}.",
        )
    found = {name: rule.search(name) for name in names}
    return {name: match.group(1) or "" for name, match in found.items() if match}
