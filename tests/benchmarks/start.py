"""How long a command of seconds takes to start and to end, with and without Python looking for cycles of objects.

    python tests/benchmarks/start.py [--rounds 5]

A retrieve of a made-up slide of some 30 spots, each time in a process of its own: as it is, and with Python's own
thresholds and its own look at everything at the end; in turns.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from meter import load_average
from setting import describe_machine, format_table

AS_IT_IS = "from genrag_cli.__main__ import main; main()"
PYTHONS_OWN = (
    "import gc, genrag_cli.__main__ as m; m.COLLECT_AT = gc.get_threshold(); gc.freeze = lambda: None; m.main()"
)


def main() -> None:
    """Runs both in turns and prints their medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    from genrag_cli.synthetic import write_cohort

    taken: dict[str, list[float]] = {AS_IT_IS: [], PYTHONS_OWN: []}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        write_cohort(folder / "cohort", size_px=900, n_genes=45)
        common = ["--bank", folder / "bank.zarr", "--backbone", "stain", "--workers", "1", "-q"]
        run(AS_IT_IS, ["build-bank", folder / "cohort", "--patients", "prefix", "--exclude", "P3_1", *common])
        query = ["retrieve", folder / "cohort" / "images" / "P3_1.tif", *common, "--alpha", "0.003", "--no-overlay"]
        run(AS_IT_IS, [*query, "--out", folder / "first"])  # which compiles the solver where nobody has yet
        for number in range(rounds):
            for way, seconds in taken.items():
                began = time.perf_counter()
                run(way, [*query, "--out", folder / f"{number} {len(way)}"])
                seconds.append(time.perf_counter() - began)
    ours, own = (median(seconds) for seconds in taken.values())
    rows = [("as it is", f"{ours:.2f}"), ("Python's own", f"{own:.2f}"), ("ratio", f"{ours / own:.2f}")]
    print(format_table(("cycles looked for", "s"), rows))
    print(f"median of {rounds}; {describe_machine()}; load {load_average()}")


def run(code: str, arguments: list[object]) -> None:
    """A command in a process of its own."""
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
