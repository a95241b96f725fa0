"""OME-NGFF images (Zarr 2 and 3) as slides: what SpatialData stores keep under images/, and other OME-Zarr files.

Knows multiscales metadata, versions 0.4 and 0.5, and decodes only the chunks that a region needs. Takes RGB with 8 bits
a channel; fluorescence is refused. Does not follow transformations other than scales, and reads no labels.
"""

import hashlib
import json
import re
import threading
from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import SlideError
from genrag_cli.slides.base import WHITE, Level, Pixels, Sides, composite_on_white, mean_pixel_size

CACHE_BYTES = 384 << 20
"""Decoded chunks kept per slide; they are often far larger than a tile."""
_UM = {
    "micrometer": 1.0, "micrometre": 1.0, "um": 1.0, "µm": 1.0, "μm": 1.0, "nanometer": 1e-3, "nanometre": 1e-3,
    "millimeter": 1e3, "millimetre": 1e3, "centimeter": 1e4, "meter": 1e6, "metre": 1e6,
}  # fmt: skip
_CHANNEL = re.compile(r"(?:channel|ch|c)?[ _:.-]*([0-3])|(r)(?:ed)?|(g)(?:reen)?|(b)(?:lue)?|(a)(?:lpha)?")
"""Numbers, and names of colours; whatever else a channel is called is a stain."""
_METADATA = ("zarr.json", ".zattrs")


def is_image(folder: Path) -> bool:
    """Whether the folder is a Zarr group with the metadata of an image."""
    return any((folder / name).is_file() for name in _METADATA) and "multiscales" in _read_attributes(folder)


def is_zarr(folder: Path) -> bool:
    """Whether the folder is a Zarr group of any kind."""
    return any((folder / name).is_file() for name in (*_METADATA, ".zgroup"))


class NgffSlide:
    """An image read chunk by chunk.

    Args:
        path: the folder whose metadata have `multiscales`.

    Raises:
        SlideError: where it is damaged, or not RGB with 8 bits a channel.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.slide_id = path.name
        attributes = _read_attributes(path)
        try:
            self._scales: dict[str, Any] = attributes["multiscales"][0]
            self._axes = [a if isinstance(a, str) else str(a["name"]) for a in self._scales["axes"]]
            self._arrays = [_open_array(path / one["path"]) for one in self._scales["datasets"]]
            sizes = [self._size(array) for array in self._arrays]
            stored, all_chunks = self._arrays[0].nchunks_initialized, self._arrays[0].nchunks
        except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
            raise SlideError(f"{path}: cannot be read as an OME-NGFF image ({error!r})", "Is it complete?") from error
        self._order = self._channel_order(attributes)
        self.size = sizes[0]
        levels = [Level(w, h, (sizes[0][0] / w + sizes[0][1] / h) / 2) for w, h in sizes]
        held = dict(zip(levels, self._arrays, strict=True))
        self.levels = sorted(held, key=lambda level: level.downsample)
        self._arrays = [held[level] for level in self.levels]
        lost = f"{all_chunks - stored} of {all_chunks} chunks of level 0 are not stored: black there"
        self.notes: tuple[str, ...] = (lost,) if stored < all_chunks else ()
        self.vendor = "ome-ngff"
        self.reader = f"zarr/ome-ngff-{attributes.get('version') or self._scales.get('version') or 'unversioned'}"
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int, int], NDArray[np.uint8]] = OrderedDict()
        self._cached_bytes = 0

    def pixel_size_candidates(self) -> list[tuple[str, float]]:
        """One size of what `pixel_sides` has."""
        return [mean_pixel_size(self.path, *stated) for stated in self.pixel_sides()]

    def pixel_sides(self) -> list[Sides]:
        """The scale of level 0 where the axes count in a unit of length, then that of SpatialData's named systems."""
        found = []
        units = {a["name"]: a.get("unit") for a in self._scales["axes"] if isinstance(a, dict)}
        first = _scale(self._scales["datasets"][0].get("coordinateTransformations") or [], self._axes)
        stated = self._scales.get("coordinateTransformations") or []
        plain = [one for one in stated if not isinstance(one.get("output"), dict)]
        if first and (rest := _scale(plain, self._axes)):
            found += self._sides_of("OME-NGFF scale", units, first, rest)
        for one in stated:
            system = one.get("output")
            if isinstance(system, dict) and (named := _scale([one], self._axes)):
                axes = [a for a in system.get("axes", []) if isinstance(a, dict)]
                units = {a["name"]: a.get("unit") for a in axes}
                found += self._sides_of(f"OME-NGFF {system.get('name')} scale", units, (1.0, 1.0), named)
        return found

    def read_region(self, x: int, y: int, w: int, h: int, level: int) -> Pixels:
        """Reads a rectangle; see `Slide.read_region`."""
        array = self._arrays[level]
        across, down = self._axes.index("x"), self._axes.index("y")
        width, height = array.shape[across], array.shape[down]
        wide, tall = self.tile_size(level)
        out = np.full((h, w, len(self._order)), WHITE, np.uint8)
        left, right, top, bottom = max(x, 0), min(x + w, width), max(y, 0), min(y + h, height)
        if left < right and top < bottom:
            for row in range(top // tall, (bottom - 1) // tall + 1):
                for column in range(left // wide, (right - 1) // wide + 1):
                    block = self._block(level, row, column)
                    y0, x0 = row * tall, column * wide
                    t, b = max(top, y0), min(bottom, y0 + block.shape[0])
                    le, r = max(left, x0), min(right, x0 + block.shape[1])
                    out[t - y : b - y, le - x : r - x] = block[t - y0 : b - y0, le - x0 : r - x0]
        return composite_on_white(out) if out.shape[2] == 4 else out

    def tile_size(self, level: int) -> tuple[int, int]:
        """Width and height of the chunks of a level."""
        chunks = self._arrays[level].chunks
        return int(chunks[self._axes.index("x")]), int(chunks[self._axes.index("y")])

    def digest(self) -> str:
        """Identity of the content: names and sizes of all files of the arrays, and the bytes of the coarsest level.

        Two images that differ only in finer levels, to the same byte count of every chunk, are taken for one.
        """
        told = hashlib.sha256()
        folders = [self.path / one["path"] for one in self._scales["datasets"]]
        coarsest = min(folders, key=lambda f: sum(p.stat().st_size for p in f.rglob("*") if p.is_file()))
        for folder in folders:
            for file in sorted(p for p in folder.rglob("*") if p.is_file()):
                told.update(f"{file.relative_to(self.path).as_posix()} {file.stat().st_size}\n".encode())
                if folder == coarsest or file.name in ("zarr.json", ".zarray"):
                    told.update(file.read_bytes())
        return told.hexdigest()

    def close(self) -> None:
        """Lets go of the decoded chunks."""
        self._cache.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _size(self, array: Any) -> tuple[int, int]:
        sides = dict(zip(self._axes, array.shape, strict=True))
        others = {name: n for name, n in sides.items() if name not in "cyx" and n != 1}
        if sides.get("c") not in (3, 4) or array.dtype != np.uint8 or others:
            shown = "x".join(map(str, array.shape))
            raise SlideError(
                f"{self.path}: expected an RGB image with 8 bits a channel, found {array.dtype} {shown} "
                f"({''.join(self._axes)})",
                "Give the H&E image of the store.",
            )
        return sides["x"], sides["y"]

    def _channel_order(self, attributes: dict[str, Any]) -> list[int]:
        """Which channel is red, green, blue and perhaps alpha."""
        n = self._arrays[0].shape[self._axes.index("c")]
        channels = (attributes.get("omero") or {}).get("channels") or []
        labels = [str(c.get("label", i)).lower() for i, c in enumerate(channels)] or [str(i) for i in range(n)]
        found = [_CHANNEL.fullmatch(label) for label in labels]
        places = ["0123".find(m[1]) if m and m[1] else "rgba".find(m[0][0]) if m else -1 for m in found]
        if sorted(places) != list(range(n)):
            raise SlideError(
                f"{self.path}: expected red, green and blue, found channels {', '.join(labels)}",
                "Give the H&E image of the store.",
            )
        return [places.index(i) for i in range(n)]

    def _sides_of(
        self, source: str, units: dict[str, Any], first: tuple[float, float], rest: tuple[float, float]
    ) -> list[Sides]:
        unit = [_UM.get(str(units.get(axis)).lower()) for axis in "xy"]
        if unit[0] is None or unit[1] is None:
            return []
        x, y = (abs(a * b * u) for a, b, u in zip(first, rest, (unit[0], unit[1]), strict=True))
        return [(source, x, y)]

    def _block(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        """(h, w, channels) of the chunks at one place of a level's grid."""
        key = (level, row, column)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        block = self._decode(level, row, column)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = block
                self._cached_bytes += block.nbytes
            while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
                _, old = self._cache.popitem(last=False)
                self._cached_bytes -= old.nbytes
        return block

    def _decode(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        array, at = self._arrays[level], {"y": row, "x": column}
        where: list[Any] = []
        for axis, side in zip(self._axes, array.chunks, strict=True):
            whole = slice(None) if axis == "c" else 0
            where.append(slice(at[axis] * side, (at[axis] + 1) * side) if axis in at else whole)
        try:
            block = np.asarray(array[tuple(where)])
        except Exception as error:  # codecs raise whatever they like
            raise SlideError(
                f"{self.path}: cannot decode chunk {row}, {column} of level {level}: {error}", "Is it complete?"
            ) from error
        kept = [axis for axis in self._axes if axis in "cyx"]
        block = block.transpose([kept.index(axis) for axis in "yxc"])
        return np.ascontiguousarray(block[..., self._order])


def _read_attributes(folder: Path) -> dict[str, Any]:
    """The attributes that hold an image's metadata: those under `ome` since version 0.5, all before."""
    for name in _METADATA:
        try:
            stated = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        attributes = stated.get("attributes", {}) if name == "zarr.json" else stated
        found = attributes.get("ome", attributes)
        if isinstance(found, dict):
            return found
    return {}


def _open_array(folder: Path) -> Any:
    import zarr

    return zarr.open_array(str(folder), mode="r")


def _scale(stated: list[dict[str, Any]], axes: list[str]) -> tuple[float, float] | None:
    """By how much scales among transformations stretch x and y; None where there are others that stretch."""
    x, y = 1.0, 1.0
    for one in stated:
        if one.get("type") == "scale":
            scale = one["scale"]
            x, y = x * float(scale[axes.index("x")]), y * float(scale[axes.index("y")])
        elif one.get("type") == "sequence":
            inner = _scale(one["transformations"], axes)
            if inner is None:
                return None
            x, y = x * inner[0], y * inner[1]
        elif one.get("type") not in ("identity", "translation"):
            return None
    return x, y
