import numpy as np
import pytest
import tifffile

from genrag_cli.errors import SlideError
from genrag_cli.slides import open_slide
from genrag_cli.slides import tiff as tiff_module
from genrag_cli.slides.tiff import TiffSlide
from genrag_cli.testing.slide_contract import SlideContract


def write_ome(path, pixels, um=0.5, unit="µm"):
    size = {"PhysicalSizeX": um, "PhysicalSizeXUnit": unit, "PhysicalSizeY": um, "PhysicalSizeYUnit": unit}
    with tifffile.TiffWriter(path, ome=True) as file:
        options = {"photometric": "rgb", "tile": (64, 64), "resolutionunit": "CENTIMETER"}
        file.write(pixels, subifds=1, metadata={"axes": "YXS", **size}, resolution=(5000, 5000), **options)
        file.write(pixels[::2, ::2].copy(), subfiletype=1, **options)
    return path


class TestOmeTiff(SlideContract):
    colour_tolerance = 12.0

    @pytest.fixture
    def path(self, tmp_path, section):
        return write_ome(tmp_path / "a.ome.tif", section[:600, :700])


class TestStrips(SlideContract):
    @pytest.fixture
    def path(self, tmp_path, section):
        tifffile.imwrite(tmp_path / "strips.tif", section, photometric="rgb", rowsperstrip=50, compression="lzw")
        return tmp_path / "strips.tif"


@pytest.mark.real
class TestSvsThroughTifffile(SlideContract):
    def open(self, path):
        return TiffSlide(path)

    @pytest.fixture
    def path(self, shared_data):
        return shared_data / "wsi" / "CMU-1-Small-Region.svs"


def test_ome_tiff_shows_its_pyramid_and_names_both_pixel_sizes(tmp_path, section):
    with open_slide(write_ome(tmp_path / "a.ome.tif", section[:600, :700])) as slide:
        assert [level.downsample for level in slide.levels] == [1, 2]
        assert slide.pixel_size_candidates() == [("OME PhysicalSize", 0.5), ("TIFF resolution", 2.0)]


def test_ome_units_are_heeded(tmp_path, section):
    with open_slide(write_ome(tmp_path / "a.ome.tif", section[:200, :200], um=250, unit="nm")) as slide:
        assert slide.pixel_size_candidates()[0] == ("OME PhysicalSize", 0.25)


def test_planes_kept_apart_and_alpha_are_put_together(tmp_path, section):
    pixels = section[300:500, 400:700]
    planes = np.moveaxis(pixels, 2, 0).copy()
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate", tile=(64, 64))
    alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    alpha[:50] = 0
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(tmp_path / "alpha.tif", np.concatenate([pixels, alpha], axis=2), **options)
    with TiffSlide(tmp_path / "planes.tif") as apart, TiffSlide(tmp_path / "alpha.tif") as clear:
        assert np.array_equal(apart.read_region(0, 0, 300, 200, 0), pixels)
        assert (clear.read_region(0, 0, 300, 50, 0) == 255).all()
        assert np.array_equal(clear.read_region(0, 50, 300, 150, 0), pixels[50:])


def test_jpeg_tiles_have_the_right_colours(tmp_path, section):
    pixels = section[500:700, 600:900]
    tifffile.imwrite(tmp_path / "j.tif", pixels, photometric="rgb", tile=(64, 64), compression="jpeg")
    with TiffSlide(tmp_path / "j.tif") as slide:
        assert np.abs(slide.read_region(0, 0, 300, 200, 0).astype(int) - pixels).mean() < 8


def test_decoded_segments_stay_within_the_bound(tmp_path, section, monkeypatch):
    monkeypatch.setattr(tiff_module, "CACHE_BYTES", 500_000)
    tifffile.imwrite(tmp_path / "strips.tif", section, photometric="rgb", rowsperstrip=50)
    with TiffSlide(tmp_path / "strips.tif") as slide:
        whole = slide.read_region(0, 0, *slide.size, 0)
        assert np.array_equal(whole, section)
        assert sum(segment.nbytes for segment in slide._cache.values()) <= 500_000


def test_a_strip_too_large_to_hold_is_refused_with_a_remedy(tmp_path, section, monkeypatch):
    monkeypatch.setattr(tiff_module, "MAX_SEGMENT_BYTES", 1_000_000)
    tifffile.imwrite(tmp_path / "one.tif", section, photometric="rgb", rowsperstrip=len(section))
    with pytest.raises(SlideError, match="strips of 1200 rows") as caught:
        open_slide(tmp_path / "one.tif")
    assert "pyramidal" in caught.value.hint


def test_damage_in_the_middle_is_a_slide_error(tmp_path, section):
    path = tmp_path / "bad.tif"
    tifffile.imwrite(path, section, photometric="rgb", rowsperstrip=50, compression="deflate")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[12]
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    with TiffSlide(path) as slide, pytest.raises(SlideError, match="segment 12 of level 0"):
        slide.read_region(0, 0, *slide.size, 0)


def test_a_resolution_without_a_unit_is_no_pixel_size(tmp_path, section):
    tifffile.imwrite(
        tmp_path / "a.tif", section[:200, :200], photometric="rgb", resolution=(72, 72), resolutionunit="NONE"
    )
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.pixel_size_candidates() == []
