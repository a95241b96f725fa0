"""How long `generag --help` takes, beside a Python that does nothing. Nothing is asserted about time.

pytest tests/benchmarks/test_startup.py --import-mode=importlib
"""

import subprocess
import sys
import time

import pytest

HELP = [sys.executable, "-m", "genrag_cli", "--help"]
NOTHING = [sys.executable, "-c", "pass"]


def run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def best_of(command: list[str], times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run(command)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def test_help_answers(benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    bare = best_of(NOTHING)
    shown = benchmark.pedantic(run, args=(HELP,), rounds=10, warmup_rounds=1)
    assert "retrieve" in shown
    best = benchmark.stats.stats.min
    benchmark.extra_info["bare_python_s"] = bare
    with capsys.disabled():
        print(f"\ngenerag --help {best:.3f} s, python -c pass {bare:.3f} s, ratio {best / bare:.1f} (best of each)")
