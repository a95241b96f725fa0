"""Writing on a real small disk: full at any moment, or read-only; one message, nothing half-written."""

import subprocess

import numpy as np
import pytest

from genrag_cli.errors import OutputError
from genrag_cli.stores.atomic import Parts, new_file, new_folder, write_json
from genrag_cli.stores.seal import check
from genrag_cli.stores.zipped import write_arrays

PAGE = 4096


def write_file(path, pages, *, sealed=True):
    with new_file(path, sealed=sealed) as temporary:
        temporary.write_bytes(b"x" * (pages * PAGE))


def write_folder(path, pages):
    with new_folder(path, sealed=True) as temporary:
        for number in range(pages):
            (temporary / f"{number}").write_bytes(b"x" * PAGE)


def write_zip(path, pages):
    write_arrays(path, {"x": np.random.default_rng(0).integers(0, 255, pages * PAGE, np.uint8)}, {})


@pytest.fixture
def read_only(small_disk):
    """A folder on a disk that nobody may write to, and that holds a.json."""
    folder, _ = small_disk
    write_json(folder / "a.json", {"old": 1})
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    return folder


@pytest.mark.parametrize("write", [write_file, write_folder, write_zip])
@pytest.mark.parametrize("kib", [0, 8, 30])
def test_a_full_disk_leaves_nothing_behind(small_disk, write, kib):
    folder, leave = small_disk
    leave(kib)
    with pytest.raises(OutputError, match="disk full while writing"):
        write(folder / "a", 20)
    assert [p.name for p in folder.iterdir()] == [".ballast"]
    leave(None)
    write(folder / "a", 20)
    assert check(folder / "a").state == "whole"
    assert [p.name for p in folder.iterdir()] == ["a"]


def test_a_disk_that_has_room_for_all_but_the_seal(small_disk):
    folder, leave = small_disk
    leave(4 * PAGE // 1024)
    with pytest.raises(OutputError, match="disk full while writing"):
        write_file(folder / "a", 4)
    assert [p.name for p in folder.iterdir()] == [".ballast"]
    write_file(folder / "a", 4, sealed=False)
    assert (folder / "a").stat().st_size == 4 * PAGE


def test_what_stood_there_survives_a_full_disk(small_disk):
    folder, leave = small_disk
    write_folder(folder / "a", 3)
    leave(4)
    with pytest.raises(OutputError, match="disk full"):
        write_folder(folder / "a", 20)
    assert check(folder / "a").state == "whole"
    assert len(list((folder / "a").glob("[0-9]*"))) == 3


@pytest.mark.parametrize("write", [write_file, write_folder, write_zip])
def test_a_read_only_disk_is_said(read_only, write):
    for path in (read_only / "b", read_only / "new" / "b"):
        with pytest.raises(OutputError, match="the file system is read-only") as raised:
            write(path, 1)
        assert "--out" in raised.value.hint
    assert [p.name for p in read_only.iterdir()] == ["a.json"]


def test_parts_and_leftovers_on_a_read_only_disk_are_no_traceback(read_only):
    with pytest.raises(OutputError, match="read-only"):
        write_json(read_only / "a.json", {"new": 1})
    with pytest.raises(OutputError, match="read-only"):
        Parts(read_only / "a", "key", "parts")
    assert "old" in (read_only / "a.json").read_text()
