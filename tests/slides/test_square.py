import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from genrag_cli.outputs.contours import tissue_geojson
from genrag_cli.slides import find_tissue, open_slide, plan_tiles, read_tiles, resolve_pixel_size
from genrag_cli.slides.openslide import OpenSlideSlide
from genrag_cli.slides.picture import PictureSlide
from genrag_cli.slides.square import SquareSlide, from_level0, present_square, stretch_of, to_level0
from genrag_cli.slides.tiff import TiffSlide
from genrag_cli.testing.slide_contract import SlideContract


def squeeze(pixels, across, down):
    """Every px the mean of `across` x `down` px."""
    h, w = (side // n * n for side, n in zip(pixels.shape[:2], (down, across), strict=True))
    blocks = pixels[:h, :w].reshape(h // down, down, w // across, across, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def write(path, pixels, x, y, **options):
    """A tiled pyramid whose px are `x` um wide and `y` um high."""
    options |= {"photometric": "rgb", "tile": (128, 128), "metadata": None, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, resolution=(1e4 / x, 1e4 / y), **options)
        tiff.write(squeeze(pixels, 4, 4), resolution=(1e4 / x / 4, 1e4 / y / 4), subfiletype=1, **options)
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory, section):
    """The section with square px, with px twice as high as wide, and twice as wide as high."""
    folder, section = tmp_path_factory.mktemp("square"), section[:, :1496]  # of which levels are whole px
    return {
        "square": write(folder / "square.tif", section, 1.0, 1.0),
        "high": write(folder / "high.tif", squeeze(section, 1, 2), 1.0, 2.0),
        "wide": write(folder / "wide.tif", squeeze(section, 2, 1), 2.0, 1.0),
    }


@pytest.mark.parametrize("shape", ["high", "wide"])
class TestSquareSlide(SlideContract):
    @pytest.fixture
    def path(self, paths, shape):
        return paths[shape]

    def open(self, path):
        return present_square(TiffSlide(path))


@pytest.fixture(params=["high", "wide"])
def squared(paths, request):
    with present_square(OpenSlideSlide(paths[request.param])) as slide:
        yield slide


@pytest.fixture
def square(paths):
    with open_slide(paths["square"]) as slide:
        yield slide


def pixel_size(slide):
    return resolve_pixel_size(slide.pixel_size_candidates())[0]


def test_a_slide_of_square_px_is_left_alone(square, tmp_path, section):
    Image.fromarray(section[:9, :9]).save(tmp_path / "small.png")
    with PictureSlide(tmp_path / "small.png") as picture, TiffSlide(
        write(tmp_path / "nearly.tif", section, 0.5, 0.504)
    ) as nearly:  # fmt: skip
        for slide in (square, picture, nearly):
            assert present_square(slide) is slide
            assert stretch_of(slide) == (1.0, 1.0)


def test_the_finer_side_is_the_size_of_a_px_and_a_person_is_told(squared, square):
    assert isinstance(squared, SquareSlide)
    assert pixel_size(squared).mpp == pytest.approx(1.0)
    assert squared.size == square.size
    assert [level.downsample for level in squared.levels] == [1.0, 4.0]
    assert "read as squares of 1 um" in squared.notes[-1]


def test_tissue_and_grid_are_those_of_the_same_section_with_square_px(squared, square):
    lay = {"fov_um": 112.0, "pitch_um": 100.0, "tile_px": 56}
    grids = [plan_tiles(slide, pixel_size(slide), **lay) for slide in (squared, square)]
    assert [name.split(":")[1] for name in grids[0].names] == [name.split(":")[1] for name in grids[1].names]
    np.testing.assert_allclose(grids[0].centres, grids[1].centres, rtol=1e-6)
    masks = [find_tissue(slide, pixel_size(slide)).mask for slide in (squared, square)]
    assert (masks[0] & masks[1]).sum() > 0.98 * (masks[0] | masks[1]).sum()


@pytest.mark.parametrize(("fov", "tile_px"), [(112.0, 56), (224.0, 56)])
def test_tiles_show_what_those_of_square_px_show(squared, square, fov, tile_px):
    grid = plan_tiles(square, pixel_size(square), fov_um=fov, pitch_um=100.0, tile_px=tile_px)
    seen, expected = (
        np.concatenate([batch.pixels for batch in read_tiles(slide, grid)]).astype(int) for slide in (squared, square)
    )
    assert np.abs(seen - expected).mean() < 0.3 * np.abs(np.roll(expected, 2, axis=1) - expected).mean()


def test_places_go_to_the_px_of_the_file_and_back(paths):
    places = np.array([[100.0, 60.0], [1500.0, 1200.0], [0.0, 0.0]])
    for name, factor in (("high", (1, 2)), ("wide", (2, 1))):
        with present_square(TiffSlide(paths[name])) as slide:
            stretch = stretch_of(slide)
            np.testing.assert_allclose(to_level0(places, stretch), places / factor)
            np.testing.assert_allclose(from_level0(to_level0(places, stretch), stretch), places)
            x, y = to_level0(np.array([[760.0, 610.0]]), stretch)[0].astype(int)
            with TiffSlide(paths[name]) as plain:
                assert (
                    np.abs(plain.read_region(x, y, 1, 1, 0).astype(int) - slide.read_region(760, 610, 1, 1, 0)).max()
                    <= 60
                )


def test_a_px_is_interpolated_between_the_centres_of_those_beside_it(tmp_path):
    ramp = np.zeros((16, 16, 3), np.uint8)
    ramp[:] = 10 * np.arange(16)[:, None, None]
    tifffile.imwrite(
        tmp_path / "ramp.tif", ramp, photometric="rgb", resolution=(1e4, 1e4 / 2.5), resolutionunit="CENTIMETER"
    )
    with present_square(TiffSlide(tmp_path / "ramp.tif")) as slide:
        assert slide.size == (16, 40)
        column = slide.read_region(3, -2, 1, 44, 0)[:, 0, 0].astype(float)
    places = np.clip((np.arange(40) + 0.5) / 2.5 - 0.5, 0, 15)
    assert np.abs(column[2:-2] - 10 * places).max() <= 0.5
    assert (column[[0, 1, -2, -1]] == 255).all()


def test_an_implausible_source_does_not_decide_and_a_second_one_is_compared(paths, monkeypatch):
    with TiffSlide(paths["high"]) as slide:
        stated = [("rubbish", 0.001, 9000.0), ("first", 0.25, 0.5), ("second", 0.3, 0.6)]
        monkeypatch.setattr(slide, "pixel_sides", lambda: stated)
        square = present_square(slide)
        assert stretch_of(square) == (1.0, 2.0)
        size, warnings = resolve_pixel_size(square.pixel_size_candidates()[1:])
    assert size.mpp == pytest.approx(0.25)
    assert "0.3 um/px (second) differ" in warnings[0]


def test_pieces_are_counted_in_square_px(paths):
    with present_square(TiffSlide(paths["high"])) as slide:
        assert slide.tile_size(0) == (128, 256)


@pytest.mark.parametrize("kind", ["geojson", "px", "shape"])
def test_tissue_of_a_file_is_in_the_px_of_the_slide(paths, tmp_path, kind):
    """The left half of a slide whose px are twice as high as wide."""
    path = tmp_path / "tissue"
    if kind == "geojson":
        ring = [[0, 0], [748, 0], [748, 600], [0, 600], [0, 0]]
        path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    else:
        side = {"px": (150, 374), "shape": (300, 374)}[kind]
        Image.fromarray(np.tile(np.arange(side[1]) < side[1] // 2, (side[0], 1))).save(path, "PNG")
    with present_square(TiffSlide(paths["high"])) as slide:
        tissue = find_tissue(slide, pixel_size(slide), how=path)
    assert tissue.mask[:, :93].all()
    assert not tissue.mask[:, 95:].any()
    geojson = tissue_geojson(tissue.mask, tuple(tissue.scale * s for s in (1.0, 2.0)))
    ring = np.array(geojson["features"][0]["geometry"]["coordinates"][0])
    assert ring.max(axis=0) == pytest.approx([748, 600], abs=8)
