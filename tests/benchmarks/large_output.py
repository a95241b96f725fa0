"""Seconds, memory and disk of a large prediction: 100,000 spots by 19,000 genes through `generag retrieve`.

    python tests/benchmarks/large_output.py [--spots N] [--bank-spots N] [--genes N] [--dim N] [--work FOLDER]
                                            [--kinds h5ad zarr] [--limit-mb N] [--json FILE]

Bank and embeddings are made up (`big_bank.Maker`), no slide is read and nothing embedded: `--features` gives what an
encoder would have given. Everything else is the command that a person types, in a process of its own, whose peak is
that of the whole process with Python and the libraries. The same bytes are then written by h5py alone, from one block
of numbers in memory, in the same chunks and flushed to disk: what no writer can do faster. One file stands at a time.

Parts are told apart by what the command says and when: until embeddings are read and standardised, then until the last
spot is solved, until the last block of expression is handed over, and what follows (digest, flush, rename, exit).
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from big_bank import BACKBONE, PROGRAMMES, Maker, add
from setting import describe_machine, format_table

SECTIONS = 8
MB = 1e6


def main() -> None:
    """Makes bank and features, runs the command for each kind of file, and prints the table."""
    asked = read_arguments()
    if asked.stage:
        {"bank": make_bank, "features": make_features, "bare": write_bare}[asked.stage](asked)
        return
    with tempfile.TemporaryDirectory(prefix="large-output-", dir=asked.work) as temporary:
        asked.work = Path(temporary)
        expect_disk(asked)
        size = asked.spots * asked.genes * 4
        print(f"machine: {describe_machine()}", flush=True)
        print(
            f"{asked.spots} spots x {asked.genes} genes ({size / 1e9:.2f} GB of values); bank of {asked.bank_spots} "
            f"spots, d = {asked.dim}; load {os.getloadavg()[0]:.1f}\n",
            flush=True,
        )
        for stage in ("bank", "features"):
            run_stage(stage, asked)
        bare = json.loads(run_stage("bare", asked))
        found = [measure(kind, asked) for kind in asked.kinds]
    parts = ("before", "solve", "write", "after", "total")
    rows = [
        [
            one["kind"], *(f"{one[part]:.1f}" for part in parts), f"{one['written'] / bare['seconds']:.2f}",
            f"{one['peak_mb']:.0f}", f"{one['bytes'] / 1e9:.2f}",
        ]
        for one in found
    ]  # fmt: skip
    rows.append(["h5py alone", "", "", f"{bare['seconds']:.1f}", "", f"{bare['seconds']:.1f}", "1.00"])
    rows[-1] += [f"{bare['peak_mb']:.0f}", f"{bare['bytes'] / 1e9:.2f}"]
    names = ("", "before, s", "solve, s", "write, s", "after, s", "all, s", "written / h5py", "MB at peak", "GB")
    print(format_table(names, rows))
    print("written / h5py: seconds of `write` and `after` over those of h5py alone")
    if asked.json:
        asked.json.write_text(json.dumps({"machine": describe_machine(), "bare": bare, "runs": found}, indent=1) + "\n")
    if over := [one for one in found if one["peak_mb"] > asked.limit_mb]:
        sys.exit(f"peak memory above {asked.limit_mb} MB: {', '.join(one['kind'] for one in over)}")


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=100_000, help="spots that are predicted")
    parser.add_argument("--bank-spots", type=int, default=13_000, help="spots of the bank")
    parser.add_argument("--genes", type=int, default=19_000, help="genes of the bank, all of which are written")
    parser.add_argument("--dim", type=int, default=1280, help="length of an embedding")
    parser.add_argument("--kinds", nargs="+", choices=("h5ad", "zarr"), default=["h5ad", "zarr"])
    parser.add_argument("--limit-mb", type=float, default=4000, help="exit with 1 where a peak is above (1e6 bytes)")
    parser.add_argument("--work", type=Path, help="folder to write in; a temporary one if left out")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--stage", choices=("bank", "features", "bare"), help=argparse.SUPPRESS)
    return parser.parse_args()


def expect_disk(asked: argparse.Namespace) -> None:
    """Refuses to begin what would fill the disk."""
    needed = 1.2 * (asked.spots * asked.genes * 4 + (asked.spots + asked.bank_spots) * (asked.dim * 4 + 8_000))
    if needed > (free := shutil.disk_usage(asked.work).free):
        sys.exit(f"{needed / 1e9:.0f} GB are needed in {asked.work}, {free / 1e9:.0f} GB are free: give another --work")


def run_stage(stage: str, asked: argparse.Namespace) -> str:
    """Runs this script anew for one stage, so that this process stays small: a child's peak begins with its parent's.

    Returns:
        what it printed.
    """
    sizes = {"--spots": asked.spots, "--bank-spots": asked.bank_spots, "--genes": asked.genes, "--dim": asked.dim}
    words = [word for pair in sizes.items() for word in pair]
    command = [sys.executable, __file__, "--stage", stage, "--work", asked.work, *words]
    return subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True).stdout


def make_bank(asked: argparse.Namespace) -> None:
    """A bank of made-up sections with one version."""
    from genrag_cli.errors import BankError
    from genrag_cli.pipeline.anchors import AnchorOptions
    from genrag_cli.pipeline.derive import add_version
    from genrag_cli.stores.atomic import writer_lock
    from genrag_cli.stores.bank_writer import BankWriter
    from genrag_cli.types import Listener

    folder, maker = asked.work / "bank.zarr", maker_of(asked)
    with writer_lock(folder, BankError):
        writer = BankWriter(folder)
        writer.create(
            genes=np.array([f"GENE{i}" for i in range(asked.genes)]), gene_ids=None, train=["made up"],
            geometry={"crop": "fov", "fov_um": 110.0, "pitch_um": 100.0, "spot_um": 55.0},
        )  # fmt: skip
        for number in range(SECTIONS):
            add(writer, maker.section(number))
        add_version(writer, BACKBONE, [s["name"] for s in writer.manifest["sections"]], AnchorOptions(), Listener())


def maker_of(asked: argparse.Namespace) -> Maker:
    """What makes sections up for a bank of about the size asked for."""
    return Maker(argparse.Namespace(spots=asked.bank_spots, sections=SECTIONS, genes=asked.genes, dim=asked.dim))


def make_features(asked: argparse.Namespace) -> None:
    """Embeddings of a slide's spots: the bank's programmes, seen with noise."""
    rng, view = np.random.default_rng(7), maker_of(asked).view
    values = np.empty((asked.spots, asked.dim), np.float32)
    for low in range(0, asked.spots, 4096):
        part = values[low : low + 4096]
        part[:] = rng.normal(size=(len(part), PROGRAMMES)) @ view + rng.normal(0, 1.5, part.shape)
    side = int(np.ceil(np.sqrt(asked.spots)))
    centres = np.stack([np.arange(asked.spots) % side, np.arange(asked.spots) // side], 1) * 200.0 + 200.0
    np.savez(asked.work / "slide.npz", features=values, centres=centres, mpp=0.5, fov_um=110.0, encoder=BACKBONE)


def write_bare(asked: argparse.Namespace) -> None:
    """As many bytes as the expression has, by h5py alone; prints seconds and peak."""
    import h5py

    block = np.random.default_rng(0).random((384, asked.genes), np.float32)
    path = asked.work / "bare.h5"
    began = time.perf_counter()
    with h5py.File(path, "w") as file:
        array = file.create_dataset("X", (asked.spots, asked.genes), "f4", chunks=(64, min(2500, asked.genes)))
        for low in range(0, asked.spots, len(block)):
            array[low : low + len(block)] = block[: asked.spots - low]
    with path.open("rb") as written:
        os.fsync(written.fileno())
    seconds, size = time.perf_counter() - began, path.stat().st_size
    path.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
    print(json.dumps({"seconds": seconds, "bytes": size, "peak_mb": peak}))


def measure(kind: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Runs `generag retrieve` once and takes the file away."""
    out = asked.work / f"slide.{kind}"
    command = [
        sys.executable, "-m", "genrag_cli", "retrieve", "--features", asked.work / "slide.npz", "--genes", "all",
        "--bank", asked.work / "bank.zarr", "--backbone", BACKBONE, "--out", out, "--device", "cpu", "--verbose",
    ]  # fmt: skip
    began, said = time.perf_counter(), []
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        said.append((time.perf_counter() - began, line))
        print(f"  {said[-1][0]:7.1f} s  {line.rstrip()}", file=sys.stderr, flush=True)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    total = time.perf_counter() - began
    if process.returncode:
        sys.exit(f"{kind}: the command ended with {process.returncode}")
    size = out.stat().st_size if out.is_file() else sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    ready = when(said, "embeddings standardised by")
    solved, written = (when(said, f"{word} slide", f"{asked.spots}/{asked.spots}") for word in ("retrieve", "write"))
    found = {
        "kind": kind, "before": ready, "solve": solved - ready, "write": written - solved, "after": total - written,
        "written": total - solved, "total": total, "peak_mb": used.ru_maxrss * 1024 / MB, "bytes": size,
    }  # fmt: skip
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def when(said: list[tuple[float, str]], *words: str) -> float:
    """Seconds at which a line with all these words came."""
    return next(at for at, line in said if all(word in line for word in words))


if __name__ == "__main__":
    main()
