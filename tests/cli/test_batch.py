"""Several slides in one command."""

import json
import shutil

import pytest


@pytest.fixture
def query(generag, built_bank, tmp_path):
    def run(command, *slides_and_options):
        out = () if "--out" in slides_and_options else ("--out", tmp_path / "out")
        common = ("--backbone", "stain", "--bank", built_bank, "--workers", "1", *out)
        more = ("--alpha", "0.003") if command == "retrieve" else ()
        return generag(command, *slides_and_options, *common, *more)

    return run


@pytest.mark.parametrize(("command", "ending"), [("embed", "zarr.zip"), ("retrieve", "h5ad")])
def test_several_slides_go_into_one_folder(query, cohort, tmp_path, command, ending):
    done = query(command, cohort / "images" / "P3_1.tif", cohort / "images" / "P1_1.tif", "--json")
    assert done.code == 0
    assert [s["slide"][-8:] for s in json.loads(done.out)["slides"]] == ["P3_1.tif", "P1_1.tif"]
    assert {p.name for p in (tmp_path / "out").glob(f"*.{ending}")} == {f"P{i}_1.stain.{ending}" for i in (1, 3)}


@pytest.mark.parametrize("command", ["embed", "retrieve"])
def test_one_bad_slide_ends_with_3_and_the_others_are_done(query, slide, tmp_path, command):
    done = query(command, "nowhere.svs", slide, "--json")
    assert done.code == 3
    bad, good = json.loads(done.out)["slides"]
    assert bad["error"].startswith("nowhere.svs")
    assert bad["hint"]
    assert "error" not in good
    assert "1 of 2 slides failed: nowhere.svs" in done.err
    assert "Traceback" not in done.err
    assert list((tmp_path / "out").glob("P3_1.stain.*"))


def test_all_bad_slides_end_with_1(query):
    done = query("retrieve", "nowhere.svs", "elsewhere.svs", "--json")
    assert done.code == 1
    assert len(json.loads(done.out)["slides"]) == 2
    assert "2 of 2 slides failed" in done.err


def test_one_bad_slide_alone_is_json_too(query):
    done = query("retrieve", "nowhere.svs", "--json", "-q")
    assert done.code == 1
    assert json.loads(done.out)["slides"][0]["error"] == "nowhere.svs: no such slide"
    assert done.err.startswith("error: nowhere.svs: no such slide\n")


@pytest.mark.parametrize(("command", "name"), [("embed", "e.zarr.zip"), ("retrieve", "p.h5ad"), ("retrieve", "p.zarr")])
def test_several_slides_do_not_go_into_one_file(query, cohort, tmp_path, command, name):
    slides = (cohort / "images" / "P3_1.tif", cohort / "images" / "P1_1.tif")
    query(command, *slides, "--out", tmp_path / name, "-q").expect_refusal(2, "2 slides were given", "Give a folder")
    assert query(command, slides[0], "--out", tmp_path / name).code == 0
    assert (tmp_path / name).exists()


def test_slides_of_one_name_are_told_apart_by_their_folders(query, slide, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(slide, tmp_path / "other" / slide.name)
    done = query("embed", slide, tmp_path / "other" / slide.name, "-q", "--json")
    assert [s["name"] for s in json.loads(done.out)["slides"]] == ["images_P3_1", "other_P3_1"]
    assert len(list((tmp_path / "out").glob("*.zarr.zip"))) == 2


def test_a_file_is_no_folder_for_outputs(query, slide, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    query("retrieve", slide, "--out", tmp_path / "notes.txt", "-q").expect_refusal(2, "notes.txt is a file", ".h5ad")
    assert (tmp_path / "notes.txt").read_text() == "mine"
