"""Workers that share a folder, are killed, are told to stop, and clocks that are wrong."""

import json
import os
import random
import signal
import threading
import time

import kill
import pytest

YEARS = 10 * 365 * 86_400.0
KILLS, STOPS, SEED = (int(os.environ.get(f"GENERAG_{k}", n)) for k, n in {"KILLS": 6, "STOPS": 2, "SEED": 0}.items())
"""`tests/benchmarks/faults.py` asks for more."""


def test_two_workers_on_one_folder_do_each_slide_once(night):
    workers = [night.shell("--lease", "20") for _ in range(2)]
    ended = [(worker.communicate(timeout=120)[1], worker.returncode) for worker in workers]
    assert [code for _, code in ended] == [0, 0], ended
    assert not any("Traceback" in said for said, _ in ended)
    assert [night.status(name)["attempts"] for name in "abc"] == [1, 1, 1]
    night.expect_mended()


def test_a_worker_killed_with_a_claim_in_hand_is_followed_by_another(night, inject):
    inject(at="tiles", how="hang")
    claim = night.out / ".b.stain.h5ad.claim"
    worker = night.shell(start_new_session=True)
    wait_until(lambda: claim.exists() and (night.out / "a.stain.h5ad").exists(), worker)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.communicate()
    assert claim.exists()
    content = json.loads(claim.read_text())
    claim.write_text(json.dumps({**content, "boot": "of another machine"}))  # so that its process tells nothing
    inject()
    night.expect_mended("--lease", "2")


@pytest.mark.parametrize("skew", [-YEARS, YEARS])
def test_a_dead_claim_expires_whatever_its_clock_says(night, skew):
    leave_claim(night, skew)
    night.expect(night.run("--lease", "1"), {})
    night.expect_mended()


def test_a_claim_beside_a_finished_result_goes_with_the_next_run(night):
    assert night.run().code == 0
    leave_claim(night, 0)
    night.expect_mended("--lease", "1")


@pytest.mark.parametrize("skew", [-YEARS, YEARS])
def test_a_claim_that_lives_is_respected_whatever_its_clock_says(night, skew):
    claim, ended = leave_claim(night, skew), threading.Event()

    def renew():
        count = 0
        while not ended.wait(0.1):
            count += 1
            leave_claim(night, skew, count)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        ran = night.run("--lease", "1", "--no-wait")
    finally:
        ended.set()
        thread.join()
    assert ran.code == 0, ran.err
    assert not (night.out / "b.stain.h5ad").exists()
    assert "being worked on by process 1 on elsewhere" in ran.err
    claim.unlink()
    night.expect_mended()


def leave_claim(night, skew, count=0):
    """A claim of a worker elsewhere, written as workers write, with the time of a wrong clock."""
    night.out.mkdir(exist_ok=True)
    claim = night.out / ".b.stain.h5ad.claim"
    content = {"nonce": "of-another", "count": count, "pid": 1, "host": "elsewhere", "boot": "another"}
    with claim.open("r+b" if claim.exists() else "wb") as file:  # never empty in between
        file.write(json.dumps(content).encode())
    os.utime(claim, (time.time() + skew,) * 2)
    return claim


def wait_until(holds, process):
    """Waits until something holds; a process that ends before that has failed."""
    while not holds():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def batch(made, tmp_path_factory):
    """`kill.py`'s batch on the slides of this suite, and what it gives undisturbed."""
    folder = tmp_path_factory.mktemp("kills")
    slides = kill.write_batch(made / "cohort", folder / "batch")
    query = ("--bank", made / "bank.zarr", "--backbone", "stain", "--workers", "1", "--alpha", "0.003", "-q")
    words = [str(word) for word in ("retrieve", slides, *query, "--no-overlay", "--pitch-um", "80", "--out")]
    scenario = kill.Scenario("batch", lambda out: [*words, str(out)], lambda _: None, code=3)
    return scenario, kill.run_undisturbed(scenario, folder), folder


@pytest.mark.parametrize(
    ("n", "signals"),
    [(KILLS, (signal.SIGKILL,)), (STOPS, (signal.SIGTERM, signal.SIGUSR1))],
    ids=["killed", "stopped"],
)
def test_a_batch_ended_at_random_moments_goes_on_from_there(batch, n, signals, record_property):
    scenario, undisturbed, folder = batch
    rng, done, trials = random.Random(f"{SEED} {signals}"), 0, 0
    while done < n:
        ended, wrong = kill.run_trial(scenario, folder, undisturbed, rng, min(6, n - done), signals)
        assert wrong == []
        done, trials = done + ended, trials + 1
        assert trials < 3 * n
    record_property("ended", f"{done} times in {trials} trials")
