import tempfile
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from genrag_cli.errors import SlideError
from genrag_cli.slides import n_beyond_edge, open_patches, open_slide, plan_spots, read_tiles, which_have_patches
from genrag_cli.slides.patches import match_patches
from genrag_cli.types import PixelSize
from genrag_cli.units import Mpp

S, SIDE, MPP = 32, 64, 0.25
NAMES = ["AAAC-1", "CCGT-1", "GGTA-1", "TTTT-1", "ACGT-1"]
CENTRES = np.array([[100.0, 400.0], [300.0, 90.0], [520.0, 333.0], [64.0, 64.0], [700.0, 250.0]])


def draw(rows):
    """A patch per spot that nothing else looks like: a level per spot, a gradient across, a dark middle."""
    out = np.empty((len(rows), S, S, 3), np.uint8)
    for i, row in enumerate(rows):
        out[i] = 20 * row + np.arange(S, dtype=np.uint8)[None, :, None]
        out[i, S // 4 : -S // 4, S // 4 : -S // 4, 1] = 7
    return out


def write(path, rows=(3, 0, 4, 1), *, bench=False, attributes=True, on=("img", "coords"), names=NAMES, **changes):
    """Patches of some spots in an order of their own, as HEST-1k writes them, or as HEST-bench has them."""
    rows = list(rows)
    corners = (CENTRES[rows] - SIDE / 2).astype(np.int64)
    arrays = {
        "img": draw(rows),
        "coords": (CENTRES[rows][:, ::-1]).astype(np.int64) if bench else corners,
        "barcode": np.array([[names[r].encode()] for r in rows]).reshape(-1, 1),
    } | changes
    stated = {"patch_size_src": SIDE, "patch_size_target": S, "downsample": SIDE / S, "pixel_size": MPP}
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file[key] = values
        for key in on if attributes else ():
            file[key].attrs.update({"patch_size": SIDE, "factor": SIDE / S} if bench else stated)
    return path


def shifted(x):
    """The first spot lies elsewhere."""
    out = CENTRES.copy()
    out[0, 0] += x
    return out


def plan(slide, rows=(0, 1, 3, 4), *, fov_um=SIDE * MPP, tile_px=S, mpp=MPP, centres=CENTRES):
    spots = ([NAMES[r] for r in rows], centres[list(rows)])
    size = PixelSize(Mpp(mpp), "test")
    return plan_spots(slide, size, spots, fov_um=fov_um, pitch_um=50.0, tile_px=tile_px)


def read(slide, grid, **options):
    return np.concatenate([batch.pixels for batch in read_tiles(slide, grid, **options)])


@pytest.mark.parametrize("bench", [False, True])
def test_a_spot_gets_the_patch_of_its_barcode_in_both_conventions(tmp_path, bench):
    with open_patches(write(tmp_path / "a.h5", bench=bench)) as slide:
        assert np.array_equal(read(slide, plan(slide)), draw([0, 1, 3, 4]))
        assert slide.size == (732, 432)
        assert slide.side_px == SIDE


def test_patches_offer_what_pipelines_ask_of_a_slide(tmp_path):
    with open_patches(write(tmp_path / "S1.h5")) as slide:
        assert (slide.slide_id, slide.reader, slide.notes) == ("S1", "patches/h5", ())
        assert slide.pixel_size_candidates() == [("patches pixel_size", MPP)]
        assert slide.names.tolist() == ["TTTT-1", "AAAC-1", "ACGT-1", "CCGT-1"]
        assert slide.digest() == open_patches(write(tmp_path / "S2.h5")).digest()
        assert n_beyond_edge(slide, plan(slide)) == 0
        with pytest.raises(SlideError, match="no slide"):
            slide.read_region(0, 0, 8, 8, 0)


@pytest.mark.parametrize("on", ["img", "coords"])
def test_attributes_on_one_data_set_are_enough(tmp_path, on):
    with open_patches(write(tmp_path / "a.h5", on=(on,))) as slide:
        assert (slide.side_px, slide.pixel_size_candidates()) == (SIDE, [("patches pixel_size", MPP)])


def test_without_attributes_the_side_is_measured_against_the_spots(tmp_path):
    with open_patches(write(tmp_path / "a.h5", attributes=False)) as slide:
        assert (slide.side_px, slide.pixel_size_candidates()) == (None, [])
        half = plan(slide, fov_um=SIDE * MPP / 2, tile_px=S // 2)
        assert np.array_equal(read(slide, half), draw([0, 1, 3, 4])[:, S // 4 : -S // 4, S // 4 : -S // 4])
        moved = plan(slide, centres=shifted(9))
        with pytest.raises(SlideError, match="does not state patch_size_src"):
            read(slide, moved)


def test_bench_patches_of_224_px_are_half_a_um_and_say_so(tmp_path):
    pixels = np.zeros((2, 224, 224, 3), np.uint8)
    path = write(tmp_path / "a.h5", (0, 1), bench=True, on=("img",), img=pixels)
    with h5py.File(path, "a") as file:
        file["img"].attrs["patch_size"] = 409
    with open_patches(path) as slide:
        (source, mpp), *_ = slide.pixel_size_candidates()
        assert mpp == pytest.approx(0.2738, abs=1e-3)
        assert (source, "states no pixel size" in slide.notes[0]) == ("patches at 0.5 um/px", True)


def test_a_smaller_field_of_view_is_the_middle_of_the_patch(tmp_path):
    with open_patches(write(tmp_path / "a.h5")) as slide:
        tiles = read(slide, plan(slide, fov_um=8.0, tile_px=S // 2))
        assert np.array_equal(tiles, draw([0, 1, 3, 4])[:, S // 4 : -S // 4, S // 4 : -S // 4])


def test_tiles_are_resized_as_those_of_slides_are(tmp_path):
    with open_patches(write(tmp_path / "a.h5")) as slide:
        tile = read(slide, plan(slide, (1,), tile_px=20))[0]
    assert np.array_equal(tile, np.asarray(Image.fromarray(draw([1])[0]).resize((20, 20), Image.Resampling.BILINEAR)))


def test_any_field_of_view_and_pixel_size_gives_tiles(tmp_path):
    with open_patches(write(tmp_path / "a.h5")) as slide:
        for fov_um in np.linspace(0.3, 16.0, 60):
            for mpp in (0.25, 0.2739, 0.7):
                assert read(slide, plan(slide, (1,), fov_um=fov_um, tile_px=9, mpp=mpp)).shape == (1, 9, 9, 3)


def test_patches_cut_from_a_slide_give_the_tiles_of_the_slide(tmp_path, tiff_path, section):
    centres = np.array([[400.0, 500.0], [750.0, 620.0], [900.0, 333.0]])
    cut = np.stack([section[y - 64 : y + 64, x - 64 : x + 64] for x, y in centres.astype(int)])
    path = write(tmp_path / "a.h5", (0, 1, 2), attributes=False, img=cut, coords=centres.astype(int) - 64)
    tiles = []
    for image in (open_slide(tiff_path), open_patches(path)):
        with image as slide:
            tiles.append(read(slide, plan(slide, (0, 1, 2), fov_um=100.0, tile_px=40, mpp=1.0, centres=centres)))
    assert np.array_equal(*tiles)


def test_a_field_of_view_beyond_the_patch_is_refused_and_a_hundredth_is_not(tmp_path):
    with open_patches(write(tmp_path / "a.h5")) as slide:
        assert read(slide, plan(slide, fov_um=16.1)).shape == (4, S, S, 3)
        with pytest.raises(SlideError, match=r"patches of 16 um .* 20 um\nUse --fov-um 16 or less"):
            read(slide, plan(slide, fov_um=20.0))


def test_spots_without_patch_are_known_beforehand_and_refused_by_name(tmp_path):
    with open_patches(write(tmp_path / "a.h5")) as slide:
        assert which_have_patches(slide, NAMES).tolist() == [True, True, False, True, True]
        assert not which_have_patches(slide, ["x", "y"]).any()
        with pytest.raises(SlideError, match="1 of 2 spots have no patch, such as GGTA-1"):
            read(slide, plan(slide, (1, 2)))


def test_patches_of_another_section_are_refused_with_both_places(tmp_path):
    with (
        open_patches(write(tmp_path / "a.h5")) as slide,
        pytest.raises(SlideError, match="AAAC-1 is centred on x 100, y 400, the spot on x 117, y 400"),
    ):
        read(slide, plan(slide, centres=shifted(17)))


def test_tiles_do_not_depend_on_batch_order_or_company(tmp_path):
    with open_patches(write(tmp_path / "a.h5")) as slide:
        grid = plan(slide, fov_um=10.0)
        whole = read(slide, grid)
        assert np.array_equal(read(slide, grid, batch=1), whole)
        rows = np.array([2, 0, 3])
        batches = list(read_tiles(slide, grid, rows=rows, batch=2, workers=3))
        assert np.array_equal(np.concatenate([b.rows for b in batches]), rows)
        assert np.array_equal(np.concatenate([b.pixels for b in batches]), whole[rows])


def test_a_batch_is_read_in_the_order_of_the_file_and_one_ahead(tmp_path, monkeypatch):
    with open_patches(write(tmp_path / "a.h5")) as slide:
        seen, original = [], slide.read_patch
        monkeypatch.setattr(slide, "read_patch", lambda row: (seen.append(row), original(row))[1])
        batches = read_tiles(slide, plan(slide), batch=2)
        next(batches)
        batches.close()
        assert seen == [1, 3, 0, 2][: len(seen)]
        assert len(seen) in (2, 3, 4)
        assert not [t for t in threading.enumerate() if t.name.startswith("tiles")]


@pytest.mark.parametrize("names", [["AAAC", "CCGT", "GGTA", "TTTT", "ACGT"], [f"{n}-1" for n in NAMES]])
def test_barcodes_that_agree_but_for_a_suffix_are_joined_and_said(tmp_path, names):
    with open_patches(write(tmp_path / "a.h5", names=names)) as slide:
        rows, how = match_patches(slide, NAMES)
        assert rows.tolist() == [1, 3, -1, 0, 2]
        assert how.startswith("spots (such as AAAC-1)")


def test_barcodes_cut_to_18_characters_are_joined(tmp_path):
    names = [f"{n[:4] * 4}-1" for n in NAMES]
    with open_patches(write(tmp_path / "a.h5", names=names)) as slide:
        rows, how = match_patches(slide, [f"{n}_sectionB" for n in names])
        assert rows.tolist() == [1, 3, -1, 0, 2]
        assert "cut to 18 characters" in how


def test_a_suffix_that_tells_two_spots_apart_is_not_cut(tmp_path):
    with open_patches(write(tmp_path / "a.h5", names=["AAAC", *NAMES[1:]])) as slide:
        assert match_patches(slide, NAMES)[0].tolist() == [-1, 3, -1, 0, 2]
        with pytest.raises(SlideError, match=r"spots \(such as AAAC-1\) agree only without suffixes"):
            which_have_patches(slide, ["AAAC-1", "AAAC-2"])


DAMAGED = {
    "no img": ({"img": None}, "no data set img, found barcode, coords; it holds coordinates only"),
    "grey img": ({"img": np.zeros((4, S, S), np.uint8)}, "is .4, 32, 32. uint8"),
    "float img": ({"img": np.zeros((4, S, S, 3))}, "float64"),
    "fewer coords": ({"coords": np.zeros((3, 2), int)}, "4 patches, 3 coordinates and 4 barcodes"),
    "no places": ({"coords": np.full((4, 2), np.nan)}, "no coordinates"),
    "flat coords": ({"coords": np.zeros(4)}, "coords is"),
    "same barcode": ({"barcode": np.array([b"a", b"b", b"a", b"c"])}, "1 barcodes occur more than once, such as a"),
    "no barcode": ({"barcode": None}, "no data set barcode"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused_by_name(tmp_path, case):
    changes, why = DAMAGED[case]
    path = write(tmp_path / "a.h5", attributes=False, **{k: v for k, v in changes.items() if v is not None})
    with h5py.File(path, "a") as file:
        for key in (k for k, v in changes.items() if v is None):
            del file[key]
    with pytest.raises(SlideError, match=rf"a\.h5: .*{why}"):
        open_patches(path)


def test_what_is_no_hdf5_is_refused(tmp_path):
    (tmp_path / "a.h5").write_text("x")
    for name, why in (("a.h5", "cannot be opened as HDF5"), ("b.h5", "no such file")):
        with pytest.raises(SlideError, match=why):
            open_patches(tmp_path / name)


@pytest.mark.parametrize(("holder", "key", "value"), [("img", "pixel_size", 0.5), ("coords", "downsample", 3.0)])
def test_attributes_that_contradict_each_other_are_refused(tmp_path, holder, key, value):
    path = write(tmp_path / "a.h5", on=("coords",) if holder == "coords" else ("img", "coords"))
    with h5py.File(path, "a") as file:
        file[holder].attrs[key] = value
    with pytest.raises(SlideError, match=r"pixel_size is|contradict"):
        open_patches(path)


def test_attributes_that_are_no_lengths_are_absent(tmp_path):
    path = write(tmp_path / "a.h5", on=("img",))
    with h5py.File(path, "a") as file:
        file["img"].attrs.update({"pixel_size": "unknown", "downsample": -1.0, "patch_size_src": [float(SIDE)]})
    with open_patches(path) as slide:
        assert (slide.pixel_size_candidates(), slide.side_px) == ([], SIDE)


@settings(max_examples=15, deadline=None)
@given(
    order=st.permutations(range(5)),
    n=st.integers(1, 5),
    bench=st.booleans(),
    batch=st.integers(1, 6),
    text=st.booleans(),
)
def test_any_subset_in_any_order_comes_back_under_its_name(order, n, bench, batch, text):
    rows = list(order)[:n]
    barcodes = np.array([NAMES[r] for r in rows], dtype=h5py.string_dtype()) if text else None
    changes = {} if barcodes is None else {"barcode": barcodes}
    with (
        tempfile.TemporaryDirectory() as folder,
        open_patches(write(Path(folder) / "a.h5", rows, bench=bench, **changes)) as slide,
    ):
        kept = np.flatnonzero(which_have_patches(slide, NAMES))
        assert kept.tolist() == sorted(rows)
        assert np.array_equal(read(slide, plan(slide, kept), batch=batch), draw(kept))
