"""The circles and polygons of a SpatialData shapes element, as centres: GeoParquet, or the arrays of format 0.1.

Geometries are decoded here (WKB, or GeoArrow points), so that no geometry package is needed. It knows no
transformation and no table; coordinates are those of the element itself.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import CohortError
from genrag_cli.types import Doubles, Strings

_FILE = "shapes.parquet"
_POINT, _POLYGON, _MULTIPOLYGON = 1, 3, 6


@dataclass(frozen=True, eq=False)
class Shapes:
    """The m shapes of an element."""

    index: Strings
    """(m,) what tables name them by."""
    centres: Doubles
    """(m, 2) x, y: centres of circles, centroids of polygons (of the largest part of several)."""
    radii: Doubles | None
    """(m,) of circles; None for polygons."""


def shape_files(element: Path) -> tuple[Path, ...]:
    """The files that hold geometries, names and transformations."""
    return tuple(sorted(path for path in element.rglob("*") if path.is_file()))


def read_shapes(element: Path) -> Shapes:
    """Reads one element.

    Raises:
        CohortError: for an element that is damaged, or holds other than points and polygons.
    """
    try:
        index, geometry, radii = _read_parquet(element) if (element / _FILE).is_file() else _read_arrays(element)
    except (OSError, KeyError, ValueError) as error:
        raise CohortError(f"{element}: cannot be read as a shapes element ({error})") from error
    if isinstance(geometry, list):
        try:
            centres = _centroids(geometry)
        except (struct.error, ValueError) as error:
            raise CohortError(f"{element}: a geometry cannot be decoded ({error})") from error
    else:
        centres = geometry
    if not np.all(np.isfinite(centres)) or len(centres) != len(index):
        raise CohortError(f"{element}: {len(index)} shapes, not all of which have a place")
    return Shapes(np.array([str(v) for v in index], dtype=np.str_), centres, radii)


def read_radii(element: Path) -> Doubles | None:
    """(m,) radii of the circles of an element, read without their places; None for polygons.

    Raises:
        CohortError: for an element that is damaged.
    """
    import pandas as pd

    try:
        if not (element / _FILE).is_file():
            return _read_arrays(element)[2]
        return np.asarray(pd.read_parquet(element / _FILE, columns=["radius"])["radius"], dtype=np.float64)
    except (OSError, KeyError) as error:
        raise CohortError(f"{element}: cannot be read as a shapes element ({error})") from error
    except ValueError:  # no such column
        return None


def _read_parquet(element: Path) -> tuple[list[Any], list[bytes] | Doubles, Doubles | None]:
    import pandas as pd

    frame = pd.read_parquet(element / _FILE)
    values = frame["geometry"].tolist()
    radii = frame["radius"].to_numpy(dtype=np.float64) if "radius" in frame else None
    if all(isinstance(v, bytes) for v in values):
        return frame.index.tolist(), values, radii
    if all(isinstance(v, dict) for v in values):  # GeoArrow points
        return frame.index.tolist(), np.array([(v["x"], v["y"]) for v in values], np.float64).reshape(-1, 2), radii
    raise ValueError("polygons are encoded as GeoArrow; write them as WKB (spatialdata.settings)")


def _read_arrays(element: Path) -> tuple[list[Any], Doubles, Doubles]:
    import zarr

    group = zarr.open_group(str(element), mode="r")
    if "radius" not in group:
        raise ValueError("polygons of format 0.1; write the store anew with a later spatialdata")
    coords = np.asarray(group["coords"][:], np.float64)[:, :2]
    return np.asarray(group["Index"][:]).tolist(), coords, np.asarray(group["radius"][:], np.float64)


def _centroids(geometries: list[bytes]) -> Doubles:
    """(m, 2) centres; geometries of one length and kind are decoded together."""
    out = np.full((len(geometries), 2), np.nan)
    lengths = np.array([len(g) for g in geometries])
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        block = np.frombuffer(b"".join(geometries[i] for i in rows), np.uint8).reshape(len(rows), length)
        heads = np.unique(block[:, : min(length, 13)], axis=0)
        kind, dims, rings = _head(bytes(heads[0]))
        simple = len(heads) == 1 and heads[0][0] == 1
        if simple and kind == _POINT:
            out[rows] = _doubles(block[:, 5:], dims)[:, 0]
        elif simple and kind == _POLYGON and rings == 1:
            out[rows] = _ring_centroids(_doubles(block[:, 13:], dims))
        else:
            out[rows] = [_centroid(geometries[i]) for i in rows]
    return out


def _head(data: bytes) -> tuple[int, int, int]:
    """Kind, numbers per vertex, and the count that follows, of a geometry in WKB or EWKB."""
    order = "<" if data[0] == 1 else ">"
    code = struct.unpack_from(f"{order}I", data, 1)[0]
    dims = 2 + bool(code & 0x80000000) + bool(code & 0x40000000)
    plain = code & 0x0FFFFFFF
    dims += {0: 0, 1: 1, 2: 1, 3: 2}[plain // 1000]
    count = struct.unpack_from(f"{order}I", data, 5)[0] if len(data) >= 9 else 0
    return plain % 1000, dims, count


def _doubles(block: NDArray[np.uint8], dims: int) -> Doubles:
    """(m, k, 2) x, y of the little-endian vertices in (m, bytes)."""
    values = np.ascontiguousarray(block).view("<f8")
    return values.reshape(len(block), -1, dims)[..., :2].astype(np.float64)


def _ring_centroids(rings: Doubles) -> Doubles:
    """(m, 2) centroids of (m, k, 2) closed rings; the mean of the vertices where a ring has no area."""
    first = rings[:, :1]
    shifted = rings - first  # far from the origin the products would cancel
    x, y = shifted[..., 0], shifted[..., 1]
    cross = x[:, :-1] * y[:, 1:] - x[:, 1:] * y[:, :-1]
    area = cross.sum(axis=1) / 2
    sums = ((shifted[:, :-1] + shifted[:, 1:]) * cross[..., None]).sum(axis=1)
    flat = np.abs(area) < 1e-12
    centres = sums / (6 * np.where(flat, 1, area))[:, None]
    centres[flat] = shifted[flat, :-1].mean(axis=1)
    return np.asarray(centres + first[:, 0], np.float64)


def _centroid(data: bytes) -> Doubles:
    """(2,) of one geometry of any of the known kinds; holes are not cut out."""
    parts, _ = _outer_rings(data, 0)
    areas = [abs(_area(ring)) for ring in parts]
    return np.asarray(_ring_centroids(parts[int(np.argmax(areas))][None])[0])


def _area(ring: Doubles) -> float:
    x, y = (ring - ring[:1]).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def _outer_rings(data: bytes, at: int) -> tuple[list[Doubles], int]:
    """Outer rings of the geometry that starts at a byte, and where it ends; a point is a ring of two equal vertices."""
    order = "<" if data[at] == 1 else ">"
    kind, dims, count = _head(data[at : at + 13])
    if kind == _POINT:
        xy = np.frombuffer(data, f"{order}f8", dims, at + 5)[:2].astype(np.float64)
        return [np.stack([xy, xy])], at + 5 + 8 * dims
    at += 9
    if kind == _MULTIPOLYGON:
        rings: list[Doubles] = []
        for _ in range(count):
            part, at = _outer_rings(data, at)
            rings += part
        return rings, at
    if kind != _POLYGON or not count:
        raise ValueError(f"WKB geometry of kind {kind} with {count} parts")
    outer: list[Doubles] = []
    for i in range(count):
        n = struct.unpack_from(f"{order}I", data, at)[0]
        vertices = np.frombuffer(data, f"{order}f8", n * dims, at + 4).reshape(n, dims)[:, :2].astype(np.float64)
        outer += [vertices] if i == 0 else []
        at += 4 + 8 * n * dims
    return outer, at
