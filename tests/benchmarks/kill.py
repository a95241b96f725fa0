"""Kills generag at random moments, again and again, and compares what is there in the end with an undisturbed run.

    python tests/benchmarks/kill.py --kills 100 --seed 0

Every trial begins in an empty folder (or, in `rebuild`, with a bank whose cohort has changed since), and is killed once
to three times (SIGKILL to the process group), each time at a seeded moment: a quarter of them anywhere in the time that
an undisturbed run takes, a quarter in the time after its first output, half within milliseconds of a file's appearing
or growing, where half-written files would be. After each kill every file under a final name must be whole. Then the
command runs to its end, and the outputs must be those of an undisturbed run, with nothing left beside them.
"""

import argparse
import contextlib
import gzip
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from content import find_halves, find_leftovers, read_content

from genrag_cli import __version__
from genrag_cli.synthetic import write_cohort

Signals = tuple[signal.Signals, ...]
GENERAG = (sys.executable, "-m", "genrag_cli")
HELD = "P3_1"
BATCH = "retrieve a batch"


@dataclass(frozen=True)
class Scenario:
    """One command that is killed: what it is, and what stands in its folder before."""

    name: str
    command: Callable[[Path], list[str]]
    prepare: Callable[[Path], None]
    code: int = 0
    """How it exits at its end."""


@dataclass(frozen=True)
class Undisturbed:
    """What a run gives that nobody disturbs."""

    content: dict[str, str]
    seconds: float
    until_output: float
    n_changes: int
    """How often files were seen to appear, grow or go."""


def make_scenarios(
    cohort: Path, folder: Path, run: Callable[[list[str]], object], pitch_um: float = 50.0
) -> list[Scenario]:
    """Builds a bank of a made-up cohort, and one of an older state of it; returns the commands to kill.

    Args:
        cohort: of three patients with one section each.
        folder: for the banks.
        run: runs a command of generag to its end.
        pitch_um: of the query's spots; the finer, the longer the work.
    """
    bank, older, common = folder / "bank.zarr", folder / "older.zarr", ("--backbone", "stain", "--workers", "1", "-q")
    build = ["build-bank", str(cohort), "--patients", "prefix", "--exclude", HELD, *common]
    counts = cohort / "counts" / "P1_1.tsv.gz"
    present = counts.read_bytes()
    lines = gzip.decompress(present).splitlines(keepends=True)
    counts.write_bytes(gzip.compress(b"".join(lines[:-1]), mtime=0))
    run([*build, "--bank", str(older)])
    counts.write_bytes(present)
    run([*build, "--bank", str(bank)])
    slide = str(cohort / "images" / f"{HELD}.tif")
    batch = write_batch(cohort, folder / "batch")
    query = [slide, "--bank", str(bank), "--pitch-um", str(pitch_um), *common]
    solve = ("--alpha", "0.003")
    return [
        Scenario("build-bank", lambda out: [*build, "--bank", str(out / "b.zarr")], lambda _: None),
        Scenario(
            "rebuild",
            lambda out: [*build, "--bank", str(out / "b.zarr")],
            lambda out: shutil.copytree(older, out / "b.zarr"),
        ),
        Scenario("embed", lambda out: ["embed", *query, "--out", str(out)], lambda _: None),
        Scenario("retrieve", lambda out: ["retrieve", *query, *solve, "--out", str(out)], lambda _: None),
        Scenario(
            "retrieve to zarr", lambda out: ["retrieve", *query, *solve, "--out", str(out / "p.zarr")], lambda _: None
        ),
        Scenario(
            BATCH,
            lambda out: ["retrieve", str(batch), *query[1:], *solve, "--no-overlay", "--out", str(out)],
            lambda _: None,
            code=3,
        ),
    ]


def write_batch(cohort: Path, folder: Path) -> Path:
    """A folder of the slides of a cohort, and one that is cut short."""
    folder.mkdir()
    for slide in sorted((cohort / "images").iterdir()):
        shutil.copy(slide, folder)
    content = slide.read_bytes()
    (folder / "cut.tif").write_bytes(content[: len(content) // 3])
    return folder


def run_undisturbed(scenario: Scenario, folder: Path) -> Undisturbed:
    """Runs a scenario's command to its end and keeps what it made and how long it took."""
    out = folder / "undisturbed"
    out.mkdir(parents=True)
    scenario.prepare(out)
    begun = time.monotonic()
    process = start(scenario.command(out))
    _wait_for_changes(process, out, 1)
    until = time.monotonic() - begun
    n_changes = 1 + _wait_for_changes(process, out, sys.maxsize)
    code, said = _finish(process)
    seconds = time.monotonic() - begun
    assert code == scenario.code, said
    assert not find_leftovers(out)
    return Undisturbed(read_content(out), seconds, until, n_changes)


def start(command: list[str]) -> subprocess.Popen[str]:
    """Starts a command of generag in a process group of its own."""
    return subprocess.Popen(
        [*GENERAG, *command], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def run_to_end(command: list[str], code: int = 0) -> None:
    """Runs a command in a process of its own; AssertionError with what it said where it ends otherwise."""
    ended, said = _finish(start(command))
    assert ended == code, said
    assert "Traceback" not in said, said


def kill_once(
    scenario: Scenario, out: Path, undisturbed: Undisturbed, rng: random.Random, signals: Signals = (signal.SIGKILL,)
) -> bool:
    """Starts the command and ends it by one of some signals; False where it had ended by itself before."""
    process, number = start(scenario.command(out)), rng.choice(signals)
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0, undisturbed.seconds))
        return _end(process, out, scenario.code, number)
    return kill_late(process, out, undisturbed, rng, scenario.code, number)


def kill_late(
    process: subprocess.Popen[str], out: Path, undisturbed: Undisturbed, rng: random.Random, code: int = 0,
    number: signal.Signals = signal.SIGKILL,
) -> bool:  # fmt: skip
    """Ends a process after its first output, or while files change; False where it had ended by itself before."""
    if rng.random() < 1 / 3:
        _wait_for_changes(process, out, 1)
        time.sleep(rng.uniform(0, undisturbed.seconds - undisturbed.until_output))
    else:
        _wait_for_changes(process, out, rng.randint(1, undisturbed.n_changes))
        time.sleep(rng.uniform(0, 0.004))
    return _end(process, out, code, number)


def run_trial(
    scenario: Scenario, folder: Path, undisturbed: Undisturbed, rng: random.Random, most: int = 3,
    signals: Signals = (signal.SIGKILL,),
) -> tuple[int, list[str]]:  # fmt: skip
    """One trial: some kills, or stops where the signals are others, then a run to the end.

    Returns:
        how many times the command was killed, and everything that was wrong.
    """
    out = Path(tempfile.mkdtemp(prefix="trial-", dir=folder))
    scenario.prepare(out)
    kills, wrong = 0, []
    try:
        for _ in range(rng.randint(1, most)):
            killed = kill_once(scenario, out, undisturbed, rng, signals)
            kills += killed
            wrong += [f"after a kill: {fault}" for fault in find_halves(out)]
            if not killed:
                break
        run_to_end(scenario.command(out), scenario.code)
    except AssertionError as error:
        wrong.append(f"ended otherwise than it should: {error}")
    wrong += compare(out, undisturbed)
    if not wrong:
        shutil.rmtree(out)
    return kills, wrong


def compare(out: Path, undisturbed: Undisturbed) -> list[str]:
    """What is not as an undisturbed run leaves it."""
    try:
        made, expected = read_content(out), undisturbed.content
    except Exception as error:  # whatever it is: an output cannot be read
        return [f"not as undisturbed: {type(error).__name__}: {error}"]
    different = [name for name in sorted({*made, *expected}) if made.get(name) != expected.get(name)]
    return [f"not as undisturbed: {name}" for name in different] + [f"left behind: {n}" for n in find_leftovers(out)]


def _end(process: subprocess.Popen[str], out: Path, code: int, number: signal.Signals) -> bool:
    """Sends a signal, SIGKILL to the whole group; whether that ended the process."""
    running, begun = process.poll() is None, bool(_sizes(out))
    if running and number == signal.SIGKILL:
        os.killpg(process.pid, number)
    elif running:
        process.send_signal(number)
    ended, said = _finish(process)
    # A signal to stop that comes while Python itself starts ends it before there is anything to keep.
    expected = 75 if number != signal.SIGKILL and (begun or ended != -number) else -number
    assert ended == code or (running and ended == expected), f"exit {ended}: {said}"
    assert "Traceback" not in said, said
    return ended != code


def _finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate()
    return process.returncode, said


def _wait_for_changes(process: subprocess.Popen[str], out: Path, most: int) -> int:
    """Waits until files of the folder were seen to change so many times, or the process has ended; how many it saw."""
    seen, before = 0, _sizes(out)
    while seen < most and process.poll() is None:
        time.sleep(0.001)
        now = _sizes(out)
        seen += now != before
        before = now
    return seen


def _sizes(out: Path) -> dict[str, int]:
    found = {}
    for folder, folders, files in os.walk(out):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                found[f"{folder}/{name}"] = (Path(folder) / name).stat().st_size
    return found


def main() -> int:
    """Runs trials until there were enough kills; prints what happened and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one scenario")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="generag-kill-"))
    write_cohort(folder / "cohort", size_px=1200, n_genes=80)
    scenarios = make_scenarios(folder / "cohort", folder, run_to_end)
    scenarios = [s for s in scenarios if options.only in (None, s.name)]
    kills, trials, wrong = Counter[str](), Counter[str](), []
    references = {s.name: run_undisturbed(s, folder_of(folder, s)) for s in scenarios}
    while sum(kills.values()) < options.kills:
        scenario = scenarios[sum(trials.values()) % len(scenarios)]
        left = options.kills - sum(kills.values())
        made, faults = run_trial(scenario, folder_of(folder, scenario), references[scenario.name], rng, min(3, left))
        kills[scenario.name] += made
        trials[scenario.name] += 1
        wrong += [f"{scenario.name}: {fault}" for fault in faults]
        print(f"{sum(kills.values())}/{options.kills} kills, {len(wrong)} faults", file=sys.stderr)
    print(f"{'command':<18}{'trials':>8}{'kills':>7}{'undisturbed s':>15}{'until output':>14}")
    for s in scenarios:
        found = references[s.name]
        print(f"{s.name:<18}{trials[s.name]:>8}{kills[s.name]:>7}{found.seconds:>15.1f}{found.until_output:>14.1f}")
    print(f"{sum(kills.values())} kills in {sum(trials.values())} trials, seed {options.seed}: {len(wrong)} faults")
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    print(f"generag {__version__}, {system}")
    for fault in wrong:
        print(f"FAULT {fault}")
    if not wrong:
        shutil.rmtree(folder)
    return 1 if wrong else 0


def folder_of(folder: Path, scenario: Scenario) -> Path:
    """Where a scenario's runs go."""
    own = folder / scenario.name.replace(" ", "-")
    own.mkdir(exist_ok=True)
    return own


if __name__ == "__main__":
    sys.exit(main())
