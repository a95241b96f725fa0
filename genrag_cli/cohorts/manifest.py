"""A cohort as a table, `cohort.csv`: for sections that no layout describes, and for a person to correct what one says.

A row is a section. Only `counts` is needed; what a row leaves open comes from what lies beside its counts, as for any
cohort of that layout. Paths are relative to the table. The module writes no table without being asked and opens no
counts.

| column | meaning |
|---|---|
| section | its name; the counts' own otherwise |
| format | layout of the counts, a name that `--format` takes |
| counts | the file or folder that holds the counts |
| positions | table of spot positions (legacy ST), alignment of the H&E image (Xenium) |
| slide, patches | image, or HEST-style tiles cut around the spots |
| patient, species, technology | as they are; empty is unknown |
| mpp | um per level-0 px of the slide |
| spot_um, pitch_um | diameter of a spot, distance of neighbouring spots |
| note | for readers of the table; not read |

Other columns are kept as facts about the section, in `obs` of its store; one that is called almost like one of these is
said. Letter case of a header does not matter, and commas, semicolons and tabs may stand between cells.
"""

import csv
import dataclasses
import difflib
import io
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from genrag_cli.cohorts.base import Cohort, Reading, Section
from genrag_cli.cohorts.formats import describe_counts, known_formats
from genrag_cli.cohorts.legacy_st import LegacyTables
from genrag_cli.cohorts.listing import Listing
from genrag_cli.cohorts.names import why_unusable
from genrag_cli.cohorts.xenium import XeniumCells, align
from genrag_cli.errors import CohortError, nearest

NAME = "cohort.csv"
COLUMNS = (
    "section", "format", "counts", "positions", "slide", "patches", "patient", "species", "technology", "mpp",
    "spot_um", "pitch_um", "note",
)  # fmt: skip
NO_SLIDE = "no slide: the table names none, and none lies where its layout has it"
_PATHS = ("counts", "positions", "slide", "patches")
_SAVE = "Save it as CSV in UTF-8, every text that holds a comma, a quote or a line break within quotes."
_LENGTHS = {"mpp": "mpp_given", "spot_um": "spot_diameter_um", "pitch_um": "spot_pitch_um"}


def read_manifest(path: Path, reading: Reading) -> Cohort:
    """The sections of a table.

    Raises:
        CohortError: naming every row that cannot be right: files that do not exist, counts of no known layout, numbers
            that are none, names that no bank can keep, two rows of one name or of the same counts.
    """
    rows = _read_rows(path)
    found, wrong = Listing(), []
    lines: dict[Path, int] = {}
    for line, row in rows:
        try:
            section = _describe(path.parent, row, reading)
        except CohortError as error:
            wrong.append(f"line {line}: {error.message}")
            continue
        if why := why_unusable(section.name):
            wrong.append(f"line {line}: section {section.name[:60]!r} cannot be called so: {why}")
        if (other := lines.setdefault(section.counts.resolve(), line)) != line:
            wrong.append(f"line {line}: has the counts of line {other}, {section.counts}")
        found.add(section, "" if section.image else NO_SLIDE)
    twice = [name for name, n in Counter(s.name for s in (*found.ready, *found.bare)).items() if n > 1]
    wrong += [f"section {name!r} has several rows; name them in column section" for name in twice]
    if wrong:
        more = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise CohortError(
            f"{path}: {'; '.join(wrong[:10])}{more}",
            "Correct these rows or take them out. Columns: " + ", ".join(COLUMNS),
        )
    return found.cohort(path, "manifest", _doubt(path, rows[0][1]))


def write_manifest(path: Path, cohort: Cohort, formats: dict[str, str]) -> str:
    """The table of a cohort, as text; paths below its folder are relative.

    Args:
        path: where the table will stand.
        cohort: with slides and without.
        formats: layout of each section, by name.
    """
    reasons = dict(cohort.skipped)
    out = io.StringIO()
    table = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    table.writeheader()
    for section in (*cohort.sections, *cohort.without_slide):
        given = [reasons[section.name]] if section.name in reasons else []
        table.writerow({
            "section": section.name,
            "format": formats.get(section.name, ""),
            "counts": _relative(section.counts, path.parent),
            "positions": _relative(_positions(section), path.parent),
            "slide": _relative(section.slide, path.parent),
            "patches": _relative(section.patches, path.parent),
            "patient": section.patient or "",
            "species": section.species or "",
            "technology": "" if section.technology == "unknown" else section.technology,
            "mpp": _number(section.mpp_given),
            "spot_um": _number(section.spot_diameter_um),
            "pitch_um": _number(section.spot_pitch_um),
            "note": "; ".join([*given, *section.notes]),
        })  # fmt: skip
    return out.getvalue()


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Line number and stripped cells of every row that is not empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
        first = text.partition("\n")[0]
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
        titles = [name.strip() for name in table.fieldnames or []]
        header = [name.lower() if name.lower() in COLUMNS else name for name in titles]
        columns = "Columns: " + ", ".join(COLUMNS)
        if repeated := [name for name, n in Counter(header).items() if n > 1]:
            raise CohortError(f"{path}: column {repeated[0]} is there twice", columns)
        if "counts" not in header:
            raise CohortError(f"{path}: no column counts; found {', '.join(header) or 'nothing'}", columns)
        rows = []
        for raw in table:
            if None in raw:
                raise CohortError(f"{path}, line {table.line_num}: more cells than the header has", "Quote commas.")
            row = {k: (v or "").strip() for k, v in zip(header, raw.values(), strict=True)}
            if any(row.values()):
                rows.append((table.line_num, row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{path}: cannot be read as a table of sections ({error})", _SAVE) from error
    if not rows:
        raise CohortError(f"{path}: no section, the table has no row below its header", columns)
    return rows


def _doubt(path: Path, row: dict[str, str]) -> list[str]:
    """A line for each column that may have been meant for one that is read."""
    near = {key: difflib.get_close_matches(key.lower(), COLUMNS, n=1, cutoff=0.75) for key in row if key not in COLUMNS}
    return [
        f"{path.name}: column {key!r} is only kept as a fact; was {found[0]!r} meant?"
        for key, found in near.items()
        if found
    ]


def _describe(folder: Path, row: dict[str, str], reading: Reading) -> Section:
    paths = {key: folder / row[key] for key in _PATHS if row.get(key)}
    if "counts" not in paths:
        raise CohortError("no counts named")
    if absent := [f"{key} {path} does not exist" for key, path in paths.items() if not path.exists()]:
        raise CohortError("; ".join(absent))
    layout = row.get("format") or None
    if layout is not None and layout not in known_formats():
        raise CohortError(f"unknown format {layout!r}. {nearest(layout, known_formats())}")
    lengths = {field: _parse(column, row[column]) for column, field in _LENGTHS.items() if row.get(column)}
    # What is pooled to spots is pooled as the row says, and by its pixel size.
    reading = dataclasses.replace(
        reading,
        mpp=lengths.get("mpp_given", reading.mpp),
        spot_um=lengths.get("spot_diameter_um", reading.spot_um),
    )
    found = describe_counts(paths["counts"], reading, layout)
    if found is None:
        raise CohortError(f"counts {paths['counts']} are of no known layout" + (f" ({layout})" if layout else ""))
    known, section = found
    section = _place(section, known, paths)
    stated: dict[str, Any] = {key: row[key] for key in ("patient", "species", "technology") if row.get(key)}
    if "species" in stated:
        stated["species"] = stated["species"].lower()
    stated |= lengths | {key: paths[key] for key in ("slide", "patches") if key in paths}
    more = {k: v for k, v in row.items() if k not in COLUMNS and v}
    name = row.get("section") or section.name
    return dataclasses.replace(section, name=name, metadata={**section.metadata, **more}, **stated)


def _place(section: Section, known: str, paths: dict[str, Path]) -> Section:
    """The section with its spots where the row says that they are."""
    positions, slide = paths.get("positions"), paths.get("slide")
    if isinstance(section.reader, XeniumCells):
        if positions is not None:
            return align(section, positions)
        if slide is not None and (section.slide is None or slide.resolve() != section.slide.resolve()):
            raise CohortError(
                f"slide {slide} of a Xenium run has no alignment; name its *imagealignment*.csv in column positions"
            )
    elif positions is not None:
        if not isinstance(section.reader, LegacyTables):
            raise CohortError(f"positions are for legacy ST tables and Xenium; counts {paths['counts']} are {known}")
        return dataclasses.replace(section, reader=LegacyTables(paths["counts"], positions))
    return section


def _positions(section: Section) -> Path | None:
    """What stands in column positions."""
    reader = section.reader
    if isinstance(reader, XeniumCells):
        return reader.alignment
    return reader.positions if isinstance(reader, LegacyTables) else None


def _parse(column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise CohortError(f"{column} {text!r} is no length above 0")
    return value


def _relative(path: Path | None, folder: Path) -> str:
    if path is None:
        return ""
    path, folder = path.absolute(), folder.absolute()
    return os.path.relpath(path, folder) if path.is_relative_to(folder) else str(path)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"
