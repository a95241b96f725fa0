"""Folders as DeepSpot takes them: `NAME.h5ad` of single cells, `NAME.jpg`, and perhaps `NAME.json`.

The positions are obs columns x_pixel and y_pixel, and the names mislead: in DeepSpot x_pixel is the row of the image
and y_pixel its column, while others who write such columns mean the opposite. So the picture decides: the reading that
puts (nearly) all cells inside it counts if the other one does not. Where both do, another section of the folder for
which only one does decides for it; else the section is not usable until a person says which is which, by writing
obsm['spatial'] (x, y) into the file.

The layout has no pixel size, and none is guessed: cells are pooled to squares once a person gives um per px. Without
it a section is listed, and loads as single cells, so that it can still be compared with.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.cohorts.base import Cohort, Measured, Reading, Section, assemble_measured, lattice_indices
from genrag_cli.cohorts.controls import find_genes
from genrag_cli.cohorts.h5ad import CountsFile
from genrag_cli.cohorts.listing import Listing
from genrag_cli.cohorts.pooling import pool
from genrag_cli.cohorts.technologies import POOLED_UM
from genrag_cli.errors import CohortError
from genrag_cli.types import Doubles, GeneNames

LAYOUT = "*.h5ad of cells with obs x_pixel and y_pixel, and an image of the same name"
SPOT_UM = POOLED_UM["xenium"]
"""Side of the squares that cells are pooled to by default, as HEST-1k pools Xenium."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
INSIDE = 0.99
"""Share of the cells that a reading has to put inside the image; segmentation leaves a few on the rim."""
_COLUMNS = ("x_pixel", "y_pixel")
NO_PIXEL_SIZE = "pixel size unknown: give --mpp or the manifest's mpp; its cells cannot be pooled to spots without it"
_SAY_WHICH = "write obsm['spatial'] (x = column, y = row) into the file to say which is which"


@dataclass(frozen=True)
class CellsFile:
    """One AnnData file of cells."""

    path: Path
    row_first: bool | None
    """Whether x_pixel is the image's row; None where nothing tells, then the cells have no place."""
    spot_um: float | None
    """Side of the squares to pool to; None: the default, and single cells where the pixel size is unknown."""
    mpp: float | None

    def read_genes(self) -> GeneNames:
        """(G,) unique symbols, controls left out."""
        listed = CountsFile(self.path).read_genes()
        genes, _ = find_genes(listed.names)
        return GeneNames(listed.names[genes], None if listed.ids is None else listed.ids[genes])

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def load(self) -> Measured:
        """Reads the cells and pools them where the pixel size is known.

        Raises:
            CohortError: for a file that is not AnnData, holds no raw counts or has no x_pixel and y_pixel, or where a
                spot size was asked for and the pixel size is unknown.
        """
        cells = CountsFile(self.path, needs_centres=False, trusts_indices=False).load()
        genes, left_out = find_genes(cells.genes)
        ids = None if cells.gene_ids is None else cells.gene_ids[genes]
        # The file has positions, only not where AnnData puts them.
        notes = [note for note in cells.notes if "obsm['spatial']" not in note] + list(left_out)
        counts, centres = cells.counts[:, genes], self._centres()
        listed: dict[str, Any] = {"source": self.path, "genes": cells.genes[genes], "gene_ids": ids}
        if self.row_first is None:
            notes.append(f"{self.path.name}: x_pixel and y_pixel may be row or column; the cells have no place")
        elif self.mpp is not None:
            side = self.spot_um or SPOT_UM
            pooled = pool(counts, centres * self.mpp, side, source=self.path)
            notes.append(f"{len(cells)} cells are pooled to {len(pooled.rc)} squares of {side:g} um")
            return assemble_measured(
                **listed, names=pooled.names, centres=pooled.centres_um / self.mpp, array_rc=pooled.rc,
                counts=pooled.counts, notes=notes, lattice_pitch_px=side / self.mpp,
            )  # fmt: skip
        elif self.spot_um is not None:
            raise CohortError(
                f"{self.path}: cells cannot be pooled to spots of {self.spot_um:g} um, their pixel size is unknown",
                "Give um per px of the image: --mpp, or mpp in a manifest (generag cohort scan).",
            )
        else:
            notes.append(f"{self.path.name}: the pixel size is unknown, so every cell is a spot of its own")
        placed = bool(np.all(np.isfinite(centres)))
        indices = lattice_indices(centres) if placed else np.full(centres.shape, -1, np.int64)
        return assemble_measured(
            **listed, names=cells.names, centres=centres, array_rc=indices, counts=counts, notes=notes
        )

    def _centres(self) -> Doubles:
        cells = _read_positions(self.path)
        if cells is None:
            raise CohortError(f"{self.path}: no obs columns {' and '.join(_COLUMNS)}")
        if self.row_first is None:
            return np.full_like(cells, np.nan)
        return np.ascontiguousarray(cells[:, ::-1]) if self.row_first else cells


def looks_like(root: Path) -> bool:
    """Whether the folder has this layout."""
    return any(_find_image(path) is not None and _has_cells(path) for path in sorted(root.glob("*.h5ad")))


def read_cohort(root: Path, reading: Reading) -> Cohort:
    """Lists the files of cells; reads positions and the size of the images, but no counts."""
    found = Listing()
    known = {path: _fits(path, _find_image(path)) for path in sorted(root.glob("*.h5ad")) if _has_cells(path)}
    for path, fits in known.items():
        found.add(*_describe(path, fits, known, reading))
    for path in sorted(root.glob("*.h5ad")):
        if path not in known:
            found.skip(
                path.stem, f"no cells: {path.name} has no obs x_pixel and y_pixel, or places its spots otherwise"
            )
    return found.cohort(root, "cells-h5ad")


def read_one(counts: Path, reading: Reading) -> Section | None:
    """The section of one file of cells, with the picture beside it."""
    if counts.suffix != ".h5ad" or not _has_cells(counts):
        return None
    known = {path: _fits(path, _find_image(path)) for path in sorted(counts.parent.glob("*.h5ad")) if _has_cells(path)}
    section, reason = _describe(counts, known[counts], known, reading)
    return replace(section, notes=(*section.notes, reason)) if reason else section


@dataclass(frozen=True)
class _Fits:
    """Which readings of the two columns put the cells inside the image."""

    row_first: bool
    column_first: bool
    said: str
    """What was looked at, for messages."""

    @property
    def decided(self) -> bool:
        return self.row_first != self.column_first


def _describe(path: Path, fits: _Fits, known: dict[Path, _Fits], reading: Reading) -> tuple[Section, str]:
    """The section, and why its image cannot serve (empty if it can)."""
    image, notes, reason = _find_image(path), [], ""
    row_first: bool | None = fits.row_first
    deciding = {other.row_first: p for p, other in known.items() if other.decided}
    if image is None:
        row_first = None
        reason = f"no image: {path.stem}.jpg, .png or .tif does not exist beside {path}"
    elif fits.decided:
        notes.append(f"{_name(row_first)}, because only so its cells lie inside {image.name} ({fits.said})")
    elif not fits.row_first:
        row_first, reason = None, f"its cells do not lie inside {image.name}: {fits.said}"
    elif len(deciding) == 1:
        row_first, other = next(iter(deciding.items()))
        notes.append(f"{_name(row_first)}, as in {other.name}; both readings lie inside {image.name}")
    else:
        row_first = None
        reason = f"its cells lie inside {image.name} whether x_pixel is column or row; {_SAY_WHICH}"
    spot_um = (reading.spot_um or SPOT_UM) if reading.mpp is not None else None
    if reading.mpp is None:
        notes.append(NO_PIXEL_SIZE)
    section = Section(
        name=path.stem,
        patient=None,
        slide=None if reason else image,
        counts=path,
        reader=CellsFile(path, row_first, reading.spot_um, reading.mpp),
        spot_diameter_um=spot_um,
        spot_pitch_um=spot_um,
        mpp_given=reading.mpp,
        metadata=_read_metadata(path.with_suffix(".json")),
        notes=tuple(notes),
    )
    return section, reason


def _name(row_first: bool | None) -> str:
    return f"x_pixel is the {'row' if row_first else 'column'} of the image"


def _fits(path: Path, image: Path | None) -> _Fits:
    cells = _read_positions(path)
    size = None if image is None else _read_size(image)
    if cells is None or size is None or not len(cells):
        return _Fits(False, False, "no image whose size can be read" if size is None else "no positions")
    shares = [float(np.mean(np.all((xy >= 0) & (xy <= size), axis=1))) for xy in (cells[:, ::-1], cells)]
    said = (
        f"{size[0]} x {size[1]} px; {shares[0]:.0%} inside if x_pixel is the row, {shares[1]:.0%} if it is the column"
    )
    return _Fits(shares[0] >= INSIDE, shares[1] >= INSIDE, said)


def _find_image(path: Path) -> Path | None:
    return next((p for p in (path.with_suffix(s) for s in IMAGE_SUFFIXES) if p.is_file()), None)


def _read_size(image: Path) -> tuple[int, int] | None:
    """Width and height from the header of a picture; None where Pillow does not know the format."""
    from PIL import Image

    # Pillow's limit guards web servers; only the header is read here.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(image) as opened:
            return opened.size
    except (OSError, SyntaxError):
        return None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _has_cells(path: Path) -> bool:
    """Whether positions stand in x_pixel and y_pixel, and nowhere better."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            columns = file["obs"] if "obs" in file and hasattr(file["obs"], "keys") else {}
            return all(c in columns for c in _COLUMNS) and not ("obsm" in file and "spatial" in file["obsm"])
    except OSError:
        return False


def _read_positions(path: Path) -> Doubles | None:
    """(n, 2) x_pixel, y_pixel as they stand in the file; None where they are no finite numbers."""
    import h5py
    from anndata.io import read_elem

    try:
        with h5py.File(path, "r") as file:
            cells = np.stack([np.asarray(read_elem(file["obs"][c]), dtype=np.float64) for c in _COLUMNS], axis=1)
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return cells if np.all(np.isfinite(cells)) else None


def _read_metadata(path: Path) -> dict[str, str]:
    """What the json says, as text; it decides nothing, so one that cannot be read is as good as none."""
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in stated.items() if v is not None} if isinstance(stated, dict) else {}
