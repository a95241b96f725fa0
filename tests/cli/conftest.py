"""The command line in the test's own process, a made-up cohort, and a bank of two of its three patients."""

import json
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from genrag_cli.synthetic import write_cohort

SCHEMAS = runpy.run_path(str(Path(__file__).with_name("schemas.py")))
EXIT_CODES = (0, 1, 2, 3, 75)
PATIENTS = ("--patients", "prefix")
HELD = "P3_1"
QUICK = ("--workers", "1", "--alpha", "0.003")
"""For tests in which the strength of the penalty does not matter."""


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    def expect_refusal(self, code: int, *texts: str) -> None:
        """Asserts that the command said one error with a remedy and no more than warnings else, and ended so.

        Args:
            code: exit code.
            texts: what the message or the remedy must name.
        """
        assert self.code == code, self.err
        assert self.out == ""
        message, *remedy = [line for line in self.err.splitlines() if not line.startswith("warning: ")]
        assert message.startswith("error: "), self.err
        assert remedy, self.err
        assert all(line.startswith("       ") for line in remedy), self.err
        for text in texts:
            assert text in self.err, self.err


def run_in_process(*args: object) -> Ran:
    """Runs a command as the console script does; an unexpected exception comes out as it is."""
    from typer.testing import CliRunner

    from genrag_cli.cli.app import app

    result = CliRunner().invoke(app, [str(a) for a in args], prog_name="generag")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    ran = Ran(result.exit_code, result.stdout, result.stderr)
    expect_promises([str(a) for a in args], ran)
    return ran


def expect_promises(args: list[str], ran: Ran) -> None:
    """Asserts what holds for every command in every test: a documented exit code, no traceback, JSON by its schema."""
    assert ran.code in EXIT_CODES, (args, ran.code)
    assert "--debug" in args or "Traceback" not in ran.err, ran.err
    if "--json" in args and (ran.out or not ran.code):
        words = " ".join(args[:2])
        document = SCHEMAS["DOCUMENTS"].get(words) or SCHEMAS["DOCUMENTS"][args[0]]
        Draft202012Validator(document, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(json.loads(ran.out))


@pytest.fixture(scope="session")
def generag() -> Iterator[Callable[..., Ran]]:
    """`generag(*args) -> Ran` in this process."""
    before = signal.getsignal(signal.SIGTERM)
    yield run_in_process
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def shell() -> Callable[..., Ran]:
    """`shell(*args) -> Ran` in a process of its own."""

    def run(*args: object) -> Ran:
        command = [sys.executable, "-m", "genrag_cli", *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        ran = Ran(done.returncode, done.stdout, done.stderr)
        expect_promises([str(a) for a in args], ran)
        return ran

    return run


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients, one section each, about 35 spots; legacy layout."""
    folder = tmp_path_factory.mktemp("cohort") / "train"
    write_cohort(folder, size_px=1200, n_genes=60)
    return folder


@pytest.fixture(scope="session")
def built_bank(tmp_path_factory: pytest.TempPathFactory, build_options: tuple[object, ...]) -> Path:
    """A bank of P1 and P2 with backbone stain. Not to be changed: take `bank`."""
    folder = tmp_path_factory.mktemp("bank") / "b.zarr"
    done = run_in_process(*build_options, "--bank", folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def build_options(cohort: Path) -> tuple[object, ...]:
    """What `built_bank` was built with, but for `--bank`."""
    return ("build-bank", cohort, *PATIENTS, "--exclude", HELD, "--backbone", "stain", "--workers", "1")


@pytest.fixture
def bank(built_bank: Path, tmp_path: Path) -> Path:
    """A copy of `built_bank` to do with as one likes."""
    return Path(shutil.copytree(built_bank, tmp_path / "b.zarr"))


@pytest.fixture
def slide(cohort: Path) -> Path:
    """The slide of the section that is not in the bank."""
    return cohort / "images" / f"{HELD}.tif"


@pytest.fixture
def retrieve(generag: Callable[..., Ran], built_bank: Path, slide: Path, tmp_path: Path) -> Callable[..., Ran]:
    """`retrieve(*options)` of the held-out slide into tmp_path / "out", with any options on top."""

    def run(*options: object) -> Ran:
        common = ("--backbone", "stain", "--bank", built_bank, "--out", tmp_path / "out", *QUICK)
        return generag("retrieve", slide, *common, *options)

    return run
