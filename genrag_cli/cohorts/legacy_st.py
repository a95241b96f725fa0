"""Legacy Spatial Transcriptomics: `images/`, `counts/NAME.tsv(.gz)` and `spots/NAME_selection.tsv`.

A count table has a row per spot, called "XxY" after its array position, and a column per gene symbol. A position table
has x, y (array), pixel_x, pixel_y (centre in the image) and perhaps selected. The format has no pixel size and no
patients; this module does not guess them.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.cohorts.base import (
    EMPTY_REMEDY,
    Cohort,
    Measured,
    Reading,
    Section,
    assemble_measured,
    refuse_duplicates,
    unique_genes,
)
from genrag_cli.cohorts.listing import Listing
from genrag_cli.cohorts.technologies import SPACING_UM
from genrag_cli.errors import CohortError
from genrag_cli.types import GeneNames, Strings

LAYOUT = "counts/*.tsv or *.tsv.gz with spots/*_selection.tsv and images/"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
_COUNT_SUFFIXES = (".tsv.gz", ".tsv")
_POSITION_COLUMNS = ("x", "y", "pixel_x", "pixel_y")


@dataclass(frozen=True)
class LegacyTables:
    """The two tables of one section."""

    counts: Path
    positions: Path

    def read_genes(self) -> GeneNames:
        """(G,) from the header of the count table."""
        return unique_genes(_read_header(self.counts), None)

    def files(self) -> tuple[Path, ...]:
        """Both tables."""
        return (self.counts, self.positions)

    def load(self) -> Measured:
        """Joins counts and positions by spot name, in the order of the count table."""
        from scipy import sparse

        names, values = _read_counts(self.counts)
        positions = _read_positions(self.positions)
        notes = []
        if n_off := sum(not p[4] for p in positions.values()):
            notes.append(f"{n_off} of {len(positions)} spots of {self.positions.name} are not selected and left out")
        selected = {name: p for name, p in positions.items() if p[4]}
        joined = np.array([i for i, name in enumerate(names) if name in selected], dtype=np.int64)
        if not len(joined):
            raise CohortError(
                f"no spot of {self.counts} is selected in {self.positions}: "
                f"rows such as {names[0]!r}, positions such as {next(iter(positions))!r}",
                "Rows of the counts are named XxY after columns x and y of the positions.",
            )
        if n_bare := len(selected) - len(joined):
            notes.append(f"{n_bare} of {len(positions)} spots of {self.positions.name} have no counts")
        if n_lost := sum(name not in positions for name in names):
            notes.append(f"{n_lost} of {len(names)} spots of {self.counts.name} have no position and are left out")
        kept = [names[i] for i in joined]
        where = np.array([selected[name][:4] for name in kept])
        return assemble_measured(
            source=self.counts,
            names=kept,
            centres=where[:, 2:4],
            array_rc=where[:, 1::-1],
            counts=sparse.csr_matrix(values[joined]),
            genes=_read_header(self.counts),
            notes=notes,
        )


def looks_like(root: Path) -> bool:
    """Whether the folder has this layout."""
    return (root / "spots").is_dir() and any(_count_tables(root))


def read_cohort(root: Path, reading: Reading) -> Cohort:  # noqa: ARG001 - the layout leaves no choice
    """Lists the sections of a legacy ST folder; reads no table.

    Raises:
        CohortError: where two images could be one section's.
    """
    images: dict[str, Path] = {}
    for path in sorted((root / "images").glob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            if path.stem in images:
                raise CohortError(f"two images for section {path.stem}: {images[path.stem]} and {path}", "Keep one.")
            images[path.stem] = path
    found = Listing()
    tables = _count_tables(root)
    for name, counts in tables.items():
        positions = root / "spots" / f"{name}_selection.tsv"
        if not positions.is_file():
            found.skip(name, f"no positions: {positions} does not exist")
            continue
        lacking = "" if name in images else f"no image: {root / 'images' / name}.{{jpg,png,tif}} does not exist"
        found.add(_describe(name, counts, positions, images.get(name)), lacking)
    alone = (f"image without counts: {path}" for name, path in images.items() if name not in tables)
    return found.cohort(root, "legacy-st", alone)


def read_one(counts: Path, reading: Reading) -> Section | None:  # noqa: ARG001 - the layout leaves no choice
    """The section of one count table, with the positions and the image that the layout puts beside it."""
    suffix = next((s for s in _COUNT_SUFFIXES if counts.name.endswith(s)), None)
    if suffix is None:
        return None
    root, name = counts.parent.parent, counts.name.removesuffix(suffix)
    images = [p for p in sorted((root / "images").glob("*")) if p.stem == name and p.suffix.lower() in IMAGE_SUFFIXES]
    positions = root / "spots" / f"{name}_selection.tsv"
    return _describe(name, counts, positions, images[0] if len(images) == 1 else None)


def _describe(name: str, counts: Path, positions: Path, image: Path | None) -> Section:
    return Section(
        name=name,
        patient=None,
        slide=image,
        counts=counts,
        reader=LegacyTables(counts, positions),
        technology="st",
        spot_diameter_um=SPACING_UM["st"][1],
        spot_pitch_um=SPACING_UM["st"][0],
    )


def _count_tables(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted((root / "counts").glob("*.tsv*")):
        suffix = next((s for s in _COUNT_SUFFIXES if path.name.endswith(s)), None)
        if suffix is None:
            continue
        name = path.name.removesuffix(suffix)
        if name in found:
            raise CohortError(f"two count tables for section {name}: {found[name]} and {path}", "Keep one.")
        found[name] = path
    return found


def _first_lines(path: Path) -> list[list[str]]:
    """Cells of the header and of the first spot, if there is one."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            cells = [line.rstrip("\r\n").split("\t") for line in (next(lines, ""), next(lines, "")) if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CohortError(f"{path}: cannot be read as a table of counts ({error})") from error
    if len(cells) < 2:
        raise CohortError(f"{path}: no spots, the table has no row below its header", EMPTY_REMEDY)
    return cells


def _read_header(path: Path) -> Strings:
    header, row = _first_lines(path)
    # R writes no cell above the row names, pandas writes an empty one.
    genes = header if len(header) == len(row) - 1 else header[1:]
    if len(genes) != len(row) - 1:
        raise CohortError(f"{path}: {len(genes)} gene names over {len(row) - 1} columns of counts")
    return np.array(genes, dtype=np.str_)


def _read_counts(path: Path) -> tuple[list[str], Any]:
    import pandas as pd

    n_genes = len(_read_header(path))
    try:
        frame = pd.read_csv(path, sep="\t", header=None, skiprows=1, index_col=0, dtype={0: str}, na_filter=False)
    except (OSError, EOFError, ValueError, pd.errors.ParserError) as error:
        raise CohortError(f"{path}: cannot be read as a table of counts ({error})") from error
    odd = [i for i, kind in enumerate(frame.dtypes) if kind.kind not in "iuf"]
    if odd or frame.shape[1] != n_genes:
        at = f"column {odd[0] + 2} holds text or gaps" if odd else f"{frame.shape[1]} columns under {n_genes} genes"
        raise CohortError(f"{path}: not a table of counts, {at}")
    names = [str(name) for name in frame.index]
    refuse_duplicates(names, "spot", path)
    return names, frame.to_numpy()


def _read_positions(path: Path) -> dict[str, tuple[int, int, float, float, bool]]:
    """Spot name -> array x, array y, pixel x, pixel y, selected."""
    import pandas as pd

    try:
        frame = pd.read_csv(path, sep="\t", dtype={"x": str, "y": str})
        missing = [c for c in _POSITION_COLUMNS if c not in frame.columns]
        if missing or not len(frame):
            found = f"{len(frame)} rows with columns {', '.join(map(str, frame.columns))}"
            raise CohortError(f"{path}: not a table of spot positions, {found}", "It needs x, y, pixel_x and pixel_y.")
        names = [f"{x}x{y}" for x, y in zip(frame["x"], frame["y"], strict=True)]
        array = frame[["x", "y"]].astype(int).to_numpy().tolist()
        pixel = frame[["pixel_x", "pixel_y"]].astype(float).to_numpy()
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise CohortError(f"{path}: cannot be read as a table of spot positions ({error})") from error
    if not np.all(np.isfinite(pixel)):
        raise CohortError(f"{path}: some spots have no pixel_x or pixel_y")
    refuse_duplicates(names, "spot", path)
    selected = [bool(v) for v in frame["selected"]] if "selected" in frame else [True] * len(frame)
    rows = zip(names, array, pixel.tolist(), selected, strict=True)
    return {name: (a[0], a[1], p[0], p[1], on) for name, a, p, on in rows}
