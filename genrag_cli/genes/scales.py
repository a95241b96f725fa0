"""Expression scales: from counts to a scale, and from one scale to another.

A scale is (library scope, size factor, log base, smoothing), see `types.Scale`. Nothing is centred or standardised
here, smoothing needs the lattice (`smooth_spots`), and no scale is guessed from values.
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import GeneragError
from genrag_cli.types import Doubles, Expression, Ints, Scale

_LN_OF_BASE = {"ln": 1.0, "log2": np.log(2.0), "log10": np.log(10.0)}


def to_scale(counts: Any, total_counts: Doubles | None, scale: Scale) -> Any:
    """Brings raw counts to a scale: log(1 + size_factor * counts / library).

    Zeros stay zeros, so CSR stays CSR with the same pattern. A spot without counts stays 0.

    Args:
        counts: (n, G) scipy CSR or numpy array of raw counts, over all genes or some of them.
        total_counts: (n,) counts of each spot over all genes of its section, whatever columns `counts` has; may be None
            for a scale that does not use it. With library `panel` the library is the sum of the row given.
        scale: what to come to.

    Returns:
        float32, of the same layout as `counts`.

    Raises:
        GeneragError: for negative counts, a missing or too small library size, or a sparse layout other than CSR.
    """
    sparse = hasattr(counts, "indptr")
    if sparse and counts.format != "csr":
        raise GeneragError(f"counts in sparse layout {counts.format}; CSR is needed")
    if sparse:
        # A copy, made before its data are looked at: scipy sorts unsorted rows while it copies.
        counts = counts.astype(np.float64, copy=True)
    values = np.asarray(counts.data if sparse else counts, dtype=np.float64)
    if values.size and not values.min() >= 0:
        raise GeneragError("negative or undefined counts: raw counts are needed to come to a scale")
    if scale.library != "none":
        rows = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        library = rows if scale.library == "panel" else _check_library(total_counts, rows, scale)
        factor = np.divide(scale.size_factor, library, out=np.zeros_like(library), where=library > 0)
        values = values * (np.repeat(factor, np.diff(counts.indptr)) if sparse else factor[:, None])
    values = _take_log(values, scale).astype(np.float32)
    if not sparse:
        return values
    counts.data = values
    return counts


def convert(expression: Expression, scale: Scale, *, total_counts: Doubles | None = None) -> Expression:
    """Brings expression from the scale that it declares to another, through counts or normalised counts.

    Args:
        expression: (n, G) values with their scale.
        scale: what to come to.
        total_counts: (n,) library sizes over all genes; needed where one side is normalised by them and the other not.

    Raises:
        GeneragError: where the step is not defined: library sizes are needed and not given, one side is normalised by a
            panel, or values are below 0 (which no counts can be).
    """
    source = expression.scale
    if source == scale:
        return expression
    if source.library != scale.library and "panel" in (source.library, scale.library):
        raise GeneragError(
            f"cannot go from scale {source.name} to {scale.name}: a panel's library size cannot be undone",
            "Start from counts.",
        )
    if source.smooth != scale.smooth:
        raise GeneragError(
            f"cannot go from scale {source.name} to {scale.name}: a mean over neighbouring spots cannot be undone",
            "Start from counts.",
        )
    values = np.asarray(expression.values, dtype=np.float64)
    if values.size and not values.min() >= 0:
        raise GeneragError(
            f"cannot go from scale {source.name} to {scale.name}: some values are below 0 or undefined",
            "Clip them at 0 first, and say so.",
        )
    if source.log != "none":
        values = np.expm1(values * _LN_OF_BASE[source.log])
    values = values * (_size_factor(scale) / _size_factor(source))
    if source.library != scale.library:
        if total_counts is None:
            raise GeneragError(
                f"cannot go from scale {source.name} to {scale.name} without the library size of each spot",
                "Give the total counts of each spot over all genes.",
            )
        library = np.asarray(total_counts, dtype=np.float64)[:, None]
        per = np.divide(1.0, library, out=np.zeros_like(library), where=library > 0)
        values = values * (library if scale.library == "none" else per)
    return dataclasses.replace(expression, values=_take_log(values, scale).astype(np.float32), scale=scale)


def smooth_spots(values: Any, array_rc: Ints) -> Any:
    """Means over the spots of a section whose lattice row and column differ by at most 1 each, itself included.

    On a square lattice that is a window of 3 x 3; on Visium's, whose columns count in twos, a spot and its four
    diagonal neighbours (TRIPLEX has it so).

    Args:
        values: (n, G) numpy array or scipy CSR of one section.
        array_rc: (n, 2) row, column in the lattice.
    """
    from scipy import sparse
    from scipy.spatial import cKDTree

    n = len(array_rc)
    pairs = cKDTree(array_rc).query_pairs(1.5, p=np.inf, output_type="ndarray")
    rows = np.concatenate([pairs[:, 0], pairs[:, 1], np.arange(n)])
    columns = np.concatenate([pairs[:, 1], pairs[:, 0], np.arange(n)])
    near = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(n, n))
    mean = sparse.diags(1 / np.asarray(near.sum(axis=1)).ravel()) @ near
    return (mean @ values).astype(np.float32)


def _size_factor(scale: Scale) -> float:
    return 1.0 if scale.library == "none" else scale.size_factor


def _take_log(values: NDArray[np.float64], scale: Scale) -> NDArray[np.float64]:
    if scale.log == "none":
        return values
    logs: NDArray[np.float64] = np.log1p(values) / _LN_OF_BASE[scale.log]
    return logs


def _check_library(total_counts: Doubles | None, rows: Doubles, scale: Scale) -> Doubles:
    if total_counts is None or np.shape(total_counts) != rows.shape:
        found = "none" if total_counts is None else f"shape {np.shape(total_counts)}"
        raise GeneragError(f"scale {scale.name} needs one library size per spot, {len(rows)} in all; found {found}")
    library = np.asarray(total_counts, dtype=np.float64)
    if np.any(library < rows * (1 - 1e-6)):
        worst = int(np.argmax(rows - library))
        raise GeneragError(
            f"the library size of spot {worst} is {library[worst]:g}, below the sum {rows[worst]:g} of its counts",
            "Library sizes are sums over all genes of the section, taken before columns are dropped.",
        )
    return library
