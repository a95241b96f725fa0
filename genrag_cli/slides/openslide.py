"""Slides that OpenSlide reads: SVS, NDPI, MRXS, SCN, BIF, CZI, DICOM folders, tiled TIFF and others.

Knows OpenSlide's properties, its errors, and which files belong to a slide.
Does not decide which reader a file gets (`slides.open`) nor which pixel size counts (`slides.mpp`).
"""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from genrag_cli.errors import SlideError
from genrag_cli.slides import dicom
from genrag_cli.slides.base import (
    WHITE,
    Level,
    Pixels,
    Sides,
    as_number,
    composite_on_white,
    content_digest,
    mean_pixel_size,
)
from genrag_cli.slides.files import INDEXES, indexed_files, mirax_files

CACHE_BYTES = 128 << 20
"""Decoded tiles kept per slide: a row of tiles across a wide slide, so that the next row finds its upper half."""

_OPAQUE = bytes([WHITE])
_UM_PER_UNIT = {"inch": 25400.0, "centimeter": 10000.0}
_YCBCR_NOTE = "its DICOM frames are called RGB but are YCbCr; converted"


def library_version() -> str:
    """The version of the OpenSlide library that is loaded, which is not that of the Python package."""
    import openslide

    return str(openslide.__library_version__)


def detect_vendor(path: Path) -> str | None:
    """The file format as OpenSlide calls it; None where it is none of OpenSlide's."""
    import openslide

    found: str | None = openslide.OpenSlide.detect_format(path)
    return found


class OpenSlideSlide:
    """A slide behind OpenSlide.

    At levels above 0, OpenSlide places a window to the nearest level-0 px, so the same spot read through two
    windows may differ by a shift of at most half a level-0 px.

    Args:
        path: a file, or the folder of a DICOM series.

    Raises:
        SlideError: where OpenSlide cannot open it.
    """

    def __init__(self, path: Path) -> None:
        import openslide

        self.path = path
        files = dicom.series_files(path) if path.is_dir() else []
        try:
            self._handle: Any = openslide.OpenSlide(files[0] if files else path)
            self._handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
            self.size: tuple[int, int] = self._handle.dimensions
            self.levels = [
                Level(w, h, float(d))
                for (w, h), d in zip(self._handle.level_dimensions, self._handle.level_downsamples, strict=True)
            ]
        except openslide.OpenSlideError as error:
            raise SlideError(f"{path}: OpenSlide cannot open it: {error}", "Is the file complete?") from error
        self.slide_id = path.name if path.is_dir() else path.stem
        self.vendor: str = self._handle.properties.get("openslide.vendor", "unknown")
        self.reader = f"openslide/{self.vendor}"
        self._files = _files_of(path, self.vendor)
        self._ycbcr = False
        if self.vendor == "dicom":
            w, h = min(self.size[0], 512), min(self.size[1], 512)
            frame = dicom.first_frame(self._files, self.size)
            self._ycbcr = bool(frame) and dicom.is_undone_ycbcr(frame, self.read_region(0, 0, w, h, 0))
        self.notes: tuple[str, ...] = (_YCBCR_NOTE,) if self._ycbcr else ()

    def pixel_size_candidates(self) -> list[tuple[str, float]]:
        """One size of what `pixel_sides` has."""
        return [mean_pixel_size(self.path, *stated) for stated in self.pixel_sides()]

    def pixel_sides(self) -> list[Sides]:
        """What the scanner wrote, then the TIFF resolution."""
        props = self._handle.properties
        found = []
        x, y = as_number(props.get("openslide.mpp-x")), as_number(props.get("openslide.mpp-y"))
        if x is not None and y is not None:
            # For a TIFF of no vendor OpenSlide derives these from the TIFF resolution, so they are no vendor's word.
            source = "TIFF resolution" if self.vendor == "generic-tiff" else f"{self.vendor} property"
            found.append((source, x, y))
        x, y = as_number(props.get("tiff.XResolution")), as_number(props.get("tiff.YResolution"))
        unit = _UM_PER_UNIT.get(props.get("tiff.ResolutionUnit", ""))
        if self.vendor != "generic-tiff" and x and y and unit:
            found.append(("TIFF resolution", unit / x, unit / y))
        return found

    def read_region(self, x: int, y: int, w: int, h: int, level: int) -> Pixels:
        """Reads a rectangle; see `Slide.read_region`."""
        import openslide

        scale = self.levels[level].downsample
        try:
            image = self._handle.read_region((round(x * scale), round(y * scale)), level, (w, h))
        except openslide.OpenSlideError as error:
            raise SlideError(
                f"{self.path}: cannot read {w} x {h} px at x {x}, y {y} of level {level}: {error}",
                "The file is damaged or incomplete; copy it again.",
            ) from error
        packed = image.tobytes("raw", "RGB")  # drops alpha and leaves the colours as they are
        if self._ycbcr:
            packed = _as_rgb(packed, image.size)
        colours = np.frombuffer(packed, np.uint8).reshape(h, w, 3)
        alpha = image.tobytes("raw", "A")
        if alpha == _OPAQUE * len(alpha):
            return colours
        return composite_on_white(np.dstack([colours, np.frombuffer(alpha, np.uint8).reshape(h, w, 1)]))

    def tile_size(self, level: int) -> tuple[int, int] | None:
        """The tiles of a level as OpenSlide states them; it does not for formats whose tiles overlap."""
        stated = [self._handle.properties.get(f"openslide.level[{level}].tile-{side}") for side in ("width", "height")]
        return None if None in stated else (int(stated[0]), int(stated[1]))

    def digest(self) -> str:
        """Identity of the content of every file of the slide."""
        return content_digest(self._files)

    def close(self) -> None:
        """Lets go of the file; closing again does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_rgb(ycbcr: bytes, size: tuple[int, int]) -> bytes:
    from PIL import Image

    packed: bytes = Image.frombytes("YCbCr", size, ycbcr).convert("RGB").tobytes()
    return packed


def _files_of(path: Path, vendor: str) -> list[Path]:
    """Every file that a slide consists of; some formats name or imply files beside the one that is opened."""
    if vendor == "dicom":
        return dicom.series_files(path)
    if vendor == "mirax":
        return [path, *mirax_files(path)]
    return [path, *indexed_files(path)] if path.suffix.lower() in INDEXES else [path]
