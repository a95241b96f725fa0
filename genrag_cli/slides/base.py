"""What every reader of slides offers, and the few things that all of them need.

Knows coordinates, levels and the rule that whatever is not slide is white.
Does not know any file format, what tissue is, or which pixel size is right (`slides.mpp` decides that).
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import SlideError

Pixels = NDArray[np.uint8]
"""(h, w, 3) RGB."""
Mask = NDArray[np.bool_]
"""(h, w) True on tissue."""

Sides = tuple[str, float, float]
"""A source, and the width and height in um of a level-0 px as it states them."""

WHITE = 255
DIGEST_BYTES = 1 << 20


class Level(NamedTuple):
    """One step of a slide's pyramid."""

    width: int
    height: int
    downsample: float
    """Level-0 px per px of this level; 1 at level 0."""


class Slide(Protocol):
    """An image of a tissue section; a context manager.

    `read_region` may be called from another thread than the one that opened the slide,
    and, for the readers of this package, from several at once.
    Label and macro images are never touched: they carry patient data.
    """

    @property
    def path(self) -> Path:
        """The file, or the folder of a DICOM series."""

    @property
    def slide_id(self) -> str:
        """File stem, or the folder's name."""

    @property
    def reader(self) -> str:
        """Which reader and file format, for provenance: `openslide/aperio`."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about how the pixels are read; mostly empty."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of level 0 in px."""

    @property
    def levels(self) -> list[Level]:
        """The pyramid, finest first."""

    def pixel_size_candidates(self) -> list[tuple[str, float]]:
        """Sources and their um per level-0 px, unchecked; a vendor's property before a TIFF or OME resolution."""

    def read_region(self, x: int, y: int, w: int, h: int, level: int) -> Pixels:
        """Reads a rectangle.

        Args:
            x: left edge in px of that level; may be negative.
            y: upper edge in px of that level.
            w: width in px of that level.
            h: height in px of that level.
            level: 0 is the finest.

        Returns:
            (h, w, 3) RGB; white outside the slide and where the slide is transparent.

        Raises:
            SlideError: where the file is damaged.
        """

    def tile_size(self, level: int) -> tuple[int, int] | None:
        """Width and height in px of the pieces that a level is stored in; None where it is not known or in one piece.

        A strip is as wide as its level. Pieces begin at the upper left corner of the level.
        """

    def digest(self) -> str:
        """Identity of the content as 64 hex digits; a moved or renamed copy has the same."""

    def close(self) -> None:
        """Lets go of the file; closing again does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def composite_on_white(rgba: NDArray[np.uint8]) -> Pixels:
    """Puts (h, w, 4) RGBA on white; opaque pixels keep their exact values."""
    rgb = np.ascontiguousarray(rgba[..., :3])
    alpha = rgba[..., 3]
    if alpha.min(initial=WHITE) == WHITE:
        return rgb
    a = alpha[..., None].astype(np.uint32)
    return ((rgb * a + WHITE * (WHITE - a) + WHITE // 2) // WHITE).astype(np.uint8)


def crop_on_white(pixels: Pixels, x: int, y: int, w: int, h: int) -> Pixels:
    """Cuts a rectangle out of (H, W, 3) pixels, white where it reaches past them."""
    height, width = pixels.shape[:2]
    out = np.full((h, w, 3), WHITE, np.uint8)
    left, right, top, bottom = max(x, 0), min(x + w, width), max(y, 0), min(y + h, height)
    if left < right and top < bottom:
        out[top - y : bottom - y, left - x : right - x] = pixels[top:bottom, left:right]
    return out


def content_digest(files: Iterable[Path]) -> str:
    """Hashes size, first and last MiB of every file; names, folders and dates do not count.

    Two slides that differ only in the middle of a file larger than 2 MiB, to the same byte count, are taken for one.
    """

    def one(path: Path) -> bytes:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(DIGEST_BYTES)
            file.seek(max(0, size - DIGEST_BYTES))
            return hashlib.sha256(str(size).encode() + b"\n" + head + file.read(DIGEST_BYTES)).digest()

    return hashlib.sha256(b"".join(sorted(one(path) for path in files))).hexdigest()


def mean_pixel_size(path: Path, source: str, x: float, y: float) -> tuple[str, float]:
    """Makes one pixel size of a horizontal and a vertical one.

    Raises:
        SlideError: where both are plausible and differ by more than 5 %, because a tile would be distorted.
    """
    if x == y:
        return source, x
    if min(x, y) > 0 and max(x, y) / min(x, y) > 1.05 and x < 5 and y < 5:
        raise SlideError(
            f"{path}: pixels are not square: {x:g} um wide and {y:g} um high ({source})",
            "Resample the slide to square pixels first.",
        )
    return source, float(np.sqrt(abs(x * y)))


def as_number(value: Any) -> float | None:
    """The value as a float, or None where it is missing or no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
