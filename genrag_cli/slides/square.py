"""Slides whose pixels are not square, shown as if they were.

Knows which slides these are, how their px are resampled, and how places go from one to the other. Everything that lays
tiles over a slide counts in the square px that it sees; what is read from or written to files counts in the px that
the slide has, and goes through `from_level0` or `to_level0`.
"""

import math
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from genrag_cli.slides.base import WHITE, Level, Pixels, Sides, Slide
from genrag_cli.slides.mpp import is_plausible
from genrag_cli.types import Doubles

TOLERANCE = 0.01
"""Pixels that are square to within this are taken as square, with the mean of both sides as their size."""

Stretch = tuple[float, float]
"""Square px per level-0 px, across and down; (1, 1) where level-0 px are square."""


@runtime_checkable
class StatesSides(Protocol):
    """A reader of files that state width and height of a px."""

    def pixel_sides(self) -> list[Sides]:
        """In the order in which sources count."""


@runtime_checkable
class Stretched(Protocol):
    """A slide whose px were stretched, or one that stands in front of it."""

    stretch: Stretch


def present_square(slide: Slide) -> Slide:
    """The slide itself, or, where the first plausible source says that its px are not square, one with square px."""
    stated = slide.pixel_sides() if isinstance(slide, StatesSides) else []
    for source, x, y in stated:
        if is_plausible(x) and is_plausible(y):
            return slide if max(x, y) / min(x, y) <= 1 + TOLERANCE else SquareSlide(slide, stated, (source, x, y))
    return slide


def stretch_of(slide: Slide) -> Stretch:
    """By how much the px of a slide were stretched to be square."""
    return slide.stretch if isinstance(slide, Stretched) else (1.0, 1.0)


def to_level0(points: Doubles, stretch: Stretch) -> Doubles:
    """(n, 2) x, y in level-0 px of places in square px."""
    return np.asarray(points / np.array(stretch), np.float64)


def from_level0(points: Doubles, stretch: Stretch) -> Doubles:
    """(n, 2) x, y in square px of places in level-0 px."""
    return np.asarray(points * np.array(stretch), np.float64)


def unstretch(pixels: Pixels, stretch: Stretch) -> Pixels:
    """Square px (h, w, 3) in the proportions of a slide's own px."""
    from PIL import Image

    if stretch == (1.0, 1.0):
        return pixels
    size = (max(1, round(pixels.shape[1] / stretch[0])), max(1, round(pixels.shape[0] / stretch[1])))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


class SquareSlide:
    """A slide with square px as large as the finer side of its own; what `Slide` says holds for these.

    Between the px of a level it interpolates linearly, along the coarser side only.

    Args:
        slide: whose px are not square; closed with this one.
        stated: sides of its px as all sources state them.
        sides: those that count.
    """

    def __init__(self, slide: Slide, stated: list[Sides], sides: Sides) -> None:
        source, x, y = sides
        self._slide, self._stated = slide, stated
        self.stretch: Stretch = (max(x / y, 1.0), max(y / x, 1.0))
        self.path: Path = slide.path
        self.slide_id, self.reader = slide.slide_id, slide.reader
        shape = f"its pixels are {x:g} um wide and {y:g} um high ({source}); read as squares of {min(x, y):g} um"
        self.notes: tuple[str, ...] = (*slide.notes, shape)
        (across, down), levels = self.stretch, slide.levels
        self.levels = [Level(round(lv.width * across), round(lv.height * down), lv.downsample) for lv in levels]
        self.size: tuple[int, int] = self.levels[0][:2]

    def pixel_size_candidates(self) -> list[tuple[str, float]]:
        """Sides of the square px; of a source that says another shape, the side of squares with the area it says."""
        across, down = self.stretch
        return [(source, math.sqrt(abs(x * y) / (across * down))) for source, x, y in self._stated]

    def read_region(self, x: int, y: int, w: int, h: int, level: int) -> Pixels:
        """Reads a rectangle; see `Slide.read_region`."""
        inner, shown, (across, down) = self._slide.levels[level], self.levels[level], self.stretch
        left, wide, columns = _sources(x, w, across, inner.width)
        top, tall, rows = _sources(y, h, down, inner.height)
        pixels = self._slide.read_region(left, top, wide, tall, level)
        pixels = _interpolate(_interpolate(pixels, rows, 0), columns, 1)
        for axis, start, n, side in ((0, y, h, shown.height), (1, x, w, shown.width)):
            beyond = np.arange(start, start + n)
            np.moveaxis(pixels, axis, 0)[(beyond < 0) | (beyond >= side)] = WHITE
        return pixels

    def tile_size(self, level: int) -> tuple[int, int] | None:
        """Width and height in square px of the pieces that a level is stored in; see `Slide.tile_size`."""
        piece = self._slide.tile_size(level)
        return piece and (round(piece[0] * self.stretch[0]), round(piece[1] * self.stretch[1]))

    def digest(self) -> str:
        """Identity of the content, whatever it is shown as."""
        return self._slide.digest()

    def close(self) -> None:
        """Lets go of the file; closing again does nothing."""
        self._slide.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _sources(start: int, n: int, stretch: float, side: int) -> tuple[int, int, Doubles | None]:
    """Which px a run of square px comes from.

    Returns:
        the first px and their number; and where in them the centres of the square px lie, None where they are the same.
    """
    if stretch == 1:
        return start, n, None
    # Counted from the level's own corner, so that a px does not depend on the window it is read in.
    centres = np.clip((np.arange(start, start + n) + 0.5) / stretch - 0.5, 0, side - 1)
    first, last = int(centres[0]), int(centres[-1]) + 1
    return first, last - first + 1, centres - first


def _interpolate(pixels: Pixels, places: Doubles | None, axis: int) -> Pixels:
    if places is None:
        return pixels
    lines = np.moveaxis(pixels, axis, 0)
    before = places.astype(np.int64)
    share: NDArray[np.float32] = (places - before).astype(np.float32).reshape(-1, 1, 1)
    mixed = lines[before] * (1 - share) + lines[before + 1] * share
    return np.ascontiguousarray(np.moveaxis(np.rint(mixed).astype(np.uint8), 0, axis))
