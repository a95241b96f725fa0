"""Tissue that somebody has drawn: polygons in GeoJSON, or a picture whose px are zero where there is none.

Knows the GeoJSON that QuPath writes, and PNG and TIFF as masks. Every polygon counts, whatever its class; points and
lines have no area and do not. Does not look at the slide's own pixels.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import SlideError, UsageError
from genrag_cli.slides.base import Mask, Slide
from genrag_cli.slides.picture import open_picture
from genrag_cli.slides.square import from_level0, stretch_of
from genrag_cli.types import Doubles

MAX_MASK_PIXELS = 400_000_000
MAX_JSON_BYTES = 256 << 20
_ASPECT_TOLERANCE = 0.02
_BEYOND_EDGE = 0.01
"""Share of the slide's side by which polygons may reach past it: tools round, and hands slip."""
_MOST_COLOURS = 256

_FORMAT = (
    "Tissue is `density`, `otsu`, `none`, or a file: GeoJSON with polygons in level-0 px (.geojson, .json, .gz), or a "
    "PNG or TIFF mask of the whole slide, zero where there is no tissue."
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")

Polygon = list[Doubles]
"""Its outline and then its holes, (k, 2) x, y each."""


def read_mask(path: str | Path, slide: Slide, shape: Sequence[int], scale: float) -> Mask:
    """Reads where the tissue of a slide is; the content tells the format.

    A px of the mask is tissue where at least half of it is.

    Args:
        path: GeoJSON with polygons in level-0 px, or a PNG or TIFF mask that is stretched over the slide.
        slide: that the file is about.
        shape: height and width of the overview that the mask is for.
        scale: overview px per level-0 px.

    Returns:
        (h, w) True on tissue.

    Raises:
        UsageError: for a file that is missing, is neither, or marks nothing.
        SlideError: for one that does not fit the slide: another aspect ratio, or polygons outside.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UsageError(f"{path}: no tissue to be had from it: {error.strerror}", _FORMAT) from error
    if head.startswith(b"\x89PNG") or head.startswith(_TIFF):
        return _stretch(path, _read_tiff(path, shape) if head.startswith(_TIFF) else _read_png(path), slide, shape)
    if head.startswith(b"\x1f\x8b") or head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        return _fill(path, read_polygons(path), slide, shape, scale)
    raise UsageError(f"{path}: {'is empty' if not head else 'neither GeoJSON nor a PNG or TIFF mask'}", _FORMAT)


def read_polygons(path: Path) -> list[Polygon]:
    """The polygons of a GeoJSON file, packed by gzip or not.

    Raises:
        UsageError: where it is no GeoJSON, or has no polygon.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
        if len(text) > MAX_JSON_BYTES:
            raise UsageError(f"{path}: more than {MAX_JSON_BYTES >> 20} MiB of GeoJSON", "Keep the tissue only.")
        polygons = list(_polygons_in(json.loads(text.decode("utf-8-sig"))))
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read as GeoJSON: {error!r}", _FORMAT) from error
    if not polygons:
        raise UsageError(f"{path}: no polygon in it", "Draw the tissue as areas, or give --tissue none.")
    return polygons


def _polygons_in(item: Any) -> Iterator[Polygon]:
    """Polygons of any GeoJSON object, or of a list of such, as older versions of QuPath write them."""
    if isinstance(item, list):
        for one in item:
            yield from _polygons_in(one)
        return
    kind = item["type"]
    if kind in ("FeatureCollection", "GeometryCollection"):
        yield from _polygons_in(item["features" if kind == "FeatureCollection" else "geometries"])
    elif kind == "Feature":
        if item["geometry"] is not None:
            yield from _polygons_in(item["geometry"])
    elif kind in ("Polygon", "MultiPolygon"):
        for rings in [item["coordinates"]] if kind == "Polygon" else item["coordinates"]:
            polygon = [np.array([point[:2] for point in ring], np.float64) for ring in rings]
            if any(ring.ndim != 2 or len(ring) < 3 or not np.isfinite(ring).all() for ring in polygon):
                raise ValueError("a ring of a polygon needs at least 3 points of finite x, y")
            if polygon:
                yield polygon
    elif kind not in _NO_AREA:
        raise ValueError(f"GeoJSON has no type {kind!r}")


def _fill(path: Path, polygons: list[Polygon], slide: Slide, shape: Sequence[int], scale: float) -> Mask:
    """Draws polygons; what lies in several of them is tissue, and so is what one has and another has as a hole."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.path import Path as Outline
    from matplotlib.transforms import Affine2D

    corners, stretch = np.concatenate([outline for outline, *_ in polygons]), stretch_of(slide)
    low, high, size = corners.min(axis=0), corners.max(axis=0), np.rint(slide.size / np.array(stretch))
    slack = np.maximum(_BEYOND_EDGE * size, 1 / scale)
    if (low < -slack).any() or (high > size + slack).any():
        raise SlideError(
            f"{path}: its polygons reach from x {low[0]:g}, y {low[1]:g} to {high[0]:g}, {high[1]:g}, outside the "
            f"{size[0]:.0f} x {size[1]:.0f} px of {slide.path}",
            "Coordinates are level-0 px; are they of another slide, or in um?",
        )
    # Outlines one way round and holes the other: what is wound around at all is then tissue.
    rings = [
        Outline(from_level0(ring[:: 1 if (_signed_area(ring) > 0) == (i == 0) else -1], stretch) * scale, closed=True)
        for polygon in polygons
        for i, ring in enumerate(_closed(ring) for ring in polygon)
    ]
    height, width = shape
    renderer = RendererAgg(width, height, 72)
    context = renderer.new_gc()
    context.set_linewidth(0)
    context.set_snap(False)
    try:
        upwards = Affine2D().scale(1, -1).translate(0, height)
        renderer.draw_path(context, Outline.make_compound_path(*rings), upwards, (1.0, 1.0, 1.0))
    except OverflowError as error:
        raise UsageError(f"{path}: polygons with too many edges to draw", "Simplify them.") from error
    mask: Mask = np.asarray(renderer.buffer_rgba())[..., 3] > 127
    if not mask.any():
        raise SlideError(f"{path}: its polygons cover nothing of {slide.path}", "Are their coordinates level-0 px?")
    return mask


def _closed(ring: Doubles) -> Doubles:
    return ring if (ring[0] == ring[-1]).all() else np.concatenate([ring, ring[:1]])


def _signed_area(ring: Doubles) -> float:
    x, y = (ring - ring[0]).T
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2


def _stretch(path: Path, marked: Mask, slide: Slide, shape: Sequence[int]) -> Mask:
    """A mask of the whole slide at the size of its overview."""
    from PIL import Image

    height, width = marked.shape
    (across, down), (x, y) = slide.size, stretch_of(slide)
    # Of px that are not square, other programs make masks either in their number or in their shape.
    if all(abs(width / height / ratio - 1) > _ASPECT_TOLERANCE for ratio in (across / down, across / x / (down / y))):
        raise SlideError(
            f"{path}: {width} x {height} px has another aspect ratio than the {across} x {down} px of {slide.path}",
            "A mask covers the whole slide; was it made of another one, or cut?",
        )
    if not marked.any():
        raise UsageError(f"{path}: a mask without tissue, every px is zero", _FORMAT)
    if marked.all():
        raise UsageError(f"{path}: no mask, no px is zero", "If all of the slide is tissue, say --tissue none.")
    image = Image.fromarray(marked.astype(np.uint8) * 255)
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BOX)) > 127


def _read_png(path: Path) -> Mask:
    with open_picture(
        path, ("PNG",), MAX_MASK_PIXELS, "Save the mask smaller; it is stretched over the slide."
    ) as image:
        seen = image.convert("RGBA") if image.mode == "P" else image
        return _non_zero(path, np.asarray(seen))


def _read_tiff(path: Path, shape: Sequence[int]) -> Mask:
    """The coarsest level that is as fine as the overview."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            fine = [level for level in series.levels if level.shape[series.axes.index("X")] >= shape[1]]
            level = fine[-1] if fine else series.levels[0]
            if series.axes not in ("YX", "YXS", "SYX") or level.size > MAX_MASK_PIXELS:
                raise UsageError(
                    f"{path}: a mask is one plane of at most {MAX_MASK_PIXELS:g} px, this is "
                    f"{'x'.join(map(str, level.shape))} ({series.axes})",
                    "Save it smaller; it is stretched.",
                )
            pixels = np.asarray(level.asarray())
    except UsageError:
        raise
    except Exception as error:  # codecs raise whatever they like
        raise UsageError(f"{path}: cannot be read as a TIFF mask: {error}", _FORMAT) from error
    return _non_zero(path, np.moveaxis(pixels, 0, -1) if series.axes == "SYX" else pixels)


def _non_zero(path: Path, pixels: NDArray[Any]) -> Mask:
    """Where any colour is, and is not transparent."""
    if pixels.ndim == 2:
        return np.asarray(np.nan_to_num(pixels) != 0, bool)
    n = pixels.shape[2]
    colours = pixels[..., : n - 1 + n % 2]
    step = 1 + max(pixels.shape[:2]) // 1000
    if len(np.unique(colours[::step, ::step].reshape(-1, colours.shape[2]), axis=0)) > _MOST_COLOURS:
        raise UsageError(f"{path}: no mask, a picture of more than {_MOST_COLOURS} colours", _FORMAT)
    marked = colours.any(axis=2)
    return np.asarray(marked if n % 2 else marked & (pixels[..., -1] > 0), bool)
