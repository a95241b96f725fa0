"""Slides that cuCIM reads, where a person asks for it: tiled TIFF and SVS whose tiles are JPEG.

Knows cuCIM's image and what of it can be relied on: the library ends the process on some files and gives noise for
damaged tiles without a word, so files of other kinds are refused here, and what it does not notice is a note. Does not
decide who reads a file (`slides.open`), and never takes the place of another reader by itself.
"""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from genrag_cli.errors import SlideError
from genrag_cli.slides.base import WHITE, Level, Pixels, as_number, content_digest, crop_on_white, mean_pixel_size

NAME = "cucim"
_JPEG = 7
_UM_PER_UNIT = {"inch": 25400.0, "centimeter": 10000.0}
_BLIND = "cuCIM does not notice damaged tiles; OpenSlide, the default, does"
_OTHERS = "Leave GENERAG_READER out: other readers take this file."


class CucimSlide:
    """A slide behind cuCIM.

    Args:
        path: a tiled TIFF or SVS, compressed with JPEG.

    Raises:
        SlideError: where cuCIM is not installed, the file is of another kind, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            from cucim import CuImage
        except ImportError as error:
            raise SlideError(
                f"{path}: the reader cucim was asked for (GENERAG_READER) and is not installed ({error})",
                "Install it: pip install 'generag[cucim]'; or leave GENERAG_READER out.",
            ) from error
        _expect_jpeg_tiles(path)
        self.path = path
        self.slide_id = path.stem
        try:
            self._image: Any = CuImage(str(path))
            levels = self._image.resolutions
            self._facts: dict[str, Any] = self._image.metadata
        except (RuntimeError, ValueError) as error:
            raise SlideError(f"{path}: cuCIM cannot open it: {error}", _OTHERS) from error
        self.vendor = "aperio" if "aperio" in self._facts else "generic-tiff"
        self.reader = f"{NAME}/{self.vendor}"
        self.notes: tuple[str, ...] = (_BLIND,)
        sizes = [(int(w), int(h)) for w, h in levels["level_dimensions"]]
        self.size = sizes[0]
        self.levels = [Level(w, h, float(d)) for (w, h), d in zip(sizes, levels["level_downsamples"], strict=True)]
        self._tiles = [(int(w), int(h)) for w, h in levels["level_tile_sizes"]]

    def pixel_size_candidates(self) -> list[tuple[str, float]]:
        """What the scanner wrote, then the TIFF resolution."""
        found = []
        if (mpp := as_number(self._facts.get("aperio", {}).get("MPP"))) is not None:
            found.append(("aperio property", mpp))
        tiff = self._facts.get("tiff", {})
        x, y = as_number(tiff.get("x_resolution")), as_number(tiff.get("y_resolution"))
        unit = _UM_PER_UNIT.get(tiff.get("resolution_unit", ""))
        if x and y and unit:
            found.append(mean_pixel_size(self.path, "TIFF resolution", unit / x, unit / y))
        return found

    def read_region(self, x: int, y: int, w: int, h: int, level: int) -> Pixels:
        """Reads a rectangle; see `Slide.read_region`."""
        width, height, scale = self.levels[level]
        left, right, top, bottom = max(x, 0), min(x + w, width), max(y, 0), min(y + h, height)
        if left >= right or top >= bottom:
            return np.full((h, w, 3), WHITE, np.uint8)
        place, size = (round(left * scale), round(top * scale)), (right - left, bottom - top)
        try:
            pixels = np.asarray(self._image.read_region(place, size, level), np.uint8)
        except (RuntimeError, ValueError) as error:
            raise SlideError(
                f"{self.path}: cannot read {w} x {h} px at x {x}, y {y} of level {level}: {error}",
                "The file is damaged or incomplete; copy it again.",
            ) from error
        return crop_on_white(pixels, x - left, y - top, w, h)

    def tile_size(self, level: int) -> tuple[int, int] | None:
        """The tiles of a level."""
        return self._tiles[level]

    def digest(self) -> str:
        """Identity of the file's content."""
        return content_digest([self.path])

    def close(self) -> None:
        """Lets go of the file; closing again does nothing."""
        image, self._image = self._image, None
        if image is not None:
            image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _expect_jpeg_tiles(path: Path) -> None:
    """Refuses whatever cuCIM has not been seen to read well."""
    import tifffile

    if path.is_dir():
        raise SlideError(f"{path}: a folder, and the reader cucim (GENERAG_READER) takes TIFF and SVS files", _OTHERS)
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            found = f"{page.compression.name}{'' if page.is_tiled else ', not in tiles'}"
            fits = page.compression == _JPEG and page.is_tiled and not (file.is_philips or file.is_ome)
            kind = ", of Philips" if file.is_philips else ", OME" if file.is_ome else ""
    except (tifffile.TiffFileError, OSError, ValueError) as error:
        raise SlideError(
            f"{path}: no TIFF, and the reader cucim (GENERAG_READER) takes no others: {error}", _OTHERS
        ) from error
    if not fits:
        raise SlideError(
            f"{path}: {found}{kind}; the reader cucim (GENERAG_READER) takes tiled TIFF and SVS with JPEG", _OTHERS
        )
