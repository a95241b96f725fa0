import gzip
import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from genrag_cli.errors import GeneragError, SlideError, UsageError
from genrag_cli.slides import find_tissue, open_slide
from genrag_cli.slides.masks import read_mask
from genrag_cli.types import PixelSize
from genrag_cli.units import Mpp

ONE = PixelSize(Mpp(1.0), "test")
SHAPE, SCALE = (120, 150), 0.1
"""Of the overview of `tiff_path`, 1500 x 1200 px, at 10 um/px."""


@pytest.fixture
def slide(tiff_path):
    with open_slide(tiff_path) as slide:
        yield slide


@pytest.fixture
def read(slide, tmp_path):
    """The mask that a GeoJSON object or the bytes of a file say."""

    def read(content, name="tissue.geojson"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return read_mask(path, slide, SHAPE, SCALE)

    return read


@pytest.fixture
def read_picture(slide, tmp_path):
    def read(pixels, ending="png"):
        path = tmp_path / f"mask.{ending}"
        Image.fromarray(pixels).save(path) if ending == "png" else tifffile.imwrite(path, pixels)
        return read_mask(path, slide, SHAPE, SCALE)

    return read


def square(x, y, side, clockwise=False):
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return ring[::-1] if clockwise else ring


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry):
    return {"type": "Feature", "id": "1", "geometry": geometry, "properties": {"objectType": "annotation"}}


def box(*squares):
    """What squares x, y, side of the overview cover."""
    out = np.zeros(SHAPE, bool)
    for x, y, side in squares:
        out[y : y + side, x : x + side] = True
    return out


def disc():
    y, x = np.mgrid[:60, :75]
    return (x - 37) ** 2 + (y - 30) ** 2 < 400


@pytest.mark.parametrize(
    "wrap",
    [
        lambda one: one,
        feature,
        lambda one: {"type": "FeatureCollection", "features": [feature(one), feature(None)]},
        lambda one: [feature(one)],
        lambda one: {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [9, 9]}, one]},
        lambda one: {"type": "MultiPolygon", "coordinates": [one["coordinates"]]},
    ],
)
def test_every_kind_of_geojson_gives_the_same_mask(read, wrap):
    assert np.array_equal(read(wrap(polygon(square(100, 200, 300)))), box((10, 20, 30)))


def test_geojson_may_be_packed_or_begin_with_a_mark(read):
    text = json.dumps(polygon(square(100, 200, 300))).encode()
    assert np.array_equal(read(gzip.compress(text), "tissue.geojson.gz"), box((10, 20, 30)))
    assert np.array_equal(read(b"\xef\xbb\xbf \n" + text), box((10, 20, 30)))


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_holes_are_left_out_whichever_way_round_they_run(read, outer, inner):
    found = read(polygon(square(100, 100, 600, outer), square(200, 200, 300, inner)))
    assert np.array_equal(found, box((10, 10, 60)) & ~box((20, 20, 30)))


def test_an_island_in_a_hole_and_an_overlap_are_tissue(read):
    ring = [square(100, 100, 600), square(200, 200, 300)]
    many = {"type": "MultiPolygon", "coordinates": [ring, [square(300, 300, 100, True)], [square(600, 600, 300)]]}
    assert np.array_equal(read(many), (box((10, 10, 60)) & ~box((20, 20, 30))) | box((30, 30, 10), (60, 60, 30)))


def test_a_px_is_tissue_from_half_of_its_area(read):
    found = read(polygon([[104, 100], [300, 100], [300, 300], [104, 300]]))
    assert np.array_equal(found, box((10, 10, 20)))
    assert not read(polygon([[106, 100], [300, 100], [300, 300], [106, 300]]))[:, 10].any()


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("kind", [bool, np.uint8, np.uint16])
def test_what_is_not_zero_in_a_picture_is_tissue_and_is_stretched_over_the_slide(read_picture, ending, kind):
    expected = np.kron(disc(), np.ones((2, 2), bool))
    assert np.array_equal(read_picture(disc().astype(kind), ending), expected)
    assert np.array_equal(read_picture(np.kron(disc(), np.ones((4, 4), bool)).astype(kind), ending), expected)


def test_transparent_px_are_no_tissue(read_picture):
    rgba = np.full((60, 75, 4), 255, np.uint8)
    rgba[~disc(), 3] = 0
    assert np.array_equal(read_picture(rgba), np.kron(disc(), np.ones((2, 2), bool)))


def test_colours_of_a_palette_count_not_their_numbers(slide, tmp_path):
    image = Image.fromarray(np.where(disc(), 0, 1).astype(np.uint8), "P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(tmp_path / "mask.png")
    found = read_mask(tmp_path / "mask.png", slide, SHAPE, SCALE)
    assert np.array_equal(found, np.kron(disc(), np.ones((2, 2), bool)))


def test_of_a_pyramid_the_level_as_fine_as_the_overview_is_read(slide, tmp_path):
    path = tmp_path / "mask.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(np.kron(disc(), np.ones((8, 8), np.uint8)), subifds=2, metadata=None)
        tiff.write(np.kron(disc(), np.ones((2, 2), np.uint8)), subfiletype=1, metadata=None)
        tiff.write(np.full((60, 75), 1, np.uint8), subfiletype=1, metadata=None)  # too coarse, and wrong
    assert np.array_equal(read_mask(path, slide, SHAPE, SCALE), np.kron(disc(), np.ones((2, 2), bool)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"x,y\n1,2\n", "neither GeoJSON nor"),
        (b"\xff\xd8\xff\xe0", "neither GeoJSON nor"),
        (b"{", "cannot be read as GeoJSON"),
        (b"[" * 100_000, "cannot be read as GeoJSON"),
        (b"\x1f\x8b\x08\x00rubbish", "cannot be read as GeoJSON"),
        (b"[]", "no polygon"),
        ({"type": "FeatureCollection", "features": []}, "no polygon"),
        ({"type": "LineString", "coordinates": [[1, 2], [3, 4]]}, "no polygon"),
        ({"type": "Pentagon"}, "no type 'Pentagon'"),
        ({"features": []}, "type"),
        (polygon([[1, 2], [3, 4]]), "at least 3 points"),
        (polygon([[1, 2], [3, 4], [5, float("nan")]]), "finite"),
        (polygon([["a", 2], [3, 4], [5, 6]]), "cannot be read as GeoJSON"),
        (b"\x89PNG rubbish", "cannot be read as a picture"),
        (b"II*\0rubbish", "cannot be read as a TIFF mask"),
    ],
)
def test_files_that_say_nothing_are_refused(read, content, says):
    with pytest.raises(GeneragError, match=says):
        read(content)


def test_a_missing_file_is_refused_and_the_words_are_named(slide):
    with pytest.raises(UsageError, match=r"ostu: .*No such file[\s\S]*`otsu`"):
        find_tissue(slide, ONE, how="ostu")


@pytest.mark.parametrize("where", [(2000, 100), (100, 1150), (-300, 100)])
def test_polygons_outside_the_slide_are_refused(read, where):
    with pytest.raises(SlideError, match="outside the 1500 x 1200 px"):
        read({"type": "MultiPolygon", "coordinates": [[square(100, 100, 300)], [square(*where, 300)]]})


def test_polygons_between_the_px_are_refused(read):
    with pytest.raises(SlideError, match="cover nothing"):
        read(polygon(square(104, 104, 2)))


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((60, 75), np.uint8), "every px is zero"),
        (np.full((60, 75), 3, np.uint8), "no px is zero"),
        (np.random.default_rng(0).integers(0, 255, (60, 75, 3), np.uint8), "a picture of more than 256 colours"),
        (disc()[:, :70].astype(np.uint8), "70 x 60 px has another aspect ratio"),
    ],
)
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_pictures_that_are_no_mask_of_this_slide_are_refused(read_picture, pixels, says, ending):
    with pytest.raises(GeneragError, match=says):
        read_picture(pixels, ending)


def test_absurd_sizes_are_refused_before_anything_is_decoded(read_picture, read, monkeypatch):
    monkeypatch.setattr("genrag_cli.slides.masks.MAX_MASK_PIXELS", 1000)
    monkeypatch.setattr("genrag_cli.slides.masks.MAX_JSON_BYTES", 1000)
    with pytest.raises(SlideError, match="too large"):
        read_picture(disc().astype(np.uint8))
    with pytest.raises(UsageError, match="at most 1000 px"):
        read_picture(disc().astype(np.uint8), "tif")
    with pytest.raises(UsageError, match="MiB of GeoJSON"):
        read(gzip.compress(b"[" + b" " * 2000 + b"]"))


@pytest.mark.parametrize("ending", ["geojson", "png"])
def test_the_file_decides_where_the_tissue_of_a_slide_is(slide, tmp_path, ending):
    path = tmp_path / f"tissue.{ending}"
    if ending == "png":
        Image.fromarray(np.arange(15) >= np.full((12, 1), 8)).save(path)
    else:
        path.write_text(json.dumps(polygon([[800, 0], [1500, 0], [1500, 1200], [800, 1200]])))
    tissue = find_tissue(slide, ONE, um_per_px=10.0, how=path)
    assert np.array_equal(tissue.mask, np.tile(np.arange(150) >= 80, (120, 1)))
