"""Counts out of AnnData on disk (.h5ad, or a Zarr group): X, spot names, genes and, where present, coordinates.

Reads single elements, so pictures and derived layers in the file cost nothing; dense, CSR and CSC give the same. It
does not know which cohort the file belongs to, and takes no layer in place of X unless asked to, which it then says.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.cohorts.base import Measured, assemble_measured, lattice_indices, unique_genes
from genrag_cli.cohorts.controls import find_genes
from genrag_cli.errors import CohortError, GeneragError
from genrag_cli.types import Doubles, GeneNames, Ints, Strings

COUNTS_LAYER = "layers/counts"
_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensemblid", "ensembl")
_SYMBOL_COLUMNS = ("gene_symbols", "gene_symbol", "gene_name", "gene_names", "feature_name", "symbol")
_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{5,}")
_BLANK = ("", "nan", "none", "na", "<na>")
_DENSE_ROWS = 1024


@dataclass(frozen=True)
class CountsFile:
    """One AnnData file of raw counts."""

    path: Path
    needs_centres: bool = True
    """Whether a file without obsm['spatial'] is refused; otherwise its centres are NaN, and a note says so."""
    trusts_indices: bool = True
    """Whether obs array_row and array_col are the geometry; if not, indices are made from the coordinates."""
    whole_only: bool = False
    """Whether X must hold whole numbers. Where it does not, layers['counts'] is read if that does, and said."""
    genes_only: bool = False
    """Whether features that are no genes (controls of in situ panels, antibodies) are left out, and said."""
    element: str = "X"
    """What holds the counts: `X`, `layers/NAME`, or `raw/X` (with the genes of raw)."""

    def read_genes(self) -> GeneNames:
        """(G,) unique symbols, in the order of first occurrence."""
        with opened(self.path) as file:
            genes, columns, _ = self._genes(file)
        ids = None if genes.ids is None else genes.ids[columns]
        return unique_genes(genes.names[columns], ids)

    def files(self) -> tuple[Path, ...]:
        """The file, or every file of a Zarr group."""
        if self.path.is_dir():
            return tuple(sorted(p for p in self.path.rglob("*") if p.is_file()))
        return (self.path,)

    def load(self) -> Measured:
        """Reads counts, obs, var and obsm['spatial'].

        Raises:
            CohortError: for a file that is not AnnData, holds no raw counts, or lacks coordinates that are needed.
        """
        with opened(self.path) as file:
            names = read_index(file, "obs")
            genes, columns, left_out = self._genes(file)
            counts, notes = self._counts(file)
            centres = read_centres(file)
            array_rc = read_array_indices(file) if self.trusts_indices else None
        if counts.shape != (len(names), len(genes)):
            raise CohortError(
                f"{self.path}: {self.element} is {counts.shape}, for {len(names)} spots and {len(genes)} genes"
            )
        if left_out:
            counts = counts[:, columns]
            notes.extend(left_out)
        if centres is None and self.needs_centres:
            raise CohortError(
                f"{self.path}: no obsm['spatial'], so the spots have no place on the slide",
                "Put x, y of the centres in level-0 px of the slide there.",
            )
        if centres is None:
            centres = np.full((len(names), 2), np.nan)
            notes.append(f"{self.path.name} has no obsm['spatial']: the positions of its spots are unknown")
        elif len(centres) != len(names):
            raise CohortError(f"{self.path}: obsm['spatial'] has {len(centres)} rows, for {len(names)} spots")
        elif self.needs_centres:
            kept = self._placed(centres, notes)
            names, centres, counts = names[kept], centres[kept], counts[kept]
            array_rc = None if array_rc is None else array_rc[kept]
        if array_rc is None:
            array_rc = self._make_indices(centres, notes)
        return assemble_measured(
            source=self.path,
            names=names,
            centres=centres,
            array_rc=array_rc,
            counts=counts,
            genes=genes.names[columns],
            gene_ids=None if genes.ids is None else genes.ids[columns],
            notes=notes,
        )

    def _genes(self, file: Any) -> tuple[GeneNames, Ints, tuple[str, ...]]:
        """All features, the columns of those that count, and a note on the others."""
        var = "raw/var" if self.element.startswith("raw/") else "var"
        genes = read_gene_names(file, var)
        if not self.genes_only:
            return genes, np.arange(len(genes)), ()
        types = read_texts(file, f"{var}/feature_types") if "feature_types" in file[var] else None
        kept, notes = find_genes(genes.names, types)
        return genes, np.flatnonzero(kept), notes

    def _counts(self, file: Any) -> tuple[Any, list[str]]:
        """The matrix, (n, G) CSR, and what is to be said about it."""
        there = [e for e in dict.fromkeys((self.element, COUNTS_LAYER)) if e in file]
        if self.element not in there and not (self.whole_only and there):
            raise CohortError(f"{self.path}: not an AnnData file of counts, it has no {self.element}")
        chosen = there[0]
        matrix = _read_matrix(file[chosen])
        whole = _is_whole(matrix)
        if chosen == "X" and not whole and not self.whole_only and "uns" in file and "log1p" in file["uns"]:
            raise CohortError(
                f"{self.path}: X is log-transformed (uns['log1p'] is set and X holds fractions)",
                "Put raw counts in X.",
            )
        if whole or not self.whole_only:
            return matrix, ([] if chosen == self.element else [_instead(self.path, self.element, "is absent")])
        if chosen != COUNTS_LAYER and COUNTS_LAYER in there and _is_whole(layer := _read_matrix(file[COUNTS_LAYER])):
            return layer, [_instead(self.path, self.element, "holds values that are no counts")]
        found = "; raw.X holds whole numbers" if "raw/X" in file and _is_whole(_read_matrix(file["raw/X"])) else ""
        raise CohortError(
            f"{self.path}: {chosen} holds values that are no counts (fractions, negative or missing){found}",
            "Put raw counts in X, or in layers['counts'].",
        )

    def _placed(self, centres: Doubles, notes: list[str]) -> Ints:
        kept = np.flatnonzero(np.isfinite(centres).all(axis=1))
        if not len(kept) and len(centres):
            raise CohortError(f"{self.path}: no row of obsm['spatial'] holds numbers, so no spot has a place")
        if len(kept) < len(centres):
            lost = len(centres) - len(kept)
            notes.append(f"{lost} of {len(centres)} spots of {self.path.name} have no coordinates and are left out")
        return kept

    def _make_indices(self, centres: Doubles, notes: list[str]) -> Ints:
        if not np.all(np.isfinite(centres)):
            return np.full((len(centres), 2), -1, np.int64)
        why = (
            "has no array_row and array_col" if self.trusts_indices else "numbers rows and columns unlike its geometry"
        )
        notes.append(f"{self.path.name} {why}: indices are made from the coordinates")
        return lattice_indices(centres)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The groups of an AnnData file or Zarr group, open for reading.

    Raises:
        CohortError: where it does not exist, is neither, or has no obs and var.
    """
    if path.is_dir():
        import zarr

        try:
            file = zarr.open_group(str(path), mode="r")
        except (OSError, ValueError, KeyError) as error:
            raise CohortError(f"{path}: cannot be opened as Zarr ({error})") from error
    else:
        import h5py

        if not path.is_file():
            raise CohortError(f"{path}: no such file")
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise CohortError(f"{path}: cannot be opened as HDF5 ({error})") from error
    try:
        if missing := [key for key in ("obs", "var") if key not in file]:
            missing = [*(["X"] if "X" not in file else []), *missing]
            raise CohortError(f"{path}: not an AnnData file, it has no {', '.join(missing)}")
        yield file
    except GeneragError:
        raise
    except MemoryError as error:
        raise CohortError(f"{path}: more memory is needed to read it than there is", "Is it damaged?") from error
    except Exception as error:  # of damaged bytes h5py and anndata raise anything, and name neither file nor remedy
        found = str(error) or type(error).__name__
        raise CohortError(
            f"{path}: damaged, or not as AnnData writes it ({found})", "Copy or write it again."
        ) from error
    finally:
        if not path.is_dir():
            file.close()


def read_index(file: Any, axis: str) -> Strings:
    """(n,) names of the rows of `obs` or `var`.

    Raises:
        CohortError: for a file that keeps them as anndata did before version 0.7.
    """
    key = file[axis].attrs.get("_index") if hasattr(file[axis], "keys") else None
    if key is None:
        raise CohortError(
            f"{getattr(file, 'filename', None) or file.store.root}: {axis} has no index; the file is older than "
            "anndata 0.7",
            "Write it anew: anndata.read_h5ad(FILE).write_h5ad(FILE).",
        )
    from anndata.io import read_elem

    return np.array([str(v) for v in read_elem(file[axis][key])], dtype=np.str_)


def read_texts(file: Any, element: str) -> Strings:
    """A column as text, blank where it is missing."""
    from anndata.io import read_elem

    values = [str(v).strip() for v in read_elem(file[element])]
    return np.array(["" if v.lower() in _BLANK else v for v in values], dtype=np.str_)


def read_centres(file: Any) -> Doubles | None:
    """(n, 2) x, y out of obsm['spatial'], where it is there."""
    from anndata.io import read_elem

    if "obsm" not in file or "spatial" not in file["obsm"]:
        return None
    return np.asarray(read_elem(file["obsm"]["spatial"]), dtype=np.float64)[:, :2]


def read_array_indices(file: Any) -> Ints | None:
    """(n, 2) row, column out of obs; None where they are absent or no whole numbers."""
    from anndata.io import read_elem

    obs = file["obs"]
    if "array_row" not in obs or "array_col" not in obs:
        return None
    try:
        both = np.stack([np.asarray(read_elem(obs[c]), dtype=np.float64) for c in ("array_row", "array_col")], axis=1)
    except (TypeError, ValueError):
        return None
    return both.astype(np.int64) if np.all(np.isfinite(both)) and np.all(both == np.round(both)) else None


def read_gene_names(file: Any, var: str) -> GeneNames:
    """Symbols and ids, whichever of the two the index holds and a column completes; repeats are kept.

    An index of Ensembl ids (more than half of it) gives the ids, and the first column of symbols the names; a gene
    without a symbol goes by its id.
    """
    index = read_index(file, var)
    columns = set(file[var])
    if 2 * sum(bool(_ENSEMBL.match(name)) for name in index.tolist()) > len(index):
        column = next((c for c in _SYMBOL_COLUMNS if c in columns), None)
        symbols = index if column is None else read_texts(file, f"{var}/{column}")
        return GeneNames(np.where(symbols == "", index, symbols).astype(np.str_), index)
    column = next((c for c in _ID_COLUMNS if c in columns), None)
    if column is None:
        return GeneNames(index)
    ids = read_texts(file, f"{var}/{column}")
    return GeneNames(index, np.where(ids == index, "", ids).astype(np.str_))  # a symbol again is no id


def _read_matrix(node: Any) -> Any:
    from anndata.io import read_elem
    from scipy import sparse

    if hasattr(node, "keys"):  # a sparse matrix is a group
        read = read_elem(node)
        read.check_format(full_check=True)  # scipy believes indices, and reads and writes wherever they point
        return sparse.csr_matrix(read)
    # Row blocks: a dense whole-transcriptome X is twenty times the size of its non-zeros.
    blocks = [sparse.csr_matrix(node[i : i + _DENSE_ROWS]) for i in range(0, node.shape[0], _DENSE_ROWS)]
    return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix(node.shape)


def _is_whole(matrix: Any) -> bool:
    """Whether all values are whole numbers of 0 or more."""
    return bool(np.all((matrix.data >= 0) & (matrix.data == np.round(matrix.data)) & np.isfinite(matrix.data)))


def _instead(path: Path, element: str, why: str) -> str:
    return f"{path.name}: {element} {why}; the counts are those of layers['counts']"
