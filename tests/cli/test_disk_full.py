"""A full disk: one message, exit code 1, nothing half-written, and a rerun that works once there is room.

On a real small disk (tmpfs) where one may be mounted; with ENOSPC from the system calls everywhere.
"""

import errno
import os
import subprocess
import sys

import pytest

from genrag_cli.stores.bank_check import verify_bank


def leftovers(folder):
    return [p.name for p in folder.rglob(".*") if p.suffix in (".partial", ".packing", ".old")]


@pytest.mark.parametrize("kib", [20, 164, 240])
def test_a_bank_on_a_full_disk(generag, build_options, built_bank, small_disk, kib):
    folder, leave = small_disk
    leave(kib)
    bank = folder / "b.zarr"
    generag(*build_options, "--bank", bank, "-q").expect_refusal(1, "disk full while writing", "Free some space")
    assert leftovers(folder) == []
    if (bank / "manifest.json").exists():
        assert [w for w in verify_bank(bank) if "not finished" not in w] == []
    leave(None)
    assert generag(*build_options, "--bank", bank, "-q").code == 0
    assert (bank / "manifest.json").read_text() == (built_bank / "manifest.json").read_text()


@pytest.mark.parametrize(("name", "kib"), [("p.h5ad", 60), ("p.h5ad", 400), ("p.zarr", 140), ("p.zarr", 2000)])
def test_a_prediction_on_a_full_disk(retrieve, small_disk, name, kib):
    folder, leave = small_disk
    leave(kib)
    retrieve("--out", folder / name, "-q").expect_refusal(1, "disk full while writing", "Free some space")
    assert leftovers(folder) == []
    assert not (folder / name).exists()
    leave(None)
    assert retrieve("--out", folder / name).code == 0
    beside = ["P3_1.stain.zarr.zip", "P3_1.tissue.geojson", "P3_1.tissue.png", name, "p.status.json"]
    assert {p.name for p in folder.iterdir()} == set(beside)


def test_an_old_prediction_survives_a_full_disk(retrieve, small_disk):
    folder, leave = small_disk
    assert retrieve("--out", folder / "p.h5ad").code == 0
    before = (folder / "p.h5ad").read_bytes()
    leave(100)
    retrieve("--out", folder / "p.h5ad", "--omega", "0.7", "-q").expect_refusal(1, "disk full")
    assert (folder / "p.h5ad").read_bytes() == before


@pytest.mark.parametrize("call", [2, 9])
def test_a_disk_that_fills_while_a_bank_is_flushed(generag, build_options, tmp_path, monkeypatch, call):
    fill_at(monkeypatch, call)
    generag(*build_options, "--bank", tmp_path / "b.zarr", "-q").expect_refusal(1, "disk full while writing", "--bank")
    assert leftovers(tmp_path) == []
    monkeypatch.undo()
    assert generag(*build_options, "--bank", tmp_path / "b.zarr").code == 0
    assert verify_bank(tmp_path / "b.zarr") == []


@pytest.mark.parametrize(("name", "call"), [("p.h5ad", 1), ("p.h5ad", 4), ("p.zarr", 9)])
def test_a_disk_that_fills_while_a_prediction_is_flushed(retrieve, tmp_path, monkeypatch, name, call):
    fill_at(monkeypatch, call)
    retrieve("--out", tmp_path / name, "-q").expect_refusal(1, "disk full while writing", "--out")
    assert leftovers(tmp_path) == []
    assert not (tmp_path / name).exists()
    monkeypatch.undo()
    assert retrieve("--out", tmp_path / name).code == 0


def fill_at(monkeypatch, call):
    """Has the n-th flush to disk fail, as it does on file systems that reserve room late."""
    fsync, seen = os.fsync, []

    def full(handle):
        seen.append(handle)
        if len(seen) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_said_too(built_bank, unbuffered):
    if not os.path.exists("/dev/full"):  # noqa: PTH110 - a device, not a path of ours
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "genrag_cli", "bank", "info", "--bank", built_bank],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: disk full")
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr
