"""One report for a run over slides: it counts what is there, and sums what was done in this run."""

import json
import os
from pathlib import Path

import pytest

from genrag_cli.errors import OutputError, SlideError
from genrag_cli.pipeline.batch.inputs import Job
from genrag_cli.pipeline.batch.outcome import Outcome
from genrag_cli.pipeline.batch.report import FOLDER, make_report, state_of, write_report
from genrag_cli.stores.status import SlideStatus


def outcome(state, name="a", *, skipped=False, held_by="", error=None, **status):
    about = SlideStatus(state, f"{name}.svs", f"{name}.h5ad", "retrieve", **status)
    return Outcome(Job(f"{name}.svs", name), Path("out") / f"{name}.h5ad", about, skipped, error, held_by)


def report_of(*outcomes, stopped=False):
    return make_report(outcomes, command="retrieve", argv="generag retrieve a", elapsed_s=12.3456, stopped=stopped)


DONE = {"spots": 90, "bad_tiles": 10, "seconds": {"read": 1.0, "encode": 4.0, "solve": 2.0, "total": 8.0}}


@pytest.mark.parametrize(
    ("one", "state"),
    [
        (outcome("done"), "done"), (outcome("empty"), "empty"), (outcome("failed"), "failed"),
        (outcome("done", skipped=True), "skipped"), (outcome("empty", skipped=True), "skipped"),
        (outcome("running", skipped=True), "planned"),
        (outcome("running", skipped=True, held_by="process 1 on far"), "held"),
        (outcome("done", skipped=True, held_by="process 1 on far"), "held"),
    ],
)  # fmt: skip
def test_a_slide_is_in_one_state(one, state):
    assert state_of(one) == state
    counts = report_of(one)["counts"]
    assert counts.pop(state) == 1
    assert set(counts.values()) == {0}


def test_seconds_and_tiles_are_summed_over_what_was_done_in_this_run():
    old = outcome("done", "c", skipped=True, peak_memory=9 << 40, **DONE)
    report = report_of(outcome("done", "a", peak_memory=5, **DONE), outcome("done", "b", peak_memory=7, **DONE), old)
    assert report["seconds"] == {"read": 2.0, "encode": 8.0, "solve": 4.0}
    assert (report["tiles"], report["tiles_per_s"], report["bad_tiles"]) == (200, 20.0, 20)
    assert report["peak_memory"] == 7
    assert report["elapsed_s"] == 12.346


def test_slides_that_encoded_nothing_count_no_tiles():
    report = report_of(outcome("done", spots=50, seconds={"write": 1.0, "total": 1.0}))
    assert (report["tiles"], report["tiles_per_s"]) == (0, None)


def test_failures_come_with_reason_and_hint():
    error = SlideError("a.svs: cut short", "Copy it again.")
    (slide,) = report_of(outcome("failed", reason=error.message, hint=error.hint, error=error))["slides"]
    assert (slide["state"], slide["reason"], slide["hint"]) == ("failed", "a.svs: cut short", "Copy it again.")


def test_a_run_without_slides_has_a_report():
    report = report_of(stopped=True)
    assert report["slides"] == []
    assert report["stopped"]
    assert (report["peak_memory"], report["tiles_per_s"]) == (0, None)
    json.dumps(report, allow_nan=False)


def test_a_report_has_a_name_of_its_own(tmp_path):
    report = report_of(outcome("done", **DONE))
    path = write_report(tmp_path, report, "20260101T000000Z")
    assert path == tmp_path / FOLDER / f"20260101T000000Z.{os.uname().nodename}.{os.getpid()}.json"
    assert json.loads(path.read_text()) == report
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_report_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / FOLDER).write_text("mine")
    with pytest.raises(OutputError, match="a file stands where a folder is needed"):
        write_report(tmp_path, report_of(), "now")
