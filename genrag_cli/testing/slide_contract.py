"""What every slide reader must do, as tests to inherit.

Knows the `Slide` protocol. Does not know any file format: the subclass says which file to open, and how.

A reader is held to it by three lines:

    class TestMyReader(SlideContract):
        def open(self, path): return MySlide(path)
        @pytest.fixture
        def path(self): return Path("some/slide.abc")
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from genrag_cli.slides import Slide, open_slide
from genrag_cli.slides.base import WHITE


class SlideContract:
    """Inherit, give a fixture `path`, and override `open` for a reader of your own."""

    colour_tolerance = 8.0
    """By how much the mean colour of a level may differ from the one below it, of 255."""
    window_tolerance = 8.0
    """By how much the same px may differ, on average, between two windows of a level above 0 (shifts below one px)."""

    @pytest.fixture
    def path(self) -> Path:
        """The slide to test with: at least 64 x 64 px, better with several levels."""
        raise NotImplementedError("override the fixture `path` with one that returns a slide file or folder")

    def open(self, path: Path) -> Slide:
        """Opens the slide; by default as generag would."""
        return open_slide(path, pictures=True)

    def copy(self, path: Path, folder: Path) -> Path:
        """Copies the slide under another name; override it where a slide is a file and others beside it."""
        folder.mkdir()
        if path.is_dir():
            return Path(shutil.copytree(path, folder / "copied"))
        return Path(shutil.copy(path, folder / f"copied{path.suffix}"))

    @pytest.fixture
    def slide(self, path: Path) -> Iterator[Slide]:
        """The slide, open."""
        with self.open(path) as slide:
            yield slide

    def test_names_itself_and_its_reader(self, slide: Slide, path: Path) -> None:
        """The id is the stem, or a folder's name."""
        assert slide.path == path
        assert slide.slide_id == (path.name if path.is_dir() else path.stem)
        assert slide.reader
        assert all(isinstance(note, str) for note in slide.notes)

    def test_level_0_has_the_size_of_the_slide(self, slide: Slide) -> None:
        """And a downsample of exactly one."""
        assert tuple(slide.levels[0]) == (*slide.size, 1.0)

    def test_levels_get_coarser_and_smaller(self, slide: Slide) -> None:
        """Finest first, none twice."""
        for finer, coarser in zip(slide.levels, slide.levels[1:], strict=False):
            assert coarser.downsample > finer.downsample
            assert coarser.width < finer.width or coarser.height < finer.height

    def test_pixel_sizes_are_named_numbers(self, slide: Slide) -> None:
        """Whether they are plausible is judged elsewhere."""
        for source, value in slide.pixel_size_candidates():
            assert source
            assert isinstance(value, float)

    def test_regions_are_rgb_rows_first(self, slide: Slide) -> None:
        """At every level, whatever the shape asked for."""
        for index in range(len(slide.levels)):
            pixels = slide.read_region(0, 0, 7, 5, index)
            assert pixels.shape == (5, 7, 3)
            assert pixels.dtype == np.uint8

    def test_outside_the_slide_is_white(self, slide: Slide) -> None:
        """Beside it, far from it, and on all four sides of a region that contains it."""
        for index, level in enumerate(slide.levels):
            if level.width * level.height > 16_000_000:
                continue
            around = slide.read_region(-9, -7, level.width + 20, level.height + 20, index)
            # A reader may place a level to the nearest level-0 px, so the rim itself may be mixed with white.
            for strip in (around[:6], around[:, :8], around[level.height + 8 :], around[:, level.width + 10 :]):
                assert (strip == WHITE).all()
            assert (slide.read_region(level.width + 10, 0, 4, 4, index) == WHITE).all()
            assert (slide.read_region(-5000, -5000, 4, 4, index) == WHITE).all()

    def test_pixels_do_not_depend_on_the_window(self, slide: Slide) -> None:
        """To the bit at level 0; elsewhere up to a shift below one px."""
        for index, level in enumerate(slide.levels):
            if min(level.width, level.height) < 64:
                continue
            x, y = level.width // 3, level.height // 3
            large, small = slide.read_region(x, y, 40, 40, index), slide.read_region(x + 11, y + 5, 20, 17, index)
            difference = np.abs(large[5:22, 11:31].astype(np.int16) - small).mean()
            assert difference <= (0 if index == 0 else self.window_tolerance)

    def test_levels_show_the_same_colours(self, slide: Slide) -> None:
        """A coarser level is the same image, smaller."""
        for index, level in enumerate(slide.levels):
            side = min(level.width, level.height, 256)
            if side < 32 or level.downsample > 16:
                continue
            x, y = (level.width - side) // 2, (level.height - side) // 2
            coarse = slide.read_region(x, y, side, side, index).mean(axis=(0, 1))
            left, top, wide = (round(value * level.downsample) for value in (x, y, side))
            fine = slide.read_region(left, top, wide, wide, 0).mean(axis=(0, 1))
            assert np.abs(coarse - fine).max() <= self.colour_tolerance

    def test_stored_pieces_have_a_size_or_are_unknown(self, slide: Slide) -> None:
        """At every level; those at the right and lower edge may reach past it."""
        for index in range(len(slide.levels)):
            piece = slide.tile_size(index)
            assert piece is None or min(piece) >= 1

    def test_digest_survives_a_copy_under_another_name(self, slide: Slide, path: Path, tmp_path: Path) -> None:
        """Identity is content."""
        with self.open(self.copy(path, tmp_path / "elsewhere")) as copied:
            assert copied.digest() == slide.digest()
        assert len(slide.digest()) == 64

    def test_closes_at_the_end_of_with(self, path: Path) -> None:
        """And gives itself to `as`; closing again does nothing."""
        with self.open(path) as slide:
            assert slide.read_region(0, 0, 1, 1, 0).shape == (1, 1, 3)
        slide.close()
