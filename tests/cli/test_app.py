"""The tool itself: what starting it costs, versions, usage errors, tracebacks."""

import subprocess
import sys

import pytest

from genrag_cli import __version__
from genrag_cli.errors import SlideError

HELP = """
import socket, sys

def refuse(*args, **kwargs):
    raise RuntimeError("a socket was opened")

socket.socket = socket.create_connection = refuse
from genrag_cli.cli.app import app

commands = "build-bank inspect embed retrieve evaluate export plot demo doctor".split()
for command in ("", *commands, "bank info", "backbones info"):
    try:
        app([*command.split(), "--help"])
    except SystemExit as done:
        assert done.code == 0, command
heavy = set("torch zarr anndata h5py pandas scipy openslide tifffile timm matplotlib skimage numcodecs PIL".split())
sys.exit(", ".join(sorted(heavy & set(sys.modules))) or 0)
"""


def test_help_imports_nothing_heavy_and_opens_no_socket():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage") == 12


def test_the_version_is_the_packages(generag):
    assert generag("--version").out == f"generag {__version__}\n"


def test_nothing_asked_shows_the_commands(generag):
    shown = generag()
    assert "retrieve" in shown.out + shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    "command",
    [("retrieve",), ("retrieve", "a.svs", "--foo"), ("fetch",), ("embed", "a.svs", "--mpp", "x"), ("bank", "count"),
     ("embed", "a.svs", "--workers", "0")],
)  # fmt: skip
def test_usage_errors_end_with_2(generag, command):
    done = generag(*command)
    assert done.code == 2
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--active", "0"), "--active 0 asked"),
        (("--active", "9", "--alpha", "1"), "both say how strong"),
        (("--gamma", "0.1"), "--gamma goes with --lambda"),
        (("--gap", "2"), "--gap 2 asked"),
        (("--omega", "1.5"), "--omega 1.5 asked"),
        (("--device", "abacus"), "Use --device cpu"),
    ],
)
def test_options_that_cannot_be_end_with_2(generag, slide, built_bank, options, said):
    generag("retrieve", slide, "--bank", built_bank, "--backbone", "stain", "-q", *options).expect_refusal(2, said)


@pytest.mark.parametrize(
    ("command", "flag", "known"),
    [
        ("retrieve", "--preset", ("default", "paper")),
        ("retrieve", "--expression", ("values", "none")),
        ("retrieve", "--solver", ("working-set", "dense")),
        ("build-bank", "--crop", ("fov", "stem")),
        ("build-bank", "--missing-genes", ("refuse", "mask")),
        ("build-bank", "--duplicate-genes", ("sum", "refuse")),
        ("build-bank", "--unknown-patient", ("section",)),
    ],
)
def test_words_that_an_option_does_not_know_end_with_2_and_name_those_it_does(generag, command, flag, known):
    done = generag(command, "nowhere", flag, "anything")
    assert done.code == 2
    assert all(word in done.err for word in (flag, "anything", *known))


def test_debug_shows_where_an_expected_error_comes_from(generag, shell, built_bank, tmp_path):
    with pytest.raises(SlideError, match=r"nowhere\.svs"):
        generag("embed", "nowhere.svs", "--backbone", "stain", "--bank", built_bank, "--out", tmp_path, "--debug")
    plain, debugged = shell("bank", "info", "--bank", "none"), shell("bank", "info", "--bank", "none", "--debug")
    plain.expect_refusal(1, "no bank at none")
    assert debugged.code == 1
    assert "Traceback" in debugged.err
