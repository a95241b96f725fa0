"""The reader cucim: only where it is asked for, never in silence; held to the contract where it is installed."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile

from genrag_cli.errors import SlideError, UsageError
from genrag_cli.slides import Slide, open_slide
from genrag_cli.slides.cucim import CucimSlide
from genrag_cli.slides.openslide import OpenSlideSlide
from genrag_cli.testing.slide_contract import SlideContract

installed = pytest.mark.skipif(find_spec("cucim") is None, reason="cucim is not installed")


@pytest.fixture
def jpeg_path(tmp_path: Path) -> Path:
    """A pyramid of two levels in JPEG tiles, 1.2 um/px."""
    y, x = np.mgrid[0:700, 0:900]
    image = np.stack([128 + 60 * np.sin(x / 90), 120 + 50 * np.cos(y / 70), 150 + 0 * x], axis=-1).astype(np.uint8)
    path = tmp_path / "slide.tif"
    how = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        for level, pixels in enumerate((image, image[::2, ::2])):
            per_cm = 1e4 / (1.2 * 2**level)
            writer.write(pixels, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", subfiletype=level, **how)
    return path


@installed
class TestJpegTiff(SlideContract):
    def open(self, path: Path) -> Slide:
        return CucimSlide(path)

    @pytest.fixture
    def path(self, jpeg_path):
        return jpeg_path


@installed
class TestSvs(SlideContract):
    def open(self, path: Path) -> Slide:
        return CucimSlide(path)

    @pytest.fixture
    def path(self, shared_data):
        return shared_data / "wsi" / "CMU-1-Small-Region.svs"

    def test_it_shows_the_very_pixels_and_sizes_of_openslide(self, path):
        with self.open(path) as one, OpenSlideSlide(path) as other:
            assert (one.read_region(333, 444, 500, 400, 0) == other.read_region(333, 444, 500, 400, 0)).all()
            assert one.pixel_size_candidates() == other.pixel_size_candidates()
            assert (one.size, one.digest()) == (other.size, other.digest())


@installed
def test_it_is_taken_where_the_environment_asks_for_it(jpeg_path, monkeypatch):
    monkeypatch.setenv("GENERAG_READER", "cucim")
    with open_slide(jpeg_path) as slide:
        assert slide.reader == "cucim/generic-tiff"
        assert slide.pixel_size_candidates() == [("TIFF resolution", pytest.approx(1.2))]
        assert any("does not notice damaged tiles" in note for note in slide.notes)


@installed
def test_what_it_cannot_read_well_is_refused_before_it_sees_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GENERAG_READER", "cucim")
    tifffile.imwrite(tmp_path / "deflate.tif", np.zeros((600, 600, 3), np.uint8), tile=(256, 256), compression="zlib")
    (tmp_path / "text.svs").write_text("no slide")
    for name, said in (("deflate.tif", "ADOBE_DEFLATE"), ("text.svs", "no TIFF"), (".", "a folder")):
        with pytest.raises(SlideError, match=said):
            open_slide(tmp_path / name)


def test_without_the_package_the_remedy_is_named(jpeg_path, monkeypatch):
    monkeypatch.setenv("GENERAG_READER", "cucim")
    monkeypatch.setitem(sys.modules, "cucim", None)
    with pytest.raises(SlideError, match="is not installed") as caught:
        open_slide(jpeg_path)
    assert "generag[cucim]" in caught.value.hint


def test_an_unknown_reader_is_refused(jpeg_path, monkeypatch):
    monkeypatch.setenv("GENERAG_READER", "cucumber")
    with pytest.raises(UsageError, match="GENERAG_READER=cucumber"):
        open_slide(jpeg_path)


def test_nobody_gets_it_without_asking(jpeg_path, monkeypatch):
    monkeypatch.delenv("GENERAG_READER", raising=False)
    with open_slide(jpeg_path) as slide:
        assert not slide.reader.startswith("cucim")
