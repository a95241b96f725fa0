"""Several slides in one command."""

import json
import os
import shutil
import signal
import threading

import anndata
import numpy as np
import pytest
import tifffile
from PIL import Image

from genrag_cli.backbones.encoders.stain import Stain
from genrag_cli.pipeline.batch import run
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.claims import Claims
from genrag_cli.stores.embeddings import read_embeddings


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


def states(done):
    return {s["name"]: s["state"] for s in json.loads(done.out)["slides"]}


@pytest.fixture
def folder(cohort, tmp_path):
    """A folder with a slide, another in a folder below, and what is no slide."""
    (tmp_path / "slides" / "deep").mkdir(parents=True)
    shutil.copy(cohort / "images" / "P3_1.tif", tmp_path / "slides")
    shutil.copy(cohort / "images" / "P1_1.tif", tmp_path / "slides" / "deep")
    (tmp_path / "slides" / "notes.txt").write_text("no slide")
    return tmp_path / "slides"


@pytest.fixture
def encoded(monkeypatch):
    """Tiles that were encoded; a list of their numbers by batch."""
    encode, seen = Stain.encode, []

    def counting(self, pixels):
        seen.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(Stain, "encode", counting)
    return seen


def test_a_folder_is_worked_through_and_a_report_says_how_it_went(query, folder, tmp_path):
    done = query("retrieve", folder, "bad.svs", "--json")
    assert done.code == 3
    assert states(done) == {"P3_1": "done", "P1_1": "done", "bad": "failed"}
    (path,) = (tmp_path / "out" / "runs").iterdir()
    report = json.loads(path.read_text())
    assert report == json.loads(done.out)["run"]
    assert (report["counts"]["done"], report["counts"]["failed"]) == (2, 1)
    assert report["tiles"] == sum(s["spots"] or 0 for s in report["slides"])
    assert report["tiles_per_s"] > 0
    assert {"open", "tissue", "read", "encode", "solve", "write"} <= set(report["seconds"])
    assert "2 done, 1 failed in" in done.err
    assert f"report: {path}" in done.err
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names >= {f"P3_1{e}" for e in (".stain.h5ad", ".stain.status.json", ".tissue.png", ".tissue.geojson")}
    assert not [name for name in names if name.startswith(".")]


def test_a_manifest_says_what_each_slide_is_called_where_it_goes_and_how_it_is_read(query, folder, tmp_path):
    (folder / "m.csv").write_text("slide,name,mpp,out,block\nP3_1.tif,first,2.4,mine/p.h5ad,B4\ndeep/P1_1.tif,,,,\n")
    done = query("retrieve", folder / "m.csv", "--json")
    assert states(done) == {"first": "done", "P1_1": "done"}
    adata = anndata.read_h5ad(folder / "mine" / "p.h5ad")
    assert adata.obs_names[0].startswith("first:")
    about = adata.uns["generag"]
    assert (about["mpp"], json.loads(about["manifest"])) == (2.4, {"block": "B4"})
    assert (tmp_path / "out" / "P1_1.stain.h5ad").exists()
    assert states(query("retrieve", folder / "m.csv", "--json")) == {"first": "skipped", "P1_1": "skipped"}


def test_a_manifest_that_sends_two_slides_to_one_file_is_refused_before_anything_is_done(query, folder):
    (folder / "m.csv").write_text("slide,out\nP3_1.tif,p.h5ad\ndeep/P1_1.tif,p.h5ad\n")
    query("retrieve", folder / "m.csv", "-q").expect_refusal(2, "P3_1.tif", "P1_1.tif", "would both be written to")
    assert not (folder / "p.h5ad").exists()


@pytest.fixture
def glass(tmp_path):
    """A slide without tissue."""
    path = tmp_path / "glass.tif"
    resolution = {"resolution": (1e4 / 1.2, 1e4 / 1.2), "resolutionunit": "CENTIMETER"}
    image = np.full((1024, 1024, 3), 245, np.uint8)
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", metadata=None, **resolution)
    return path


@pytest.mark.parametrize(("ending", "read"), [("h5ad", anndata.read_h5ad), ("zarr", anndata.read_zarr)])
def test_a_slide_without_tissue_is_a_valid_empty_output_and_exit_code_0(
    query, glass, tmp_path, built_bank, ending, read
):
    out = tmp_path / f"p.{ending}"
    done = query("retrieve", glass, "--out", out, "--json")
    assert done.code == 0
    assert states(done) == {"glass": "empty"}
    assert "no tissue found" in done.err
    status = json.loads((tmp_path / "p.status.json").read_text())
    assert (status["state"], status["spots"]) == ("empty", 0)
    adata = read(out)
    bank = Bank.open(built_bank, "stain")
    assert adata.shape == (0, len(bank.genes))
    assert adata.obsm["generag_weights"].shape == (0, bank.n_spots)
    assert adata.obsm["spatial"].shape == (0, 2)
    assert list(adata.uns["spatial"]) == ["glass"]
    assert states(query("retrieve", glass, "--out", out, "--json")) == {"glass": "skipped"}


def test_embeddings_of_a_slide_without_tissue_are_a_valid_empty_output(query, glass, tmp_path):
    done = query("embed", glass, "--json")
    assert (done.code, states(done)) == (0, {"glass": "empty"})
    made = read_embeddings(tmp_path / "out" / "glass.stain.zarr.zip")
    assert made.values.shape[0] == len(made.grid) == 0


def test_changed_options_are_done_again_and_the_same_ones_are_not(query, slide, encoded):
    assert states(query("retrieve", slide, "--json")) == {"P3_1": "done"}
    n = len(encoded)
    assert states(query("retrieve", slide, "--json")) == {"P3_1": "skipped"}
    assert states(query("retrieve", slide, "--json", "--omega", "0.5")) == {"P3_1": "done"}
    assert len(encoded) == n  # embeddings do not depend on it
    assert states(query("retrieve", slide, "--json", "--omega", "0.5", "--lattice", "hex")) == {"P3_1": "done"}
    assert len(encoded) > n


@pytest.mark.parametrize(("command", "ending"), [("embed", "zarr.zip"), ("retrieve", "h5ad")])
def test_what_was_done_is_known_by_content_of_slide_and_output(
    query, folder, cohort, tmp_path, encoded, command, ending
):
    slide, out = folder / "P3_1.tif", tmp_path / "out"
    status = out / f"P3_1.stain{'.embed' if command == 'embed' else ''}.status.json"
    query(command, slide)
    n, made = len(encoded), (out / f"P3_1.stain.{ending}").read_bytes()
    os.utime(slide, ns=(1, 1))
    assert states(query(command, slide, "--json")) == {"P3_1": "skipped"}
    assert json.loads(status.read_text())["source"][1] == 1
    status.unlink()
    assert states(query(command, slide, "--json"))["P3_1"] in ("skipped", "done")
    assert json.loads(status.read_text())["state"] == "done"
    assert (out / f"P3_1.stain.{ending}").read_bytes() == made
    assert len(encoded) == n
    shutil.copy(cohort / "images" / "P2_1.tif", slide)
    assert states(query(command, slide, "--json")) == {"P3_1": "done"}
    assert len(encoded) > n


@pytest.mark.parametrize(("command", "ending"), [("embed", "zarr.zip"), ("retrieve", "h5ad")])
def test_a_damaged_output_is_made_again(query, slide, tmp_path, command, ending):
    query(command, slide)
    path = tmp_path / "out" / f"P3_1.stain.{ending}"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    done = query(command, slide, "--json")
    assert (done.code, states(done)) == (0, {"P3_1": "done"})
    assert "making it again" in done.err
    assert len(path.read_bytes()) == pytest.approx(len(whole), rel=0.1)


def test_an_output_that_somebody_changed_is_left_alone(query, slide, tmp_path):
    query("retrieve", slide)
    path = tmp_path / "out" / "P3_1.stain.h5ad"
    adata = anndata.read_h5ad(path)
    adata.obs["mine"] = 1
    adata.write_h5ad(path)
    assert states(query("retrieve", slide, "--json")) == {"P3_1": "skipped"}
    assert "mine" in anndata.read_h5ad(path).obs


def test_a_file_that_is_not_ours_is_left_alone(query, slide, tmp_path):
    (tmp_path / "p.h5ad").write_text("mine")
    for _ in range(2):
        query("retrieve", slide, "--out", tmp_path / "p.h5ad", "-q").expect_refusal(1, "p.h5ad", "--overwrite")
    assert (tmp_path / "p.h5ad").read_text() == "mine"


def test_a_slide_that_another_worker_holds_is_left_to_it_or_waited_for(query, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "POLL_S", 0.05)
    claim = Claims(60).take(tmp_path / "out" / "P1_1.stain.zarr.zip")
    done = query("embed", folder, "--no-wait", "--json")
    assert (done.code, states(done)) == (0, {"P3_1": "done", "P1_1": "held"})
    assert f"P1_1: being worked on by process {os.getpid()} on" in done.err
    threading.Timer(0.5, claim.release).start()
    done = query("embed", folder, "--json")
    assert states(done) == {"P3_1": "skipped", "P1_1": "done"}
    assert "waiting for 1 slides that other workers hold: P1_1" in done.err


def test_tasks_of_an_array_part_the_slides(query, folder, monkeypatch):
    for number, name in enumerate(["P3_1", "P1_1"]):
        for word, value in (("ID", 10 + number), ("COUNT", 2), ("MIN", 10), ("STEP", 1)):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{word}", str(value))
        done = query("embed", folder, "--json")
        assert states(done) == {name: "done"}
        assert f"task {number + 1} of 2 of a SLURM array takes its share" in done.err
    assert set(states(query("embed", folder, "--json", "--shard", "0/1"))) == {"P3_1", "P1_1"}


def test_a_share_beyond_the_last_is_refused(query, folder):
    query("embed", folder, "-q", "--shard", "2/2").expect_refusal(2, "--shard 2/2", "0/4")


@pytest.fixture
def scratched(tmp_path):
    """A slide too large for its tissue to be looked for in its finest level, one piece of which is damaged."""
    path, rng = tmp_path / "scratched.tif", np.random.default_rng(0)
    image = np.kron(rng.integers(90, 220, (160, 160, 3), np.uint8), np.ones((32, 32, 1), np.uint8))
    with tifffile.TiffWriter(path) as tiff:
        for step in (1, 2, 4, 16):
            size = {
                "resolution": (2e4 / step, 2e4 / step),
                "resolutionunit": "CENTIMETER",
                "subfiletype": int(step > 1),
            }
            packing = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "metadata": None}
            tiff.write(image[::step, ::step], **size, **packing)
    with tifffile.TiffFile(path) as file:
        low, n = file.pages[0].dataoffsets[100], file.pages[0].databytecounts[100]
    with path.open("r+b") as file:
        file.seek(low)
        file.write(bytes(n))
    return path


def test_bad_tiles_are_counted_named_and_left_out_as_far_as_that_was_allowed(query, scratched, tmp_path):
    fine = ("--tissue", "none", "--workers", "2")
    refused = query("retrieve", scratched, *fine, "--max-bad-tiles", "0", "-q")
    refused.expect_refusal(1, "scratched.tif", "Not a JPEG file", "copy it again")
    assert not (tmp_path / "out" / "scratched.stain.h5ad").exists()
    done = query("retrieve", scratched, *fine, "--max-bad-tiles", "10%", "--json")
    assert (done.code, states(done)) == (0, {"scratched": "done"})
    (slide,) = json.loads(done.out)["run"]["slides"]
    assert slide["bad_tiles"] > 0
    adata = anndata.read_h5ad(tmp_path / "out" / "scratched.stain.h5ad")
    bad = json.loads(adata.uns["generag"]["bad_tiles"])
    assert len(bad) == slide["bad_tiles"] == adata.uns["generag"]["n_bad_tiles"]
    assert adata.n_obs == slide["spots"]
    assert not set(bad) & set(adata.obs_names)
    assert "tiles cannot be read and are left out, first" in done.err


def test_a_bad_slide_is_named_by_its_own_path_where_it_was_staged(query, slide, tmp_path):
    bad = tmp_path / "bad.svs"
    bad.write_bytes(slide.read_bytes()[:2000])
    done = query("embed", bad, "--stage", tmp_path / "local", "--json")
    assert done.code == 1
    (told,) = json.loads(done.out)["slides"]
    assert told["error"].startswith(f"{bad}: ")
    assert "generag-stage-" not in done.out + done.err + (tmp_path / "out" / "bad.stain.embed.status.json").read_text()


def test_a_staged_slide_gives_the_same_bytes_and_leaves_nothing_on_the_local_disk(query, slide, tmp_path):
    query("embed", slide)
    done = query("embed", slide, "--stage", tmp_path / "local", "--out", tmp_path / "staged", "--json")
    assert states(done) == {"P3_1": "done"}
    assert list((tmp_path / "local").iterdir()) == []
    one, other = (tmp_path / place / "P3_1.stain.zarr.zip" for place in ("out", "staged"))
    assert one.read_bytes() == other.read_bytes()


def test_a_slide_at_an_address_is_fetched_and_known_again(query, slide, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    assert states(query("embed", f"file://{slide}", "--json")) == {"P3_1": "done"}
    assert states(query("embed", f"file://{slide}", "--json")) == {"P3_1": "skipped"}
    assert list((tmp_path / "scratch").iterdir()) == []
    done = query("embed", f"file://{slide}", "--dry-run", "--overwrite", "--json")
    assert states(done) == {"P3_1": "planned"}


def spots_of(done):
    (slide,) = json.loads(done.out)["slides"]
    return slide["spots"]


def test_tissue_is_found_taken_from_a_file_or_all_of_the_slide(query, slide, tmp_path):
    mask = np.zeros((100, 100), np.uint8)
    mask[:, :50] = 255
    Image.fromarray(mask).save(tmp_path / "left.png")
    n = {
        how: spots_of(query("embed", slide, "--tissue", how, "--json", "--out", tmp_path / str(i)))
        for i, how in enumerate(["none", "otsu", "density", tmp_path / "left.png"])
    }
    assert n["none"] == 49
    assert 0 < n["otsu"] < 49
    assert 0 < n["density"] < 49
    assert n[tmp_path / "left.png"] in (21, 28)


def test_a_hexagonal_lattice_has_shifted_rows(query, slide, tmp_path):
    query("embed", slide, "--lattice", "hex", "--tissue", "none")
    made = read_embeddings(tmp_path / "out" / "P3_1.stain.zarr.zip")
    row, column = made.grid.array_rc.T
    assert ((row + column) % 2 == 0).all()
    assert {0, 1} <= set((column % 2).tolist())


def test_the_picture_of_tissue_and_spots_is_there_unless_it_is_not_wanted(query, slide, tmp_path):
    query("embed", slide)
    with Image.open(tmp_path / "out" / "P3_1.tissue.png") as picture:
        assert picture.size[0] > 100
    contours = json.loads((tmp_path / "out" / "P3_1.tissue.geojson").read_text())
    assert contours["type"] == "FeatureCollection"
    assert contours["features"]
    query("embed", slide, "--no-overlay", "--out", tmp_path / "bare")
    assert sorted(p.name for p in (tmp_path / "bare").iterdir()) == [
        "P3_1.stain.embed.status.json",
        "P3_1.stain.zarr.zip",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_a_batch_with_75_and_the_same_command_goes_on(query, folder, tmp_path, monkeypatch, number):
    encode = Stain.encode

    def signalled(self, pixels):
        os.kill(os.getpid(), number)
        return encode(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Stain, "encode", signalled)
        done = query("retrieve", folder, "--json")
    assert done.code == 75
    assert done.err.endswith("stopped; the same command goes on from here\n")
    assert json.loads(done.out)["run"]["stopped"]
    found = {p.name: json.loads(p.read_text())["state"] for p in (tmp_path / "out").glob("*.status.json")}
    assert found == {"P3_1.stain.status.json": "stopped", "P1_1.stain.status.json": "stopped"}
    assert not list((tmp_path / "out").glob(".*.claim*"))
    assert states(query("retrieve", folder, "--json")) == {"P3_1": "done", "P1_1": "done"}
    assert not list((tmp_path / "out").glob(".*"))
