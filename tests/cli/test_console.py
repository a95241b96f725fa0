"""What a person sees: bars with rate and time left on a terminal, plain lines elsewhere, one message for an error."""

import contextlib
import os
import pty
import sys
import threading

import pytest

from genrag_cli.cli import console
from genrag_cli.cli.console import ConsoleListener, guarded, print_json, print_table
from genrag_cli.errors import GeneragError, UsageError
from genrag_cli.types import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_come_now_and_then_with_rate_and_time_left(capsys, clock):
    listener = ConsoleListener()
    for done in range(0, 101, 10):
        clock[0] = 100.0 + done / 4
        listener.progress(Progress("embed S", done, 100))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["embed S: 40/100, 4.0/s, 15 s left", "embed S: 80/100, 4.0/s, 5 s left"]


def test_quiet_leaves_warnings_only(capsys, clock):
    listener = ConsoleListener(quiet=True)
    listener.say("this and that")
    listener.progress(Progress("embed S", 0, 10))
    clock[0] += 100
    listener.progress(Progress("embed S", 5, 10))
    listener.warn("mind the gap")
    assert capsys.readouterr().err == "warning: mind the gap\n"


def test_a_terminal_gets_bars(monkeypatch):
    master, end = pty.openpty()
    with os.fdopen(end, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("COLUMNS", "160")
        listener = ConsoleListener()
        for done in (0, 32, 64):
            listener.progress(Progress("embed S", done, 64))
        listener.say("a word between")
        listener.close()
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side is gone
        while chunk := os.read(master, 4096):
            shown += chunk
    os.close(master)
    for text in ("embed S", "━", "64/64", "/s", "0:00:00", "a word between"):
        assert text in shown.decode(), text


def failing(error):
    @guarded
    def command(debug: bool = False):
        raise error

    return command


def run(command, **options):
    with pytest.raises(BaseException) as raised:
        command(**options)
    return raised.value


@pytest.mark.parametrize("error", [GeneragError("went wrong", "Do this.\nOr that."), UsageError("went wrong", "")])
def test_an_expected_error_is_one_message(capsys, error):
    assert run(failing(error)).exit_code == error.exit_code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == ["error: went wrong", *(f"       {line}" for line in error.hint.splitlines())]
    assert run(failing(error), debug=True) is error


def test_what_the_operating_system_refuses_is_one_message(capsys):
    assert run(failing(PermissionError(13, "Permission denied", "/etc/shadow"))).exit_code == 1
    assert capsys.readouterr().err.splitlines()[0] == "error: /etc/shadow: Permission denied"
    assert run(failing(OSError(28, "No space left on device"))).exit_code == 1
    assert capsys.readouterr().err.splitlines()[0] == "error: disk full"


def test_a_bug_is_not_dressed_up():
    assert isinstance(run(failing(ZeroDivisionError("a bug"))), ZeroDivisionError)


def test_json_has_no_nan():
    with pytest.raises(ValueError, match="JSON"):
        print_json({"value": float("nan")})


def test_a_table_is_aligned_where_there_is_no_terminal(capsys):
    print_table("Scores", ("method", "PCC"), [("retrieval", "0.5"), ("y", "10.25")])
    assert capsys.readouterr().out == "Scores\nmethod       PCC\nretrieval    0.5\ny          10.25\n"


def test_bars_may_be_moved_by_the_thread_that_begins_slides_while_another_ends_them(monkeypatch):
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    listener, wrong = ConsoleListener(), []

    def work(name):
        try:
            for done in range(60):
                listener.progress(Progress(name, done, 60))
                listener.warn(name)
                if done % 7 == 0:
                    listener.close()
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(f"stage {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listener.close()
    assert wrong == []
