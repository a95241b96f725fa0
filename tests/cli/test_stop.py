"""Ctrl-C and SIGTERM: a message, exit code 75, nothing half-written, and a rerun that goes on from there."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from genrag_cli.backbones.encoders.stain import Stain
from genrag_cli.pipeline.solver import WORK
from genrag_cli.retrieval import solve as solver

MESSAGE = "stopped; the same command goes on from here"
FINE = ("--pitch-um", "60")
"""So that there is more than one block of tiles."""


BESIDE = (".status.json", ".tissue.png", ".tissue.geojson")
"""What says how it went, whether or not there is a result."""


def visible(folder):
    """Results, whole under their final names."""
    files = [p for p in folder.rglob("*") if not any(q.startswith(".") for q in p.parts[-2:])]
    return [str(p.relative_to(folder)) for p in files if not p.name.endswith(BESIDE)]


def hidden(folder):
    """What unfinished work leaves."""
    return [p.name for p in folder.rglob(".*")]


@pytest.fixture
def stop_in_encode(monkeypatch):
    """Ctrl-C in the n-th batch that is embedded from now on; None lets all pass. Counts batches."""
    encode, state = Stain.encode, {"seen": 0, "stop": None}

    def counting(self, pixels):
        state["seen"] += 1
        if state["seen"] == state["stop"]:
            raise KeyboardInterrupt
        return encode(self, pixels)

    monkeypatch.setattr(Stain, "encode", counting)
    return state


def test_a_stopped_embed_goes_on_with_the_next_block(generag, slide, built_bank, tmp_path, stop_in_encode):
    out = tmp_path / "out"
    command = ("embed", slide, "--backbone", "stain", "--bank", built_bank, *FINE, "-q", "--out")
    stop_in_encode["stop"] = 11  # in the second block: batches of 32, blocks of 256
    stopped = generag(*command, out)
    assert (stopped.code, stopped.out, stopped.err) == (75, "", MESSAGE + "\n")
    assert visible(out) == []
    stop_in_encode.update(seen=0, stop=None)
    assert generag(*command, out).code == 0
    resumed = stop_in_encode["seen"]
    assert generag(*command, tmp_path / "other").code == 0
    assert resumed == stop_in_encode["seen"] - resumed - 8
    one, other = ((folder / "P3_1.stain.zarr.zip").read_bytes() for folder in (out, tmp_path / "other"))
    assert one == other
    assert visible(out) == ["P3_1.stain.zarr.zip"]
    assert hidden(out) == []


def test_a_stopped_build_keeps_its_finished_sections(generag, build_options, built_bank, tmp_path, stop_in_encode):
    stop_in_encode["stop"] = 3  # in the second section
    stopped = generag(*build_options, "--bank", tmp_path / "b.zarr")
    assert stopped.code == 75
    assert stopped.err.endswith(MESSAGE + "\n")
    generag("bank", "verify", "--bank", tmp_path / "b.zarr").expect_refusal(1, "no version of stain")
    again = generag(*build_options, "--bank", tmp_path / "b.zarr")
    assert again.err.count("already in the bank") == 2
    one, other = (json.loads((bank / "manifest.json").read_text()) for bank in (tmp_path / "b.zarr", built_bank))
    for manifest in (one, other):  # when the cohort's files were last touched, which may have been in between
        manifest.pop("manifest_sha256")
        for section in manifest["sections"]:
            section.pop("files")
    assert one == other


def test_a_stopped_retrieval_keeps_its_solved_blocks(retrieve, generag, slide, tmp_path, monkeypatch):
    import genrag_cli.pipeline.retrieve as pipeline

    calls = []

    def stopping(*args, **kwargs):
        calls.append(len(args[1].T))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return solver(*args, **kwargs)

    monkeypatch.setattr(pipeline, "SOLVE_BLOCK", 200)
    monkeypatch.setitem(WORK, "solve", stopping)
    stopped = retrieve(*FINE)
    assert stopped.code == 75
    assert visible(tmp_path / "out") == ["P3_1.stain.zarr.zip"]
    assert retrieve(*FINE).code == 0
    assert calls[:2] == [200, 200]
    assert sum(calls[2:]) == sum(calls) - 400
    assert len(calls) == 2 + int(np.ceil(sum(calls[2:]) / 200))
    assert sorted(visible(tmp_path / "out")) == ["P3_1.stain.h5ad", "P3_1.stain.zarr.zip"]
    assert hidden(tmp_path / "out") == []


def test_a_stop_while_writing_leaves_the_old_prediction(retrieve, tmp_path, monkeypatch):
    import genrag_cli.pipeline.write as pipeline

    assert retrieve().code == 0
    before = (tmp_path / "out" / "P3_1.stain.h5ad").read_bytes()
    reconstruct = pipeline.reconstruct

    def stopping(*args, **kwargs):
        values, _ = next(reconstruct(*args, **kwargs))
        yield values[:1], None
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "reconstruct", stopping)
    assert retrieve("--omega", "0.4").code == 75
    assert (tmp_path / "out" / "P3_1.stain.h5ad").read_bytes() == before
    assert [p.name for p in (tmp_path / "out").iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_75_and_a_rerun_finishes(generag, slide, built_bank, tmp_path, number):
    out = tmp_path / "out"
    command = ["embed", slide, "--backbone", "stain", "--bank", built_bank, "--pitch-um", "30", "-q", "--out", out]
    process = subprocess.Popen(
        [sys.executable, "-m", "genrag_cli", *map(str, command)], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list(out.glob(".*.parts/000000.npz")):
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (75, MESSAGE + "\n")
    assert visible(out) == []
    assert generag(*command).code == 0
    assert visible(out) == ["P3_1.stain.zarr.zip"]
    assert hidden(out) == []
