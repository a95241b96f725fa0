"""A hundred damaged files; the rules, and two thousand: `python tests/benchmarks/fuzz.py --files 2000 --seed 0`."""

import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).resolve().parent.parent / "benchmarks" / "fuzz.py"


def test_a_hundred_damaged_files_neither_hang_nor_crash_nor_pass_for_whole():
    command = [sys.executable, FUZZ, "--files", "100", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
