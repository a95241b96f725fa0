"""JPG and PNG images of sections, read whole into memory through Pillow.

Knows colour modes and Pillow's size limit.
Does not know a pixel size: the dpi that cameras and editors write into pictures says nothing about tissue.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from genrag_cli.errors import SlideError
from genrag_cli.slides.base import Level, Pixels, composite_on_white, content_digest, crop_on_white

MAX_PIXELS = 1_500_000_000
"""Larger pictures are refused: 4.5 GB of memory, twice that while decoding."""

_EXIF_ORIENTATION = 274


class PictureSlide:
    """A picture of a section; one level, held in memory (3 bytes a px).

    Args:
        path: a JPG or PNG file.

    Raises:
        SlideError: where it is damaged, too large, or has no colour.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.slide_id = path.stem
        self._pixels, kind, turned = _read_picture(path)
        self.vendor = kind
        self.reader = f"pillow/{kind}"
        h, w = self._pixels.shape[:2]
        self.size = (w, h)
        self.levels = [Level(w, h, 1.0)]
        note = "its EXIF orientation is ignored: x and y count in the stored image"
        self.notes: tuple[str, ...] = (note,) if turned else ()

    def pixel_size_candidates(self) -> list[tuple[str, float]]:
        """Nothing: a picture does not know."""
        return []

    def read_region(self, x: int, y: int, w: int, h: int, level: int) -> Pixels:
        """Reads a rectangle; see `Slide.read_region`."""
        if level != 0:
            raise IndexError(f"a picture has level 0 only, not {level}")
        return crop_on_white(self._pixels, x, y, w, h)

    def tile_size(self, level: int) -> None:
        """A picture is in memory as a whole."""

    def digest(self) -> str:
        """Identity of the file's content."""
        return content_digest([self.path])

    def close(self) -> None:
        """Frees the memory."""
        self._pixels = self._pixels[:0, :0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_picture(path: Path) -> tuple[Pixels, str, bool]:
    """Pixels, format name, and whether EXIF asks for the picture to be turned."""
    with open_picture(path, ("JPEG", "PNG"), MAX_PIXELS, "Convert it to a tiled pyramidal TIFF.") as image:
        if image.mode not in ("RGB", "RGBA", "P", "PA"):
            raise SlideError(
                f"{path}: expected an RGB picture with 8 bits a channel, found Pillow mode {image.mode!r}",
                "Export the section in colour (RGB, 8 bits).",
            )
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) != 1
        kind = str(image.format).lower()
        plain = image.mode == "RGB" and "transparency" not in image.info
        pixels = np.array(image) if plain else composite_on_white(np.array(image.convert("RGBA")))
        return pixels, kind, turned


@contextmanager
def open_picture(path: Path, formats: tuple[str, ...], most_px: int, remedy: str) -> Iterator[Any]:
    """Opens a picture with Pillow, whose own limit guards web servers; whole sections exceed it rightly.

    Args:
        path: of the picture.
        formats: that are accepted, as Pillow calls them.
        most_px: that it may have.
        remedy: what to do with one that has more.

    Raises:
        SlideError: for a picture that is damaged or larger; also where reading its pixels within the context fails.
    """
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path, formats=formats) as image:
            if image.width * image.height > most_px:
                raise SlideError(
                    f"{path}: {image.width} x {image.height} px is too large for a picture, which is read whole", remedy
                )
            yield image
    except (OSError, SyntaxError) as error:
        raise SlideError(f"{path}: cannot be read as a picture: {error}", "Is the file complete?") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
