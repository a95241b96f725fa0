import numpy as np
import pytest
import tifffile
from PIL import Image

from genrag_cli.errors import SlideError
from genrag_cli.slides import open_slide


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SlideError, match=r"absent.svs: no such slide"):
        open_slide(tmp_path / "absent.svs")


def test_a_text_file_is_not_a_slide(tmp_path):
    path = tmp_path / "table.svs"
    path.write_text("name,x,y\n")
    with pytest.raises(SlideError, match="not a slide"):
        open_slide(path)


def test_an_empty_file_is_not_a_slide(tmp_path):
    (tmp_path / "empty.svs").touch()
    with pytest.raises(SlideError, match="not a slide"):
        open_slide(tmp_path / "empty.svs")


def test_a_folder_without_dicom_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no slide")
    with pytest.raises(SlideError, match="holds no DICOM file"):
        open_slide(tmp_path)


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPG"), ("a.png", "PNG"), ("named-like-a-slide.svs", "JPG")])
def test_pictures_are_refused_unless_asked_for(tmp_path, name, kind):
    Image.new("RGB", (80, 60), "pink").save(tmp_path / name, "png" if kind == "PNG" else "jpeg")
    with pytest.raises(SlideError, match=f"{kind} picture .* only with --mpp"):
        open_slide(tmp_path / name)
    assert open_slide(tmp_path / name, pictures=True).size == (80, 60)


def test_a_tiled_tiff_goes_to_openslide_and_a_plain_one_to_tifffile(tiff_path, tmp_path, section):
    tifffile.imwrite(tmp_path / "plain.tif", section, photometric="rgb")
    with open_slide(tiff_path) as tiled, open_slide(tmp_path / "plain.tif") as plain:
        assert (tiled.reader, plain.reader) == ("openslide/generic-tiff", "tifffile/plain")
        assert np.array_equal(tiled.read_region(700, 500, 90, 80, 0), plain.read_region(700, 500, 90, 80, 0))


@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_grey_and_16_bit_tiffs_are_refused_though_openslide_would_show_them(tmp_path, tile):
    grey, deep = np.zeros((200, 300), np.uint8), np.zeros((200, 300, 3), np.uint16)
    for name, pixels in (("grey.tif", grey), ("deep.tif", deep)):
        tifffile.imwrite(tmp_path / name, pixels, tile=tile, photometric="minisblack" if pixels.ndim == 2 else "rgb")
        with pytest.raises(SlideError, match="expected an RGB image with 8 bits"):
            open_slide(tmp_path / name)


@pytest.mark.real
def test_a_tiff_that_nobody_can_decode_is_refused(shared_data):
    with pytest.raises(SlideError, match=r"unopenable.tiff: cannot decode .* 52479"):
        open_slide(shared_data / "wsi" / "openslide_fixtures" / "unopenable.tiff")


@pytest.mark.real
def test_boxes_png_is_not_a_slide(shared_data):
    with pytest.raises(SlideError, match="only with --mpp"):
        open_slide(shared_data / "wsi" / "openslide_fixtures" / "boxes.png")
