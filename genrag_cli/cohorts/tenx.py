"""10x feature-barcode matrices: HDF5 (a group `matrix`, or one per genome in Cell Ranger 2) and MTX folders.

Gives barcodes, features and counts as they stand in the files. It does not know where a barcode lies; readers of
Space Ranger and Xenium outputs do.
"""

import gzip
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.cohorts.base import refuse_duplicates
from genrag_cli.errors import CohortError
from genrag_cli.types import Ints, Strings

GENE_EXPRESSION = "Gene Expression"
_SUFFIX = re.compile(r"-\d+$")
# What h5py, gzip and the MTX parser raise for damaged files.
_DAMAGE = (OSError, EOFError, KeyError, RuntimeError, TypeError, ValueError, OverflowError, zlib.error)


@dataclass(frozen=True, eq=False)
class Features:
    """The G columns of a matrix."""

    names: Strings
    """(G,) symbols; the id where a feature has no symbol. They may repeat."""
    ids: Strings
    """(G,) stable ids."""
    types: Strings | None
    """(G,) `Gene Expression`, `Antibody Capture`, ...; None where the file knows genes only."""


@dataclass(frozen=True, eq=False)
class TenxMatrix:
    """One matrix, a row per barcode."""

    barcodes: Strings
    features: Features
    counts: Any
    """(n, G) scipy CSR, values as stored."""


def matrix_files(path: Path) -> tuple[Path, ...]:
    """The files of a matrix: the HDF5 file itself, or the three of an MTX folder.

    Raises:
        CohortError: for a folder that lacks one of the three or holds one twice.
    """
    if not path.is_dir():
        return (path,)
    features = ("features.tsv.gz", "features.tsv", "genes.tsv.gz", "genes.tsv")
    return tuple(
        _one_of(path, names)
        for names in (("matrix.mtx.gz", "matrix.mtx"), ("barcodes.tsv.gz", "barcodes.tsv"), features)
    )


def read_features(path: Path) -> Features:
    """The features of an HDF5 file or an MTX folder, without the counts.

    Raises:
        CohortError: for a file that is damaged or no 10x matrix.
    """
    if path.is_dir():
        return _features_of_table(matrix_files(path)[2])
    with _open(path) as file:
        try:
            return _features_of_group(_group(file, path))
        except _DAMAGE as error:
            raise CohortError(f"{path}: its features cannot be read ({error})") from error


def read_genomes(path: Path) -> tuple[str, ...]:
    """The genomes that an HDF5 file names; none for an MTX folder, which does not tell.

    Raises:
        CohortError: for a file that is damaged or no 10x matrix.
    """
    if path.is_dir():
        return ()
    with _open(path) as file:
        if "matrix" not in file:
            return tuple(file)
        try:
            return tuple(sorted(set(_text(file["matrix/features/genome"][:]).tolist()) - {""}))
        except KeyError:
            return ()
        except _DAMAGE as error:
            raise CohortError(f"{path}: its features cannot be read ({error})") from error


def choose_genes(features: Features, source: Path) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """(G,) which features are genes, and what a person should know about the others.

    Raises:
        CohortError: where there are features and none is a gene.
    """
    if features.types is None:
        return np.ones(len(features.names), dtype=np.bool_), ()
    kept: NDArray[np.bool_] = features.types == GENE_EXPRESSION
    others = Counter(features.types[~kept].tolist())
    shown = ", ".join(f"{n} {kind or 'of no type'}" for kind, n in sorted(others.items()))
    if others and not kept.any():
        raise CohortError(f"{source}: no feature of type {GENE_EXPRESSION!r}, only {shown}")
    return kept, (f"features of {source.name} other than genes are left out: {shown}",) if others else ()


def read_matrix(path: Path) -> TenxMatrix:
    """Reads an HDF5 file or an MTX folder whole; the counts stay sparse.

    Raises:
        CohortError: for a file that is damaged, no 10x matrix, or holds one matrix per genome of several.
    """
    features = read_features(path)
    barcodes, counts = _read_folder(path) if path.is_dir() else _read_h5(path)
    if counts.shape != (len(barcodes), len(features.names)):
        raise CohortError(
            f"{path}: the matrix has {counts.shape[1]} features x {counts.shape[0]} barcodes, "
            f"for {len(features.names)} features and {len(barcodes)} barcodes"
        )
    return TenxMatrix(barcodes, features, counts)


def join_barcodes(barcodes: Strings, known: Strings, *, source: Path, other: Path) -> tuple[Ints, tuple[str, ...]]:
    """Finds barcodes in another list by name.

    Only where no barcode is found as it stands, the numbers behind a dash ("-1") are cut from both sides, and then no
    two barcodes of a side may become the same.

    Args:
        barcodes: (n,) to find.
        known: (m,) to find them in.
        source: file of `barcodes`, for messages.
        other: file of `known`.

    Returns:
        (n,) index into `known`, -1 where it is not there; and what a person should know.

    Raises:
        CohortError: for barcodes that repeat, none in common, or a cut that makes two the same.
    """
    import pandas as pd

    left, right = pd.Index(barcodes), pd.Index(known)
    for index, file in ((left, source), (right, other)):
        if not index.is_unique:
            refuse_duplicates(index.to_numpy(dtype=np.str_), "barcode", file)
    rows: Ints = right.get_indexer(left).astype(np.int64)
    if (rows >= 0).any() or not len(left) or not len(right):
        return rows, ()
    left, right = (pd.Index([_SUFFIX.sub("", name) for name in index]) for index in (left, right))
    example = f"{str(barcodes[0])!r} in {source}, {str(known[0])!r} in {other}"
    if not left.intersection(right).size:
        raise CohortError(f"no barcode in common: {example}", "Both files must be of the same run and bin size.")
    if not (left.is_unique and right.is_unique):
        raise CohortError(
            f"barcodes agree only without the number behind the dash, and then several are the same: {example}",
            "Give the matrix of one capture area, not one of several joined.",
        )
    return right.get_indexer(left).astype(np.int64), (
        f"barcodes are matched without the number behind the dash: {example}",
    )


def _open(path: Path) -> Any:
    import h5py

    if not path.is_file():
        raise CohortError(f"{path}: no such file")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise CohortError(f"{path}: cannot be opened as HDF5 ({error})") from error


def _group(file: Any, path: Path) -> Any:
    if "matrix" in file:
        return file["matrix"]
    genomes = [name for name, group in file.items() if hasattr(group, "keys") and "barcodes" in group]
    if len(genomes) == 1:
        return file[genomes[0]]
    if genomes:
        raise CohortError(f"{path}: one matrix for each of {', '.join(genomes)}", "Give the matrix of one genome.")
    raise CohortError(f"{path}: not a 10x matrix, it has neither a group 'matrix' nor one of a genome")


def _features_of_group(group: Any) -> Features:
    if "features" not in group:
        return _complete(_text(group["gene_names"][:]), _text(group["genes"][:]), None)
    features = group["features"]
    types = _text(features["feature_type"][:]) if "feature_type" in features else None
    return _complete(_text(features["name"][:]), _text(features["id"][:]), types)


def _complete(names: Strings, ids: Strings, types: Strings | None) -> Features:
    if len(names) != len(ids) or (types is not None and len(types) != len(ids)):
        raise ValueError(f"{len(ids)} ids for {len(names)} names")
    return Features(np.where(names == "", ids, names), ids, types)


def _read_h5(path: Path) -> tuple[Strings, Any]:
    from scipy import sparse

    with _open(path) as file:
        group = _group(file, path)
        try:
            barcodes = _text(group["barcodes"][:])
            n_features, n = (int(v) for v in group["shape"][:])
            # Half the memory of the 64-bit indices that Cell Ranger stores; out-of-range ones are clipped, not wrapped.
            indices, indptr = group["indices"].astype(np.int32)[:], group["indptr"][:].astype(np.int64)
            data = group["data"][:]
        except _DAMAGE as error:
            raise CohortError(f"{path}: the matrix cannot be read ({error})") from error
    whole = len(indptr) == n + 1 and indptr[0] == 0 and indptr[-1] == len(indices) == len(data)
    fits = not len(indices) or (indices.min() >= 0 and indices.max() < n_features)
    if not whole or not fits or np.any(np.diff(indptr) < 0) or data.dtype.kind not in "iuf":
        raise CohortError(f"{path}: data, indices, indptr and shape of the matrix do not fit together")
    return barcodes, sparse.csr_matrix((data, indices, indptr), shape=(n, n_features))


def _read_folder(path: Path) -> tuple[Strings, Any]:
    from scipy import sparse
    from scipy.io import mmread

    values, barcodes, _ = matrix_files(path)
    try:
        counts = sparse.csr_matrix(mmread(values).T)
    except _DAMAGE as error:
        raise CohortError(f"{values}: cannot be read as an MTX matrix ({error})") from error
    return np.array([row[0] for row in _read_table(barcodes)], dtype=np.str_), counts


def _features_of_table(path: Path) -> Features:
    rows = _read_table(path)
    widths = {len(row) for row in rows}
    if rows and min(widths) < 2:
        raise CohortError(f"{path}: a line has no tab; expected an id, a symbol and perhaps a type")
    ids, names = (np.array([row[i] for row in rows], dtype=np.str_) for i in (0, 1))
    return _complete(
        names, ids, np.array([row[2] for row in rows], dtype=np.str_) if min(widths, default=0) > 2 else None
    )


def _read_table(path: Path) -> list[list[str]]:
    """Cells of every line that is not empty."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            return [line.rstrip("\r\n").split("\t") for line in lines if line.strip()]
    except (*_DAMAGE, UnicodeDecodeError) as error:
        raise CohortError(f"{path}: cannot be read as a table ({error})") from error


def _one_of(folder: Path, names: tuple[str, ...]) -> Path:
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) != 1:
        what = f"both {found[0].name} and {found[1].name}; keep one" if found else f"no {' or '.join(names)}"
        raise CohortError(f"{folder}: not an MTX matrix, it holds {what}")
    return found[0]


def _text(values: NDArray[Any]) -> Strings:
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8").astype(np.str_)
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()], dtype=np.str_)
