import threading
import time
from concurrent.futures import ThreadPoolExecutor
from time import sleep
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from genrag_cli.errors import SlideError, UsageError
from genrag_cli.slides import (
    best_level,
    lattice_places,
    n_beyond_edge,
    open_slide,
    plan_spots,
    plan_tiles,
    read_tiles,
    sample_rows,
)
from genrag_cli.slides.order import reading_order
from genrag_cli.types import PixelSize, fingerprint
from genrag_cli.units import Mpp

ONE = PixelSize(Mpp(1.0), "test")


@pytest.fixture
def slide(tiff_path):
    with open_slide(tiff_path) as slide:
        yield slide


@pytest.fixture
def grid(slide):
    return plan_tiles(slide, ONE, fov_um=112.0, pitch_um=100.0, tile_px=56)


def read_all(slide, grid, **options):
    return np.concatenate([batch.pixels for batch in read_tiles(slide, grid, **options)])


def test_lattice_starts_in_the_corner_and_counts_in_um(grid):
    assert np.array_equal(grid.centres, (grid.array_rc[:, ::-1] + 0.5) * 100.0)
    assert grid.names[0] == "made-up:{}_{}".format(*grid.array_rc[0])
    assert len(set(grid.names)) == len(grid)


def test_spots_are_kept_where_half_of_their_area_is_tissue(grid):
    distance = np.hypot(*(grid.centres - [750, 600]).T)
    assert distance.max() < 480 + 30
    assert len(grid) == pytest.approx(np.pi * 4.8**2, rel=0.1)


def test_pixel_size_scales_the_lattice(slide, grid):
    half = plan_tiles(slide, PixelSize(Mpp(0.5), "test"), fov_um=56.0, pitch_um=50.0, tile_px=56)
    assert set(half.names) & set(grid.names)
    assert half.side_px == grid.side_px


@pytest.mark.parametrize("lattice", ["square", "hex"])
def test_a_blank_slide_gives_a_grid_without_spots_that_everything_takes(make_slide, lattice):
    with open_slide(make_slide(np.full((600, 600, 3), 255, np.uint8))) as blank:
        grid = plan_tiles(blank, ONE, fov_um=100.0, pitch_um=100.0, tile_px=64, lattice=lattice)
        assert (len(grid), grid.names.shape, grid.centres.shape, grid.array_rc.shape) == (0, (0,), (0, 2), (0, 2))
        assert n_beyond_edge(blank, grid) == 0
        assert list(read_tiles(blank, grid)) == []
        assert len(reading_order(blank, grid)) == len(sample_rows(grid)) == len(grid.rows(sample_rows(grid))) == 0
        spots = (grid.names, grid.centres)
        again = plan_spots(blank, ONE, spots, fov_um=100.0, pitch_um=100.0, tile_px=64)
    assert len(again) == 0
    assert again.array_rc.shape == lattice_places(grid.centres, 100.0).shape == (0, 2)
    assert fingerprint(grid) == fingerprint(again)


def test_a_slide_smaller_than_a_tile_is_refused(make_slide, section):
    with (
        open_slide(make_slide(section[:90, :300], factors=())) as small,
        pytest.raises(SlideError, match="300 x 90 px"),
    ):
        plan_tiles(small, ONE, fov_um=100.0, pitch_um=50.0, tile_px=64)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lattice": "triangular"}, "Known: square, hex"),
        ({"min_tissue": 1.5}, "between 0 and 1, not 1.5"),
        ({"overlap": 0.5}, "both a pitch of 50 um and an overlap of 0.5"),
        ({"pitch_um": None, "overlap": 1.0}, "below 1 of their side, not 1"),
        ({"pitch_um": None, "overlap": -0.1}, "not -0.1"),
        ({"pitch_um": 0.0}, "every 0 um; both must be lengths above 0"),
        ({"pitch_um": float("nan")}, "every nan um"),
    ],
)
def test_grids_that_cannot_be_are_refused(slide, options, says):
    with pytest.raises(UsageError, match=says):
        plan_tiles(slide, ONE, **{"fov_um": 100.0, "pitch_um": 50.0, "tile_px": 64} | options)


@pytest.mark.parametrize(("overlap", "pitch"), [(None, 100.0), (0.0, 100.0), (0.25, 75.0)])
def test_tiles_overlap_by_a_share_of_their_side(slide, overlap, pitch):
    grid = plan_tiles(slide, ONE, fov_um=100.0, overlap=overlap, tile_px=64)
    same = plan_tiles(slide, ONE, fov_um=100.0, pitch_um=pitch, tile_px=64)
    assert fingerprint(grid) == fingerprint(same)


def test_less_tissue_asked_for_gives_more_spots(slide, grid):
    def spots(share):
        return set(plan_tiles(slide, ONE, fov_um=112.0, pitch_um=100.0, tile_px=56, min_tissue=share).names)

    assert spots(0.9) < spots(0.5) < spots(0.1) < spots(0.0)
    assert spots(0.5) == set(grid.names)
    assert len(spots(0.0)) == 15 * 12


def test_a_hexagonal_lattice_counts_as_visium_does(slide):
    grid = plan_tiles(slide, ONE, fov_um=50.0, pitch_um=50.0, tile_px=50, lattice="hex")
    rows, columns = grid.array_rc.T
    assert (rows % 2 == columns % 2).all()
    assert len(set(grid.names)) == len(set(map(tuple, grid.array_rc))) == len(grid)
    np.testing.assert_allclose(grid.centres[:, 0], 25 + 25 * columns)
    np.testing.assert_allclose(np.diff(np.unique(grid.centres[:, 1])), 50 * np.sqrt(3) / 2)
    assert len(grid) == pytest.approx(np.pi * 480**2 / (50**2 * np.sqrt(3) / 2), rel=0.05)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("lattice", "neighbours"), [("hex", 6), ("square", 4)])
def test_squidpy_finds_the_neighbours_of_either_lattice(slide, lattice, neighbours):
    import anndata
    import squidpy as sq

    grid = plan_tiles(slide, ONE, fov_um=50.0, pitch_um=50.0, tile_px=50, lattice=lattice)
    adata = anndata.AnnData(np.zeros((len(grid), 1), np.float32), obsm={"spatial": grid.centres})
    sq.gr.spatial_neighbors(adata, coord_type="grid", n_neighs=neighbours)
    graph = adata.obsp["spatial_connectivities"].toarray() > 0
    apart = np.linalg.norm(grid.centres[:, None] - grid.centres, axis=2)
    assert np.array_equal(graph, np.isclose(apart, 50.0))
    inside = np.hypot(*(grid.centres - [750, 600]).T) < 400
    assert (graph.sum(axis=1)[inside] == neighbours).all()


def test_a_tile_at_the_slides_own_resolution_is_a_plain_crop(slide, section):
    grid = plan_spots(slide, ONE, (["a"], np.array([[700.0, 500.0]])), fov_um=64.0, pitch_um=100.0, tile_px=64)
    assert np.array_equal(read_all(slide, grid)[0], section[468:532, 668:732])


def test_tiles_do_not_depend_on_batch_company_or_workers(slide, grid):
    whole = read_all(slide, grid)
    assert np.array_equal(read_all(slide, grid, batch=7), whole)
    assert np.array_equal(read_all(slide, grid, batch=5, workers=3), whole)
    rows = np.array([11, 3, 7])
    assert np.array_equal(read_all(slide, grid, rows=rows, batch=2), whole[rows])
    assert np.array_equal(read_all(slide, grid.rows(rows)), whole[rows])


def test_batches_name_their_rows(slide, grid):
    rows = np.arange(0, 20, 2)
    batches = list(read_tiles(slide, grid, rows=rows, batch=4))
    assert [len(batch.rows) for batch in batches] == [4, 4, 2]
    assert np.array_equal(np.concatenate([batch.rows for batch in batches]), rows)


def test_no_rows_give_no_batch(slide, grid):
    assert list(read_tiles(slide, grid, rows=np.array([], np.int64))) == []


@pytest.mark.parametrize(
    ("fov", "tile_px", "level"), [(112, 224, 0), (112, 112, 0), (112, 30, 0), (112, 28, 1), (448, 28, 1)]
)
def test_the_coarsest_level_that_keeps_every_pixel_is_read(slide, fov, tile_px, level):
    grid = plan_spots(slide, ONE, (["a"], np.array([[700.0, 500.0]])), fov_um=fov, pitch_um=100.0, tile_px=tile_px)
    assert best_level(slide, grid) == level


def test_a_coarse_level_shows_the_same_tissue_in_the_same_place(slide, section):
    grid = plan_spots(slide, ONE, (["a"], np.array([[701.0, 503.0]])), fov_um=224.0, pitch_um=100.0, tile_px=56)
    assert best_level(slide, grid) == 1
    expected = np.asarray(Image.fromarray(section[391:615, 589:813]).resize((56, 56), Image.Resampling.BOX))
    shifted = np.roll(expected, 1, axis=1)
    tile = read_all(slide, grid)[0].astype(int)
    assert np.abs(tile - expected).mean() < 0.5 * np.abs(tile - shifted).mean()


def test_tiles_past_the_edge_are_white_there_and_counted(slide):
    centres = np.array([[10.0, 600.0], [750.0, 600.0], [1490.0, 1195.0], [32.0, 32.0]])
    grid = plan_spots(slide, ONE, (list("abcd"), centres), fov_um=64.0, pitch_um=100.0, tile_px=64)
    tiles = read_all(slide, grid)
    assert n_beyond_edge(slide, grid) == 2
    assert (tiles[0, :, :22] == 255).all()
    assert (tiles[2, 37:] == 255).all()


def test_an_error_while_reading_ahead_reaches_the_caller(slide, grid, monkeypatch):
    def broken(*_):
        raise SlideError("damaged")

    batches = read_tiles(slide, grid, batch=4)
    next(batches)
    monkeypatch.setattr(slide, "read_region", broken)
    with pytest.raises(SlideError, match="damaged"):
        list(batches)


def test_a_caller_who_stops_early_leaves_no_thread_behind(slide, grid):
    batches = read_tiles(slide, grid, batch=4)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiles")]


def test_stopping_early_drops_what_has_not_been_read(slide, grid, monkeypatch):
    read, original = [], slide.read_region
    monkeypatch.setattr(slide, "read_region", lambda *where: (read.append(where), sleep(0.01), original(*where))[2])
    batches = read_tiles(slide, grid, batch=30)
    next(batches)
    batches.close()
    assert len(read) < 60


def test_not_more_than_one_batch_is_read_ahead(slide, grid, monkeypatch):
    read, original = [], slide.read_region
    monkeypatch.setattr(slide, "read_region", lambda *where: (read.append(where), original(*where))[1])
    batches = read_tiles(slide, grid, batch=4)
    next(batches)
    batches.close()
    assert len(read) <= 8


def test_as_many_batches_are_read_ahead_as_asked_and_not_more(slide, grid, monkeypatch):
    read, original = [], slide.read_region
    monkeypatch.setattr(slide, "read_region", lambda *where: (read.append(where), original(*where))[1])
    batches = read_tiles(slide, grid, batch=4, workers=2, ahead=3)
    next(batches)
    for _ in range(1000):
        if len(read) >= 16:
            break
        sleep(0.01)
    sleep(0.05)
    assert len(read) == 16
    batches.close()


def test_reading_ahead_changes_no_tile(slide, grid):
    one, other = (list(read_tiles(slide, grid, batch=7, workers=2, ahead=ahead)) for ahead in (1, 100))
    assert [batch.rows.tolist() for batch in one] == [batch.rows.tolist() for batch in other]
    assert np.array_equal(*(np.concatenate([batch.pixels for batch in batches]) for batches in (one, other)))


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"workers": 0}, {"ahead": 0}])
def test_reading_without_workers_batches_or_anything_ahead_is_refused(slide, grid, wrong):
    with pytest.raises(UsageError, match="at least 1"):
        next(read_tiles(slide, grid, **wrong))


def test_a_sample_is_seeded_sorted_and_never_larger_than_the_grid(grid):
    sample = sample_rows(grid, limit=20, seed=1)
    assert np.array_equal(sample, sample_rows(grid, limit=20, seed=1))
    assert not np.array_equal(sample, sample_rows(grid, limit=20, seed=2))
    assert (np.diff(sample) > 0).all()
    assert np.array_equal(sample_rows(grid), np.arange(len(grid)))


@pytest.mark.real
@pytest.mark.parametrize("pitch", [100.0, 200.0])
def test_svs_and_dicom_of_the_same_slide_give_the_same_tile_grid(shared_data, pitch):
    grids = []
    for name in ("CMU-1-Small-Region.svs", "dicom_cmu1_small"):
        with open_slide(shared_data / "wsi" / name) as slide:
            size = PixelSize(Mpp(slide.pixel_size_candidates()[0][1]), "file")
            grids.append(plan_tiles(slide, size, fov_um=112.0, pitch_um=pitch, tile_px=224))
    svs, dicom = grids
    assert len(svs) > 10
    assert [n.split(":")[1] for n in svs.names] == [n.split(":")[1] for n in dicom.names]
    assert np.array_equal(svs.centres, dicom.centres)


@pytest.mark.real
def test_svs_and_dicom_of_the_same_slide_give_nearly_the_same_tiles(shared_data):
    tiles = []
    for name in ("CMU-1-Small-Region.svs", "dicom_cmu1_small"):
        with open_slide(shared_data / "wsi" / name) as slide:
            spots = (["a"], np.array([[900.0, 1500.0]]))
            grid = plan_spots(slide, PixelSize(Mpp(0.499), "file"), spots, fov_um=112.0, pitch_um=100.0, tile_px=224)
            tiles.append(read_all(slide, grid)[0].astype(int))
    assert np.abs(tiles[0] - tiles[1]).mean() < 6


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("busy", [True, False])
def test_bursts_give_the_same_tiles_in_the_same_batches(slide, grid, monkeypatch, ahead, busy):
    from genrag_cli.slides import tiles

    held = []
    real = tiles._finish

    def finish(begun, workers):
        held.append(len(begun))
        real(begun, workers)
        return busy

    monkeypatch.setattr(tiles, "_finish", finish)
    plain = list(read_tiles(slide, grid, batch=4))
    burst = list(read_tiles(slide, grid, batch=4, workers=2, ahead=ahead, bursts=True))
    assert [b.rows.tolist() for b in burst] == [b.rows.tolist() for b in plain]
    for one, other in zip(plain, burst, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
    assert max(held) <= ahead + 1
    assert len(held) > 1 if busy else len(held) == 1, "reading that leaves the CPUs idle is waited for once"


def test_a_slow_disk_is_read_while_the_caller_works_and_a_busy_cpu_is_waited_for(monkeypatch):
    from genrag_cli.slides import tiles

    began, slept = threading.Event(), []

    def now():
        """The clock of a machine that does nothing else."""
        seen = time.process_time() + sum(slept)
        began.set()
        return seen

    def doze(seconds):
        began.wait()
        slept.append(seconds)

    def work(seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    def run(read):
        with ThreadPoolExecutor(1) as pool:
            return tiles._finish([(None, [pool.submit(read, 0.05)])], 1)

    monkeypatch.setattr(tiles, "time", SimpleNamespace(process_time=time.process_time, perf_counter=now))
    assert run(work)
    began.clear()
    assert not run(doze)
