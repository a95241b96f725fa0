"""What dead writers leave is cleared away, what living ones hold is not."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from genrag_cli.errors import OutputError
from genrag_cli.stores.atomic import KINDS, Parts, beside, explain, new_file, new_folder, sweep, tidy
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
