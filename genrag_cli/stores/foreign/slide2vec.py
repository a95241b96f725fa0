"""Where the tiles of slide2vec's features lie: coordinates and metadata that stand in files of their own.

Facts, from public code (clemsgrs/slide2vec, docs/output-layout.rst, slide2vec/artifacts.py, embed.py; its tiling is
clemsgrs/hs2p, hs2p/artifacts.py and, before, save_coordinates). Rows of features and of coordinates are in the same
order; x, y are top-left corners in level-0 px.

- now: `RUN/tile_embeddings/[CLASS/]S.pt` (n, d), or `.npz` with `features` and maybe `tile_index`, with `S.meta.json`
  (`artifact_type`, `encoder_name`, `tile_size_lv0`, `requested_spacing_um`, `requested_tile_size_px`); and
  `RUN/tiles/[CLASS/]S.coordinates.npz` (`x`, `y`, `tile_index`, `tissue_fractions`) with `S.coordinates.meta.json`
  (`slide.base_spacing_um`, `tiling.tile_size_lv0`);
- 3: `RUN/coordinates/S.tiles.npz` (`x_lv0`, `y_lv0`, `tile_index`) with `S.tiles.meta.json` (`tile_size_lv0`,
  `target_spacing_um`, `target_tile_size_px`);
- 1 and 2: `RUN/features/S.pt` or `S-tiles.pt`, and `RUN/coordinates/S.npy`, a structured array (`x`, `y`,
  `tile_size_resized`, `tile_level`, `resize_factor`, `tile_size_lv0`, `target_spacing`).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.foreign.rows import ForeignRows, as_xy, number, text
from genrag_cli.types import Doubles, Floats

_TILES = "tile_embeddings"


@dataclass(frozen=True, eq=False)
class _Placed:
    """What stands beside slide2vec's features of a slide."""

    centres: Doubles | None
    """(n, 2) level-0 px; None where only the metadata are there."""
    encoder: str
    mpp: float | None
    fov_um: float | None
    side_px: float | None
    notes: tuple[str, ...]


def place(path: Path, values: Floats, tile_index: NDArray[Any] | None = None) -> ForeignRows | None:
    """Rows of slide2vec with what stands beside their file; None where it is not slide2vec's.

    Args:
        path: of the features.
        values: (n, d)
        tile_index: (n,) number of each row's tile, where the features have it.

    Raises:
        FeaturesError: for features that are not of single tiles, and coordinates that do not fit.
    """
    if (found := _find_placed(path, len(values), tile_index)) is None:
        return None
    return ForeignRows(
        values=values,
        names=None,
        centres=found.centres,
        path=path,
        kind="slide2vec",
        encoder=found.encoder,
        mpp=found.mpp,
        fov_um=found.fov_um,
        notes=found.notes,
        side_px=found.side_px,
    )


def _find_placed(path: Path, n: int, tile_index: NDArray[Any] | None = None) -> _Placed | None:
    slide = path.name.removesuffix(path.suffix)
    meta = _read_json(path.with_name(f"{slide}.meta.json"))
    if (kind := text(meta.get("artifact_type"))) not in ("", _TILES):
        raise FeaturesError(
            f"{path}: slide2vec calls these {kind}, not {_TILES}", f"Give the file of the same slide in {_TILES}/."
        )
    where = _find_coordinates(path, slide.removesuffix("-tiles"), meta)
    if where is None:
        if not meta:
            return None
        note = f"slide2vec's coordinates of {slide} were not found (looked for ../tiles/{slide}.coordinates.npz)"
        return _Placed(
            None, text(meta.get("encoder_name")), None, _fov_um(meta), number(meta.get("tile_size_lv0")), (note,)
        )
    told = _read_json(where.with_name(f"{where.name.removesuffix(where.suffix)}.meta.json"))
    told = {**told, **told.get("slide", {}), **told.get("tiling", {})}
    corners, index, fields = _read_coordinates(where, n)
    side = next((s for m in (meta, told, fields) if (s := number(m.get("tile_size_lv0")))), None)
    if side is None:
        raise FeaturesError(f"{where}: nothing says how large a tile is (tile_size_lv0)", "Keep its .meta.json beside.")
    if tile_index is not None and index is not None:
        corners = corners[_order(path, where, tile_index, index)]
    mpp = number(told.get("base_spacing_um"))
    fov = next((f for m in (meta, told, fields) if (f := _fov_um(m))), None)
    return _Placed(
        corners + side / 2, text(meta.get("encoder_name")), mpp, fov, side, (f"coordinates are from {where}",)
    )


def _find_coordinates(path: Path, slide: str, meta: dict[str, Any]) -> Path | None:
    """The first that is there: beside in the run, in a run with classes, or where the metadata say it was written."""
    folder = path.absolute().parent
    places = []
    for run, sub in ((folder, ""), (folder.parent, ""), (folder.parent.parent, folder.name)):
        places += [
            run / "tiles" / sub / f"{slide}.coordinates.npz",
            run / "coordinates" / sub / f"{slide}.tiles.npz",
            run / "coordinates" / sub / f"{slide}.npy",
        ]
    recorded = text(meta.get("coordinates_npz_path")) or text(meta.get("tiles_npz_path"))
    places += [Path(recorded)] if recorded else []
    return next((p for p in places if p.is_file()), None)


def _read_coordinates(where: Path, n: int) -> tuple[Doubles, NDArray[Any] | None, dict[str, Any]]:
    """(n, 2) corners, (n,) numbers of the tiles or None, and constant fields."""
    try:
        with where.open("rb") as file:
            read = np.load(file, allow_pickle=False)
            arrays = {k: read[k] for k in read.files} if hasattr(read, "files") else {"": read}
    except (OSError, ValueError, EOFError) as error:
        raise FeaturesError(f"{where} cannot be read: {error}", "Copy it again, or make it again.") from error
    fields: dict[str, Any] = {}
    if (table := arrays.get("")) is not None:
        if not {"x", "y", "tile_size_lv0"} <= set(table.dtype.names or ()):
            raise FeaturesError(f"{where}: expected fields x, y, tile_size_lv0, found {table.dtype}")
        sides = np.unique(table["tile_size_lv0"])
        if len(sides) > 1:
            raise FeaturesError(f"{where}: tiles of several sizes, {sides.tolist()} px")
        fields = _constants(table)
        arrays = {"x": table["x"], "y": table["y"]}
    x, y = (next((arrays[k] for k in (axis, f"{axis}_lv0") if k in arrays), None) for axis in "xy")
    if x is None or y is None or x.ndim != 1 or x.shape != y.shape:
        raise FeaturesError(f"{where}: expected x and y of each tile, found {', '.join(arrays)}")
    if len(x) != n:
        raise FeaturesError(f"{where} has {len(x)} tiles, the features {n} rows", "They are not of the same run.")
    return as_xy(where, "x, y", np.stack([x, y], axis=1), n), arrays.get("tile_index"), fields


def _constants(table: NDArray[Any]) -> dict[str, Any]:
    """What a structured array says of all its tiles, under the names of the metadata of later versions."""
    if not len(table) or not {"tile_size_resized", "resize_factor", "target_spacing"} <= set(table.dtype.names or ()):
        return {"tile_size_lv0": table["tile_size_lv0"][0]} if len(table) else {}
    first = table[0]
    return {
        "tile_size_lv0": first["tile_size_lv0"],
        "target_tile_size_px": round(float(first["tile_size_resized"] / first["resize_factor"])),
        "target_spacing_um": first["target_spacing"],
    }


def _order(path: Path, where: Path, wanted: NDArray[Any], there: NDArray[Any]) -> NDArray[np.int64]:
    rank = np.argsort(there)
    at = rank[np.minimum(np.searchsorted(there, wanted, sorter=rank), len(there) - 1)]
    if len(np.unique(there)) != len(there) or not np.array_equal(there[at], wanted):
        raise FeaturesError(f"{path} and {where} number their tiles differently", "They are not of the same run.")
    return at.astype(np.int64)


def _fov_um(meta: dict[str, Any]) -> float | None:
    for word in ("requested", "target"):
        size, spacing = number(meta.get(f"{word}_tile_size_px")), number(meta.get(f"{word}_spacing_um"))
        if size and spacing:
            return size * spacing
    return None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FeaturesError(f"{path} cannot be read: {error}", "Copy it again, or take it away.") from error
    return read if isinstance(read, dict) else {}
