import numpy as np
import pytest
import tifffile

from genrag_cli.slides import open_slide, plan_tiles, read_tiles, tiff
from genrag_cli.slides.ngff import NgffSlide
from genrag_cli.slides.openslide import OpenSlideSlide
from genrag_cli.slides.order import reading_order
from genrag_cli.slides.picture import PictureSlide
from genrag_cli.slides.tiff import TiffSlide
from genrag_cli.types import PixelSize
from genrag_cli.units import Mpp

ONE = PixelSize(Mpp(1.0), "test")
PIECE = 64


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """3,200 x 600 px, as tiles of 64 px and as strips of 16 rows."""
    folder, pixels = (
        tmp_path_factory.mktemp("order"),
        np.random.default_rng(0).integers(0, 99, (600, 3200, 3), np.uint8),
    )
    options = {"photometric": "rgb", "compression": "deflate", "metadata": None}
    tifffile.imwrite(folder / "tiles.tif", pixels, tile=(PIECE, PIECE), **options)
    tifffile.imwrite(folder / "strips.tif", pixels, rowsperstrip=16, **options)
    return folder


def plan(slide, fov_um=112.0, pitch_um=100.0, **options):
    return plan_tiles(slide, ONE, fov_um=fov_um, pitch_um=pitch_um, tile_px=56, min_tissue=0.0, **options)


def count_decoded(slide, grid, rows, monkeypatch, cache_bytes):
    decoded, decode = [], slide._decode
    with monkeypatch.context() as patch:
        patch.setattr(tiff, "CACHE_BYTES", cache_bytes)
        patch.setattr(slide, "_decode", lambda level, index: (decoded.append(index), decode(level, index))[1])
        slide._cache.clear()
        slide._cached_bytes = 0
        tiles = {
            int(row): tile for b in read_tiles(slide, grid, rows) for row, tile in zip(b.rows, b.pixels, strict=True)
        }
    return decoded, tiles


@pytest.mark.parametrize("lattice", ["square", "hex"])
@pytest.mark.parametrize("name", ["tiles", "strips"])
def test_the_order_is_a_permutation(wide, name, lattice):
    with TiffSlide(wide / f"{name}.tif") as slide:
        grid = plan(slide, lattice=lattice)
        order = reading_order(slide, grid)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(len(grid)))


def test_a_small_cache_decodes_every_piece_of_a_wide_slide_once(wide, monkeypatch):
    kept = 50 * PIECE**2 * 4  # a third of a row of tiles needs more: 50 x 3 pieces lie below one row of the grid
    with TiffSlide(wide / "tiles.tif") as slide:
        grid = plan(slide)
        rows = np.arange(len(grid))
        by_row, plain = count_decoded(slide, grid, rows, monkeypatch, kept)
        order = reading_order(slide, grid, kept)
        by_piece, same = count_decoded(slide, grid, order, monkeypatch, kept)
    assert len(by_piece) == len(set(by_piece)) == len(set(by_row))
    assert len(by_row) > 1.3 * len(by_piece)
    assert all(np.array_equal(plain[row], same[row]) for row in plain)


def test_a_cache_for_part_of_the_height_still_decodes_less_than_row_order(wide, monkeypatch):
    kept = 20 * PIECE**2 * 4
    with TiffSlide(wide / "tiles.tif") as slide:
        grid = plan(slide, fov_um=60.0, pitch_um=30.0)
        by_row, _ = count_decoded(slide, grid, np.arange(len(grid)), monkeypatch, kept)
        by_piece, _ = count_decoded(slide, grid, reading_order(slide, grid, kept), monkeypatch, kept)
    assert len(set(by_piece)) < len(by_piece) < 1.5 * len(set(by_piece))
    assert len(by_row) > 2 * len(by_piece)


def test_strips_are_read_row_by_row(wide, monkeypatch):
    with TiffSlide(wide / "strips.tif") as slide:
        grid = plan(slide, lattice="hex")
        shuffled = grid.rows(np.random.default_rng(0).permutation(len(grid)))
        order = reading_order(slide, shuffled)
        assert (np.diff(shuffled.centres[order, 1]) >= 0).all()
        decoded, _ = count_decoded(slide, shuffled, order, monkeypatch, 10 * 16 * 3200 * 3)
    assert len(decoded) == len(set(decoded))


def test_every_reader_tells_its_pieces(wide, tiff_path, tmp_path):
    import zarr
    from PIL import Image

    group = zarr.open_group(tmp_path / "image", mode="w", zarr_format=2)
    group.create_array("0", shape=(3, 90, 120), chunks=(3, 30, 40), dtype="u1")
    scales = [{"axes": ["c", "y", "x"], "datasets": [{"path": "0"}], "version": "0.4"}]
    group.attrs.update({"multiscales": scales})
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "small.png")
    with (
        TiffSlide(wide / "tiles.tif") as tiles, TiffSlide(wide / "strips.tif") as strips,
        OpenSlideSlide(tiff_path) as pyramid, NgffSlide(tmp_path / "image") as chunks,
        PictureSlide(tmp_path / "small.png") as picture,
    ):  # fmt: skip
        assert tiles.tile_size(0) == (PIECE, PIECE)
        assert strips.tile_size(0) == (3200, 16)
        assert [pyramid.tile_size(level) for level in (0, 1)] == [(128, 128)] * 2
        assert chunks.tile_size(0) == (40, 30)
        assert picture.tile_size(0) is None


def test_pieces_of_the_level_that_is_read_decide(tiff_path):
    with open_slide(tiff_path) as slide:
        fine, coarse = (plan(slide, fov_um=fov) for fov in (56.0, 224.0))
        for grid, px in ((fine, 128), (coarse, 512)):
            corners = np.maximum(grid.centres[reading_order(slide, grid)] - grid.side_px / 2, 0)
            columns = corners[:, 0] // px
            assert (np.diff(columns) >= 0).all(), "one band holds all of so small a slide"
            assert len(set(columns)) > 1


def test_what_is_in_memory_is_read_as_the_grid_runs(section, tmp_path):
    from PIL import Image

    Image.fromarray(section).save(tmp_path / "section.png")
    with PictureSlide(tmp_path / "section.png") as slide:
        grid = plan(slide)
        assert np.array_equal(reading_order(slide, grid), np.arange(len(grid)))
