"""`generag slurm`: the file that it writes, as SLURM and bash read it. A real SLURM gets it in tests/cluster."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest

LINE = ("retrieve", "my slides/*.svs", "--out", "it's out", "--bank", "b.zarr")


@pytest.fixture
def write(generag, tmp_path, monkeypatch):
    """`write(*options, line=...)` in a folder with nine slides; returns what the command did."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my slides").mkdir()
    for i in range(9):
        (tmp_path / "my slides" / f"s{i}.svs").touch()
    return lambda *options, line=LINE: generag("slurm", *options, "--", *line)


@pytest.fixture
def start(write, tmp_path):
    """`start(stand_in, **environ)`: runs the file in bash with a stand-in for generag; scontrol is recorded."""
    (tmp_path / "bin").mkdir()

    def run(stand_in, **environ):
        for name, text in (("generag", stand_in), ("scontrol", 'echo "$@" > "$FOLDER/scontrol.said"')):
            if text is not None:
                (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
                (tmp_path / "bin" / name).chmod(0o755)
        (tmp_path / "a.sbatch").write_text(write().out)
        given = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "FOLDER": str(tmp_path)}
        given |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "7"}
        with (tmp_path / "err").open("w") as err:
            return subprocess.Popen(
                ["bash", "a.sbatch"], cwd=tmp_path, env=given | environ, stderr=err, start_new_session=True
            )

    return run


@pytest.fixture
def wait(tmp_path):
    """`wait(process)` until its stand-in has made the file `ready`."""

    def until_ready(process):
        while process.poll() is None and not (tmp_path / "ready").exists():
            time.sleep(0.01)

    return until_ready


def directives(text):
    head = text[: text.index("\nset -u")]
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", head, re.MULTILINE))


def test_it_asks_for_an_array_that_stops_in_time_and_queues_again(write, tmp_path):
    done = write()
    assert (done.code, done.err) == (0, "")
    assert directives(done.out) == {
        "job-name": "generag-retrieve", "array": "0-7", "ntasks": "1", "cpus-per-task": "4", "mem": "16G",
        "time": "04:00:00", "signal": "B:USR1@120", "requeue": "", "open-mode": "append",
        "chdir": f'"{tmp_path}"', "output": '"./%x-%A_%a.log"',
    }  # fmt: skip


def test_what_is_asked_for_is_in_the_file(write):
    text = write(
        "--tasks", "3", "--time", "1-02:00:00", "--cpus", "2", "--mem", "40", "--gpus", "1", "--partition", "gpu,long",
        "--account", "lab-7", "--signal-s", "300", "--log-dir", "logs 5%",
    ).out  # fmt: skip
    asked = directives(text)
    assert (asked["array"], asked["time"], asked["cpus-per-task"], asked["mem"]) == ("0-2", "1-02:00:00", "2", "40G")
    assert (asked["gres"], asked["partition"], asked["account"]) == ("gpu:1", "gpu,long", "lab-7")
    assert (asked["signal"], asked["output"]) == ("B:USR1@300", '"logs 5%%/%x-%A_%a.log"')
    assert "One task is one process on one GPU" in text


def test_the_command_line_is_quoted_and_otherwise_as_it_was(write):
    assert """\ngenerag retrieve 'my slides/*.svs' --out 'it'"'"'s out' --bank b.zarr &\n""" in write().out


def test_there_are_no_more_tasks_than_slides_unless_they_are_asked_for(write, tmp_path):
    for i in range(4, 9):
        (tmp_path / "my slides" / f"s{i}.svs").unlink()
    assert directives(write().out)["array"] == "0-3"
    assert directives(write("--tasks", "20").out)["array"] == "0-19"


def test_the_file_passes_shellcheck(write, tmp_path):
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck")
    for number, options in enumerate(((), ("--gpus", "1", "--partition", "p", "--account", "a"))):
        write(*options, "--out-file", f"{number}.sbatch")
        done = subprocess.run(["shellcheck", f"{number}.sbatch"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_folder_of_logs_is_made_because_slurm_does_not(write, tmp_path):
    assert "would write" in write("--log-dir", "a/b", "--out-file", "a.sbatch", "--dry-run").err
    assert not (tmp_path / "a").exists()
    assert "a/b: made" in write("--log-dir", "a/b").err
    assert (tmp_path / "a" / "b").is_dir()


def test_a_file_that_says_something_else_is_not_replaced_unasked(write, tmp_path):
    assert "start it with: sbatch a.sbatch" in write("--out-file", "a.sbatch").err
    assert write("--out-file", "a.sbatch").code == 0
    write("--tasks", "2", "--out-file", "a.sbatch").expect_refusal(1, "a.sbatch is there already", "--overwrite")
    assert write("--tasks", "2", "--out-file", "a.sbatch", "--overwrite").code == 0
    assert directives((tmp_path / "a.sbatch").read_text())["array"] == "0-1"


@pytest.mark.parametrize(
    ("options", "line", "said"),
    [
        ((), ("build-bank", "train"), "does not work on slide after slide"),
        ((), ("retrieve", "--features", "f.h5"), "retrieve without slides"),
        ((), (*LINE, "--shard", "0/2"), "--shard within a command line for many jobs"),
        ((), (*LINE, "--dry-run"), "--dry-run within"),
        ((), ("retrieve", "nothing/*.svs"), "no file matches this pattern"),
        ((), ("retrieve", "a\nb.svs"), "cannot stand in a line"),
        (("--time", "4h"), LINE, "--time 4h asked"),
        (("--time", "00:00:00"), LINE, "--time 00:00:00 asked"),
        (("--time", "00:02:00"), LINE, "the signal would come before the job"),
        (("--gpus", "2"), LINE, "one process works on one GPU"),
        (("--partition", "a b"), LINE, "--partition 'a b' is no name"),
        (("--log-dir", 'a"b'), LINE, "holds a character that SLURM's lines cannot"),
    ],
)
def test_what_no_array_can_do_is_refused(write, tmp_path, options, line, said):
    write(*options, line=line).expect_refusal(2, said)
    assert [p.name for p in tmp_path.iterdir()] == ["my slides"]


@pytest.mark.parametrize("line", [("retrieve", "a.svs", "--foo"), ("retrieve", "a.svs", "--gap", "x"), ()])
def test_a_command_line_that_generag_would_not_take_is_not_put_into_a_file(write, line):
    done = write(line=line)
    assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_exit_code_of_the_command_is_that_of_the_task(start, tmp_path, code):
    assert start(f"exit {code}").wait() == code
    assert not (tmp_path / "scontrol.said").exists()


def test_a_stopped_task_is_queued_again_by_its_number_in_the_array(start, tmp_path):
    assert start("exit 75").wait() == 75
    assert (tmp_path / "scontrol.said").read_text() == "requeue 7_3\n"


def test_after_twenty_restarts_it_is_enough(start, tmp_path):
    assert start("exit 75", SLURM_RESTART_COUNT="20").wait() == 75
    assert "after 20 restarts" in (tmp_path / "err").read_text()
    assert not (tmp_path / "scontrol.said").exists()


STOPS = """trap 'sleep 0.5; echo >> "$FOLDER/kept"; exit 75' USR1 TERM
touch "$FOLDER/ready"; while true; do sleep 0.1; done"""


def test_the_signal_before_the_limit_reaches_the_command_which_is_waited_for(start, wait, tmp_path):
    process = start(STOPS)
    wait(process)
    os.kill(process.pid, signal.SIGUSR1)
    assert process.wait() == 75
    assert (tmp_path / "kept").exists()
    assert (tmp_path / "scontrol.said").exists()


def test_a_task_that_is_taken_away_stops_once_and_is_not_queued_again(start, wait, tmp_path):
    process = start(STOPS)
    wait(process)
    os.killpg(process.pid, signal.SIGTERM)  # as SLURM does it
    assert process.wait() == 75
    assert (tmp_path / "kept").read_text() == "\n"
    assert not (tmp_path / "scontrol.said").exists()


def test_a_signal_before_the_command_listens_is_not_the_end(start, wait, tmp_path):
    process = start('touch "$FOLDER/ready"; exec sleep 60')
    wait(process)
    os.kill(process.pid, signal.SIGUSR1)
    assert process.wait() == 138
    assert (tmp_path / "scontrol.said").exists()


def test_a_task_without_generag_says_so(start, tmp_path):
    assert start(None).wait() == 1
    assert "generag is not on the PATH" in (tmp_path / "err").read_text()
