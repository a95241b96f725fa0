"""The fault suite, all of it, with many more kills than the tests have.

    python tests/benchmarks/faults.py --kills 100 --stops 20 --seed 0

Runs `tests/faults` (but for the fuzzing, which is `fuzz.py`'s) and prints what each case ended in: a batch of slides
in which reader, encoder, solver, writer, disk, copy, worker or clock fails, or which is killed or told to stop at
seeded random moments, must end in right results for the good slides, a reason for each bad one, the exit code that the
table in `genrag_cli.errors` has, and nothing left behind once it has been run again.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import pytest
from setting import describe_machine, format_table

SUITE = Path(__file__).resolve().parent.parent / "faults"


class Noted:
    """Outcome and seconds of every case."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes a case that has run, or could not."""
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.partition("::")[2].removeprefix("test_").replace("_", " ")
            more = "".join(f", ended {text}" for key, text in report.user_properties if key == "ended")
            self.rows.append((name + more, report.outcome, f"{report.duration:.1f}"))


def main() -> int:
    """Runs the suite and prints a table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in ("kills", "stops", "seed"):
        os.environ[f"GENERAG_{name.upper()}"] = str(getattr(options, name))
    noted, began = Noted(), time.monotonic()
    code = pytest.main(["-n", "0", "-q", f"--ignore={SUITE}/test_fuzz.py", str(SUITE)], plugins=[noted])
    print(format_table(("case", "outcome", "s"), noted.rows))
    failed = sum(outcome == "failed" for _, outcome, _ in noted.rows)
    print(f"{len(noted.rows)} cases, seed {options.seed}: {failed} failed, {time.monotonic() - began:.0f} s")
    if code == pytest.ExitCode.INTERRUPTED:
        print("interrupted: not all of them")
    print(describe_machine())
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
