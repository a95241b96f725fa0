"""Counts out of an AnnData file (.h5ad): X, spot names, genes and, where present, coordinates.

Reads single elements, so pictures and derived layers in the file cost nothing. It does not know which cohort the file
belongs to, and takes no layer in place of X.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.cohorts.base import Measured, assemble_measured, lattice_indices, unique_genes
from genrag_cli.errors import CohortError
from genrag_cli.types import Doubles, GeneNames, Ints, Strings

_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensemblid", "ensembl")
_DENSE_ROWS = 1024


@dataclass(frozen=True)
class CountsFile:
    """One AnnData file of raw counts."""

    path: Path
    needs_centres: bool = True
    """Whether a file without obsm['spatial'] is refused; otherwise its centres are NaN, and a note says so."""
    trusts_indices: bool = True
    """Whether obs array_row and array_col are the geometry; if not, indices are made from the coordinates."""

    def read_genes(self) -> GeneNames:
        """(G,) unique symbols, in the order of first occurrence."""
        with _open(self.path) as file:
            return unique_genes(_index(file, "var"), _gene_ids(file))

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def load(self) -> Measured:
        """Reads X, obs, var and obsm['spatial'].

        Raises:
            CohortError: for a file that is not AnnData, holds no raw counts, or lacks coordinates that are needed.
        """
        with _open(self.path) as file:
            names, genes = _index(file, "obs"), _index(file, "var")
            counts = self._counts(file)
            ids = _gene_ids(file)
            centres = self._centres(file, len(names))
            array_rc, notes = self._array_indices(file, centres)
        if not np.all(np.isfinite(centres)):
            notes.append(f"{self.path.name} has no obsm['spatial']: the positions of its spots are unknown")
        if counts.shape != (len(names), len(genes)):
            raise CohortError(f"{self.path}: X is {counts.shape}, for {len(names)} spots and {len(genes)} genes")
        return assemble_measured(
            source=self.path,
            names=names,
            centres=centres,
            array_rc=array_rc,
            counts=counts,
            genes=genes,
            gene_ids=ids,
            notes=notes,
        )

    def _counts(self, file: Any) -> Any:
        from anndata.io import read_elem
        from scipy import sparse

        node = file["X"]
        if hasattr(node, "keys"):  # a sparse matrix is a group
            matrix = sparse.csr_matrix(read_elem(node))
        else:
            # Row blocks: a dense whole-transcriptome X is twenty times the size of its non-zeros.
            starts = range(0, node.shape[0], _DENSE_ROWS)
            blocks = [sparse.csr_matrix(node[i : i + _DENSE_ROWS]) for i in starts]
            matrix = sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix(node.shape)
        if "uns" in file and "log1p" in file["uns"] and not np.all(matrix.data == np.round(matrix.data)):
            raise CohortError(
                f"{self.path}: X is log-transformed (uns['log1p'] is set and X holds fractions)",
                "Put raw counts in X.",
            )
        return matrix

    def _centres(self, file: Any, n: int) -> Doubles:
        from anndata.io import read_elem

        if "obsm" in file and "spatial" in file["obsm"]:
            return np.asarray(read_elem(file["obsm"]["spatial"]), dtype=np.float64)[:, :2]
        if self.needs_centres:
            raise CohortError(f"{self.path}: no obsm['spatial'], so the spots have no place on the slide")
        return np.full((n, 2), np.nan)

    def _array_indices(self, file: Any, centres: Doubles) -> tuple[Ints, list[str]]:
        from anndata.io import read_elem

        obs = file["obs"]
        if self.trusts_indices and "array_row" in obs and "array_col" in obs:
            columns = [np.asarray(read_elem(obs[c]), dtype=np.float64) for c in ("array_row", "array_col")]
            return np.stack(columns, axis=1).astype(np.int64), []
        if not np.all(np.isfinite(centres)):
            return np.full((len(centres), 2), -1, np.int64), []
        why = (
            "has no array_row and array_col" if self.trusts_indices else "numbers rows and columns unlike its geometry"
        )
        return lattice_indices(centres), [f"{self.path.name} {why}: indices are made from the coordinates"]


def _open(path: Path) -> Any:
    import h5py

    if not path.is_file():
        raise CohortError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise CohortError(f"{path}: cannot be opened as HDF5 ({error})") from error
    if missing := [key for key in ("X", "obs", "var") if key not in file]:
        file.close()
        raise CohortError(f"{path}: not an AnnData file, it has no {', '.join(missing)}")
    return file


def _index(file: Any, axis: str) -> Strings:
    from anndata.io import read_elem

    key = file[axis].attrs.get("_index") if hasattr(file[axis], "keys") else None
    if key is None:
        raise CohortError(f"{file.filename}: {axis} has no index; the file is older than anndata 0.7")
    return np.array([str(v) for v in read_elem(file[axis][key])], dtype=np.str_)


def _gene_ids(file: Any) -> Strings | None:
    from anndata.io import read_elem

    column = next((c for c in _ID_COLUMNS if c in file["var"]), None)
    return None if column is None else np.array([str(v) for v in read_elem(file["var"][column])], dtype=np.str_)
