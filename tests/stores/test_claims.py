"""Which of several workers has an output: one at a time, whatever dies, sleeps or races."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import genrag_cli.stores.claims as module
from genrag_cli.errors import OutputError
from genrag_cli.stores.claims import RENEWALS, Claim, ClaimLostError, Claims, claim_path, read_claim

SHORT = 0.4
"""Seconds of a lease in tests."""
LONG = 60.0


@pytest.fixture
def target(tmp_path):
    return tmp_path / "slide.stain.h5ad"


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch):
    """Ends what a test left holding."""
    made, begin = [], Claim.__post_init__

    def noted(self):
        made.append(self)
        begin(self)

    monkeypatch.setattr(Claim, "__post_init__", noted)
    yield
    for claim in made:
        claim._ended.set()
        claim._thread.join()


@pytest.fixture
def silent(monkeypatch):
    """Claims that nobody renews, as of a machine that has gone."""
    monkeypatch.setattr(Claim, "_renew", lambda self: None)


@pytest.fixture
def elsewhere(monkeypatch):
    """Claims whose process cannot be looked for, as of another machine."""
    monkeypatch.setattr(module, "_boot", lambda: "")


def wait_until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def put(target, **content):
    claim_path(target).write_text(json.dumps({"nonce": "theirs", "count": 3, "pid": 1, "host": "far", **content}))


def test_one_worker_has_an_output_and_others_do_not(target):
    claim = Claims(LONG).take(target)
    assert Claims(LONG).take(target) is None
    claim.expect_held()
    assert read_claim(claim_path(target))["pid"] == os.getpid()
    assert Claims(LONG).holder(target) == f"process {os.getpid()} on {os.uname().nodename}"
    claim.release()
    with Claims(LONG).take(target) as other:
        other.expect_held()
    assert list(target.parent.iterdir()) == []


def test_a_folder_that_is_not_there_is_made(tmp_path):
    with Claims(LONG).take(tmp_path / "new" / "deep" / "x.h5ad"):
        assert [p.name for p in (tmp_path / "new" / "deep").iterdir()] == [".x.h5ad.claim"]


def test_a_place_where_nothing_can_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file stands where a folder is needed"):
        Claims(LONG).take(tmp_path / "file" / "x.h5ad")


def test_a_full_disk_leaves_no_claim_that_others_would_wait_for(target, monkeypatch):
    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OutputError, match="disk full"):
        Claims(LONG).take(target)
    assert list(target.parent.iterdir()) == []


def test_a_claim_counts_while_its_owner_works(target):
    with Claims(SHORT).take(target) as claim:
        counts = set()
        wait_until(lambda: len(counts) > 3 or counts.add(read_claim(claim_path(target)).get("count")))
        claim.expect_held()
    assert RENEWALS >= 2


def test_a_renewed_claim_is_never_taken_however_long_one_waits(target, elsewhere):
    watcher, taken = Claims(2.0), []
    with Claims(SHORT).take(target) as claim:
        end = time.monotonic() + 2.6
        while time.monotonic() < end:
            taken.append(watcher.take(target))
            time.sleep(0.02)
        claim.expect_held()
    assert set(taken) == {None}


def test_a_claim_that_stands_still_for_a_whole_lease_expires(target, silent, elsewhere):
    old = Claims(SHORT).take(target)
    watcher = Claims(SHORT)
    began = time.monotonic()
    assert watcher.take(target) is None
    taken = []
    wait_until(lambda: taken or ((claim := watcher.take(target)) and taken.append(claim)))
    assert time.monotonic() - began > SHORT
    taken[0].expect_held()
    with pytest.raises(ClaimLostError, match=r"another worker has taken this over") as raised:
        old.expect_held()
    assert "--lease" in raised.value.hint
    assert old.lost
    old.release()
    taken[0].expect_held()


def test_a_lease_begins_when_the_watcher_comes_not_when_the_file_was_written(target, elsewhere):
    put(target)
    os.utime(claim_path(target), (0, 0))  # by its date, decades old; or this machine's clock is ahead
    assert Claims(LONG).take(target) is None
    os.utime(claim_path(target), (4e9, 4e9))  # from the future
    watcher = Claims(0.05)
    assert watcher.take(target) is None
    time.sleep(0.1)
    assert watcher.take(target) is not None


def test_a_count_that_moved_starts_the_lease_anew(target, elsewhere):
    watcher = Claims(0.2)
    for count in range(6):
        put(target, count=count)
        assert watcher.take(target) is None
        time.sleep(0.1)


def test_a_dead_process_of_this_machine_loses_its_claim_at_once(target):
    code = "import sys, os; from pathlib import Path; from genrag_cli.stores.claims import Claims; "
    code += "Claims(60).take(Path(sys.argv[1])); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert claim_path(target).exists()
    with Claims(LONG).take(target) as claim:
        claim.expect_held()


def test_a_number_of_a_process_means_nothing_on_another_machine(target):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    put(target, pid=dead.pid, boot="another start of another machine")
    assert Claims(LONG).take(target) is None


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"nonce":', "\x00\x00"])
def test_content_that_is_half_written_is_somebodys_until_a_lease_has_passed(target, text):
    claim_path(target).write_text(text)
    watcher = Claims(0.05)
    assert watcher.take(target) is None
    assert watcher.holder(target) == "process ? on another machine"
    time.sleep(0.1)
    with watcher.take(target) as claim:
        claim.expect_held()


def test_a_claim_that_may_not_be_read_lives_while_it_is_touched(target, monkeypatch):
    put(target)
    path, read = claim_path(target), module.Path.read_text

    def refused(self, *args, **kwargs):
        if self.name.startswith(path.name):
            raise PermissionError(13, "Permission denied")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(module.Path, "read_text", refused)
    watcher = Claims(0.2)
    for tick in range(6):
        os.utime(path, (tick, tick))
        assert watcher.take(target) is None
        time.sleep(0.1)
    time.sleep(0.2)
    assert watcher.take(target) is not None


def test_a_claim_that_came_to_life_again_is_put_back(target, elsewhere):
    put(target, count=3)
    watcher = Claims(0.05)
    assert watcher.take(target) is None
    time.sleep(0.1)
    dead = watcher._is_dead

    def alive_again(path):
        verdict = dead(path)
        put(target, count=4)  # between the look and the deed
        return verdict

    watcher._is_dead = alive_again
    assert watcher.take(target) is None
    assert read_claim(claim_path(target))["count"] == 4
    assert [p.name for p in target.parent.iterdir()] == [claim_path(target).name]


def test_a_claim_put_back_does_not_oust_one_that_was_made_meanwhile(target, monkeypatch):
    put(target, count=4)
    link = os.link

    def late(source, path):
        put(target, nonce="third")
        link(source, path)

    monkeypatch.setattr(module.os, "link", late)
    assert not module._remove(claim_path(target), "what it was")
    assert read_claim(claim_path(target))["nonce"] == "third"
    assert [p.name for p in target.parent.iterdir()] == [claim_path(target).name]


def test_the_owner_notices_a_claim_that_is_gone(target):
    claim = Claims(SHORT).take(target)
    claim_path(target).unlink()
    wait_until(lambda: claim.lost)
    with pytest.raises(ClaimLostError):
        claim.expect_held()
    claim.release()
    assert not claim_path(target).exists()


def test_the_owner_notices_a_claim_that_is_anothers_and_leaves_it_alone(target):
    claim = Claims(SHORT).take(target)
    put(target)
    before = claim_path(target).read_text()
    wait_until(lambda: claim.lost)
    claim.release()
    assert claim_path(target).read_text() == before


def test_a_server_that_is_away_for_a_while_loses_no_claim(target, monkeypatch):
    opened, state = module.Path.open, {"away": False, "refused": 0}

    def flaky(self, *args, **kwargs):
        if state["away"] and args == ("r+b",):
            state["refused"] += 1
            raise OSError(116, "Stale file handle")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(module.Path, "open", flaky)
    with Claims(SHORT).take(target) as claim:
        state["away"] = True
        wait_until(lambda: state["refused"] >= 2)
        state["away"] = False
        count = read_claim(claim_path(target))["count"]
        wait_until(lambda: (read_claim(claim_path(target)) or {}).get("count", 0) > count)
        claim.expect_held()


def test_what_a_process_left_that_died_while_taking_over_goes_with_the_next_release(target):
    claim_path(target).with_name(f"{claim_path(target).name}.0123abc").write_text("{}")
    with Claims(LONG).take(target):
        pass
    assert list(target.parent.iterdir()) == []


def test_releasing_ends_the_thread(target):
    before = threading.active_count()
    Claims(LONG).take(target).release()
    assert threading.active_count() == before


def _race(target, starts, verdicts):
    """Takes a claim in every round, holds it until all have tried, and says whether it was held then."""
    claims = Claims(LONG)
    for _ in range(ROUNDS):
        starts.wait()
        claim = claims.take(target)
        starts.wait()
        held = False
        if claim is not None:
            try:
                claim.expect_held()
                held = True
            except ClaimLostError:
                pass
        verdicts.put((claim is not None, held))
        starts.wait()
        if claim is not None:
            claim._ended.set()  # as a process that is killed: the claim stays, its owner is gone
            claim._thread.join()
        starts.wait()


ROUNDS, RACERS = 60, 6


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_of_many_racing_processes_one_takes_a_dead_claim_over(target):
    context = multiprocessing.get_context("fork")
    starts, verdicts = context.Barrier(RACERS + 1), context.Queue()
    racers = [context.Process(target=_race, args=(target, starts, verdicts), daemon=True) for _ in range(RACERS)]
    for racer in racers:
        racer.start()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    won = []
    for _ in range(ROUNDS):
        put(target, pid=gone.pid, boot=module._boot())
        starts.wait(60)
        starts.wait(60)
        won.append([verdicts.get(timeout=60) for _ in range(RACERS)])
        starts.wait(60)
        starts.wait(60)
    for racer in racers:
        racer.join(60)
    assert [sum(held for _, held in round_) for round_ in won] == [1] * ROUNDS
    assert [p.name for p in target.parent.iterdir()] == [claim_path(target).name]


def test_of_many_racing_processes_one_makes_a_claim(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from genrag_cli.stores.claims import Claims\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "got = [Claims(60).take(Path(sys.argv[1]) / f'{i}.h5ad') is not None for i in range(100)]\n"
        "print(*map(int, got), flush=True); sys.stdin.readline()\n"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=-1, stdout=-1, text=True) for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    got = [list(map(int, racer.stdout.readline().split())) for racer in racers]
    for racer in racers:
        racer.communicate()
    assert [sum(each) for each in zip(*got, strict=True)] == [1] * 100


def test_a_suspended_owner_finds_out_when_it_wakes(target):
    code = (
        "import sys; from pathlib import Path; from genrag_cli.stores.claims import Claims, ClaimLostError\n"
        f"claim = Claims({SHORT}).take(Path(sys.argv[1])); print('has it', flush=True); sys.stdin.readline()\n"
        "try:\n    claim.expect_held()\nexcept ClaimLostError as error:\n    print('lost', flush=True)\nclaim.release()"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(target)], stdin=-1, stdout=-1, text=True)
    assert owner.stdout.readline() == "has it\n"
    owner.send_signal(signal.SIGSTOP)
    watcher, taken = Claims(SHORT), []
    wait_until(lambda: taken or ((claim := watcher.take(target)) and taken.append(claim)))
    owner.send_signal(signal.SIGCONT)
    said, _ = owner.communicate("\n", timeout=60)
    assert said == "lost\n"
    taken[0].expect_held()
    taken[0].release()
    assert list(target.parent.iterdir()) == []
