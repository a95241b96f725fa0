"""What every reader of embeddings and predictions made elsewhere gives back, and the checks that all of them share.

A row is a spot; nothing here is ever matched by the order of rows. The module knows no file format.
"""

import functools
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import FeaturesError, nearest
from genrag_cli.types import BackboneCard, Doubles, Floats, Strings, fingerprint

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class ForeignRows:
    """Rows of numbers about spots, made elsewhere; checked to be finite, unique and of one length."""

    values: Floats
    """(n, k)"""
    names: Strings | None
    """(n,) unique names of the spots; None where the file has none."""
    centres: Doubles | None
    """(n, 2) x, y of the centres in level-0 px; None where the file does not say them in px."""
    path: Path
    kind: str
    """`trident-h5`, `clam-h5`, `stamp-h5`, `hest-h5`, `slide2vec`, `wsidata-zarr`, `spatialdata-zarr`, `generag-pt`,
    `h5ad`, `anndata-zarr`, `npz`, `npy`, `parquet`, `csv`, `generag`."""
    columns: Strings | None = None
    """(k,) unique gene names; None for embeddings."""
    encoder: str = ""
    """What the file says made it, in its own words."""
    mpp: float | None = None
    """um per level-0 px, where the file says so."""
    fov_um: float | None = None
    """Side of a tile on the tissue, where the file says so."""
    scale: str = ""
    """Expression scale of predictions, in the file's own words."""
    notes: tuple[str, ...] = ()
    """What a person should know of the file."""
    centres_um: Doubles | None = None
    """(n, 2) x, y of the centres in um from the slide's top-left corner, where the file gives um and no pixel size;
    `in_pixels` makes `centres` of it."""
    side_px: float | None = None
    """Side of a tile in level-0 px, where the file says so."""

    card: BackboneCard | None = None
    """Of the backbone, where the file has one, as generag's own do."""

    @functools.cached_property
    def digest(self) -> str:
        """Fingerprint of the content."""
        none: tuple[()] = ()
        arrays = (self.names, self.centres, self.columns, self.centres_um)
        stated = (self.kind, self.encoder, self.mpp or 0, self.fov_um or 0, self.scale, self.side_px or 0)
        return fingerprint(self.values, *(none if a is None else a for a in arrays), *stated)

    def __post_init__(self) -> None:
        n = len(self.values)
        if self.values.ndim != 2 or not n or not self.values.shape[1]:
            raise FeaturesError(f"{self.path}: expected rows of numbers, found an array of shape {self.values.shape}")
        if bad := n - int(np.isfinite(self.values).all(axis=1).sum()):
            raise FeaturesError(
                f"{self.path}: {bad} of {n} rows hold values that are no finite float32 numbers",
                "Leave those spots out where the file was made, or make it again.",
            )
        for what, array in (("names", self.names), ("x, y of the centres", self.centres)):
            if array is not None and len(array) != n:
                raise FeaturesError(f"{self.path}: {len(array)} {what} for {n} rows of values")
        for centres in (self.centres, self.centres_um):
            if centres is not None and (centres.shape != (n, 2) or not np.isfinite(centres).all()):
                raise FeaturesError(
                    f"{self.path}: expected {n} finite x, y, found shape {centres.shape}, "
                    f"{int((~np.isfinite(centres)).sum())} values not finite"
                )
        for what, words in (("spot names", self.names), ("gene names", self.columns)):
            if words is not None and (twice := _repeated(words)):
                raise FeaturesError(
                    f"{self.path}: {what} are not unique: {few(twice)}",
                    "Names of spots must be unique within a slide; give one file per slide."
                    if what == "spot names"
                    else "Keep one column per gene.",
                )
        if self.columns is not None and len(self.columns) != self.values.shape[1]:
            raise FeaturesError(f"{self.path}: {len(self.columns)} gene names for {self.values.shape[1]} columns")

    def __len__(self) -> int:
        return len(self.values)


def _repeated(words: Strings) -> list[str]:
    unique, counts = np.unique(words, return_counts=True)
    return [str(w) for w in unique[counts > 1]]


def few(things: Collection[Any], n: int = _SHOWN) -> str:
    """The first few and the count: `a, b, ... (12 in all)`."""
    shown = ", ".join(str(t) for t in list(things)[:n])
    return shown if len(things) <= n else f"{shown}, ... ({len(things)} in all)"


def texts(values: Iterable[Any]) -> Strings:
    """Names as fixed-width text, from HDF5's bytes, numpy's strings or Python's."""
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values], np.str_)


def text(value: Any) -> str:
    """An attribute as text; empty for none, which some writers spell `None`."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    word = value.decode() if isinstance(value, bytes) else "" if value is None else str(value)
    return "" if word == "None" else word


def number(value: Any) -> float | None:
    """An attribute as a positive number; None where it is none."""
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) and found > 0 else None


def as_matrix(path: Path, what: str, array: NDArray[Any]) -> Floats:
    """(n, k) float32 of a 2-D array of numbers; a leading axis of length 1 is a batch axis and is taken away.

    Raises:
        FeaturesError: for other shapes and for what are no numbers.
    """
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.dtype.kind not in "fiu":
        raise FeaturesError(f"{path}: {what} holds {array.dtype}, not numbers")
    if array.ndim != 2:
        one = "; one row for a whole slide is no embedding of its spots" if array.ndim == 1 else ""
        raise FeaturesError(
            f"{path}: {what} has shape {array.shape}, expected (spots, values){one}",
            "Give the file with one row per tile or spot.",
        )
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite and is refused as not finite
        return np.ascontiguousarray(array, np.float32)


def as_xy(path: Path, what: str, array: NDArray[Any], n: int) -> Doubles:
    """(n, 2) float64, with the same rule for a leading axis.

    Raises:
        FeaturesError: for other shapes.
    """
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.dtype.kind not in "fiu" or array.shape != (n, 2):
        raise FeaturesError(f"{path}: {what} is {array.dtype} {array.shape}, expected x, y for each of {n} rows")
    return np.ascontiguousarray(array, np.float64)


def choose(path: Path, key: str | None, there: Mapping[str, Any], what: str = "arrays") -> str:
    """The one of several arrays that `key` names, or the only one.

    Args:
        path: for messages.
        key: what was asked for; None: the only one.
        there: name to shape.
        what: in words.

    Raises:
        FeaturesError: where nothing is there, `key` is none of it, or several are there and none was asked for.
    """
    listed = few([f"{name} {tuple(shape)}" for name, shape in there.items()], 12)
    if key is not None:
        if key not in there:
            raise FeaturesError(f"{path}: no {key!r} among its {what}: {listed or 'none'}", nearest(key, there))
        return key
    if len(there) != 1:
        raise FeaturesError(
            f"{path}: {'several' if there else 'no'} {what} that could be meant{': ' + listed if there else ''}",
            f"Name one, such as {next(iter(there))!r}, as the key (--features-key, --anchors-key)." if there else "",
        )
    return next(iter(there))


def real_names(names: Strings, placed: bool) -> tuple[Strings | None, tuple[str, ...]]:
    """The names, or none with a note where they only count the rows of a file that says where its spots are.

    To match row numbers would be to match by row order.
    """
    if placed and np.array_equal(names, np.arange(len(names)).astype(np.str_)):
        return None, ("its names only count the rows, so its spots are known by their coordinates",)
    return names, ()
