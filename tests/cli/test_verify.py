"""`generag verify`: what it says of what generag wrote, whole and mangled."""

import json
import random
import shutil

import h5py
import numpy as np
import pytest
import zarr

FLIPS = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory, generag, built_bank, cohort):
    """A folder with a prediction of either kind, embeddings and a bank."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("p.h5ad", "p.zarr"):
        slide = ("retrieve", cohort / "images" / "P3_1.tif", "--backbone", "stain", "--bank", built_bank)
        done = generag(*slide, "--out", folder / name, "--workers", "1", "--alpha", "0.003", "-q")
        assert done.code == 0, done.err
    shutil.copytree(built_bank, folder / "b.zarr")
    return folder


@pytest.fixture
def outputs(made, tmp_path):
    """A copy to do with as one likes."""
    return shutil.copytree(made, tmp_path / "outputs")


def states(done):
    return {r["path"].rsplit("/", 1)[1]: r["state"] for r in json.loads(done.out)["results"]}


def flip(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 16
    path.write_bytes(content)


def test_everything_that_is_written_verifies(generag, outputs):
    done = generag("verify", outputs, "--json", "-q")
    assert done.code == 0, done.err
    assert states(done) == dict.fromkeys(("P3_1.stain.zarr.zip", "b.zarr", "p.h5ad", "p.zarr"), "whole")
    assert {k: json.loads(done.out)[k] for k in ("whole", "damaged", "changed", "unsealed")} == {
        "whole": 4, "damaged": 0, "changed": 0, "unsealed": 0,
    }  # fmt: skip
    assert all(len(r["sha256"]) == 64 for r in json.loads(done.out)["results"])


def test_some_damaged_files_end_with_3_and_all_with_1(generag, outputs):
    flip(outputs / "p.h5ad")
    some = generag("verify", outputs)
    assert some.code == 3
    assert "p.h5ad" in some.err.splitlines()[-2]
    assert "damaged: its bytes are not those that were written" in some.out
    assert generag("verify", outputs / "p.h5ad").code == 1


def test_what_another_program_wrote_into_is_changed(generag, outputs):
    with h5py.File(outputs / "p.h5ad", "r+") as file:
        file.attrs["seen"] = True
    zarr.open_group(outputs / "p.zarr", mode="r+").create_array("layers/mine", data=np.ones(1))
    done = generag("verify", outputs / "p.h5ad", outputs / "p.zarr", "--json", "-q")
    assert done.code == 1
    # Its consolidated list of members was not rewritten, so that one file was added and none is another.
    assert states(done) == {"p.h5ad": "changed", "p.zarr": "changed"}


def test_files_of_earlier_versions_are_named_and_no_error(generag, outputs):
    (outputs / "p.zarr" / ".generag-digests.json").unlink()
    manifest = json.loads((outputs / "b.zarr" / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    (outputs / "b.zarr" / "manifest.json").write_text(json.dumps(manifest))
    done = generag("verify", outputs / "p.zarr", outputs / "b.zarr")
    assert done.code == 0, done.err
    assert done.out.count("unsealed") == 2
    assert generag("bank", "verify", "--bank", outputs / "b.zarr").out.strip().endswith("an earlier version wrote it")


@pytest.mark.parametrize("file", ["sections/P1_1.zarr.zip", "manifest.json", "genes.json", "derived/stain.v1.zarr.zip"])
def test_a_damaged_bank_is_noticed(generag, outputs, file):
    flip(outputs / "b.zarr" / file)
    done = generag("verify", outputs / "b.zarr", "--json", "-q")
    assert (done.code, states(done)) == (1, {"b.zarr": "damaged"})


@pytest.mark.parametrize("words", [("tune",), ("evaluate", "--protocol", "leave-section-out")])
def test_what_computes_for_long_compares_the_bank_first(generag, outputs, tmp_path, words):
    flip(outputs / "b.zarr" / "sections" / "P1_1.zarr.zip")
    done = generag(words[0], outputs / "b.zarr", *words[1:], "--backbone", "stain", *out_of(words[0], tmp_path), "-q")
    done.expect_refusal(1, "is damaged", "P1_1.zarr.zip")


def out_of(command, folder):
    return ("--out", folder / "scores") if command == "evaluate" else ()


def test_a_bank_without_its_manifest_is_damaged(generag, outputs):
    (outputs / "b.zarr" / "manifest.json").unlink()
    done = generag("verify", outputs, "--json", "-q")
    assert (done.code, states(done)["b.zarr"]) == (3, "damaged")


def test_malformed_manifests_of_earlier_versions_are_damage(generag, outputs):
    manifest = json.loads((outputs / "b.zarr" / "manifest.json").read_text())
    for change in ({"sections": 3}, {"backbones": {"stain": 1}}, {"genes_file": {}}):
        mangled = {**manifest, **change, "manifest_sha256": None}
        (outputs / "b.zarr" / "manifest.json").write_text(json.dumps(mangled))
        done = generag("verify", outputs / "b.zarr", "--json", "-q")
        assert (done.code, states(done)) == (1, {"b.zarr": "damaged"})


def test_mangled_outputs_are_never_whole(generag, outputs):
    rng = random.Random(0)
    files = [p for p in outputs.rglob("*") if p.is_file() and not p.name.startswith(".writer") and p.stat().st_size]
    for _ in range(FLIPS):
        path = rng.choice(files)
        content = path.read_bytes()
        at = rng.randrange(len(content))
        path.write_bytes(
            rng.choice([content[:at], content[at:] + content[:at] + b"x", content[:at] + bytes(9) + content[at + 8 :]])
        )
        done = generag("verify", outputs, "--json", "-q")
        assert done.code == 3, (path, at)
        assert "Traceback" not in done.err
        path.write_bytes(content)
    assert generag("verify", outputs, "-q").code == 0


def test_what_is_not_there_is_refused(generag, tmp_path):
    (tmp_path / "empty").mkdir()
    generag("verify", tmp_path / "none").expect_refusal(2, "no such file or folder")
    generag("verify", tmp_path / "empty").expect_refusal(2, "holds no prediction")


def test_a_zarr_folder_with_nothing_in_it_is_damaged(generag, outputs):
    (outputs / "empty.zarr").mkdir()
    assert states(generag("verify", outputs, "--json", "-q"))["empty.zarr"] == "damaged"


def test_a_dry_run_names_what_would_be_read(generag, outputs):
    done = generag("verify", outputs, "--dry-run", "--json")
    assert done.code == 0
    assert len(json.loads(done.out)["would_verify"]) == 4
    assert "would read 4" in done.err
