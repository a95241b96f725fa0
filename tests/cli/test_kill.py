"""SIGKILL at seeded random moments: a rerun gives what an undisturbed run gives, and no file is ever half there.

A hundred kills: `python tests/benchmarks/kill.py --kills 100 --seed 0`, whose driver this is.
"""

import random
import time

import kill
import pytest

COMMANDS = ("build-bank", "rebuild", "embed", "retrieve")


@pytest.fixture(scope="module")
def run(generag):
    def to_end(command):
        done = generag(*command)
        assert done.code == 0, done.err

    return to_end


@pytest.fixture(scope="module")
def scenarios(cohort, tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("kill")
    return {s.name: s for s in kill.make_scenarios(cohort, folder, run, pitch_um=70)}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_leaves_nothing_half_done_and_its_rerun_is_as_undisturbed(scenarios, run, tmp_path, command):
    scenario, out, calm = scenarios[command], tmp_path / "killed", tmp_path / "calm"
    for folder in (out, calm):
        folder.mkdir()
        scenario.prepare(folder)
    begun = time.monotonic()
    run(scenario.command(calm))
    undisturbed = kill.Undisturbed(kill.read_content(calm), time.monotonic() - begun, 0.0, 20)
    rng = random.Random(COMMANDS.index(command))
    process = kill.start(scenario.command(out))
    kill.kill_late(process, out, undisturbed, rng)
    assert kill.find_halves(out) == []
    run(scenario.command(out))
    assert kill.compare(out, undisturbed) == []


def test_the_driver_sees_a_half_written_file(built_bank, slide, generag, tmp_path):
    options = ("--backbone", "stain", "--bank", built_bank, "--out", tmp_path)
    assert generag("embed", slide, *options).code == 0
    assert kill.find_halves(tmp_path) == []
    path = tmp_path / "P3_1.stain.zarr.zip"
    path.write_bytes(path.read_bytes()[:-50])
    assert len(kill.find_halves(tmp_path)) == 1
