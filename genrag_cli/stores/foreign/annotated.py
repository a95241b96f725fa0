"""AnnData made elsewhere, in HDF5 or Zarr: X or one of obsm, with obs names and obsm['spatial'] as centres.

The layout is anndata's (scverse/anndata, docs/fileformat-prose): single elements are read, the rest of the file costs
nothing. Gene names of X are var's; of an obsm data frame, its columns; of an obsm array K, `uns[K_genes]`. generag's
own predictions are AnnData too: `generag_y_init` has its genes in `uns`, and `uns` states unit and pixel size.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.foreign.opened import read_elem, read_texts
from genrag_cli.stores.foreign.rows import ForeignRows, as_matrix, as_xy, choose, few, number, real_names, text
from genrag_cli.types import Doubles, Strings

PLACES = "spatial"
_OWN, _OWN_WEIGHTS, _OWN_FIRST, _OWN_ANCHORS = "generag", "generag_weights", "generag_y_init", "generag_anchors"
_OWN_PRESENT = "layers/generag_present"
"""Keys of generag's predictions, as genrag_cli.outputs.keys has them."""


def is_annotated(group: Any) -> bool:
    """Whether a group of either format is an AnnData."""
    return "obs" in group and "var" in group


def list_matrices(group: Any, *, predictions: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of what could be meant: `X`, and obsm by name without the coordinates.

    Of predictions, only what has gene names.
    """
    found: dict[str, tuple[int, ...]] = {}
    if "X" in group and len(shape := _shape(group["X"])) == 2 and shape[1]:
        found["X"] = shape
    for name in group.get("obsm", ()):
        node = group[f"obsm/{name}"]
        shape = _shape(node)
        if name in (PLACES, _OWN_WEIGHTS) or len(shape) != 2:
            continue
        if not predictions or _is_frame(node) or _genes_key(group, name):
            found[name] = shape
    return found


def read_annotated(
    path: Path, group: Any, key: str | None, *, predictions: bool, kind: str, named: bool = True
) -> ForeignRows:
    """One matrix of an AnnData.

    Args:
        path: for messages.
        group: of either format.
        key: `X` or a name in obsm; None: the only one that could be meant, or X of generag's own predictions.
        predictions: whether the columns are genes.
        kind: of the rows.
        named: whether obs names are names of spots.

    Raises:
        FeaturesError: for a choice that is left open, and for what is not as AnnData writes it.
    """
    if "encoding-type" not in group["obs"].attrs:
        raise FeaturesError(
            f"{path}: obs is not stored as anndata has stored it since 0.7",
            "Read it with anndata and write it again.",
        )
    own = _OWN in group.get("uns", {})
    there = list_matrices(group, predictions=predictions)
    if own and key is None and predictions and "X" in there:
        key = "X"
    chosen = choose(path, None if key is None else key.removeprefix("obsm/"), there, "X and obsm")
    node = group["X" if chosen == "X" else f"obsm/{chosen}"]
    read = read_elem(path, node)
    columns = _columns(path, group, chosen, read) if predictions else None
    if hasattr(read, "toarray"):
        read = read.toarray()
    values = as_matrix(path, chosen, np.asarray(read))
    index = read_texts(path, group[f"obs/{group['obs'].attrs['_index']}"])
    centres = _read_places(path, group, len(values))
    names, notes = real_names(index, centres is not None) if named else (None, ())
    about = _About.of(path, group, own)
    if own and chosen == "X" and columns is not None and _OWN_PRESENT in group:
        whole = np.asarray(read_elem(path, group[_OWN_PRESENT]), np.bool_).all(axis=0)
        if not whole.all():
            notes = (*notes, f"genes that some spots lack are left out: {few(columns[~whole].tolist())}")
            values, columns = values[:, whole], columns[whole]
    return ForeignRows(
        values=values,
        names=names,
        centres=centres,
        path=path,
        kind="generag" if own else kind,
        columns=columns,
        encoder=about.encoder,
        mpp=about.mpp,
        scale=about.scale if predictions else "",
        notes=(*notes, *about.notes),
    )


def read_obs_names(path: Path, group: Any) -> Strings:
    """Names of the rows of an AnnData."""
    return read_texts(path, group[f"obs/{group['obs'].attrs['_index']}"])


@dataclass(frozen=True)
class _About:
    """What uns says of the whole file."""

    encoder: str = ""
    mpp: float | None = None
    scale: str = ""
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(path: Path, group: Any, own: bool) -> "_About":
        uns = group.get("uns", {})

        def word(*keys: str) -> str:
            for key in keys:
                if key in uns and hasattr(uns[key], "shape") and not uns[key].shape:
                    return text(read_elem(path, uns[key]))
            return ""

        if not own:
            said = ("uns['log1p'] is set: X was log-transformed",) if "log1p" in uns else ()
            return _About(word("encoder", "model"), number(word("mpp")), word("scale", "unit"), said)
        slides = list(uns[PLACES]) if PLACES in uns else []
        key = f"{PLACES}/{slides[0]}/metadata/mpp" if slides else PLACES
        mpp = number(read_elem(path, uns[key])) if slides and key in uns else None
        unit = f"{_OWN}/unit"
        return _About(mpp=mpp, scale=text(read_elem(path, uns[unit])) if unit in uns else "")


def _shape(node: Any) -> tuple[int, ...]:
    if hasattr(node, "shape"):
        return tuple(int(s) for s in node.shape)
    if "shape" in node.attrs:
        return tuple(int(s) for s in node.attrs["shape"])
    if _is_frame(node):
        return (int(node[node.attrs["_index"]].shape[0]), len(node.attrs["column-order"]))
    return ()


def _is_frame(node: Any) -> bool:
    return not hasattr(node, "shape") and text(node.attrs.get("encoding-type", "")) == "dataframe"


def _genes_key(group: Any, name: str) -> str:
    """Where the gene names of an obsm array stand in uns; empty where nowhere."""
    key = _OWN_ANCHORS if name == _OWN_FIRST else f"{name}_genes"
    return key if "uns" in group and key in group["uns"] else ""


def _columns(path: Path, group: Any, chosen: str, read: Any) -> Strings:
    if chosen == "X":
        return read_texts(path, group[f"var/{group['var'].attrs['_index']}"])
    if hasattr(read, "columns"):
        return np.array([str(c) for c in read.columns], np.str_)
    return read_texts(path, group[f"uns/{_genes_key(group, chosen)}"])


def _read_places(path: Path, group: Any, n: int) -> Doubles | None:
    if "obsm" not in group or PLACES not in group["obsm"]:
        return None
    return as_xy(path, "obsm['spatial']", np.asarray(read_elem(path, group[f"obsm/{PLACES}"])), n)
