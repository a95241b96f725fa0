"""Snakemake runs the file that `generag workflow snakemake` writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def snakemake(cohort, generag, path_to_generag, monkeypatch):
    """`snakemake(*slides, out=...) -> CompletedProcess`, on two cores."""
    monkeypatch.chdir(cohort.folder)

    def run(*slides, out):
        line = ("retrieve", *slides, *cohort.options, "--out", out)
        written = generag(
            "workflow",
            "snakemake",
            "--cpus",
            "1",
            "--mem",
            "2",
            "--retries",
            "1",
            "--out-file",
            f"{out}.smk",
            "--",
            *line,
        )
        assert written.code == 0, written.err
        command = ("-m", "snakemake", "--snakefile", f"{out}.smk", "--cores", "2", "--keep-going", "--nocolor")
        return subprocess.run(
            [sys.executable, *command], env={"PATH": path_to_generag, "HOME": str(cohort.folder)},
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip

    return run


def test_snakemake_makes_what_one_process_makes_and_nothing_twice(snakemake, cohort, read_content):
    done = snakemake("slides", out="by snakemake")
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_content(Path("by snakemake")) == cohort.expected
    assert "Nothing to be done" in snakemake("slides", out="by snakemake").stderr


def test_a_bad_slide_fails_alone_and_says_why(snakemake):
    Path("bad.tif").write_bytes(b"no slide")
    done = snakemake("bad.tif", "slides/P1_1.tif", out="one bad")
    assert done.returncode == 1
    assert {p.name for p in Path("one bad").glob("*.h5ad")} == {"P1_1.stain.h5ad"}
    status = json.loads(Path("one bad/bad.stain.status.json").read_text())
    assert (status["state"], status["attempts"]) == ("failed", 2)
    (log,) = Path("one bad").glob("logs/bad*.log")
    assert f"error: {status['reason']}" in log.read_text()
