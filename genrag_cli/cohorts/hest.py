"""HEST-1k on disk: `st/ID.h5ad`, `wsis/ID.tif`, `metadata/ID.json` and a table `HEST_*.csv`.

Everything beyond counts and slide comes from the table, completed by the json. Patients are unique only within a data
set, so they are named "dataset_title/patient"; most rows have none. The module downloads nothing.
"""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

from genrag_cli.cohorts.base import Cohort, Reading, Section
from genrag_cli.cohorts.h5ad import CountsFile
from genrag_cli.errors import CohortError

LAYOUT = "st/*.h5ad with wsis/*.tif"
_TECHNOLOGY = {"visium": "visium", "spatial transcriptomics": "st", "xenium": "xenium", "visium hd": "visium-hd"}
SPECIES = {"homo sapiens": "human", "mus musculus": "mouse"}
_SPACING_UM = {"visium": (100.0, 55.0), "st": (200.0, 100.0)}
# HEST pools these into bins; its table leaves them blank (Xenium) or gives the 2 um of the raw bins (HD).
_POOLED_UM = {"xenium": 100.0, "visium-hd": 128.0}
_PIXEL_SIZES = ("pixel_size_um_estimated", "pixel_size_um_embedded")


def looks_like(root: Path) -> bool:
    """Whether the folder has this layout."""
    return any((root / "st").glob("*.h5ad"))


def read_cohort(root: Path, reading: Reading) -> Cohort:  # noqa: ARG001 - the layout leaves no choice
    """Lists the sections of a HEST-1k folder, whole or partly downloaded; opens no counts.

    Raises:
        CohortError: for a metadata file that cannot be read.
    """
    table, warnings = _read_table(root)
    ready, bare, skipped = [], [], []
    for counts in sorted((root / "st").glob("*.h5ad")):
        name, slide = counts.stem, root / "wsis" / f"{counts.stem}.tif"
        section, said = _read_section(root, counts, table)
        warnings += said
        if section.slide is None:
            skipped.append((name, f"no slide: {slide} does not exist"))
            bare.append(section)
        else:
            ready.append(section)
    return Cohort(root, "hest", tuple(ready), tuple(skipped), tuple(warnings), tuple(bare))


def read_one(counts: Path, reading: Reading) -> Section | None:  # noqa: ARG001 - the layout leaves no choice
    """The section of one `st/ID.h5ad`."""
    if counts.suffix != ".h5ad" or counts.parent.name != "st":
        return None
    root = counts.parent.parent
    section, said = _read_section(root, counts, _read_table(root)[0])
    return replace(section, notes=tuple(said))


def _read_section(root: Path, counts: Path, table: dict[str, dict[str, str]]) -> tuple[Section, list[str]]:
    name = counts.stem
    metadata = _complete(table.get(name, {}), root / "metadata" / f"{name}.json")
    slide = root / "wsis" / f"{name}.tif"
    return _describe(name, counts, slide if slide.is_file() else None, metadata)


def _read_table(root: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Rows of the newest HEST_*.csv in the folder or one level below it, by id."""
    tables = sorted(
        {*root.glob("HEST_*.csv"), *root.glob("*/HEST_*.csv")},
        key=lambda p: ([int(v) for v in re.findall(r"\d+", p.stem)], str(p)),
    )
    if not tables:
        return {}, []
    newest = tables[-1]
    said = [f"{len(tables)} HEST tables: {newest} is used"] if len(tables) > 1 else []
    try:
        # The published table starts with a byte-order mark.
        with newest.open(newline="", encoding="utf-8-sig") as lines:
            rows = [{k: v for k, v in row.items() if k and isinstance(v, str)} for row in csv.DictReader(lines)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{newest}: cannot be read as a table ({error})") from error
    if rows and "id" not in rows[0]:
        raise CohortError(f"{newest}: no column id; found {', '.join(rows[0])}")
    return {row["id"]: row for row in rows}, said


def _complete(row: dict[str, str], path: Path) -> dict[str, str]:
    """The table's row with its blanks filled from the json."""
    known = {key: value.strip() for key, value in row.items()}
    if not path.is_file():
        return known
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CohortError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(stated, dict):
        raise CohortError(f"{path}: expected a JSON object, found {type(stated).__name__}")
    for key, value in stated.items():
        blank = value is None or (isinstance(value, float) and math.isnan(value))
        text = "" if blank else str(value).strip()
        if not known.get(key):
            known[str(key)] = text
    return known


def _describe(name: str, counts: Path, slide: Path | None, metadata: dict[str, str]) -> tuple[Section, list[str]]:
    stated = metadata.get("st_technology", "")
    technology = _TECHNOLOGY.get(stated.lower(), "unknown")
    said = []
    if technology == "unknown":
        said.append(f"{name}: technology {stated or 'not stated'}, so the distance between its spots is unknown")
    pitch, diameter, swapped = _spacing(technology, metadata)
    if swapped:
        said.append(
            f"{name}: inter_spot_dist {diameter:g} um is below spot_diameter {pitch:g} um, which spots on an array "
            "cannot be; the two are taken as swapped"
        )
    title, patient = metadata.get("dataset_title", ""), metadata.get("patient", "")
    sizes = [(f"hest {key}", _number(metadata.get(key))) for key in _PIXEL_SIZES]
    section = Section(
        name=name,
        patient=f"{title}/{patient}" if title and patient else None,
        slide=slide,
        counts=counts,
        # HD bins that are empty were dropped before HEST numbered rows and columns.
        reader=CountsFile(counts, trusts_indices=technology != "visium-hd"),
        technology=technology,
        species=SPECIES.get(metadata.get("species", "").lower(), metadata.get("species", "").lower() or None),
        spot_diameter_um=diameter,
        spot_pitch_um=pitch,
        pixel_size_candidates=tuple((source, value) for source, value in sizes if value is not None),
        metadata=metadata,
    )
    return section, said


def _spacing(technology: str, metadata: dict[str, str]) -> tuple[float | None, float | None, bool]:
    """Pitch and diameter in um, and whether the metadata had them the wrong way round."""
    if technology in _POOLED_UM:
        return _POOLED_UM[technology], _POOLED_UM[technology], False
    usual_pitch, usual_diameter = _SPACING_UM.get(technology, (None, None))
    pitch = _number(metadata.get("inter_spot_dist")) or usual_pitch
    diameter = _number(metadata.get("spot_diameter")) or usual_diameter
    if pitch is not None and diameter is not None and diameter > pitch:
        return diameter, pitch, True
    return pitch, diameter, False


def _number(text: str | None) -> float | None:
    """A positive finite number, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
