"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from genrag_cli.errors import BankError, OutputError
from genrag_cli.stores.atomic import Parts, lock_is_held, new_file, new_folder, pack_folder, write_json, writer_lock


def fail_halfway(path):
    with contextlib.suppress(ValueError), new_file(path) as temporary:
        temporary.write_text("half")
        raise ValueError


def test_a_file_appears_on_a_clean_exit_only(tmp_path):
    path = tmp_path / "a"
    fail_halfway(path)
    assert list(tmp_path.iterdir()) == []
    with new_file(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_replacement_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    fail_halfway(tmp_path / "a.json")
    assert "old" in (tmp_path / "a.json").read_text()


def test_a_full_disk_is_said_with_a_remedy(tmp_path):
    with pytest.raises(OutputError, match="disk full") as raised, new_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "space" in raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_writer_left_is_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    left = tmp_path / f".a.{os.uname().nodename}.{dead.pid}.partial"
    foreign = tmp_path / ".a.othernode.1.partial"
    left.write_text("half")
    foreign.write_text("half")
    with new_file(tmp_path / "a") as temporary:
        temporary.write_text("whole")
    assert not left.exists()
    assert foreign.exists()


def test_a_folder_takes_the_place_of_another(tmp_path):
    for content in ("one", "two"):
        with new_folder(tmp_path / "a.zarr") as temporary:
            (temporary / "x").write_text(content)
    assert (tmp_path / "a.zarr" / "x").read_text() == "two"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.zarr"]


def test_a_zip_has_the_same_bytes_whenever_it_is_made(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        for file in ("b", "a", "sub/c"):
            (tmp_path / name / file).write_text(file)
            os.utime(tmp_path / name / file, (1e9 if name == "one" else 2e9,) * 2)
        pack_folder(tmp_path / name, tmp_path / f"{name}.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_parts_of_the_same_key_are_taken_up_and_others_thrown_away(tmp_path):
    Parts(tmp_path / "out", "key", "parts").write(0, values=np.arange(3))
    again = Parts(tmp_path / "out", "key", "parts")
    assert again.has(0)
    assert not again.has(1)
    assert again.read(0)["values"].tolist() == [0, 1, 2]
    other = Parts(tmp_path / "out", "other", "parts")
    assert not other.has(0)
    other.clear()
    assert list(tmp_path.iterdir()) == []


def test_one_writer_at_a_time(tmp_path):
    with writer_lock(tmp_path, BankError):
        assert lock_is_held(tmp_path)
        with pytest.raises(BankError, match=f"process {os.getpid()}"), writer_lock(tmp_path, BankError):
            pass
    assert not lock_is_held(tmp_path)
    with writer_lock(tmp_path, BankError):
        pass
