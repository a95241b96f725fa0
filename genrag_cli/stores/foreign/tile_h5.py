"""Embeddings of tiles in HDF5 as TRIDENT, CLAM, STAMP and HEST-bench write them.

Facts, from public code:

- TRIDENT (mahmoodlab/TRIDENT, trident/IO.py `save_h5`, `coords_to_h5`; wsi_objects/WSI.py `extract_patch_features`):
  datasets `features` (n, d) and `coords` (n, 2) int, top-left corners in level-0 px; attributes of `coords`:
  `patch_size`, `patch_size_level0`, `level0_magnification`, `target_magnification`, `overlap`, `name`, `savetodir`;
  of `features`: `name`, `savetodir`, since mid 2025 `encoder`. From coordinates of CLAM or Fishing-Rod it keeps their
  attributes, with `custom_downsample` multiplying the side. Slide encoders write one vector: refused. Some tools add
  a leading axis of 1.
- CLAM (mahmoodlab/CLAM, extract_features_fp.py, wsi_core/WholeSlideImage.py): `features` (n, d) and `coords` (n, 2),
  top-left in level-0 px, WITHOUT attributes; they stand in `patches/SLIDE.h5`: `patch_size` at `patch_level`, and
  `downsample` (x, y) of that level. That file is looked for beside.
- STAMP (KatherLab/STAMP, src/stamp/preprocessing/__init__.py, tiling.py, modeling/data.py `get_coords`): `feats`
  (n, d) float16 and `coords` (n, 2) float, top-left in um; attributes of the file: `extractor`, `unit` = um,
  `tile_size` (2.0) or `tile_size_um` and `tile_size_px` (since 2.1), `stamp_version`, `feat_type`. The slide's pixel
  size is not among them. Tiles are cut from blocks in whole px, and their corners counted in um, so they can lie a few
  px off. The
  historic format states no unit; multiplexed files call the array `patch_embeddings` too and count in px.
- HEST-bench (mahmoodlab/HEST, src/hest/bench/benchmark.py `embed_tiles`): `embeddings` (n, d), `barcodes` (n, 1) bytes,
  `coords` (n, 2) top-left in level-0 px without attributes.
"""

from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.foreign.opened import opened_hdf5
from genrag_cli.stores.foreign.rows import ForeignRows, as_matrix, as_xy, choose, few, number, text, texts
from genrag_cli.stores.foreign.sniff import READ
from genrag_cli.types import Doubles

_BARCODES = ("barcodes", "barcode")
_FEATS = ("feats", "patch_embeddings")


def read_tile_h5(path: Path, file: Any, key: str | None) -> ForeignRows:
    """The rows of an open file of one of the four tools.

    Args:
        path: of the file.
        file: h5py file.
        key: dataset to read instead of the usual one.

    Raises:
        FeaturesError: for any other layout, with the datasets that were found.
    """
    if "embeddings" in file and any(b in file for b in _BARCODES):
        return _read_hest(path, file, key)
    if any(f in file for f in _FEATS) and "features" not in file:
        return _read_stamp(path, file, key)
    if "features" in file and hasattr(file["features"], "shape") and "coords" in file:
        return _read_corners(path, file, key)
    held = few([f"{n} {getattr(file[n], 'shape', 'group')}" for n in file], 12)
    if "img" in file or "imgs" in file:
        raise FeaturesError(f"{path} holds pixels of tiles, no embeddings: {held}", "Embed them first.")
    raise FeaturesError(f"{path}: an HDF5 file of no known layout, it holds {held or 'nothing'}", READ)


def _take(path: Path, file: Any, key: str | None, usual: str) -> Any:
    """The (n, d) array of a dataset; (n, d) float32."""
    there = {n: d.shape for n, d in file.items() if hasattr(d, "shape") and n != "coords" and d.ndim >= 2}
    name = usual if key is None else choose(path, key, there, "datasets")
    return as_matrix(path, name, np.asarray(file[name]))


def _read_hest(path: Path, file: Any, key: str | None) -> ForeignRows:
    values = _take(path, file, key, "embeddings")
    barcodes = np.asarray(file[next(b for b in _BARCODES if b in file)]).reshape(-1)
    return ForeignRows(
        values=values,
        names=texts(barcodes),
        centres=None,
        path=path,
        kind="hest-h5",
        notes=("its coordinates are corners of tiles whose side it does not state, so its spots are known by barcode",),
    )


def _read_stamp(path: Path, file: Any, key: str | None) -> ForeignRows:
    if (what := text(file.attrs.get("feat_type"))) not in ("", "tile"):
        raise FeaturesError(f"{path}: STAMP features of a {what}, not of tiles", "Give the file of the tiles.")
    values = _take(path, file, key, next(f for f in _FEATS if f in file))
    side_um = number(file.attrs.get("tile_size_um"))
    unit = text(file.attrs.get("unit"))
    if side_um is None and unit == "um":
        side_um = number(file.attrs.get("tile_size"))
    centres_um: Doubles | None = None
    notes: tuple[str, ...] = ()
    if side_um is not None and unit in ("", "um") and "coords" in file:
        centres_um = as_xy(path, "coords", np.asarray(file["coords"]), len(values)) + side_um / 2
        notes = ("its coordinates are in um and lie up to a few px off",)
    else:
        notes = ("a STAMP file whose coordinates are not stated to be um: make it with STAMP 2, or give names",)
    version = text(file.attrs.get("stamp_version"))
    return ForeignRows(
        values=values,
        names=None,
        centres=None,
        path=path,
        kind="stamp-h5",
        encoder=text(file.attrs.get("extractor")),
        fov_um=side_um if unit in ("", "um") else None,
        notes=(*notes, *((f"STAMP {version}",) if version else ())),
        centres_um=centres_um,
    )


def _read_corners(path: Path, file: Any, key: str | None) -> ForeignRows:
    values = _take(path, file, key, "features")
    corners = as_xy(path, "coords", np.asarray(file["coords"]), len(values))
    attributes, made = dict(file["coords"].attrs), file["features"].attrs
    trident = bool({"level0_magnification", "patch_size_level0"} & set(attributes)) or "savetodir" in made
    notes: list[str] = []
    side = _side_px(attributes)
    if side is None and not trident and (found := _beside(path, corners)):
        side, where = found
        notes.append(f"the side of a tile is from {where}")
    if side is None:
        notes.append(
            "its coordinates are corners and nothing says how large a tile is; CLAM says it in patches/"
            f"{path.name}, which is looked for in the folder above and the one above that"
        )
    if target := number(attributes.get("target_magnification")):
        notes.append(f"tiles of {text(attributes.get('patch_size'))} px at {target:g}x, which is no pixel size")
    folder = text(made.get("savetodir")).rstrip("/").rsplit("/", 1)[-1]
    return ForeignRows(
        values=values,
        names=None,
        centres=None if side is None else corners + side / 2,
        path=path,
        kind="trident-h5" if trident else "clam-h5",
        encoder=text(made.get("encoder")) or folder.removeprefix("features_"),
        notes=tuple(notes),
        side_px=float(side[0]) if side is not None and side[0] == side[1] else None,
    )


def _side_px(attributes: dict[str, Any]) -> Doubles | None:
    """(2,) width and height of a tile in level-0 px; None where the attributes do not say."""
    if side := number(attributes.get("patch_size_level0")):
        return np.full(2, side)
    if (size := number(attributes.get("patch_size"))) is None:
        return None
    source, target = (number(attributes.get(f"{m}_magnification")) for m in ("level0", "target"))
    if source and target:
        return np.full(2, size * source / target)
    custom = number(attributes.get("custom_downsample")) or 1.0
    if "downsample" in attributes:
        factors = np.asarray(attributes["downsample"], np.float64).reshape(-1)
        if factors.size in (1, 2) and np.isfinite(factors).all() and (factors > 0).all():
            return np.broadcast_to(factors, 2) * size * custom
    level = attributes.get("patch_level")
    return np.full(2, size * custom) if level is not None and int(level) == 0 else None


def _beside(path: Path, corners: Doubles) -> tuple[Doubles, Path] | None:
    """Side of a tile from CLAM's file of patches, if one with the same corners lies where CLAM's users have it."""
    for folder in (path.parent, path.absolute().parent.parent, path.absolute().parent.parent.parent):
        patches = folder / "patches" / path.name
        if not patches.is_file():
            continue
        with opened_hdf5(patches) as file:
            if "coords" not in file or (side := _side_px(dict(file["coords"].attrs))) is None:
                continue
            known = np.asarray(file["coords"], np.float64)
        if known.shape == corners.shape and np.array_equal(_sorted(known), _sorted(corners)):
            return side, patches
    return None


def _sorted(xy: Doubles) -> Doubles:
    return xy[np.lexsort((xy[:, 1], xy[:, 0]))]
