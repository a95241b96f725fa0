"""The array that `generag slurm` writes, on a real SLURM of two nodes: losses in the middle, and the time limit."""

import json
import os
import signal
from pathlib import Path

import pytest

from genrag_cli.stopping import MESSAGE


@pytest.fixture
def submit(cluster, cohort, generag, path_to_generag, monkeypatch):
    """`submit(*options, out=..., done=n) -> array` of the cohort's command line; returns in a slide after n others."""
    monkeypatch.chdir(cohort.folder)

    def run(*options, out, done):
        given = ("--cpus", "1", "--mem", "2", "--log-dir", out, "--out-file", f"{out}.sbatch", *options)
        written = generag("slurm", *given, "--", "retrieve", "slides", *cohort.options, "--out", out)
        assert written.code == 0, written.err
        array = cluster.submit(Path(f"{out}.sbatch"), PATH=path_to_generag)

        def is_begun():
            assert "FAILED" not in cluster.states(array).values(), said(out)
            return n_done(out) >= done and "running" in states(out).values()

        cluster.wait_until(is_begun, 240, lambda: said(out))
        assert n_done(out) < 6
        return array

    return run


def states(out):
    """State by slide, as far as a worker has begun with it."""
    return {p.name: json.loads(p.read_text())["state"] for p in Path(out).glob("*.status.json")}


def n_done(out):
    return list(states(out).values()).count("done")


def said(out):
    return "".join(p.read_text() for p in Path(out).glob("*.log"))


def test_a_lost_node_and_a_killed_process_change_nothing_in_the_six_outputs(cluster, cohort, submit, read_content):
    array = submit("--tasks", "2", out="shared", done=1)
    lost = next(t for t in (f"{array}_0", f"{array}_1") if cluster.describe(t)["BatchHost"] == "n1")
    other = f"{array}_{1 - int(lost[-1])}"
    cluster.call("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=test")
    for process in cluster.processes("generag retrieve", f"SLURM_ARRAY_TASK_ID={other[-1]}"):
        os.kill(process, signal.SIGKILL)
    cluster.wait_until(lambda: cluster.describe(other)["JobState"] == "FAILED", 30)
    assert cluster.describe(other)["ExitCode"] == "137:0"
    cluster.call("scontrol", "update", "NodeName=n1", "State=RESUME")
    cluster.call("scontrol", "requeue", other)
    for task in (lost, other):
        cluster.start_now(task)
    cluster.expect_done(array, 240)
    assert set(states("shared").values()) == {"done"}
    assert read_content(Path("shared")) == cohort.expected


def test_a_time_limit_stops_with_75_and_the_rerun_finishes(cluster, cohort, submit, read_content):
    # SLURM looks at limits every half minute; the next look should come when about half of the slides are done.
    ahead = min(cluster.tick_s - 3, cohort.seconds / 2)
    cluster.wait_until(lambda: ahead < cluster.seconds_to_tick() < ahead + 2, 40)
    array = submit("--tasks", "1", "--signal-s", "170", out="limited", done=0)
    task = f"{array}_0"
    # The limit is one to two minutes away now, so that the signal is due when SLURM looks next.
    minutes = int(cluster.describe(task)["RunTime"].split(":")[1]) + 2
    cluster.call("scontrol", "update", f"JobId={task}", f"TimeLimit={minutes}")
    cluster.start_now(task, "TimeLimit=60")
    assert MESSAGE in said("limited")
    assert "stopped with exit code 75, queued again" in said("limited")
    assert n_done("limited") < 6
    cluster.expect_done(array, 240)
    assert cluster.describe(task)["Restarts"] == "1"
    assert read_content(Path("limited")) == cohort.expected
