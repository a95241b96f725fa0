"""The process that decodes ends with whoever asks it, and hears no signal that is meant for them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MISBEHAVE = """
import os, time

def pid(slide): return os.getpid()
def sleep(slide, seconds): time.sleep(seconds); return "slept"
"""


@pytest.fixture(autouse=True)
def misbehave(tmp_path, monkeypatch):
    """Functions that both ends can import."""
    (tmp_path / "misbehave.py").write_text(MISBEHAVE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from genrag_cli.slides import RemoteSlide
from genrag_cli.slides.decoder import Decoder
import misbehave
path = Path(sys.argv[1])
"""


def start(path, *lines, **more):
    code = SCRIPT + "\n".join(lines)
    return subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=-1, stdout=-1, text=True, **more)


@pytest.mark.parametrize("hanging", [False, True])
def test_the_death_of_whoever_asks_ends_the_process(tiff_path, hanging):
    hang = "slide._process.send('call', misbehave.sleep, (600,), {})" if hanging else ""
    parent = start(
        tiff_path, "slide = RemoteSlide(path)", "print(slide.call(misbehave.pid), flush=True)", hang, "input()"
    )
    number = int(parent.stdout.readline())
    assert is_there(number)
    parent.kill()
    parent.communicate()
    wait_until(lambda: not is_there(number))


def test_no_process_is_left_at_exit(tiff_path):
    parent = start(
        tiff_path, "with RemoteSlide(path) as one, RemoteSlide(path) as two:",
        "    print(one.call(misbehave.pid), two.call(misbehave.pid))", "open_still = RemoteSlide(path)",
        "print(open_still.call(misbehave.pid))",
    )  # fmt: skip
    said, _ = parent.communicate(timeout=60)
    numbers = {int(word) for word in said.split()}
    assert len(numbers) == 2
    wait_until(lambda: not any(map(is_there, numbers)))


def test_a_signal_to_the_whole_group_does_not_reach_the_process_not_even_as_it_starts(tiff_path):
    parent = start(
        tiff_path, "for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1): signal.signal(name, lambda *_: None)",
        "Decoder().give_back()",
        "for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1): os.killpg(0, name)",
        "with RemoteSlide(path) as slide: number = slide.call(misbehave.pid)",
        "for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1): os.killpg(0, name)",
        "with RemoteSlide(path) as slide: print(slide.call(misbehave.pid) == number)",
        start_new_session=True,
    )  # fmt: skip
    assert parent.communicate(timeout=60)[0] == "True\n"


def test_time_for_which_a_scheduler_suspends_a_job_is_no_silence(tiff_path):
    parent = start(
        tiff_path, "slide = RemoteSlide(path)", "os.environ['GENERAG_READ_TIMEOUT'] = '1.5'",
        "print('open', flush=True)",
        "print(slide.call(misbehave.sleep, 0.7), flush=True)", start_new_session=True,
    )  # fmt: skip
    assert parent.stdout.readline() == "open\n"
    time.sleep(0.1)
    os.killpg(parent.pid, signal.SIGSTOP)
    time.sleep(2)
    os.killpg(parent.pid, signal.SIGCONT)
    assert parent.communicate(timeout=60)[0] == "slept\n"
