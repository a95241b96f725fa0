import numpy as np
import pytest
from PIL import Image

from genrag_cli.errors import SlideError
from genrag_cli.slides import picture
from genrag_cli.slides.picture import PictureSlide
from genrag_cli.testing.slide_contract import SlideContract


class TestPng(SlideContract):
    @pytest.fixture
    def path(self, tmp_path, section):
        Image.fromarray(section[:400, :500]).save(tmp_path / "section.png")
        return tmp_path / "section.png"


@pytest.mark.real
class TestJpg(SlideContract):
    @pytest.fixture
    def path(self, shared_data):
        return shared_data / "xenium_tiny" / "NCBI858.jpg"


def test_dpi_of_a_picture_is_no_pixel_size(tmp_path):
    Image.new("RGB", (100, 100)).save(tmp_path / "a.jpg", dpi=(25400, 25400))
    assert PictureSlide(tmp_path / "a.jpg").pixel_size_candidates() == []


def test_pillows_limit_is_raised_here_and_nowhere_else(tmp_path, monkeypatch):
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert PictureSlide(tmp_path / "a.png").size == (100, 100)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_picture_beyond_our_own_limit_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(picture, "MAX_PIXELS", 9_999)
    with pytest.raises(SlideError, match="100 x 100 px is too large"):
        PictureSlide(tmp_path / "a.png")


def test_transparent_parts_are_white(tmp_path):
    Image.new("RGBA", (20, 20), (200, 0, 0, 0)).save(tmp_path / "a.png")
    assert (PictureSlide(tmp_path / "a.png").read_region(0, 0, 20, 20, 0) == 255).all()


@pytest.mark.parametrize("mode", ["L", "I;16", "1"])
def test_pictures_without_colour_are_refused(tmp_path, mode):
    Image.new(mode, (20, 20)).save(tmp_path / "a.png")
    with pytest.raises(SlideError, match="expected an RGB picture"):
        PictureSlide(tmp_path / "a.png")


def test_palette_colours_are_kept(tmp_path):
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[5:, :, 0] = 200
    Image.fromarray(pixels).quantize(2).save(tmp_path / "a.png")
    assert np.array_equal(PictureSlide(tmp_path / "a.png").read_region(0, 0, 20, 20, 0), pixels)


def test_a_turned_picture_is_read_as_stored_and_says_so(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    slide = PictureSlide(tmp_path / "a.jpg")
    assert slide.size == (40, 20)
    assert "orientation" in slide.notes[0]


def test_a_cut_off_picture_is_a_slide_error(tmp_path, section):
    Image.fromarray(section[500:700, 600:800]).save(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:2000])
    with pytest.raises(SlideError, match=r"cut.jpg: cannot be read as a picture"):
        PictureSlide(tmp_path / "cut.jpg")
