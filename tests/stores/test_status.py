"""What became of a slide: the small file beside its output, and how a mark is told from something else."""

import dataclasses
import json
import os

import pytest

from genrag_cli.errors import OutputError
from genrag_cli.stores.status import (
    FINISHED,
    STATES,
    SlideStatus,
    output_size,
    read_status,
    source_stamp,
    status_path,
    write_status,
)

ABOUT = SlideStatus(
    "done", "slides/a.svs", "a.stain.h5ad", "retrieve", "o" * 64, "d" * 64, "k" * 64, [10, 20], 300, spots=7,
    bad_tiles=1, seconds={"read": 0.5}, facts={"mpp": 0.25}, warnings=["so"], attempts=2,
)  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_a_status_comes_back_as_it_was_written(tmp_path, state):
    status = dataclasses.replace(ABOUT, state=state)
    write_status(tmp_path / "a.status.json", status)
    assert read_status(tmp_path / "a.status.json") == status
    assert [p.name for p in tmp_path.iterdir()] == ["a.status.json"]


def test_finished_states_are_states():
    assert set(FINISHED) < set(STATES)


@pytest.mark.parametrize("name", ["P.lite0.h5ad", "P.lite0.zarr", "P.lite0.zarr.zip", "P.lite0"])
def test_a_status_is_called_as_its_output_without_the_ending(tmp_path, name):
    assert status_path(tmp_path / name) == tmp_path / "P.lite0.status.json"
    assert status_path(tmp_path / name, ".embed") == tmp_path / "P.lite0.embed.status.json"


def test_a_status_that_is_not_there_is_none(tmp_path):
    assert read_status(tmp_path / "a.status.json") is None
    assert read_status(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "7", "{}", '{"state": "done"}', "\x00" * 40,
        json.dumps({"format": 1, "state": "done"}),
        json.dumps({"format": 2, "state": "done", "slide": "a", "output": "b"}),
        json.dumps({"format": 1, "state": "perfect", "slide": "a", "output": "b"}),
        json.dumps({"format": 1, "state": "done", "slide": "a", "output": "b", "size": "large"}),
        json.dumps({"format": 1, "state": "done", "slide": "a", "output": "b", "seconds": 3}),
        json.dumps({"format": 1, "state": "done", "slide": "a", "output": "b", "attempts": None}),
        json.dumps({"format": 1, "state": "done", "slide": "a", "output": "b", "facts": None}),
        json.dumps({"format": 1, "state": ["done"], "slide": "a", "output": "b"}),
    ],
)  # fmt: skip
def test_what_cannot_be_a_status_is_none(tmp_path, content):
    (tmp_path / "a.status.json").write_text(content)
    assert read_status(tmp_path / "a.status.json") is None


def test_bytes_that_are_no_text_are_none(tmp_path):
    (tmp_path / "a.status.json").write_bytes(b"\xff\xfe\x00")
    assert read_status(tmp_path / "a.status.json") is None


def test_what_a_later_version_adds_is_passed_over(tmp_path):
    write_status(tmp_path / "a.status.json", ABOUT)
    content = json.loads((tmp_path / "a.status.json").read_text())
    (tmp_path / "a.status.json").write_text(json.dumps({**content, "mood": "fine"}))
    assert read_status(tmp_path / "a.status.json") == ABOUT


def test_a_status_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file stands where a folder is needed"):
        write_status(tmp_path / "file" / "a.status.json", ABOUT)


def test_a_slide_of_one_file_has_a_stamp_that_follows_its_content(tmp_path):
    slide = tmp_path / "a.svs"
    slide.write_bytes(b"12345")
    before = source_stamp(slide)
    assert before == [5, slide.stat().st_mtime_ns]
    os.utime(slide, ns=(0, 17))
    assert source_stamp(slide) == [5, 17]


@pytest.mark.parametrize("name", ["a.mrxs", "a.vms", "a.VMU", "a.dcm"])
def test_a_slide_of_several_files_has_none(tmp_path, name):
    (tmp_path / name).write_bytes(b"1")
    assert source_stamp(tmp_path / name) is None


def test_a_folder_and_a_missing_slide_have_none(tmp_path):
    assert source_stamp(tmp_path) is None
    assert source_stamp(tmp_path / "gone.svs") is None


def test_the_size_of_an_output_counts_all_of_its_files(tmp_path):
    assert output_size(tmp_path / "gone") == 0
    (tmp_path / "x.zarr" / "sub").mkdir(parents=True)
    (tmp_path / "x.zarr" / "a").write_bytes(b"123")
    (tmp_path / "x.zarr" / "sub" / "b").write_bytes(b"45")
    assert output_size(tmp_path / "x.zarr") == 5
    assert output_size(tmp_path / "x.zarr" / "a") == 3
