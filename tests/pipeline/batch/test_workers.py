"""Several workers on the same slides: each is done by one, whoever waits, dies, sleeps or is stopped."""

import json
import os
import threading
import time

import pytest

from genrag_cli.errors import SlideError, Stopped
from genrag_cli.pipeline.batch import run as module
from genrag_cli.pipeline.batch.inputs import Job
from genrag_cli.stores.claims import Claims, claim_path


def test_what_another_worker_has_is_left_to_it_where_nobody_wants_to_wait(work, jobs):
    claim = Claims(60).take(work.target(jobs[1]))
    outcomes = work.run(jobs, wait=False)
    assert outcomes.states == {"a": "done", "b": "held", "c": "done", "d": "done"}
    assert outcomes["b"].held_by == f"process {os.getpid()} on {os.uname().nodename}"
    assert outcomes["b"].error is None
    claim.expect_held()
    claim.release()


def test_what_another_worker_has_is_waited_for_and_taken_as_done(work, jobs, monkeypatch, listener):
    monkeypatch.setattr(module, "POLL_S", 0.02)
    other, claim = work.another(), Claims(60).take(work.target(jobs[1]))

    def elsewhere():
        time.sleep(0.3)
        claim.release()
        other.run(jobs[1:2])

    worker = threading.Thread(target=elsewhere)
    worker.start()
    outcomes = work.run(jobs, listener)
    worker.join()
    assert "waiting for 1 slides that other workers hold: b" in listener.messages
    assert (work.did + other.did).count(("finish", "b")) == 1
    assert outcomes.states["b"] in ("skipped", "done")
    work.expect_tidy()


def test_a_dead_workers_slide_is_taken_over_while_a_living_ones_is_waited_for(work, jobs, monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 0.02)
    claim = Claims(1.0).take(work.target(jobs[0]))
    claim_path(work.target(jobs[3])).write_text(json.dumps({"nonce": "x", "count": 1, "host": "far"}))
    work.at["d", "finish"] = lambda _: claim.release()  # or it would be waited for without end
    outcomes = work.run(jobs, lease_s=1.0)
    assert outcomes.states == dict.fromkeys("abcd", "done")
    assert [name for did, name in work.did if did == "finish"] == ["b", "c", "d", "a"]
    work.expect_tidy()


def lose(work, job, state):
    """As if this worker had slept for a lease, and another had done the slide meanwhile."""
    claim_path(work.target(job)).unlink()
    Claims(60).take(work.target(job)).release()
    other = work.another()
    if state is not None:
        outcomes = other.run([job])
        assert outcomes.states == {job.name: state}


def test_a_worker_that_lost_a_slide_while_finishing_it_finds_it_done(work, jobs, listener):
    work.at["b", "finish"] = lambda job: lose(work, job, "done")
    outcomes = work.run(jobs, listener)
    assert outcomes.states == {"a": "done", "b": "skipped", "c": "done", "d": "done"}
    assert any("another worker has taken this over" in text for text in listener.messages)
    assert work.status("b").state == "done"
    work.expect_tidy()


def test_a_worker_that_lost_a_slide_and_failed_leaves_the_others_status_alone(work, jobs):
    def lost_and_failing(job):
        lose(work, job, "done")
        raise SlideError("b.svs: the server went away")

    work.at["b", "finish"] = lost_and_failing
    outcomes = work.run(jobs)
    assert outcomes.states["b"] == "skipped"
    assert outcomes["b"].error is None
    assert (work.status("b").state, work.status("b").attempts) == ("done", 2)


def test_a_worker_that_lost_a_slide_and_is_stopped_leaves_the_others_status_alone(work, jobs):
    def lost_and_stopped(job):
        lose(work, job, "done")
        raise Stopped("stop")

    work.at["b", "finish"] = lost_and_stopped
    with pytest.raises(Stopped):
        work.run(jobs)
    assert work.status("b").state == "done"


def test_of_many_workers_each_slide_is_done_by_one(work, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 0.02)
    jobs = []
    for number in range(24):
        (tmp_path / f"s{number}.svs").write_text("x" * (number + 1))
        jobs.append(Job(str(tmp_path / f"s{number}.svs"), f"s{number}"))
    works, found = [work.another() for _ in range(4)], []
    threads = [threading.Thread(target=lambda w=w: found.append(w.run(jobs))) for w in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    finished = sorted(name for w in works for did, name in w.did if did == "finish")
    assert finished == sorted(job.name for job in jobs)
    assert [set(each.states.values()) <= {"done", "skipped"} and len(each) == 24 for each in found] == [True] * 4
    work.expect_tidy()
