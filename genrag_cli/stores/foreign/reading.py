"""Embeddings and predictions made elsewhere: tells the format by content, reads it, adds names from other files.

The only module of this package that knows all formats.
"""

import dataclasses
from pathlib import Path

import numpy as np

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.embeddings import read_embeddings
from genrag_cli.stores.foreign.annotated import is_annotated, read_annotated
from genrag_cli.stores.foreign.arrays import read_npy, read_npz
from genrag_cli.stores.foreign.names import read_gene_names, read_row_names
from genrag_cli.stores.foreign.opened import opened_hdf5, opened_zarr, refusing
from genrag_cli.stores.foreign.rows import ForeignRows, few
from genrag_cli.stores.foreign.sniff import READ, sniff
from genrag_cli.stores.foreign.spatial_zarr import is_spatial, read_spatial
from genrag_cli.stores.foreign.tables import read_table
from genrag_cli.stores.foreign.tile_h5 import read_tile_h5
from genrag_cli.stores.foreign.torch_files import read_torch_features, read_torch_predictions


def read_features(path: Path, *, key: str | None = None, names_from: Path | None = None) -> ForeignRows:
    """Embeddings of the tiles or spots of one slide.

    Args:
        path: file, or folder of a Zarr store.
        key: the array, where there are several: obsm key or `X`, table, dataset, name in an .npz.
        names_from: names in row order, for a file that has none.

    Returns:
        The rows as the file has them, without `columns`.

    Raises:
        FeaturesError: for a file that is not known, damaged, brings a pickle, leaves a choice open, or holds other
            than finite numbers, one row per spot.
    """
    with refusing(path):
        rows = dataclasses.replace(_read(path, key, predictions=False), columns=None)
    return _add_names(rows, names_from)


def read_predictions(
    path: Path, *, key: str | None = None, names_from: Path | None = None, genes_from: Path | None = None
) -> ForeignRows:
    """Predicted expression of the spots of one slide.

    Args:
        path: as `read_features`.
        key: as `read_features`.
        names_from: as `read_features`.
        genes_from: genes in column order, one a line, for a file that has none.

    Returns:
        The rows as the file has them, with `columns`.

    Raises:
        FeaturesError: as `read_features`, and for predictions whose genes are not named.
    """
    with refusing(path):
        rows = _read(path, key, predictions=True)
    rows = _add_names(rows, names_from)
    if genes_from is None:
        if rows.columns is None:
            raise FeaturesError(
                f"{path}: nothing names its {rows.values.shape[1]} columns",
                "Give the genes in column order, one a line: --genes-from FILE.",
            )
        return rows
    genes = read_gene_names(genes_from)
    if rows.columns is not None and not np.array_equal(rows.columns, genes):
        raise FeaturesError(
            f"{path} names its genes itself ({few(rows.columns.tolist(), 3)}), other than {genes_from} "
            f"({few(genes.tolist(), 3)})",
            "Leave --genes-from out.",
        )
    if len(genes) != rows.values.shape[1]:
        raise FeaturesError(
            f"{genes_from} has {len(genes)} genes, {path} has {rows.values.shape[1]} columns",
            "They must be the genes that were predicted, all of them, in the order of the columns.",
        )
    return dataclasses.replace(rows, columns=genes)


def _read(path: Path, key: str | None, *, predictions: bool) -> ForeignRows:
    match sniff(path):
        case "hdf5":
            with opened_hdf5(path) as file:
                if not is_annotated(file):
                    return read_tile_h5(path, file, key)
                rows = read_annotated(path, file, key, predictions=predictions, kind="h5ad")
        case "zarr":
            rows = _read_zarr(path, key, predictions=predictions)
        case "torch":
            rows = (read_torch_predictions if predictions else read_torch_features)(path, key)
        case "npz":
            rows = read_npz(path, key, predictions=predictions)
        case "npy":
            rows = read_npy(path, key, predictions=predictions)
        case "parquet" | "csv" as kind:
            rows = read_table(path, key, kind=kind, predictions=predictions)
    return rows


def _read_zarr(path: Path, key: str | None, *, predictions: bool) -> ForeignRows:
    with opened_zarr(path) as root:
        if is_annotated(root):
            if not predictions and path.is_file() and "generag" in root.get("uns", {}):
                own = root["uns/generag"]
                if hasattr(own, "shape"):
                    return _read_own(path, key)
            return read_annotated(path, root, key, predictions=predictions, kind="anndata-zarr")
        if is_spatial(root):
            return read_spatial(path, root, key, predictions=predictions)
        raise FeaturesError(f"{path}: a Zarr store of no known layout, it holds {few(sorted(root)) or 'nothing'}", READ)


def _read_own(path: Path, key: str | None) -> ForeignRows:
    """What `generag embed` wrote."""
    own = read_embeddings(path)
    if key not in (None, own.card.name):
        raise FeaturesError(f"{path} holds embeddings of {own.card.name}, not {key!r}", "Leave the key out.")
    return ForeignRows(
        values=own.values,
        names=own.grid.names,
        centres=own.grid.centres,
        path=path,
        kind="generag",
        encoder=own.card.name,
        mpp=float(own.grid.pixel_size.mpp),
        fov_um=float(own.grid.fov_um),
        card=own.card,
    )


def _add_names(rows: ForeignRows, names_from: Path | None) -> ForeignRows:
    if names_from is None:
        return rows
    with refusing(names_from):
        names = read_row_names(names_from)
    if len(names) != len(rows):
        many = len(names) and len(rows) % len(names) == 0 and len(rows) > len(names)
        samples = (
            f" It has {len(rows) // len(names)} rows a name: a file of samples says so in its name." if many else ""
        )
        raise FeaturesError(
            f"{names_from} has {len(names)} names, {rows.path} has {len(rows)} rows",
            f"They must be the names of its rows, all of them, in their order.{samples}",
        )
    if rows.names is not None and not np.array_equal(rows.names, names):
        raise FeaturesError(
            f"{rows.path} names its rows itself ({few(rows.names.tolist(), 2)}), other than {names_from} "
            f"({few(names.tolist(), 2)})",
            "Leave --names-from out.",
        )
    return dataclasses.replace(rows, names=names)
