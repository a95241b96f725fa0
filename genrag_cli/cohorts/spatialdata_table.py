"""The counts of one region of a SpatialData table, joined to its shapes by instance key.

Which slide a region lies on, and how, is decided elsewhere and stands in the reader's fields.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genrag_cli.cohorts import affine
from genrag_cli.cohorts.base import Measured, assemble_measured, lattice_indices, refuse_duplicates
from genrag_cli.cohorts.controls import GENE_EXPRESSION, find_genes
from genrag_cli.cohorts.h5ad import CountsFile, opened, read_array_indices, read_centres, read_gene_names, read_texts
from genrag_cli.cohorts.ngff_systems import image_metadata
from genrag_cli.cohorts.pooling import pool
from genrag_cli.cohorts.shapes import read_shapes, shape_files
from genrag_cli.cohorts.spot_positions import HEXAGONAL, fit_pitch
from genrag_cli.errors import CohortError
from genrag_cli.types import Doubles, GeneNames, Ints, Strings

_READ = ("X", "obs", "var", "obsm")
_MOST_BESIDE = 0.5
"""Share of rows beside the image from which the transformations cannot be right; a few may lie off a crop."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """The n rows of a region, with or without a place."""

    rows: Ints
    centres: Doubles
    array_rc: Ints | None
    in_tissue: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Placed:
    """The n rows of a table that have a place."""

    rows: Ints
    centres: Doubles
    """(n, 2) level-0 px of the slide."""
    array_rc: Ints | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class SpatialTable:
    """One region of one table."""

    table: Path
    region: str
    region_key: str
    instance_key: str
    shapes: Path | None
    """None: the region's element is absent, and obsm['spatial'] is read as it stands."""
    image: Path | None
    """Image of the store that `to_px` leads to."""
    to_px: affine.Affine
    """From coordinates of the shapes to level-0 px of the slide."""
    size: tuple[int, int] | None
    """Width and height of the image, where it is known."""
    bin_um: float
    """Side of the squares that rows are; 0 for spots and cells."""
    mpp: float | None
    """um per px of the slide."""
    pooled_um: float | None = None
    """Side of the squares to pool to; None: rows are spots."""
    asked: bool = False
    """Whether single cells will not do where the pixel size is unknown."""
    hexagonal: bool = False
    """Whether array indices and positions show Visium's lattice."""

    def read_genes(self) -> GeneNames:
        """(G,) unique symbols, controls left out."""
        listed = CountsFile(self.table).read_genes()
        genes, _ = self._find_genes(listed.names)
        return GeneNames(listed.names[genes], None if listed.ids is None else listed.ids[genes])

    def files(self) -> tuple[Path, ...]:
        """The table without what is not read, the shapes, and what says how the image lies."""
        parts = [self.table / part for part in _READ]
        held = [p for part in parts if part.is_dir() for p in sorted(part.rglob("*")) if p.is_file()]
        placing = [
            *(shape_files(self.shapes) if self.shapes else ()),
            *(image_metadata(self.image) if self.image else ()),
        ]
        return (*held, *placing)

    def load(self) -> Measured:
        """Reads the region's rows, places them, and pools cells and bins.

        Raises:
            CohortError: for a table that holds no raw counts, names that do not fit the shapes, rows that lie beside
                the image, or a spot size that was asked for where the pixel size is unknown.
        """
        if self.pooled_um is not None and self.mpp is None and self.asked:
            raise CohortError(
                f"{self.table}: no pooling to spots of {self.pooled_um:g} um, the pixel size is unknown",
                "Give um per px of the slide: --mpp, or mpp in a manifest (generag cohort scan).",
            )
        whole, placed = CountsFile(self.table, needs_centres=False).load(), self.read_positions()
        genes, controls = self._find_genes(whole.genes)
        # What it says of positions is about obsm, and not about the shapes.
        notes = [n for n in whole.notes if "obsm['spatial']" not in n and "indices are made" not in n]
        notes += [*controls, *placed.notes]
        counts, names = whole.counts[placed.rows][:, genes], whole.names[placed.rows]
        centres, array_rc, pitch = placed.centres, placed.array_rc, None
        if self.pooled_um is not None and self.mpp is not None:
            pooled = pool(counts, centres * self.mpp, self.pooled_um, unit_um=self.bin_um, source=self.table)
            what = f"bins of {self.bin_um:g} um" if self.bin_um else "cells"
            notes.append(f"{len(names)} {what} are pooled to {len(pooled.rc)} squares of {self.pooled_um:g} um")
            counts, names, array_rc = pooled.counts, pooled.names, pooled.rc
            centres, pitch = pooled.centres_um / self.mpp, self.pooled_um / self.mpp
        elif self.pooled_um is not None:
            notes.append(f"{self.table.name}: the pixel size is unknown, so every cell is a spot of its own")
        if self.hexagonal and array_rc is not None:
            pitch = fit_pitch(array_rc, centres, HEXAGONAL)
        return assemble_measured(
            source=self.table,
            names=names,
            centres=centres,
            array_rc=lattice_indices(centres) if array_rc is None else array_rc,
            counts=counts,
            genes=whole.genes[genes],
            gene_ids=None if whole.gene_ids is None else whole.gene_ids[genes],
            notes=notes,
            lattice_pitch_px=pitch,
        )

    def read_positions(self) -> Placed:
        """The region's rows in tissue, joined to the shapes by name, and where they lie; reads no counts.

        Raises:
            CohortError: for rows and shapes that share no name, and rows that lie beside the image.
        """
        found = self._read_rows()
        n, notes = len(found.rows), []
        if not n:
            raise CohortError(f"{self.table}: no row whose obs[{self.region_key!r}] is {self.region!r}")
        placed = np.all(np.isfinite(found.centres), axis=1)
        if n_lost := np.count_nonzero(~placed):
            why = f"shape in {self.shapes.name}" if self.shapes else "obsm['spatial']"
            notes.append(f"{n_lost} of {n} rows of {self.table.name} have no {why} and are left out")
        if n_off := np.count_nonzero(placed & ~found.in_tissue):
            notes.append(f"{n_off} of {n} rows of {self.table.name} are not in tissue and left out")
        kept = placed & found.in_tissue
        if not kept.any():
            raise CohortError(f"{self.table}: no row of region {self.region!r} has a place in tissue")
        centres = affine.apply(self.to_px, found.centres[kept])
        beside = np.any((centres < 0) | (centres > (self.size or (np.inf, np.inf))), axis=1)
        if self.size is not None and beside.mean() > _MOST_BESIDE:
            raise CohortError(
                f"{self.table}: {np.count_nonzero(beside)} of {len(beside)} rows of region {self.region!r} lie beside "
                f"the image {self.image} of {self.size[0]} x {self.size[1]} px",
                "Correct the transformations of shapes and image.",
            )
        array_rc = None if found.array_rc is None else found.array_rc[kept]
        return Placed(found.rows[kept], centres, array_rc, tuple(notes))

    def _read_rows(self) -> _Rows:
        from anndata.io import read_elem

        with opened(self.table) as file:
            obs = file["obs"]
            if missing := [key for key in (self.region_key, self.instance_key) if key not in obs]:
                raise CohortError(f"{self.table}: no obs[{missing[0]!r}], which its metadata name")
            own = np.array([str(v) == self.region for v in read_elem(obs[self.region_key])], dtype=np.bool_)
            rows = np.flatnonzero(own)
            instances = np.array([str(v) for v in read_elem(obs[self.instance_key])], dtype=np.str_)[rows]
            array_rc = read_array_indices(file)
            in_tissue = np.ones(len(rows), dtype=np.bool_)
            if array_rc is not None and "in_tissue" in obs:
                in_tissue = np.asarray(read_elem(obs["in_tissue"]), dtype=np.float64)[rows] != 0
            spatial = read_centres(file)
        if self.shapes is not None:
            centres = self._join(instances)
        elif spatial is None:
            raise CohortError(f"{self.table}: neither shapes {self.region!r} nor obsm['spatial'] place its rows")
        else:
            centres = spatial[rows]
        return _Rows(rows, centres, None if array_rc is None else array_rc[rows], in_tissue)

    def _join(self, instances: Strings) -> Doubles:
        """(n, 2) centres of the shapes by instance key, NaN where there is none."""
        import pandas as pd

        assert self.shapes is not None
        shapes = read_shapes(self.shapes)
        refuse_duplicates(instances, "instance", f"{self.table}, region {self.region!r}")
        refuse_duplicates(shapes.index, "shape", self.shapes)
        where = pd.Index(shapes.index).get_indexer(pd.Index(instances))
        if len(where) and not np.any(where >= 0):
            held = f"{shapes.index[0]!r} in {self.shapes}" if len(shapes.index) else f"{self.shapes} is empty"
            raise CohortError(
                f"no instance in common: {instances[0]!r} in {self.table} (obs[{self.instance_key!r}]), {held}",
                "Rows of a table are joined to shapes by obs[instance_key] and the shapes' index.",
            )
        centres = np.full((len(where), 2), np.nan)
        centres[where >= 0] = shapes.centres[where[where >= 0]]
        return centres

    def _find_genes(self, names: Strings) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
        """Genes among unique names: those with a column of gene expression, where the table tells types."""
        with opened(self.table) as file:
            if "feature_types" not in file["var"]:
                return find_genes(names)
            columns, types = read_gene_names(file, "var").names, read_texts(file, "var/feature_types")
        type_of: dict[str, str] = {}
        for name, kind in zip(columns.tolist(), types.tolist(), strict=True):
            if type_of.get(name) != GENE_EXPRESSION:  # columns of one name are summed into one
                type_of[name] = kind
        return find_genes(names, [type_of[name] for name in names.tolist()])


def has_array_indices(table: Path) -> bool:
    """Whether obs has array_row and array_col; opens no values."""
    return all((table / "obs" / column).exists() for column in ("array_row", "array_col"))
