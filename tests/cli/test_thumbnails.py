"""`build-bank --thumbnails`, and tiles of references with and without slides."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from genrag_cli.cohorts import open_cohort
from genrag_cli.errors import UsageError
from genrag_cli.pipeline.merge_banks import merge_banks
from genrag_cli.pipeline.thumbnails import reference_tiles
from genrag_cli.slides import open_slide
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.bank_check import verify_bank
from genrag_cli.types import Listener

ROWS = np.array([40, 0, 7, 41])


@pytest.fixture(scope="module")
def own(tmp_path_factory, cohort, built_bank, build_options, generag):
    """A cohort of its own, and a bank of it that keeps thumbnails; they can be moved and deleted by copies only."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(cohort, folder / "train")
    options = [folder / "train" if option == cohort else option for option in build_options]
    done = generag(*options, "--bank", folder / "b.zarr", "--thumbnails")
    assert done.code == 0, done.err
    assert "P1_1: " in done.err
    assert " thumbnails, " in done.err
    return folder


@pytest.fixture
def gone(own, tmp_path):
    """A copy of that bank whose slides cannot be found."""
    folder = shutil.copytree(own / "b.zarr", tmp_path / "b.zarr")
    move_slides(folder, str(own / "train"), "/nowhere")
    return folder


def move_slides(folder, there, here):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text().replace(there, here)) | {"manifest_sha256": None}))


def sections(folder):
    return json.loads((folder / "manifest.json").read_text())["sections"]


def test_they_change_no_version_and_no_fingerprint(generag, own, bank, build_options):
    before, named = Bank.open(bank, "stain"), Bank.open(bank, "stain").fingerprint
    stamps = {p: p.stat().st_mtime_ns for p in bank.rglob("*.zip")}
    done = generag(*build_options, "--bank", bank, "--thumbnails")
    assert done.code == 0, done.err
    after = Bank.open(bank, "stain")
    assert (after.number, after.fingerprint) == (before.number, named)
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert [s["name"] for s in sections(bank) if s["thumbnails"]] == ["P1_1", "P2_1"]
    assert verify_bank(bank) == []


def test_a_rerun_does_nothing(generag, bank, build_options):
    generag(*build_options, "--bank", bank, "--thumbnails")
    before = {p: p.stat().st_mtime_ns for p in bank.rglob("*") if p.is_file() and p.name != ".writer.lock"}
    again = generag(*build_options, "--bank", bank, "--thumbnails")
    assert "thumbnails" not in again.err
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_the_slide_is_read_where_it_is_at_hand(own):
    bank = Bank.open(own / "b.zarr", "stain")
    tiles, sources = reference_tiles(bank, ROWS, side_px=167)
    assert sources == ["slide"] * 4
    name, spot = bank.spot_names[40].split("/")
    section = open_cohort(own / "train").section(name)
    measured = section.load()
    x, y = measured.centres[measured.names.tolist().index(spot)]
    with open_slide(section.slide) as slide:
        wanted = slide.read_region(round(x - 167 / 2), round(y - 167 / 2), 167, 167, 0)
    assert np.corrcoef(tiles[0].ravel(), wanted.ravel())[0, 1] > 0.95  # the centre lies between px


def test_thumbnails_are_the_slides_tiles_but_for_jpeg(own, gone):
    from_slide, _ = reference_tiles(Bank.open(own / "b.zarr", "stain"), ROWS)
    kept, sources = reference_tiles(Bank.open(gone, "stain"), ROWS)
    assert all(s.startswith("thumbnail of the bank: /nowhere/images/P") for s in sources)
    for one, other in zip(from_slide, kept, strict=True):
        assert one.shape == other.shape == (96, 96, 3)
        assert np.abs(one.astype(int) - other).mean() < 6
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.97


def test_thumbnails_are_resized_where_asked(gone):
    tiles, _ = reference_tiles(Bank.open(gone, "stain"), ROWS, side_px=48)
    assert {tile.shape for tile in tiles} == {(48, 48, 3)}


def test_without_slide_and_thumbnails_there_is_none_and_why(own, gone):
    (gone / "thumbnails" / "P1_1.zarr.zip").unlink()
    bank = Bank.open(gone, "stain")
    n_first = bank.sections[0]["n_spots"]
    tiles, sources = reference_tiles(bank, np.array([0, n_first]))
    assert tiles[0] is None
    assert sources[0].startswith("not at hand: /nowhere/images/P1_1.tif: no such slide; ")
    assert "P1_1.zarr.zip is missing" in sources[0]
    assert tiles[1] is not None


def test_a_bank_without_thumbnails_says_that_it_keeps_none(bank):
    path = bank / "manifest.json"
    entries = json.loads(path.read_text())
    for entry in entries["sections"]:
        entry["slide"] = "/nowhere.tif"
    path.write_text(json.dumps(entries | {"manifest_sha256": None}))
    tiles, sources = reference_tiles(Bank.open(bank, "stain"), ROWS)
    assert tiles == [None] * 4
    assert "the bank keeps no thumbnails of P" in sources[0]


def test_another_file_in_the_slides_place_is_not_taken(own, gone):
    move_slides(gone, "/nowhere/images/P1_1.tif", str(own / "train" / "images" / "P3_1.tif"))
    _, sources = reference_tiles(Bank.open(gone, "stain"), np.array([0]))
    assert "P3_1.tif has another size than when the bank was built" in sources[0]


def test_rows_that_the_bank_lacks_are_refused(own):
    with pytest.raises(UsageError, match="rows 5 to 9000"):
        reference_tiles(Bank.open(own / "b.zarr", "stain"), np.array([5, 9000]))
    assert reference_tiles(Bank.open(own / "b.zarr", "stain"), np.array([], int)) == ([], [])


def test_removed_sections_leave_no_picture(generag, gone):
    assert generag("bank", "remove", "P1_1", "--bank", gone).code == 0
    assert [p.name for p in (gone / "thumbnails").iterdir()] == ["P2_1.zarr.zip"]
    assert verify_bank(gone) == []


def test_merged_banks_keep_them_and_say_what_is_lost(generag, own, cohort, tmp_path):
    first = shutil.copytree(own / "b.zarr", tmp_path / "a")
    options = ("--patients", "prefix", "--backbone", "stain", "--workers", "1", "--thumbnails")
    done = generag("build-bank", cohort, *options, "--exclude", "P1_1", "--exclude", "P2_1", "--bank", tmp_path / "c")
    assert done.code == 0, done.err
    (first / "thumbnails" / "P2_1.zarr.zip").unlink()
    listener = Listener()
    merge_banks(first, tmp_path / "c", tmp_path / "m", listener)
    assert any("P2_1: the thumbnails of" in text and "left out" in text for text in listener.messages)
    assert [s["name"] for s in sections(tmp_path / "m") if s.get("thumbnails")] == ["P1_1", "P3_1"]
    assert verify_bank(tmp_path / "m") == []


def test_sections_that_have_patches_only_are_shown_too(generag, tmp_path):
    layouts = runpy.run_path(str(Path(__file__).parent / "test_layouts_into_bank.py"))
    task, folder = layouts["write_task"](tmp_path / "TASK"), tmp_path / "b"
    asked = ("--exclude", "P3_1", "--fov-um", layouts["SIDE_PX"] * layouts["MPP"], "--thumbnails", "--bank", folder)
    done = generag("build-bank", task, *layouts["USUAL"], *asked)
    assert done.code == 0, done.err
    cut, sources = reference_tiles(Bank.open(folder, "stain"), ROWS)
    assert sources == ["slide"] * 4
    (task / "patches").rename(task / "elsewhere")
    kept, sources = reference_tiles(Bank.open(folder, "stain"), ROWS)
    assert all(s.startswith("thumbnail of the bank") for s in sources)
    assert max(np.abs(one.astype(int) - other).mean() for one, other in zip(cut, kept, strict=True)) < 8
