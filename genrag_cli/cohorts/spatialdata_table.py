"""The counts of one region of a SpatialData table, joined to its shapes by instance key.

Which slide a region lies on, and how, is decided elsewhere and stands in the reader's fields.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.cohorts import affine
from genrag_cli.cohorts.base import Measured, assemble_measured, lattice_indices, refuse_duplicates
from genrag_cli.cohorts.controls import GENE_EXPRESSION, find_genes
from genrag_cli.cohorts.h5ad import CountsFile, opened, read_array_indices, read_gene_names, read_index, read_texts
from genrag_cli.cohorts.ngff_systems import image_metadata
from genrag_cli.cohorts.pooling import pool
from genrag_cli.cohorts.shapes import Shapes, read_shapes, shape_files
from genrag_cli.cohorts.spot_positions import HEXAGONAL, fit_pitch
from genrag_cli.errors import CohortError
from genrag_cli.types import Doubles, GeneNames, Ints, Strings

_READ = ("X", "obs", "var", "obsm")


@dataclass(frozen=True, eq=False)
class Annotation:
    """The n rows of a table that annotate a region."""

    rows: Ints
    instances: Strings
    array_rc: Ints | None
    in_tissue: NDArray[np.bool_]


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
    technology: str
    pooled_um: float | None
    """Side of the squares to pool to; None: rows are spots."""
    asked_um: float | None
    """A side that was asked for and cannot be had, because the pixel size is unknown."""
    mpp: float | None
    bin_um: float
    """Side of the squares that rows are; 0 for cells."""

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
            CohortError: for a table that holds no raw counts, names that do not fit the shapes, or rows that lie
                beside the image.
        """
        if self.asked_um is not None and self.pooled_um is None:
            raise CohortError(
                f"{self.table}: cells cannot be pooled to spots of {self.asked_um:g} um, their pixel size is unknown",
                "Give um per px of the slide: --mpp, or mpp in a manifest (generag cohort scan).",
            )
        whole = CountsFile(self.table, needs_centres=False).load()
        annotation = read_annotation(self.table, self.region, self.region_key, self.instance_key)
        genes, controls = self._find_genes(whole.genes)
        # What it says of positions is about obsm, and not about the shapes.
        notes = [n for n in whole.notes if "spatial" not in n and "indices" not in n] + list(controls)
        rows, centres = self._place(annotation, whole.centres, notes)
        ids = None if whole.gene_ids is None else whole.gene_ids[genes]
        listed: dict[str, Any] = {"source": self.table, "genes": whole.genes[genes], "gene_ids": ids}
        kept = annotation.rows[rows]
        counts = whole.counts[kept][:, genes]
        if self.pooled_um is not None and self.mpp is not None:
            pooled = pool(counts, centres * self.mpp, self.pooled_um, unit_um=self.bin_um, source=self.table)
            what = f"bins of {self.bin_um:g} um" if self.bin_um else "cells"
            notes.append(f"{len(kept)} {what} are pooled to {len(pooled.rc)} squares of {self.pooled_um:g} um")
            return assemble_measured(
                **listed, names=pooled.names, centres=pooled.centres_um / self.mpp, array_rc=pooled.rc,
                counts=pooled.counts, notes=notes, lattice_pitch_px=self.pooled_um / self.mpp,
            )  # fmt: skip
        array_rc = None if annotation.array_rc is None else annotation.array_rc[rows]
        pitch = None
        if self.technology == "visium" and array_rc is not None:
            pitch = fit_pitch(array_rc, centres, HEXAGONAL)
        return assemble_measured(
            **listed, names=whole.names[kept], centres=centres,
            array_rc=lattice_indices(centres) if array_rc is None else array_rc,
            counts=counts, notes=notes, lattice_pitch_px=pitch,
        )  # fmt: skip

    def _find_genes(self, names: Strings) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
        """Genes among unique names: those with a column of gene expression, where the table tells types."""
        with opened(self.table) as file:
            if "feature_types" not in file["var"]:
                return find_genes(names)
            columns, types = read_gene_names(file, "var").names, read_texts(file, "var/feature_types")
        type_of = dict(zip(columns.tolist(), types.tolist(), strict=True))
        type_of.update({name: kind for name, kind in zip(columns.tolist(), types.tolist(), strict=True)
                        if kind == GENE_EXPRESSION})  # fmt: skip
        return find_genes(names, [type_of[name] for name in names.tolist()])

    def _place(self, annotation: Annotation, spatial: Doubles, notes: list[str]) -> tuple[Ints, Doubles]:
        """Rows of the annotation that have a place, and their centres in px."""
        n = len(annotation.rows)
        if not n:
            raise CohortError(f"{self.table}: no row whose obs[{self.region_key!r}] is {self.region!r}")
        if self.shapes is None:
            centres = spatial[annotation.rows]
            found = np.all(np.isfinite(centres), axis=1)
            lost = "have no obsm['spatial']"
        else:
            shapes = read_shapes(self.shapes)
            where = join_instances(annotation, shapes, self)
            found, centres = where >= 0, shapes.centres[where]
            lost = f"have no shape in {self.shapes.name}"
        if not found.any():
            raise CohortError(f"{self.table}: no row of region {self.region!r} has a place")
        if n_lost := np.count_nonzero(~found):
            notes.append(f"{n_lost} of {n} rows of {self.table.name} {lost} and are left out")
        if n_off := np.count_nonzero(found & ~annotation.in_tissue):
            notes.append(f"{n_off} of {n} rows of {self.table.name} are not in tissue and left out")
        rows = np.flatnonzero(found & annotation.in_tissue)
        if not len(rows):
            raise CohortError(f"{self.table}: no row of region {self.region!r} is in tissue")
        placed = affine.apply(self.to_px, centres[rows])
        if self.size is not None:
            inside = np.all((placed >= 0) & (placed <= self.size), axis=1)
            if np.mean(inside) < 0.5:
                raise CohortError(
                    f"{self.table}: {np.count_nonzero(~inside)} of {len(rows)} rows of region {self.region!r} lie "
                    f"outside the image {self.image} of {self.size[0]} x {self.size[1]} px",
                    "Correct the transformations of shapes and image, or name another slide in a manifest.",
                )
        return rows, placed


def join_instances(annotation: Annotation, shapes: Shapes, reader: SpatialTable) -> Ints:
    """(n,) rows of the shapes by instance key, -1 where there is none.

    Raises:
        CohortError: for instances that repeat, or none in common.
    """
    import pandas as pd

    refuse_duplicates(annotation.instances, "instance", f"{reader.table}, region {reader.region}")
    refuse_duplicates(shapes.index, "shape", reader.shapes)
    where: Ints = pd.Index(shapes.index).get_indexer(pd.Index(annotation.instances)).astype(np.int64)
    if len(where) and not np.any(where >= 0):
        raise CohortError(
            f"no instance in common: {annotation.instances[0]!r} in {reader.table} (obs[{reader.instance_key!r}]), "
            f"{shapes.index[0]!r} in {reader.shapes}"
            if len(shapes.index)
            else f"{reader.shapes} holds no shapes",
            "Rows of a table are joined to shapes by obs[instance_key] and the shapes' index.",
        )
    return where


def has_array_indices(table: Path) -> bool:
    """Whether obs has array_row and array_col; opens no values."""
    return all((table / "obs" / column).exists() for column in ("array_row", "array_col"))


def read_annotation(table: Path, region: str, region_key: str, instance_key: str) -> Annotation:
    """The rows of a region.

    Raises:
        CohortError: for a table without the two columns.
    """
    from anndata.io import read_elem

    with opened(table) as file:
        if missing := [key for key in (region_key, instance_key) if key not in file["obs"]]:
            raise CohortError(f"{table}: no obs[{missing[0]!r}], which its metadata name")
        rows = np.flatnonzero(np.array([str(v) == region for v in read_elem(file["obs"][region_key])], dtype=bool))
        if instance_key == file["obs"].attrs.get("_index"):
            instances = read_index(file, "obs")
        else:
            instances = np.array([str(v) for v in read_elem(file["obs"][instance_key])], dtype=np.str_)
        array_rc = read_array_indices(file)
        in_tissue = np.ones(len(rows), dtype=bool)
        if array_rc is not None and "in_tissue" in file["obs"]:
            in_tissue = np.asarray(read_elem(file["obs"]["in_tissue"]))[rows].astype(np.int64) != 0
    return Annotation(rows, instances[rows], None if array_rc is None else array_rc[rows], in_tissue)


def find_lattice(
    annotation: Annotation, shapes: Shapes, to_px: affine.Affine, neighbours: Sequence[tuple[int, int]]
) -> float | None:
    """The pitch in px of a lattice with these neighbours, where array indices and positions show one."""
    import pandas as pd

    if annotation.array_rc is None:
        return None
    where = (
        pd.Index(shapes.index).get_indexer(pd.Index(annotation.instances))
        if len(set(shapes.index)) == len(shapes.index)
        else []
    )
    found = np.asarray(where) >= 0
    if not np.any(found):
        return None
    return fit_pitch(
        annotation.array_rc[found], affine.apply(to_px, shapes.centres[np.asarray(where)[found]]), neighbours
    )
