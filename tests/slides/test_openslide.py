import shutil

import numpy as np
import pytest
import tifffile

from genrag_cli.errors import SlideError
from genrag_cli.slides import open_slide
from genrag_cli.slides.openslide import OpenSlideSlide
from genrag_cli.testing.slide_contract import SlideContract


class TestTiledTiff(SlideContract):
    @pytest.fixture
    def path(self, tiff_path):
        return tiff_path


@pytest.mark.real
class TestSvs(SlideContract):
    @pytest.fixture
    def path(self, shared_data):
        return shared_data / "wsi" / "CMU-1-Small-Region.svs"


@pytest.mark.real
class TestDicomFolder(SlideContract):
    @pytest.fixture
    def path(self, shared_data):
        return shared_data / "wsi" / "dicom_cmu1_small"


@pytest.mark.real
class TestPyramidOfBoxes(SlideContract):
    @pytest.fixture
    def path(self, shared_data):
        return shared_data / "wsi" / "openslide_fixtures" / "boxes.tiff"


def test_a_tiff_of_no_vendor_names_its_tiff_resolution(tiff_path):
    with open_slide(tiff_path) as slide:
        assert slide.pixel_size_candidates() == [("TIFF resolution", pytest.approx(1.0))]


def test_a_truncated_slide_says_so(tiff_path, tmp_path):
    data = tiff_path.read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(SlideError, match=r"cut.tif"), OpenSlideSlide(tmp_path / "cut.tif") as slide:
        slide.read_region(0, 0, *slide.size, 0)


def test_damaged_tiles_are_a_slide_error(tiff_path, tmp_path):
    with tifffile.TiffFile(tiff_path) as file:
        offset = file.pages[0].dataoffsets[40]
    data = bytearray(tiff_path.read_bytes())
    data[offset : offset + 40] = b"\xff" * 40
    (tmp_path / "bad.tif").write_bytes(data)
    with open_slide(tmp_path / "bad.tif") as slide, pytest.raises(SlideError, match="cannot read 1500 x 1200 px"):
        slide.read_region(0, 0, *slide.size, 0)


def test_files_that_a_mirax_or_vms_slide_implies_count_for_its_digest(tmp_path):
    from genrag_cli.slides.openslide import _files_of

    (tmp_path / "a").mkdir()
    for name in ("a.mrxs", "a/Slidedat.ini", "b.jpg", "other.jpg"):
        (tmp_path / name).write_text(name)
    (tmp_path / "b.vms").write_text("[Virtual Microscope Specimen]\r\nNoLayers=1\r\nImageFile=b.jpg\r\n")
    assert [p.name for p in _files_of(tmp_path / "a.mrxs", "mirax")] == ["a.mrxs", "Slidedat.ini"]
    assert [p.name for p in _files_of(tmp_path / "b.vms", "hamamatsu")] == ["b.vms", "b.jpg"]


@pytest.mark.real
def test_dicom_with_wrongly_declared_colours_is_put_right_and_says_so(shared_data):
    with (
        open_slide(shared_data / "wsi" / "CMU-1-Small-Region.svs") as svs,
        open_slide(shared_data / "wsi" / "dicom_cmu1_small") as dicom,
    ):
        a, b = (slide.read_region(600, 900, 400, 400, 0).astype(float) for slide in (svs, dicom))
        assert "converted" in dicom.notes[0]
        assert svs.notes == ()
    assert np.abs(a - b).mean() < 8


@pytest.mark.real
def test_one_dicom_file_stands_for_its_series(shared_data):
    folder = shared_data / "wsi" / "dicom_cmu1_small"
    with open_slide(folder) as whole, open_slide(folder / "level-3-frames-0-1.dcm") as one:
        assert one.size == whole.size
        assert one.digest() == whole.digest()
        assert one.slide_id == "level-3-frames-0-1"


@pytest.mark.real
def test_a_folder_with_two_dicom_series_is_refused(shared_data, tmp_path):
    source = shared_data / "wsi" / "dicom_cmu1_small" / "level-9-frames-0-1.dcm"
    shutil.copy(source, tmp_path / "a.dcm")
    other = source.read_bytes().replace(b"499658", b"499659")
    (tmp_path / "b.dcm").write_bytes(other)
    with pytest.raises(SlideError, match="2 DICOM series"):
        open_slide(tmp_path)
