"""`generag inspect`: facts, a forecast that was measured, what is missing, and bad slides among good ones."""

import json
from pathlib import Path

import pytest

OPTIONS = ("--backbone", "stain", "--workers", "1")


@pytest.fixture
def inspect(generag, built_bank, slide):
    def run(*options: object):
        done = generag("inspect", slide, *OPTIONS, "--bank", built_bank, "--json", *options)
        assert done.code == 0, done.err
        (found,) = json.loads(done.out)["slides"]
        return found

    return run


def test_the_facts_are_those_of_the_slide(inspect, slide):
    found = inspect("--no-forecast")
    assert (found["slide"], found["reader"], found["vendor"]) == (str(slide), "openslide", "generic-tiff")
    assert (found["width"], found["height"]) == (1200, 1200)
    assert found["levels"][0] == {"width": 1200, "height": 1200, "downsample": 1.0, "tile": [256, 256]}
    assert len(found["levels"]) > 1
    assert found["mpp"] == pytest.approx(1.2)
    assert found["mpp_source"] == "TIFF resolution"
    assert 0.2 < found["tissue_share"] < 1
    assert found["forecast"] is None


def test_another_pixel_size_is_told_beside_the_one_that_counts(inspect):
    found = inspect("--no-forecast", "--mpp", "1.21")
    assert found["mpp_source"] == "--mpp or manifest"
    assert found["mpp_others"] == [{"source": "TIFF resolution", "mpp": pytest.approx(1.2)}]


def test_spots_and_bytes_are_near_what_retrieve_writes(inspect, retrieve, tmp_path):
    found = inspect("--genes", "all")
    done = retrieve("--genes", "all", "--json")
    assert done.code == 0, done.err
    cost = found["forecast"]
    assert found["spots"] == json.loads(done.out)["slides"][0]["spots"]
    written = {p.suffix: p.stat().st_size for p in (tmp_path / "out").iterdir() if p.suffix in (".h5ad", ".zip")}
    assert 0.5 < cost["disk_bytes"]["prediction"] / written[".h5ad"] < 2
    assert cost["memory_bytes"] > 100_000_000


def test_the_forecast_says_what_it_was_extrapolated_from(inspect):
    cost = inspect()["forecast"]
    assert set(cost["seconds_by_stage"]) == {
        "tissue", "read", "encode", "guess", "search", "solve", "reconstruct"
    }  # fmt: skip
    assert all(value >= 0 for value in cost["seconds_by_stage"].values())
    assert cost["seconds"] == pytest.approx(sum(cost["seconds_by_stage"].values()))
    assert all(n > 0 for n in cost["extrapolated_from"].values())
    assert "start of the program" in cost["not_counted"]


def test_lines_for_people_say_the_same(generag, built_bank, slide):
    done = generag("inspect", slide, *OPTIONS, "--bank", built_bank)
    assert done.code == 0, done.err
    for text in ("1200 x 1200 px", "1.2 um/px (TIFF resolution)", "256 x 256", "extrapolated from", "queries", "peak"):
        assert text in done.out
    assert "missing" not in done.out


def test_without_a_bank_the_rest_is_said(generag, slide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = generag("inspect", slide, *OPTIONS, "--fov-um", "200", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    (one,) = found["slides"]
    assert found["bank"] is None
    assert one["spots"] > 0
    assert set(one["forecast"]["seconds_by_stage"]) == {"tissue", "read", "encode"}
    assert any("build-bank" in text for text in one["missing"])


def test_without_a_field_of_view_spots_are_missing_and_a_remedy_is_named(generag, slide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = json.loads(generag("inspect", slide, *OPTIONS, "--json").out)["slides"][0]
    assert found["spots"] is None
    assert any("--fov-um" in text for text in found["missing"])


def test_weights_that_are_not_here_are_missing_and_not_fetched(generag, slide, built_bank, tmp_path, monkeypatch):
    from huggingface_hub import constants

    from genrag_cli.backbones import weights

    def refuse(*_: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "fetch_file", refuse)
    done = generag("inspect", slide, "--backbone", "uni", "--bank", built_bank, "--json", "-q")
    assert done.code == 0, done.err
    found = json.loads(done.out)["slides"][0]
    assert any("generag backbones fetch uni" in text for text in found["missing"])
    assert set(found["forecast"]["seconds_by_stage"]) == {"tissue", "read"}


def test_a_bad_slide_is_named_and_the_others_go_on(generag, built_bank, slide, tmp_path):
    bad = tmp_path / "bad.svs"
    bad.write_bytes(b"nothing that is a slide")
    done = generag("inspect", bad, slide, *OPTIONS, "--bank", built_bank, "--no-forecast", "--json", "-q")
    assert done.code == 3
    first, second = json.loads(done.out)["slides"]
    assert "not a slide" in first["error"]
    assert second["spots"] > 0
    assert "bad.svs" in done.err


def test_where_all_are_bad_the_exit_code_is_1(generag, built_bank, tmp_path):
    bad = [tmp_path / name for name in ("a.svs", "b.svs")]
    for path in bad:
        path.write_bytes(b"nothing that is a slide")
    assert generag("inspect", *bad, *OPTIONS, "--bank", built_bank).code == 1
    generag("inspect", bad[0], *OPTIONS, "--bank", built_bank, "-q").expect_refusal(1, "not a slide")


def test_folders_and_addresses_are_taken_as_by_retrieve(generag, built_bank, cohort):
    done = generag("inspect", cohort / "images", *OPTIONS, "--bank", built_bank, "--no-forecast", "--json", "-q")
    assert [Path(one["slide"]).name for one in json.loads(done.out)["slides"]] == ["P1_1.tif", "P2_1.tif", "P3_1.tif"]
    generag("inspect", "s3://place/a.svs", *OPTIONS, "--bank", built_bank, "-q").expect_refusal(1, "address")


def test_inspecting_touches_nothing(generag, built_bank, slide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = (built_bank, slide.parent, tmp_path)
    before = [sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) for folder in folders]
    assert generag("inspect", slide, *OPTIONS, "--bank", built_bank).code == 0
    assert [sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) for folder in folders] == before
