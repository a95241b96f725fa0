"""HEST-1k on disk: `st/ID.h5ad`, `wsis/ID.tif`, `patches/ID.h5`, `metadata/ID.json` and a table `HEST_*.csv`.

Everything beyond counts and slide comes from the table, completed by the json; where they disagree the table counts,
and a note says so. Patients are unique only within a data set, so they are named "dataset_title/patient"; most rows
have none. The module downloads nothing, and opens neither slides nor patches.
"""

import csv
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from genrag_cli.cohorts.base import Cohort, Reading, Section
from genrag_cli.cohorts.h5ad import CountsFile
from genrag_cli.cohorts.listing import Listing, read_json
from genrag_cli.cohorts.technologies import POOLED_UM, SPACING_UM, name_species
from genrag_cli.errors import CohortError

LAYOUT = "st/*.h5ad with wsis/*.tif or patches/*.h5"
SLIDE_SUFFIXES = (".tif", ".tiff", ".svs")
_TECHNOLOGY = {"visium": "visium", "spatial transcriptomics": "st", "xenium": "xenium", "visium hd": "visium-hd"}
# The arrays that 10x sells have one spacing; legacy arrays came in several, so what the table says counts for them.
# HEST pools these into bins; its table leaves them blank (Xenium) or gives the 2 um of the raw bins (HD).
_PIXEL_SIZES = ("pixel_size_um_estimated", "pixel_size_um_embedded")
_SPACING = ("inter_spot_dist", "spot_diameter")
_COMPARED = ("dataset_title", "patient", "st_technology", "species", *_PIXEL_SIZES)
_BLANK = ("", "nan", "none", "na", "n/a")

Row = dict[str, str]


@dataclass(frozen=True)
class Table:
    """A `HEST_*.csv`."""

    path: Path | None = None
    rows: dict[str, list[tuple[int, Row]]] = field(default_factory=dict)
    """By id, each with its line; more than one where rows of one id differ."""

    def row(self, name: str) -> Row:
        """The row of one section; empty where there is none.

        Raises:
            CohortError: where two rows of that id say different things.
        """
        found = self.rows.get(name, [])
        if len(found) > 1:
            (line, one), (other_line, other) = found[:2]
            column = next(c for c in {**one, **other} if one.get(c) != other.get(c))
            raise CohortError(
                f"{self.path}: two rows have the id {name!r} and differ, lines {line} and {other_line}, "
                f"such as {column} {one.get(column, '')!r} and {other.get(column, '')!r}",
                "Take one of them out.",
            )
        return found[0][1] if found else {}


def looks_like(root: Path) -> bool:
    """Whether the folder has this layout."""
    return any((root / "st").glob("*.h5ad"))


def read_cohort(root: Path, reading: Reading) -> Cohort:  # noqa: ARG001 - the layout leaves no choice
    """Lists the sections of a HEST-1k folder, whole or partly downloaded; opens no counts.

    Raises:
        CohortError: for a metadata file that cannot be read, or names a section twice with different facts.
    """
    table, warnings = read_table([*root.glob("HEST_*.csv"), *root.glob("*/HEST_*.csv")])
    found = Listing()
    for counts in sorted((root / "st").glob("*.h5ad")):
        found.add(*_read_section(root, counts, table))
    return found.cohort(root, "hest", warnings)


def read_one(counts: Path, reading: Reading) -> Section | None:  # noqa: ARG001 - the layout leaves no choice
    """The section of one `st/ID.h5ad`."""
    if counts.suffix != ".h5ad" or counts.parent.name != "st":
        return None
    root = counts.parent.parent
    tables = [*root.glob("HEST_*.csv"), *root.glob("*/HEST_*.csv")]
    return _read_section(root, counts, _read_once(tuple((path, path.stat().st_mtime_ns) for path in tables)))[0]


@lru_cache(maxsize=4)
def _read_once(tables: tuple[tuple[Path, int], ...]) -> Table:
    """The table among files of these times of change, read once for all rows of a manifest."""
    return read_table(path for path, _ in tables)[0]


def _read_section(root: Path, counts: Path, table: Table) -> tuple[Section, str]:
    """The section, and what it lacks where it has no image."""
    name = counts.stem
    metadata, notes = complete(table, name, root / "metadata" / f"{name}.json")
    slides = [p for s in SLIDE_SUFFIXES if (p := root / "wsis" / f"{name}{s}").is_file()]
    patches = root / "patches" / f"{name}.h5"
    section = describe(name, counts, metadata, notes)
    section = replace(
        section,
        slide=slides[0] if len(slides) == 1 else None,
        patches=patches if patches.is_file() else None,
    )
    if section.slide is not None:
        return section, ""
    why = f"no slide: {root / 'wsis' / name}.tif does not exist"
    if slides:
        why = f"several slides: {', '.join(map(str, slides))}; keep one"
    if section.patches is None:
        return section, f"{why}, nor {patches}"
    return replace(section, notes=(*section.notes, f"{why}; its tiles come from {patches.name}")), ""


def read_table(tables: Iterable[Path]) -> tuple[Table, list[str]]:
    """The newest of several HEST_*.csv by the version in its name, and what is to be said about it.

    Raises:
        CohortError: where it cannot be read or has no column id.
    """
    known = sorted(set(tables), key=lambda p: ([int(v) for v in re.findall(r"\d+", p.stem)], str(p)))
    if not known:
        return Table(), []
    newest = known[-1]
    said = [f"{len(known)} HEST tables: {newest} is used"] if len(known) > 1 else []
    rows: dict[str, list[tuple[int, Row]]] = {}
    try:
        # The published table starts with a byte-order mark.
        with newest.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            if "id" not in (reader.fieldnames or []):
                raise CohortError(f"{newest}: no column id; found {', '.join(reader.fieldnames or ['nothing'])}")
            for cells in reader:
                row = {k: v.strip() for k, v in cells.items() if k and isinstance(v, str)}
                same = rows.setdefault(row.get("id", ""), [])
                if row not in [other for _, other in same]:
                    same.append((reader.line_num, row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{newest}: cannot be read as a table ({error})") from error
    return Table(newest, rows), said


def complete(table: Table, name: str, path: Path | None = None) -> tuple[Row, list[str]]:
    """What is known of a section: the table's row with its blanks filled from the json, and where the two disagree.

    Raises:
        CohortError: for a json that cannot be read or is another section's, and for an id that is twice in the table.
    """
    known = dict(table.row(name))
    notes = [f"{table.path.name} has no row with the id {name}"] if table.path and not known else []
    if path is None or not path.is_file():
        return known, notes
    stated = _read_json(path)
    if stated.get("id", name) != name:
        raise CohortError(f"{path}: describes section {stated['id']!r}, not {name!r}", "Give each section its own.")
    for key in _COMPARED:
        one, other = known.get(key, ""), stated.get(key, "")
        if table.path and not _is_blank(one) and not _is_blank(other) and not _agree(one, other):
            notes.append(f"{key} is {one!r} in {table.path.name} and {other!r} in {path.name}; the table counts")
    return known | {key: value for key, value in stated.items() if _is_blank(known.get(key, ""))}, notes


def _read_json(path: Path) -> Row:
    stated = read_json(path)
    absent = {key for key, v in stated.items() if v is None or (isinstance(v, float) and math.isnan(v))}
    return {str(key): "" if key in absent else str(v).strip() for key, v in stated.items()}


def describe(name: str, counts: Path, metadata: Row, notes: Iterable[str] = ()) -> Section:
    """A section as its metadata have it, without an image.

    Args:
        name: its id.
        counts: AnnData file.
        metadata: as `complete` gives them.
        notes: what is to be said already.
    """
    said = list(notes)
    stated = metadata.get("st_technology", "")
    technology = "unknown" if _is_blank(stated) else _TECHNOLOGY.get(stated.lower(), "unknown")
    if technology == "unknown":
        shown = "not stated" if _is_blank(stated) else repr(stated)
        said.append(f"technology {shown}, so the distance between its spots is unknown")
    lengths = {key: _length(key, metadata, said) for key in (*_SPACING, *_PIXEL_SIZES)}
    pitch, diameter = _spacing(technology, lengths["inter_spot_dist"], lengths["spot_diameter"], said)
    title, patient = metadata.get("dataset_title", ""), metadata.get("patient", "")
    species = metadata.get("species", "")
    return Section(
        name=name,
        patient=None if _is_blank(title) or _is_blank(patient) else f"{title}/{patient}",
        slide=None,
        counts=counts,
        # HD bins that are empty were dropped before HEST numbered rows and columns.
        reader=CountsFile(counts, trusts_indices=technology != "visium-hd", genes_only=True),
        technology=technology,
        species=None if _is_blank(species) else name_species(species),
        spot_diameter_um=diameter,
        spot_pitch_um=pitch,
        pixel_size_candidates=tuple((f"hest {key}", v) for key in _PIXEL_SIZES if (v := lengths[key]) is not None),
        metadata=metadata,
        notes=tuple(said),
    )


def _spacing(
    technology: str, pitch: float | None, diameter: float | None, said: list[str]
) -> tuple[float | None, float | None]:
    """Pitch and diameter in um, from what is stated and what the technology is known to have."""
    if technology in POOLED_UM:
        return POOLED_UM[technology], POOLED_UM[technology]
    if technology == "visium":
        for key, value, known in zip(_SPACING, (pitch, diameter), SPACING_UM["visium"], strict=True):
            if value is not None and abs(value / known - 1) > 0.05:
                said.append(f"{key} {value:g} um is stated; Visium's is {known:g} um, which is used")
        return SPACING_UM["visium"]
    usual_pitch, usual_diameter = SPACING_UM["st"] if technology == "st" else (None, None)
    pitch, diameter = pitch or usual_pitch, diameter or usual_diameter
    if pitch is not None and diameter is not None and diameter > pitch:
        said.append(
            f"inter_spot_dist {pitch:g} um is below spot_diameter {diameter:g} um, which spots on an array cannot be; "
            "the two are taken as swapped"
        )
        return diameter, pitch
    return pitch, diameter


def _length(key: str, metadata: Row, said: list[str]) -> float | None:
    """A positive finite number, or None; what is neither blank nor such a number is said."""
    text = metadata.get(key, "")
    if _is_blank(text):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if 0 < value < math.inf:
        return value
    said.append(f"{key} is {text!r}, which is no length above 0, and is left out")
    return None


def _agree(one: str, other: str) -> bool:
    """Whether two cells say the same: letter case, and how a number is written, make no difference."""
    try:
        return math.isclose(float(one), float(other), rel_tol=1e-6)
    except ValueError:
        return one.lower() == other.lower()


def _is_blank(text: str) -> bool:
    return text.lower() in _BLANK
