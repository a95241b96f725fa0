"""A made-up cohort whose slides take some seconds each, what one process makes of it, and a SLURM to share it out."""

import importlib.util
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from genrag_cli.synthetic import write_cohort

TESTS = Path(__file__).parent.parent
CLUSTER = runpy.run_path(str(Path(__file__).with_name("cluster.py")))
IN_PROCESS = runpy.run_path(str(TESTS / "cli" / "conftest.py"))
OPTIONS = (
    "--bank",
    "b.zarr",
    "--backbone",
    "stain",
    "--alpha",
    "0.003",
    "--genes",
    "20",
    "--pitch-um",
    "50",
    "--lease",
    "5",
)
"""About 600 spots on a slide, in three blocks of tiles; a dead worker's slide is free after five seconds."""


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each; gone after the module."""
    if reason := CLUSTER["why_not"]():
        pytest.skip(reason)
    with CLUSTER["Cluster"](2) as started:
        yield started


@pytest.fixture(scope="session")
def generag():
    """`generag(*args) -> Ran` in this process."""
    return IN_PROCESS["run_in_process"]


@pytest.fixture(scope="session")
def read_content():
    """`read_content(folder)`: digests of everything in its outputs but the command line and times."""
    spec = importlib.util.spec_from_file_location("kill_driver", TESTS / "benchmarks" / "kill.py")
    driver = sys.modules["kill_driver"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(driver)

    def read(folder):
        kept = {k: v for k, v in driver.read_content(folder).items() if ".h5ad/" in k}
        assert len({k.partition("/")[0] for k in kept}) == 6
        return kept

    return read


@pytest.fixture(scope="session")
def cohort(tmp_path_factory, generag, read_content):
    """Six slides and a bank in a folder, and what one process makes of the six (`expected`), and how fast."""
    folder = tmp_path_factory.mktemp("six")
    write_cohort(folder / "train", patients=2, size_px=1200, n_genes=60)
    write_cohort(folder / "held", patients=2, sections_per_patient=3, seed=1, size_px=1200, n_genes=60)
    (folder / "held" / "images").rename(folder / "slides")
    built = generag(
        "build-bank", folder / "train", "--patients", "prefix", "--backbone", "stain", "--bank", folder / "b.zarr"
    )
    assert built.code == 0, built.err
    # Once before it counts: the process that compiles the solver gets other last digits of gaps than one that loads it.
    _run(folder, "slides/P1_1.tif", "--out", "first")
    seconds = _run(folder, "slides", "--out", "one process")
    expected = read_content(folder / "one process")
    return SimpleNamespace(folder=folder, options=OPTIONS, expected=expected, seconds=seconds)


def _run(folder, slides, *options):
    """Seconds that it takes to retrieve for slides with one thread."""
    command = [sys.executable, "-m", "genrag_cli", "retrieve", slides, *OPTIONS, "--workers", "1", *options]
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


@pytest.fixture
def path_to_generag():
    """PATH with the console script of the package under test in front."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"
