"""Xenium Onboard Analysis outputs: cells with their counts, pooled to square spots, and the H&E image taken afterwards.

Positions are um on the morphology image. The H&E image is another picture of the section, scanned after the run, and
lies on it as an alignment file says: a 3 x 3 matrix without a header that Xenium Explorer exports. What is relied on
(10x, "How can I convert coordinates between H&E image and Xenium data"; spatialdata-io does the same): it takes px of
the full-resolution H&E image to px of the morphology image, which are `pixel_size` um of experiment.xenium. So cells
take the inverse way. Turns and mirror images are allowed and change no distance; a shear is refused. An H&E image
without such a file is not usable. The module looks at no pixels, and patients are nowhere stated.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.cohorts import affine
from genrag_cli.cohorts.base import Cohort, Measured, Reading, Section, assemble_measured, unique_genes
from genrag_cli.cohorts.controls import find_genes
from genrag_cli.cohorts.listing import Listing, read_json
from genrag_cli.cohorts.pooling import pool
from genrag_cli.cohorts.slide_beside import SUFFIXES
from genrag_cli.cohorts.technologies import POOLED_UM, name_species
from genrag_cli.cohorts.tenx import join_barcodes, matrix_files, read_features, read_matrix
from genrag_cli.errors import CohortError
from genrag_cli.types import Doubles, GeneNames, Strings

LAYOUT = "[outs/]experiment.xenium with cell_feature_matrix(.h5) and cells.parquet or cells.csv.gz"
"""Side of the squares that cells are pooled to by default, as HEST-1k pools Xenium."""
_EXPERIMENT, _PANEL = "experiment.xenium", "gene_panel.json"
_MATRICES = ("cell_feature_matrix.h5", "cell_feature_matrix")
_CELLS = ("cells.parquet", "cells.csv.gz", "cells.csv")
_COLUMNS = ("cell_id", "x_centroid", "y_centroid")
_UNSTATED = ("", "n/a", "na", "unknown")
_WORDS = re.compile(r"[^a-z0-9&]+")
_HE_WORDS = {"he", "h&e", "hne", "hande"}
_ENDING = re.compile(r"(\.ome)?\.[^.]+$", re.IGNORECASE)
_UNPLACED = "positions are px of the morphology image"
_ALIGNMENTS = re.compile(r"alignment|matrix\.csv$")


@dataclass(frozen=True)
class XeniumCells:
    """The cells of one run, pooled to squares along the axes of the morphology image."""

    matrix: Path
    cells: Path
    experiment: Path | None
    """Says the pixel size of the morphology image; None where it is absent, then positions count in um."""
    alignment: Path | None
    """Takes px of the slide to px of the morphology image; None: positions are px of the morphology image."""
    spot_um: float

    def read_genes(self) -> GeneNames:
        """(G,) genes, without controls and other features."""
        features = read_features(self.matrix)
        genes, _ = find_genes(features.names, features.types)
        return unique_genes(features.names[genes], features.ids[genes])

    def files(self) -> tuple[Path, ...]:
        """Matrix, cells, and what places them."""
        placing = [path for path in (self.experiment, self.alignment) if path is not None]
        return (*matrix_files(self.matrix), self.cells, *placing)

    def load(self) -> Measured:
        """Joins counts and cells by name, pools them, and places the squares on the slide."""
        matrix, (names, xy_um) = read_matrix(self.matrix), _read_cells(self.cells)
        rows, said = join_barcodes(matrix.barcodes, names, source=self.matrix, other=self.cells)
        notes = list(said)
        kept = rows >= 0
        kept[kept] = np.all(np.isfinite(xy_um[rows[kept]]), axis=1)
        if not kept.any():
            raise CohortError(f"{self.cells}: no cell of {self.matrix} has a position")
        if n_lost := np.count_nonzero(~kept):
            notes.append(f"{n_lost} of {len(kept)} cells of {self.matrix.name} have no position and are left out")
        if n_bare := len(names) - np.count_nonzero(kept):
            notes.append(f"{n_bare} of {len(names)} cells of {self.cells.name} have no counts")
        genes, controls = find_genes(matrix.features.names, matrix.features.types)
        pooled = pool(matrix.counts[kept][:, genes], xy_um[rows[kept]], self.spot_um, source=self.matrix)
        notes.append(f"{np.count_nonzero(kept)} cells are pooled to {len(pooled.rc)} squares of {self.spot_um:g} um")
        to_slide, mpp = self._placement()
        return assemble_measured(
            source=self.matrix,
            names=pooled.names,
            centres=affine.apply(to_slide, pooled.centres_um),
            array_rc=pooled.rc,
            counts=pooled.counts,
            genes=matrix.features.names[genes],
            gene_ids=matrix.features.ids[genes],
            notes=[*notes, *controls],
            lattice_pitch_px=self.spot_um / mpp,
        )

    def _placement(self) -> tuple[affine.Affine, float]:
        """From um on the morphology image to px of the slide; and um per px of the slide."""
        pixel_size = _read_pixel_size(self.experiment) if self.experiment else None
        to_px = (1 / (pixel_size or 1.0), 0.0, 0.0, 0.0, 1 / (pixel_size or 1.0), 0.0)
        if self.alignment is None:
            return to_px, pixel_size or 1.0
        alignment = read_alignment(self.alignment)
        return affine.compose([to_px, affine.invert(alignment)]), (pixel_size or 1.0) * affine.length_scale(alignment)


def read_alignment(path: Path) -> affine.Affine:
    """The map from px of the H&E image to px of the morphology image.

    Raises:
        CohortError: for a file that holds no 3 x 3 matrix, or one that shears.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split()
        found = affine.from_matrix([[float(cell) for cell in line.split(",")] for line in lines])
        affine.length_scale(found)
    except (OSError, ValueError) as error:
        raise CohortError(f"{path}: cannot be read as an alignment, 3 rows of 3 numbers ({error})") from error
    except CohortError as error:
        raise CohortError(f"{path}: {error.message}", error.hint) from error
    return found


def looks_like(root: Path) -> bool:
    """Whether the folder is such an output, or holds some."""
    return bool(_section_folders(root))


def read_cohort(root: Path, reading: Reading) -> Cohort:
    """Lists the runs of a folder, which may itself be one; opens no counts."""
    found = Listing()
    for folder in sorted(_section_folders(root)):
        try:
            found.add(*_describe(folder, reading))
        except CohortError as error:
            found.skip(_name(folder), error)
    return found.cohort(root, "xenium")


def read_one(counts: Path, reading: Reading) -> Section | None:
    """The section of one cell-feature matrix, or of an output's folder.

    Raises:
        CohortError: for an output that lacks its counts or cells, or holds damaged metadata.
    """
    folder = counts.parent if counts.name in _MATRICES else counts
    return _describe(folder, reading, counts)[0] if _is_section(folder) else None


def _section_folders(root: Path) -> list[Path]:
    """`root`, its outs/, or those of its children."""
    if own := _outs(root):
        return [own]
    return [outs for child in root.iterdir() if child.is_dir() and (outs := _outs(child))]


def _outs(folder: Path) -> Path | None:
    return next((f for f in (folder, folder / "outs") if _is_section(f)), None)


def _is_section(folder: Path) -> bool:
    if (folder / _EXPERIMENT).is_file():
        return True
    return _first(folder, _MATRICES) is not None and _first(folder, _CELLS) is not None


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _name(folder: Path) -> str:
    whole = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links and lose their names
    return whole.parent.name if whole.name == "outs" else whole.name


def _describe(folder: Path, reading: Reading, counts: Path | None = None) -> tuple[Section, str]:
    """The section of one folder, and what it lacks where it has no slide."""
    matrix = counts if counts is not None and counts.name in _MATRICES else _first(folder, _MATRICES)
    cells = _first(folder, _CELLS)
    if matrix is None or cells is None:
        lacking = f"no {' or '.join(_MATRICES)}" if matrix is None else f"no {', '.join(_CELLS)}"
        raise CohortError(f"{lacking} in {folder}")
    experiment = folder / _EXPERIMENT if (folder / _EXPERIMENT).is_file() else None
    facts = {} if experiment is None else read_json(experiment)
    slide, alignment, lacking = _find_he(folder)
    mpp = None
    if slide is not None and alignment is not None:
        try:
            mpp = _aligned_mpp(folder, experiment, alignment)
        except CohortError as error:
            lacking = f"H&E image {slide.name} cannot be placed: {error.message}"
    if lacking:
        slide = alignment = None
    species, notes = _read_species(facts, folder / _PANEL)
    if slide is None:
        notes.append(f"{_UNPLACED}: {lacking}")
    spot_um = reading.spot_um or POOLED_UM["xenium"]
    section = Section(
        name=_name(folder),
        patient=None,
        slide=slide,
        counts=counts or matrix,
        reader=XeniumCells(matrix, cells, experiment, alignment, spot_um),
        technology="xenium",
        species=species,
        spot_diameter_um=spot_um,
        spot_pitch_um=spot_um,
        pixel_size_candidates=(("xenium alignment", mpp),) if mpp is not None and slide is not None else (),
        metadata={k: str(v) for k, v in facts.items() if isinstance(v, str | int | float)},
        notes=tuple(notes),
    )
    return section, lacking


def align(section: Section, alignment: Path) -> Section:
    """The same section with its cells placed by another alignment file, for a slide that a manifest names.

    Raises:
        CohortError: for a file that is no alignment, or a run that does not say its pixel size.
    """
    reader = section.reader
    assert isinstance(reader, XeniumCells)
    mpp = _aligned_mpp(reader.matrix.parent, reader.experiment, alignment)
    return dataclasses.replace(
        section,
        reader=dataclasses.replace(reader, alignment=alignment),
        pixel_size_candidates=(("xenium alignment", mpp),),
        notes=tuple(note for note in section.notes if not note.startswith(_UNPLACED)),
    )


def _aligned_mpp(folder: Path, experiment: Path | None, alignment: Path) -> float:
    """um per px of the slide that an alignment is for."""
    scale = affine.length_scale(read_alignment(alignment))
    pixel_size = _read_pixel_size(experiment) if experiment else None
    if pixel_size is None:
        raise CohortError(f"no {_EXPERIMENT} in {folder}, which says the pixel size that {alignment} counts in")
    return pixel_size * scale


def _find_he(folder: Path) -> tuple[Path | None, Path | None, str]:
    """The H&E image, its alignment, and why there is not both."""
    name, outs = _name(folder), Path(os.path.abspath(folder))  # noqa: PTH100
    home = outs.parent if outs.name == "outs" else outs
    stem = re.sub(r"_(xe_)?outs$", "", name)
    # 10x hands out NAME_he_image.ome.tif beside the folder NAME_outs.
    beside = [path for path in _files(home.parent) if path.name.startswith(f"{stem}_")]
    files = [*_files(outs), *(_files(home) if home != outs else ()), *beside]
    images = [p for p in files if p.suffix.lower() in SUFFIXES and _HE_WORDS & _words(p)]
    tables = [p for p in files if p.suffix.lower() == ".csv" and _ALIGNMENTS.search(p.name.lower())]
    tables = [p for p in tables if "if" not in _words(p)]
    pairs = [(i, t) for i in images for t in tables if t.name.startswith(_ENDING.sub("", i.name))]
    if not pairs and len(images) == len(tables) == 1:
        pairs = [(images[0], tables[0])]
    if len(pairs) == 1:
        return (*pairs[0], "")
    if not images:
        return None, None, f"no H&E image: looked for names such as *_he_image.ome.tif in {home} and {stem}_* beside it"
    shown = ", ".join(path.name for path in images)
    if pairs or len(images) > 1:
        return None, None, f"several images or alignments could be its H&E image: {shown}; name one in a manifest"
    return images[0], None, (
        f"H&E image {shown} has no alignment file (*imagealignment*.csv, as Xenium Explorer exports it), so where its "
        "cells lie is unknown"
    )  # fmt: skip


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError:  # the folder above may be nobody's business
        return []


def _words(path: Path) -> set[str]:
    return set(_WORDS.split(path.name.lower()))


def _read_pixel_size(experiment: Path) -> float:
    stated = read_json(experiment).get("pixel_size")
    if isinstance(stated, int | float) and 0 < stated < math.inf:
        return float(stated)
    raise CohortError(f"{experiment}: pixel_size is {stated!r}, not um per px of the morphology image")


def _read_species(facts: dict[str, Any], panel: Path) -> tuple[str | None, list[str]]:
    """What experiment and gene panel state, where they agree."""
    stated = {_EXPERIMENT: facts.get("panel_organism")}
    if panel.is_file():
        try:
            stated[_PANEL] = read_json(panel)["payload"]["panel"].get("species")
        except (CohortError, KeyError, TypeError, AttributeError):
            stated[_PANEL] = None  # the panel's genes come from the matrix, so nothing is lost
    known = {file: text.strip().lower() for file, text in stated.items() if isinstance(text, str)}
    known = {file: name_species(text) for file, text in known.items() if text not in _UNSTATED}
    if len(set(known.values())) > 1:
        found = " and ".join(f"{text} ({file})" for file, text in known.items())
        return None, [f"the species is stated as {found}, so neither is taken"]
    return next(iter(known.values()), None), []


def _read_cells(path: Path) -> tuple[Strings, Doubles]:
    """(m,) names and (m, 2) x, y in um."""
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path, columns=list(_COLUMNS))
        else:
            frame = pd.read_csv(path, usecols=list(_COLUMNS), dtype={"cell_id": str}, na_filter=True)
        xy = frame[list(_COLUMNS[1:])].to_numpy(dtype=np.float64)
    except (OSError, EOFError, KeyError, ValueError, pd.errors.ParserError) as error:
        raise CohortError(f"{path}: cannot be read as a table of cells with {', '.join(_COLUMNS)} ({error})") from error
    # Numbers in releases before 1.3, text since, bytes in some Parquet files.
    names = [v.decode() if isinstance(v, bytes) else str(v) for v in frame["cell_id"].tolist()]
    return np.array(names, dtype=np.str_), xy
