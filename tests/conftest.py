"""Fixtures that many tests share, the rule that real data which is there must be used, and how a run is spread.

A run of whole folders takes two workers of one thread each; one of named files, or of tests chosen by -k, -m or --lf,
takes none, as -n 0 does.
"""

import gc
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from genrag_cli.__main__ import COLLECT_AT

settings.register_profile("patient", deadline=None)  # what a test takes hangs on who else uses the core
settings.load_profile("patient")

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(os.environ.get("GENERAG_SHARED_DATA", ROOT.parent / "shared" / "data"))
WORKERS = 2
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "SLURM_CPUS_PER_TASK")
"""Read by torch, numpy, numba and generag itself, in the workers and in what their tests start."""
_skipped_real: list[str] = []


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """None for a few tests, which are done before workers have imported everything."""
    chosen = any(config.getoption(name, None) for name in ("keyword", "markexpr", "lf"))
    return WORKERS if not chosen and all(Path(arg).is_dir() for arg in config.args) else 0


def pytest_configure(config: pytest.Config) -> None:
    """Has each worker keep to one core; numpy counts threads as it is imported, so before there are workers."""
    gc.set_threshold(*COLLECT_AT)  # as the command does
    if config.getoption("numprocesses", None):
        for name in ONE_THREAD:
            os.environ.setdefault(name, "1")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real tissue; a test that needs it skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data: {SHARED_DATA} does not exist")
    return SHARED_DATA


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Notes real-data tests that did not run."""
    if report.skipped and "real" in report.keywords:
        _skipped_real.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where the data is, a real-data test that skipped is a failure."""
    if SHARED_DATA.is_dir() and _skipped_real and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which."""
    if SHARED_DATA.is_dir() and _skipped_real:
        terminalreporter.section("real-data tests skipped although the data is there: a failure")
        for name in _skipped_real:
            terminalreporter.line(name)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[int | None], None]]]:
    """A folder on a disk of 8 MiB, and a function that leaves so many KiB of it free."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk can be mounted by root only")

    def leave(kib: int | None) -> None:
        ballast = folder / ".ballast"
        ballast.unlink(missing_ok=True)
        if kib is not None:
            ballast.write_bytes(bytes(shutil.disk_usage(folder).free - kib * 1024))

    yield folder, leave
    subprocess.run(["umount", folder], check=True)
