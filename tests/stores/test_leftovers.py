"""What dead writers leave is cleared away, what living ones hold is not."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from genrag_cli.errors import OutputError
from genrag_cli.stores import atomic
from genrag_cli.stores.atomic import KINDS, Parts, beside, explain, new_file, new_folder, sweep, tidy
from genrag_cli.stores.seal import DIGESTS
from genrag_cli.stores.zipped import packing


def left_by(path, pid, kind):
    name = beside(path, kind).name.replace(f".{os.getpid()}.", f".{pid}.")
    (path.parent / name).mkdir(parents=True)
    return path.parent / name


@pytest.fixture
def dead():
    """Number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_leftover_of_a_dead_process_goes(tmp_path, dead, kind):
    gone, stays = left_by(tmp_path / "a[1].zarr", dead, kind), left_by(tmp_path / "a[1].zarr", os.getppid(), kind)
    other = left_by(tmp_path / "b.zarr", dead, kind)
    sweep(tmp_path / "a[1].zarr")
    assert not gone.exists()
    assert stays.exists()
    assert other.exists()


def test_an_output_that_stands_needs_no_parts(tmp_path, dead):
    left_by(tmp_path / "a", dead, "partial")
    Parts(tmp_path / "a", "key", "parts").write(0, values=np.ones(1))
    Parts(tmp_path / "a", "key", "codes").write(0, values=np.ones(1))
    kept = Parts(tmp_path / "b", "key", "parts")
    tidy(tmp_path / "a")
    assert list(tmp_path.iterdir()) == [kept.folder]


@pytest.mark.parametrize("make", [new_folder, packing])
def test_a_leftover_under_the_own_number_is_no_obstacle(tmp_path, make):
    for kind in ("partial", "packing"):
        beside(tmp_path / "a", kind).mkdir()
        (beside(tmp_path / "a", kind) / "old").write_text("half")
    with make(tmp_path / "a") as folder:
        assert list(folder.iterdir()) == []


def test_packing_leaves_the_folder_of_a_living_process_alone(tmp_path):
    living = left_by(tmp_path / "a", os.getppid(), "packing")
    with packing(tmp_path / "a"):
        pass
    assert living.exists()


def test_a_folder_is_put_back_where_its_successor_does_not_come(tmp_path, monkeypatch):
    with new_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("old")
    replace = type(tmp_path).replace

    def fail(self, target):
        if self.suffix == ".partial":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", fail)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("new")
    assert (tmp_path / "a" / "x").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "disk full"), (errno.EACCES, "cannot be written"), (errno.ENOTDIR, "a file stands where"),
     (errno.EISDIR, "a folder stands where"), (errno.EIO, "could not be written")],
)  # fmt: skip
def test_every_refusal_has_a_remedy(tmp_path, number, said):
    error = explain(OSError(number, os.strerror(number)), tmp_path / "none" / "a")
    assert isinstance(error, OutputError)
    assert said in error.message
    assert error.hint


def test_a_file_below_a_file_is_refused_in_words(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(OutputError, match="a file stands where a folder is needed"), new_file(tmp_path / "a" / "b"):
        pass


def left_elsewhere(path, kind, age_days, monkeypatch):
    """What another machine left, untouched for some days by the file system's clock."""
    left = path.with_name(f".{path.name}.other.node.17.{kind}")
    left.mkdir(parents=True)
    (left / "x").write_text("half")
    monkeypatch.setattr(atomic, "FOREIGN_AGE_S", -1.0 if age_days > 2 else 3600.0)
    return left


@pytest.mark.parametrize("kind", ["partial", "packing"])
@pytest.mark.parametrize("days", [0, 3])
def test_what_other_machines_left_goes_when_nobody_touched_it_for_days(tmp_path, monkeypatch, kind, days):
    left = left_elsewhere(tmp_path / "a", kind, days, monkeypatch)
    sweep(tmp_path / "a")
    assert left.exists() == (days == 0)
    assert [p.name for p in tmp_path.iterdir()] == ([left.name] if days == 0 else [])


def test_a_file_that_is_still_written_to_keeps_an_old_folder_of_another_machine(tmp_path, monkeypatch):
    left = left_elsewhere(tmp_path / "a", "packing", 0, monkeypatch)
    os.utime(left, (1, 1))
    sweep(tmp_path / "a")
    assert left.exists()


@pytest.mark.parametrize("stands", [True, False])
def test_a_folder_that_a_dead_process_put_aside_is_put_back_where_nothing_took_its_place(tmp_path, dead, stands):
    old = left_by(tmp_path / "a", dead, "old")
    (old / "x").write_text("old")
    if stands:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x").write_text("new")
    sweep(tmp_path / "a")
    assert (tmp_path / "a" / "x").read_text() == ("new" if stands else "old")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 120 + ".zarr", "x" * 246 + ".h5ad"])
def test_a_name_that_the_file_system_just_allows_can_be_written(tmp_path, name, dead):
    left = left_by(tmp_path / name, dead, "partial")
    with new_file(tmp_path / name) as temporary:
        assert len(temporary.name.encode()) < 200
        temporary.write_text("whole")
    assert not left.exists()
    Parts(tmp_path / name, "key", "parts").clear()
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_long_names_that_begin_alike_are_told_apart(tmp_path):
    one, two = (beside(tmp_path / ("x" * 200 + last), "partial") for last in "ab")
    assert one != two


def put(make, path, **options):
    """Writes a small file, or a folder of four."""
    with make(path, **options) as made:
        for file in [made / name for name in "abcd"] if made.is_dir() else [made]:
            file.write_text("x")


@pytest.mark.parametrize("make", [new_file, new_folder, packing])
def test_a_name_that_is_too_long_is_refused_in_words(tmp_path, make):
    with pytest.raises(OutputError, match="too long for the file system") as raised:
        put(make, tmp_path / ("x" * 300))
    assert "shorter" in raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_which_a_file_cannot_be_flushed_does_not_appear(tmp_path, monkeypatch):
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="could not be written"):
        put(new_folder, tmp_path / "a", sealed=True)
    assert list(tmp_path.iterdir()) == []


def test_every_file_and_folder_is_flushed_before_the_name_is(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(str(Path(f"/proc/self/fd/{handle}").readlink())))
    with new_folder(tmp_path / "a", sealed=True) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("x")
        here = str(folder)
    assert {f"{here}/sub/x", f"{here}/{DIGESTS}", f"{here}/sub", here} == set(flushed[:-1])
    assert flushed[-1] == str(tmp_path)


def test_a_network_file_system_that_flushes_no_folders_is_no_obstacle(tmp_path, monkeypatch):
    fsync = os.fsync

    def files_only(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    with new_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("x")
    assert (tmp_path / "a" / "x").read_text() == "x"
