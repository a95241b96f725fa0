"""SpatialData stores made elsewhere, and those of wsidata and LazySlide: one table's X or obsm, placed by its shapes.

Facts, from public code:

- SpatialData (scverse/spatialdata): `tables/T` is an AnnData whose attributes name the `region` that it annotates and
  the `instance_key`, a column of obs that holds the index of the region's shapes; `shapes/R/shapes.parquet` has WKB
  geometry and, for circles, `radius`; user attributes stand at the root. Before 0.1: `table/table`.
- wsidata and LazySlide (rendeirolab/wsidata, wsidata/io/_elems.py, _model/tile.py, _model/core.py;
  rendeirolab/LazySlide, tools/_features.py): features of model M over the tiles K are the table `M_K` (K is `tiles`
  unless asked otherwise), X (n, d), obs `tile_id` and `library_id`, obs names counting the tiles; shapes K are squares
  in level-0 px with a column `tile_id`, in some versions `x`, `y`. Root attributes: `tile_spec[K]` (`width`, `mpp` of
  the tile, `base_downsample`) and `slide_properties.mpp`; in older stores, tables `tile_spec` and `slide_properties`
  hold the same in `uns`.

A region in another coordinate system than its own is not transformed: put centres into obsm['spatial'].
"""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.foreign.annotated import list_matrices, read_annotated
from genrag_cli.stores.foreign.opened import read_elem, read_texts
from genrag_cli.stores.foreign.rows import ForeignRows, choose, few, number, text
from genrag_cli.types import Doubles, Strings

_POINT, _POLYGON = 1, 3
_PARENTS = ("tables", "table")


def is_spatial(root: Any) -> bool:
    """Whether a Zarr group is a SpatialData store with tables."""
    return any(parent in root and hasattr(root[parent], "members") for parent in _PARENTS) and "obs" not in root


def read_spatial(path: Path, root: Any, key: str | None, *, predictions: bool) -> ForeignRows:
    """One matrix of one table.

    Args:
        path: folder or zip.
        root: its open group.
        key: `TABLE` for its X, `TABLE/NAME` for one of its obsm, or NAME where only one table has it.
        predictions: whether the columns are genes.

    Raises:
        FeaturesError: for a choice that is left open, and shapes that do not fit the table.
    """
    tables = {n: g for p in _PARENTS if p in root for n, g in root[p].members() if "obs" in g and "var" in g}
    there = {
        name if matrix == "X" else f"{name}/{matrix}": (name, matrix, shape)
        for name, table in tables.items()
        for matrix, shape in list_matrices(table, predictions=predictions).items()
        if shape[0]
    }
    if key is not None and key not in there and len(same := [k for k in there if k.endswith(f"/{key}")]) == 1:
        key = same[0]
    name, matrix, _ = there[choose(path, key, {k: shape for k, (_, _, shape) in there.items()}, "tables")]
    table = tables[name]
    region, instance = (text(table.attrs.get(a)) for a in ("region", "instance_key"))
    spec, mpp = _tile_spec(path, root, region), _slide_mpp(path, root)
    wsidata = spec is not None
    rows = read_annotated(
        path,
        table,
        matrix,
        predictions=predictions,
        kind="wsidata-zarr" if wsidata else "spatialdata-zarr",
        named=not wsidata,
    )
    centres, notes = rows.centres, rows.notes
    if centres is None and region and f"shapes/{region}" in root and instance in table["obs"]:
        instances = read_texts(path, table[f"obs/{instance}"])
        centres, said = _centres(path, root[f"shapes/{region}"], region, instance, instances)
        notes = (*notes, *said)
    return ForeignRows(
        values=rows.values,
        names=rows.names,
        centres=centres,
        path=path,
        kind=rows.kind,
        columns=rows.columns,
        encoder=rows.encoder or (name.removesuffix(f"_{region}") if wsidata else ""),
        mpp=mpp if mpp is not None else rows.mpp,
        fov_um=_fov_um(spec, mpp) if spec else None,
        scale=rows.scale,
        notes=notes,
    )


def _tile_spec(path: Path, root: Any, region: str) -> dict[str, Any] | None:
    """What wsidata says of the tiles of a region; None where it says nothing."""
    specs = root.attrs.get("tile_spec")
    if isinstance(specs, dict) and isinstance(specs.get(region), dict):
        return dict(specs[region])
    old = f"tables/tile_spec/uns/{region}"
    return dict(read_elem(path, root[old])) if region and old in root else None


def _slide_mpp(path: Path, root: Any) -> float | None:
    told = root.attrs.get("slide_properties")
    if isinstance(told, dict):
        return number(told.get("mpp"))
    old = "tables/slide_properties/uns/mpp"
    return number(read_elem(path, root[old])) if old in root else None


def _fov_um(spec: dict[str, Any], mpp: float | None) -> float | None:
    width, tile_mpp = number(spec.get("width")), number(spec.get("mpp"))
    if width and tile_mpp:
        return width * tile_mpp
    down = number(spec.get("base_downsample"))
    return width * down * mpp if width and down and mpp else None


def _centres(
    path: Path, shapes: Any, region: str, instance: str, instances: Strings
) -> tuple[Doubles | None, tuple[str, ...]]:
    """(n, 2) centres of the shapes that rows are about, or none and why."""
    moved = [t for t in shapes.attrs.get("coordinateTransformations", ()) if t.get("type") != "identity"]
    if moved:
        return None, (f"shapes/{region} lie in a coordinate system of their own, which is not followed",)
    table = _read_parquet(path, region)
    if table is None or "geometry" not in table.columns:
        return None, (f"shapes/{region} are stored in an old way that is not read",)
    ids = table[instance] if instance in table.columns else table.index
    places = _decode_places(table["geometry"])
    if places is None:
        return None, (f"shapes/{region} are neither points nor single polygons, so they have no centre",)
    at = {str(name): row for row, name in enumerate(ids)}
    if len(at) != len(places):
        raise FeaturesError(f"{path}: shapes/{region} are not unique by {instance}")
    if missing := [i for i in instances.tolist() if i not in at]:
        raise FeaturesError(f"{path}: {len(missing)} rows are about shapes that {region} has not: {few(missing)}")
    return places[[at[i] for i in instances.tolist()]], ()


def _read_parquet(path: Path, region: str) -> Any:
    import pandas as pd

    inside = f"shapes/{region}/shapes.parquet"
    try:
        if path.is_dir():
            return pd.read_parquet(path / inside) if (path / inside).is_file() else None
        with zipfile.ZipFile(path) as file:
            return pd.read_parquet(io.BytesIO(file.read(inside))) if inside in file.namelist() else None
    except (ValueError, OSError) as error:  # pyarrow's own errors are of these
        raise FeaturesError(f"{path}: {inside} cannot be read: {error}", "Copy it again, or make it again.") from error


def _decode_places(geometry: Any) -> Doubles | None:
    """(n, 2) points, or middles of the bounds of polygons, from WKB; None where one is neither."""
    places = np.empty((len(geometry), 2))
    for row, blob in enumerate(geometry):
        order = "<" if blob[0] == 1 else ">"
        (kind,) = struct.unpack_from(f"{order}I", blob, 1)
        if kind == _POINT:
            places[row] = struct.unpack_from(f"{order}2d", blob, 5)
        elif kind == _POLYGON:
            rings, count = struct.unpack_from(f"{order}2I", blob, 5) if len(blob) >= 13 else (0, 0)
            if not rings or not count:
                return None
            ring = np.frombuffer(blob, f"{order}f8", 2 * count, 13).reshape(-1, 2)
            places[row] = (ring.min(axis=0) + ring.max(axis=0)) / 2
        else:
            return None
    return places
