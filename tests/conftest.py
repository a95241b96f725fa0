"""Fixtures that many tests share, and the rule that real data which is there must be used."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(os.environ.get("GENERAG_SHARED_DATA", ROOT.parent / "shared" / "data"))
_skipped_real: list[str] = []


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
