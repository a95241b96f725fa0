"""What SLURM makes of the file that `generag slurm` writes, with a stand-in for generag that only counts its starts."""

import os
from pathlib import Path

import pytest

STAND_IN = """\
#!/bin/bash
# Says what it is told in FOLDER/TASK.said; FOLDER/plan is what it does.
task=$SLURM_ARRAY_TASK_ID
trap 'echo USR1 >> "$FOLDER/$task.said"; exit 75' USR1
trap 'echo TERM >> "$FOLDER/$task.said"; exit 75' TERM
echo "$PWD|$*|${SLURM_CPUS_PER_TASK}" >> "$FOLDER/$task.said"
source "$FOLDER/plan"
"""


@pytest.fixture
def job(cluster, generag, tmp_path, monkeypatch):
    """`job(plan) -> (array, said)`: submits three tasks; `said(i)` are the lines of the i-th."""
    folder = tmp_path / "it's 100 % here"
    (folder / "bin").mkdir(parents=True)
    (folder / "slides").mkdir()
    (folder / "bin" / "generag").write_text(STAND_IN)
    (folder / "bin" / "generag").chmod(0o755)
    monkeypatch.chdir(folder)
    arrays = []

    def submit(plan):
        Path("plan").write_text(plan)
        written = generag(
            "slurm", "--tasks", "3", "--mem", "1", "--cpus", "1", "--log-dir", "logs 5%", "--out-file", "array.sbatch",
            "--", "retrieve", "slides/*.tif", "--out", "pre dictions",
        )  # fmt: skip
        assert written.code == 0, written.err
        environ = {"PATH": f"{folder / 'bin'}:{cluster.environ['PATH']}", "FOLDER": str(folder)}
        arrays.append(cluster.submit(Path("array.sbatch"), **environ))
        return arrays[-1], lambda i: Path(f"{i}.said").read_text().splitlines()

    yield submit
    cluster.call("scancel", *arrays)
    cluster.wait_until(lambda: not cluster.call("squeue", "-h"), 30)


def test_the_command_line_arrives_as_it_was_written_and_the_exit_code_is_the_tasks(job, cluster):
    array, said = job('exit "$task"')
    states = cluster.wait_for(array, 30)
    assert states == {"0": "COMPLETED", "1": "FAILED", "2": "FAILED"}
    assert cluster.describe(f"{array}_2")["ExitCode"] == "2:0"
    here = os.getcwd()  # noqa: PTH109 - as the shell says it
    assert [said(i) for i in range(3)] == [[f"{here}|retrieve slides/*.tif --out pre dictions|1"]] * 3
    assert len(list(Path("logs 5%").iterdir())) == 3


def test_a_task_that_stopped_queues_again_alone(job, cluster):
    array, said = job('[ "$task" = 2 ] && [ -z "${SLURM_RESTART_COUNT:-}" ] && exit 75; exit 0')
    cluster.start_now(f"{array}_2")
    cluster.expect_done(array, 30)
    assert [len(said(i)) for i in range(3)] == [1, 1, 2]
    assert cluster.describe(f"{array}_2")["Restarts"] == "1"


def test_the_signal_before_the_limit_reaches_the_command_and_the_task_queues_again(job, cluster):
    array, said = job('[ -n "${SLURM_RESTART_COUNT:-}" ] && exit 0; sleep 60 & wait')
    cluster.wait_until(lambda: Path("0.said").exists() and Path("1.said").exists(), 20)
    cluster.call("scancel", "--signal=USR1", "--batch", f"{array}_0", f"{array}_1")
    for task in (f"{array}_0", f"{array}_1"):
        cluster.start_now(task)
    cluster.wait_until(lambda: len(said(0)) == len(said(1)) == 3, 20)
    assert said(0)[1] == said(1)[1] == "USR1"


def test_a_cancelled_task_stops_in_order_and_does_not_come_back(job, cluster):
    array, said = job("sleep 60 & wait")
    cluster.wait_until(lambda: Path("0.said").exists() and Path("1.said").exists(), 20)
    cluster.call("scancel", array)
    assert set(cluster.wait_for(array, 30, ("CANCELLED",)).values()) == {"CANCELLED"}
    cluster.wait_until(lambda: not cluster.processes("generag"), 10)
    assert "TERM" in said(0)
    assert cluster.call("squeue", "-h") == ""
