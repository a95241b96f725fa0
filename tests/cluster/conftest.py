"""A made-up cohort whose slides take some seconds each, what one process makes of it, and a SLURM to share it out."""

import runpy
from pathlib import Path

import pytest

CLUSTER = runpy.run_path(str(Path(__file__).with_name("cluster.py")))
IN_PROCESS = runpy.run_path(str(Path(__file__).parent.parent / "cli" / "conftest.py"))


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
