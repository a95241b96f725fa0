"""TIFF files that OpenSlide refuses or misreads: OME-TIFF, plain TIFF without tiles, uncommon compressions.

Knows TIFF segments (tiles or strips) through tifffile and decodes only those that a region needs.
Does not guess colours: anything but RGB with 8 bits a channel is refused.
"""

import math
import threading
import xml.etree.ElementTree as ET
from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import SlideError
from genrag_cli.slides.base import (
    WHITE,
    Level,
    Pixels,
    Sides,
    composite_on_white,
    content_digest,
    mean_pixel_size,
)

CACHE_BYTES = 384 << 20
"""Decoded segments kept per slide."""
MAX_SEGMENT_BYTES = 3 << 30
"""A file in one strip must be decoded whole; above this size it is refused."""

_UM_PER_TIFF_UNIT = {2: 25400.0, 3: 10000.0}
_UM_PER_OME_UNIT = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3}


class TiffSlide:
    """A TIFF file read segment by segment.

    Args:
        path: the file.

    Raises:
        SlideError: where it is no TIFF, not RGB with 8 bits a channel, or compressed in a way that cannot be decoded.
    """

    def __init__(self, path: Path) -> None:
        import tifffile

        self.path = path
        self.slide_id = path.stem
        self.notes: tuple[str, ...] = ()
        try:
            self._file: Any = tifffile.TiffFile(path)
        except (tifffile.TiffFileError, OSError) as error:
            raise SlideError(f"{path}: cannot be read as TIFF: {error}", "Is the file complete?") from error
        try:
            self._pages = _colour_pages(path, self._file)
            self.vendor = "ome" if self._file.is_ome else "plain"
            self.reader = f"tifffile/{self.vendor}"
            sizes = [(int(p.imagewidth), int(p.imagelength)) for p in self._pages]
            self.size = sizes[0]
            self.levels = [Level(w, h, (sizes[0][0] / w + sizes[0][1] / h) / 2) for w, h in sizes]
            self._lock = threading.Lock()
            self._cache: OrderedDict[tuple[int, int], NDArray[np.uint8] | None] = OrderedDict()
            self._cached_bytes = 0
            self._segment(0, 0)  # a compression that cannot be decoded shows here, not in the middle of the work
        except BaseException:
            self._file.close()
            raise

    def pixel_size_candidates(self) -> list[tuple[str, float]]:
        """One size of what `pixel_sides` has."""
        return [mean_pixel_size(self.path, *stated) for stated in self.pixel_sides()]

    def pixel_sides(self) -> list[Sides]:
        """OME's physical size, then the TIFF resolution."""
        found = []
        if ome := _ome_pixel_size(self._file.ome_metadata, self.size):
            found.append(("OME PhysicalSize", *ome))
        if tiff := _tiff_pixel_size(self._file, self._pages[0]):
            found.append(("TIFF resolution", *tiff))
        return found

    def read_region(self, x: int, y: int, w: int, h: int, level: int) -> Pixels:
        """Reads a rectangle; see `Slide.read_region`."""
        planes, _, height, width, samples = self._pages[level].keyframe.shaped
        wide, tall = self.tile_size(level)
        across, down = math.ceil(width / wide), math.ceil(height / tall)
        out = np.full((h, w, planes * samples), WHITE, np.uint8)
        left, right, top, bottom = max(x, 0), min(x + w, width), max(y, 0), min(y + h, height)
        if left >= right or top >= bottom:
            return np.ascontiguousarray(out[..., :3])
        for row in range(top // tall, (bottom - 1) // tall + 1):
            for column in range(left // wide, (right - 1) // wide + 1):
                for plane in range(planes):
                    segment = self._segment(level, (plane * down + row) * across + column)
                    if segment is None:  # left out of a sparse file: nothing was scanned there
                        continue
                    y0, x0 = row * tall, column * wide
                    t, b = max(top, y0), min(bottom, y0 + segment.shape[0])
                    le, r = max(left, x0), min(right, x0 + segment.shape[1])
                    channels = slice(plane * samples, (plane + 1) * samples)
                    out[t - y : b - y, le - x : r - x, channels] = segment[t - y0 : b - y0, le - x0 : r - x0]
        return composite_on_white(out) if out.shape[2] == 4 else out

    def tile_size(self, level: int) -> tuple[int, int]:
        """Width and height of the tiles of a level, or of its strips."""
        page = self._pages[level].keyframe
        if page.is_tiled:
            return int(page.tilewidth), int(page.tilelength)
        return int(page.imagewidth), int(page.rowsperstrip)

    def digest(self) -> str:
        """Identity of the file's content."""
        return content_digest([self.path])

    def close(self) -> None:
        """Lets go of the file and of the decoded segments."""
        self._cache.clear()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _segment(self, level: int, index: int) -> NDArray[np.uint8] | None:
        """(h, w, samples) of one tile or strip; None where the file leaves it out."""
        with self._lock:
            if (level, index) in self._cache:
                self._cache.move_to_end((level, index))
                return self._cache[level, index]
            segment = self._decode(level, index)
            self._cache[level, index] = segment
            self._cached_bytes += 0 if segment is None else segment.nbytes
            while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
                _, old = self._cache.popitem(last=False)
                self._cached_bytes -= 0 if old is None else old.nbytes
            return segment

    def _decode(self, level: int, index: int) -> NDArray[np.uint8] | None:
        page = self._pages[level]
        offset, n_bytes = page.dataoffsets[index], page.databytecounts[index]
        if n_bytes == 0:
            return None
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.keyframe.jpegheader}
        try:
            handle = self._file.filehandle
            handle.seek(offset)
            data = handle.read(n_bytes)  # before `decode` is looked up: that may read tags and move the handle
            segment, _, _ = page.keyframe.decode(data, index, **tables)
        except Exception as error:  # codecs raise whatever they like
            raise SlideError(
                f"{self.path}: cannot decode segment {index} of level {level} "
                f"(compression {getattr(page.keyframe.compression, 'name', page.keyframe.compression)}): {error}",
                "The file is damaged or compressed in a way that is not known here; convert it to a JPEG or "
                "deflate compressed tiled TIFF.",
            ) from error
        return None if segment is None else np.ascontiguousarray(segment[0])


def _colour_pages(path: Path, file: Any) -> list[Any]:
    """First pages of the levels of the largest image in the file, finest first."""
    series = max(file.series, key=lambda s: int(np.prod(s.shape)), default=None)
    if series is None:
        raise SlideError(f"{path}: a TIFF without an image", "Is the file complete?")
    pages = [level.pages[0] for level in series.levels]
    key = pages[0].keyframe
    shape, planes, samples = series.shape, key.shaped[0], key.shaped[0] * key.shaped[4]
    is_rgb = key.photometric.name in ("RGB", "YCBCR") and samples in (3, 4) and series.axes in ("YXS", "SYX")
    if not is_rgb or key.dtype != np.uint8 or key.shaped[1] != 1:
        raise SlideError(
            f"{path}: expected an RGB image with 8 bits a channel, found {key.photometric.name} {key.dtype} "
            f"{'x'.join(map(str, shape))} ({series.axes})",
            "Export the slide in colour (RGB, 8 bits, interleaved).",
        )
    tall, wide = (key.tilelength, key.tilewidth) if key.is_tiled else (key.rowsperstrip, key.imagewidth)
    if tall * wide * samples // planes > MAX_SEGMENT_BYTES:
        raise SlideError(
            f"{path}: {key.imagewidth} x {key.imagelength} px in strips of {tall} rows cannot be read piece by piece",
            "Convert it to a tiled pyramidal TIFF, e.g. `vips tiffsave IN OUT --tile --pyramid --compression jpeg`.",
        )
    return pages


def _ome_pixel_size(xml: str | None, size: tuple[int, int]) -> tuple[float, float] | None:
    """um per px in x and y of the OME image of that size; None where the XML does not say."""
    if not xml:
        return None
    try:
        root = ET.fromstring(xml)
    except ET.ParseError:
        return None
    for pixels in root.iterfind(".//{*}Pixels"):
        if (pixels.get("SizeX"), pixels.get("SizeY")) != (str(size[0]), str(size[1])):
            continue
        x, y = pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeY")
        units = [_UM_PER_OME_UNIT.get(pixels.get(f"PhysicalSize{a}Unit", "µm")) for a in "XY"]
        if x and y and units[0] and units[1]:
            return float(x) * units[0], float(y) * units[1]
    return None


def _tiff_pixel_size(file: Any, page: Any) -> tuple[float, float] | None:
    """um per px in x and y from the resolution tags; None where they are missing or have no unit."""
    tags = page.keyframe.tags
    if "XResolution" not in tags or "YResolution" not in tags:
        return None
    unit = _UM_PER_TIFF_UNIT.get(int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2)
    if file.is_imagej:  # ImageJ counts px per its own unit and leaves the TIFF unit empty
        unit = 1.0 if (file.imagej_metadata or {}).get("unit") in ("micron", "um", "µm", "\\u00B5m") else None
    per_unit = [tags[name].value[0] / max(tags[name].value[1], 1) for name in ("XResolution", "YResolution")]
    if unit is None or min(per_unit) <= 0:
        return None
    return unit / per_unit[0], unit / per_unit[1]
