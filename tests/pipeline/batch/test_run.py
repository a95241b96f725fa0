"""The order of things in a batch, with slides that are text files: what ends how, and what is left when it does."""

import os
import threading
import time

import pytest

from genrag_cli import stopping
from genrag_cli.errors import OutputError, SlideError, Stopped, UsageError
from genrag_cli.pipeline.batch import run as module
from genrag_cli.pipeline.batch.inputs import Job
from genrag_cli.stores.status import write_status


def test_every_slide_is_done_in_order_and_the_next_is_begun_before_the_current_is_finished(work, jobs):
    outcomes = work.run(jobs)
    assert outcomes.states == dict.fromkeys("abcd", "done")
    for what in ("begin", "finish"):
        assert [name for did, name in work.did if did == what] == list("abcd")
    one = work.status("c")
    assert (one.state, one.spots, one.attempts, one.facts) == ("done", 9, 1, {"shouted": True})
    assert one.size == (work.out / "c.h5ad").stat().st_size
    assert one.worker == f"{os.uname().nodename}:{os.getpid()}"
    work.expect_tidy()


def test_what_is_done_is_not_looked_at_again(work, jobs):
    work.run(jobs)
    work.did.clear()
    outcomes = work.run(jobs)
    assert outcomes.states == dict.fromkeys("abcd", "skipped")
    assert work.did == []


def test_other_options_and_overwrite_do_it_again(work, jobs):
    work.run(jobs)
    work.options = "others"
    assert work.run(jobs).states == dict.fromkeys("abcd", "done")
    assert work.run(jobs, overwrite=True).states == dict.fromkeys("abcd", "done")
    assert work.status("a").attempts == 3


def test_a_touched_slide_is_known_by_its_content_and_a_changed_one_is_done_again(work, jobs):
    work.run(jobs)
    work.did.clear()
    os.utime(jobs[0].path, ns=(1, 1))
    jobs[1].path.write_text("another text")
    outcomes = work.run(jobs)
    assert outcomes.states == {"a": "skipped", "b": "done", "c": "skipped", "d": "skipped"}
    assert work.status("a").source[1] == 1
    assert work.status("b").spots == len("another text")
    assert {name for _, name in work.did} == {"b"}


def test_a_lost_status_is_found_again_from_the_output(work, jobs):
    work.run(jobs)
    work.did.clear()
    (work.out / "a.status.json").unlink()
    (work.out / "b.status.json").write_text("{")
    assert work.run(jobs).states == dict.fromkeys("abcd", "skipped")
    assert work.did == []
    assert (work.status("a").state, work.status("b").spots) == ("done", 9)


def test_a_damaged_output_of_ours_is_made_again_even_after_a_run_that_was_killed_there(work, jobs):
    work.run(jobs)
    (work.out / "a.h5ad").write_text("torn")
    (work.out / "b.h5ad").write_text("torn")
    killed = work.status("b")
    killed.state = "running"
    write_status(work.out / "b.status.json", killed)
    assert work.run(jobs).states == {"a": "done", "b": "done", "c": "skipped", "d": "skipped"}


def test_a_file_that_is_not_ours_is_never_written_over_however_often_one_tries(work, jobs):
    work.out.mkdir()
    (work.out / "a.h5ad").write_text("mine")
    for _ in range(3):
        outcomes = work.run(jobs[:1])
        assert outcomes["a"].error.message.endswith("is not ours")
    assert (work.out / "a.h5ad").read_text() == "mine"
    work.expect_tidy()


@pytest.mark.parametrize("when", ["begin", "finish"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SlideError("b.svs: cut short", "Copy it again."), "b.svs: cut short"),
        (OSError(28, "No space left on device"), "disk full while writing"),
        (MemoryError(), "out of memory"),
        (ZeroDivisionError("by nothing"), "unexpected ZeroDivisionError: by nothing"),
    ],
)
def test_a_bad_slide_has_a_reason_and_the_others_are_done(work, jobs, when, error, said):
    work.fail("b", when, error)
    failed = []
    outcomes = work.run(jobs, failed=failed.append)
    assert outcomes.states == {"a": "done", "b": "failed", "c": "done", "d": "done"}
    assert said in outcomes["b"].error.message
    assert failed == [outcomes["b"].error]
    assert (work.status("b").state, work.status("b").reason) == ("failed", outcomes["b"].error.message)
    assert not (work.out / "b.h5ad").exists()
    work.expect_tidy()
    work.at.clear()
    assert work.run(jobs).states["b"] == "done"
    assert (work.status("b").attempts, work.status("b").reason) == (2, "")


def test_a_slide_that_is_not_there_and_options_that_cannot_be_right_are_its_own_trouble(work, jobs, tmp_path):
    bad = [Job(str(tmp_path / "gone.svs"), "gone"), Job(str(tmp_path / "a.svs"), "refused")]
    outcomes = work.run([*bad, *jobs])
    assert outcomes.states == {"gone": "failed", "refused": "failed", **dict.fromkeys("abcd", "done")}
    assert outcomes["refused"].error.message == "--mpp and --mpp"


def test_with_debug_a_defect_comes_out_as_it_is_and_nothing_stays_claimed(work, jobs):
    work.fail("b", "finish", ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        work.run(jobs, debug=True)
    work.expect_tidy()


def test_a_slide_without_spots_is_empty(work, jobs):
    jobs[2].path.write_text("")
    assert work.run(jobs).states["c"] == "empty"
    assert work.run(jobs).states["c"] == "skipped"
    assert work.status("c").state == "empty"


def test_two_slides_never_go_into_one_file(work, jobs, tmp_path):
    jobs[3] = Job(jobs[3].slide, "d", tmp_path / "out" / "a.h5ad")
    with pytest.raises(UsageError, match=r"a.svs and .*d.svs would both be written to"):
        work.run(jobs)
    assert work.did == []


def test_a_dry_run_says_what_would_be_and_writes_nothing(work, jobs, listener):
    work.run(jobs[:2])
    (work.out / "b.status.json").unlink()
    before = {p: p.stat().st_mtime_ns for p in work.out.rglob("*")}
    outcomes = work.run(jobs, listener, dry_run=True)
    assert outcomes.states == {"a": "skipped", "b": "skipped", "c": "planned", "d": "planned"}
    assert [text for text in listener.messages if "would write" in text] == [
        f"would write {work.out / name}.h5ad" for name in "cd"
    ]
    assert {p: p.stat().st_mtime_ns for p in work.out.rglob("*")} == before
    assert {facts["name"]: facts["state"] for name, facts in listener.events if name == "slide_ended"} == {
        "a": "done", "b": "done", "c": "planned", "d": "planned"
    }  # fmt: skip


STOPS = [("begin", Stopped("stop")), ("finish", Stopped("stop")), ("finish", KeyboardInterrupt())]


@pytest.mark.parametrize(("when", "error"), STOPS)
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_stop_at_any_moment_keeps_what_is_done_and_says_what_was_stopped(work, jobs, error, name, when):
    work.fail(name, when, error)
    with pytest.raises(type(error)):
        work.run(jobs)
    work.expect_tidy()
    found = {n: work.status(n) and work.status(n).state for n in "abcd"}
    done = "a" if name == "b" else ""
    assert [n for n in "abcd" if found[n] == "done"] == list(done)
    assert found[name] == "stopped"
    assert set(found.values()) <= {"done", "stopped", None}
    stopping._asked.clear()
    work.at.clear()
    assert work.run(jobs).states == {n: "skipped" if n in done else "done" for n in "abcd"}


def test_a_stop_reaches_the_thread_that_begins_slides(work, jobs):
    def wait(_job):
        end = time.monotonic() + 30
        while time.monotonic() < end:
            stopping.check()
            time.sleep(0.01)

    work.at["b", "begin"] = wait
    work.fail("a", "finish", KeyboardInterrupt())
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work.run(jobs)
    assert time.monotonic() - began < 20
    work.expect_tidy()


def test_a_slide_that_was_found_done_stays_done_where_the_run_is_stopped(work, jobs):
    work.run(jobs)
    jobs[0].path.write_text("another text")
    os.utime(jobs[1].path, ns=(1, 1))
    release = threading.Event()
    work.at["a", "finish"] = lambda _: (release.wait(0.3), stopping.ask(), stopping.check())
    with pytest.raises(Stopped):
        work.run(jobs)
    assert {n: work.status(n).state for n in "abcd"} == {"a": "stopped", "b": "done", "c": "done", "d": "done"}


def test_a_disk_that_is_full_hides_neither_a_stop_nor_the_reason_of_a_failure(work, jobs, monkeypatch, listener):
    write = module.write_status

    def full(path, status):
        if status.state != "running":
            raise OutputError(f"disk full while writing {path}")
        write(path, status)

    monkeypatch.setattr(module, "write_status", full)
    work.fail("a", "finish", SlideError("a.svs: cut short"))
    work.fail("b", "finish", Stopped("stop"))
    with pytest.raises(Stopped):
        work.run(jobs, listener)
    assert [(f["name"], f["state"], f["reason"]) for n, f in listener.events if n == "slide_ended"] == [
        ("a", "failed", "a.svs: cut short")
    ]
    work.expect_tidy()


def test_where_not_even_a_beginning_can_be_noted_the_claim_is_let_go_at_once(work, jobs, monkeypatch):
    def full(path, status):
        raise OutputError("disk full")

    monkeypatch.setattr(module, "write_status", full)
    outcomes = work.run(jobs)
    assert outcomes.states == dict.fromkeys("abcd", "failed")
    assert work.did == []
    work.expect_tidy()
