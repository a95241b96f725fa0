"""numpy's own files: .npz with named arrays, and .npy with one. Never with pickles.

The names in an .npz are generag's own convention: `features` or `embeddings` or `X`, or of predictions `predictions`
or `expression` or `X` with `genes`; `names` or `barcodes`; x, y of the centres in level-0 px as `centres` or `xy` or
`coords`; and, as single words or numbers, `encoder`, `scale`, `mpp`, `fov_um`. slide2vec's .npz has `features` and
maybe `tile_index`; where its tiles lie stands in files beside (see slide2vec.py).
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.foreign.rows import ForeignRows, as_matrix, as_xy, choose, number, real_names, text, texts
from genrag_cli.stores.foreign.slide2vec import place

_VALUES = ("features", "embeddings", "X")
_PREDICTIONS = ("predictions", "expression", "X")
_NAMES = ("names", "barcodes")
_CENTRES = ("centres", "xy", "coords")
_GENES = ("genes",)
_BESIDE = (*_NAMES, *_CENTRES, *_GENES, "tile_index", "encoder", "scale", "mpp", "fov_um")


def read_npz(path: Path, key: str | None, *, predictions: bool) -> ForeignRows:
    """Named arrays.

    Raises:
        FeaturesError: for pickled objects, and a choice that is left open.
    """
    arrays = _load(path)
    usual = _PREDICTIONS if predictions else _VALUES
    there = {n: a.shape for n, a in arrays.items() if n not in _BESIDE and a.ndim >= 2}
    if key is None and (named := {n: s for n, s in there.items() if n in usual}):
        there = named
    chosen = choose(path, key, there)
    values = as_matrix(path, chosen, arrays[chosen])
    if not predictions and (placed := place(path, values, arrays.get("tile_index"))) is not None:
        return placed
    xy, words, genes = (_first(path, arrays, keys) for keys in (_CENTRES, _NAMES, _GENES))
    centres = None if xy is None else as_xy(path, xy[0], xy[1], len(values))
    names, notes = (None, ()) if words is None else real_names(texts(words[1].reshape(-1)), centres is not None)
    if xy is not None and xy[0] == "coords":
        notes = (*notes, "`coords` is taken to be the centres of the tiles in level-0 px")
    said = {k: arrays[k] for k in ("encoder", "scale", "mpp", "fov_um") if k in arrays}
    return ForeignRows(
        values=values,
        names=names,
        centres=centres,
        path=path,
        kind="npz",
        columns=texts(genes[1].reshape(-1)) if predictions and genes is not None else None,
        encoder=text(said.get("encoder")),
        mpp=number(said.get("mpp")),
        fov_um=number(said.get("fov_um")),
        scale=text(said.get("scale")) if predictions else "",
        notes=notes,
    )


def read_npy(path: Path, key: str | None, *, predictions: bool) -> ForeignRows:
    """One array (n, k).

    Raises:
        FeaturesError: for pickled objects, and where an array is asked for by name.
    """
    if key is not None:
        raise FeaturesError(f"{path} holds one array without a name, so none is called {key!r}")
    values = as_matrix(path, "the array", _load(path)[""])
    placed = None if predictions else place(path, values)
    return ForeignRows(values, None, None, path, "npy") if placed is None else placed


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:
            read = np.load(file, allow_pickle=False)
            return {n: read[n] for n in read.files} if hasattr(read, "files") else {"": np.asarray(read)}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        pickled = "pickle" in str(error)
        raise FeaturesError(
            f"{path} cannot be read: {error}" if not pickled else f"{path} holds Python objects, which are pickles",
            "Save numbers, and text as text: names.astype(str)." if pickled else "Copy it again, or make it again.",
        ) from error


def _first(path: Path, arrays: dict[str, NDArray[Any]], keys: tuple[str, ...]) -> tuple[str, NDArray[Any]] | None:
    """The one that is there under any of its names."""
    there = [k for k in keys if k in arrays]
    if len(there) > 1:
        raise FeaturesError(f"{path}: both {' and '.join(there)} are there", "Keep one of them.")
    return (there[0], arrays[there[0]]) if there else None
