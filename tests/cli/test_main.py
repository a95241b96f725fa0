"""What is settled before a command begins."""

import os
import subprocess
import sys

import pytest

from genrag_cli.__main__ import SPINS, wait_briefly


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": SPINS}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_threads_wait_briefly_unless_the_environment_says_how(monkeypatch, given, expected):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    wait_briefly()
    assert {name: os.environ[name] for name in names if name in os.environ} == expected


def test_it_is_said_before_torch_is_there():
    code = (
        "import os, sys\n"
        "from genrag_cli import __main__ as m\n"
        "import genrag_cli.cli.app as app\n"
        "app.main = lambda: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)\n"
        "m.main()\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [SPINS, "False"]
