"""Seconds, memory and disk of a bank of half a million spots: built, opened, a section appended, a section taken out.

    python tests/benchmarks/big_bank.py [--spots N] [--sections N] [--genes N] [--work FOLDER] [--json FILE]

Sections and embeddings are made up, no slide is read and nothing embedded; everything else goes the way that
`build-bank`, `bank remove` and `retrieve` go. Counts follow a few latent programmes, as embeddings do; a section is
rows of one of `BASES` sections, thinned, with its embeddings shifted and blurred. Every stage runs in a process of its
own, so that its peak is its own; peaks hold Python and the libraries. What it takes to make the sections up is in the
peaks, not in the times.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from setting import describe_machine, format_table

BACKBONE = "made-up"
BASES = 6
PROGRAMMES = 12
DEPTH = 2200
"""Counts of a spot in the median: some 1,000 different genes of 19,000."""
SECTIONS_PER_PATIENT = 2


def main() -> None:
    """Runs all stages one after the other and prints the table, or a single stage and its JSON."""
    asked = read_arguments()
    if asked.stage:
        print(json.dumps(STAGES[asked.stage](asked)))
        return
    with tempfile.TemporaryDirectory(prefix="big-bank-") as temporary:
        asked.work = asked.work or Path(temporary)
        asked.work.mkdir(parents=True, exist_ok=True)
        expect_disk(asked)
        print(f"machine: {describe_machine()}", flush=True)
        print(
            f"{asked.spots} spots in {asked.sections} sections of {asked.sections // SECTIONS_PER_PATIENT} patients, "
            f"{asked.genes} genes, d = {asked.dim}\n",
            flush=True,
        )
        rows, results = [], []
        for stage, label in LABELS.items():
            found = run_stage(stage, asked)
            results.append({"stage": label, **found})
            rows.append((label, f"{found['seconds']:.1f}", str(found["peak"]), found["note"]))
            print(
                f"  {label}: {found['seconds']:.1f} s, {found['peak']} MB; {found['note']}", file=sys.stderr, flush=True
            )
        print(format_table(("stage", "s", "MB at peak", ""), rows))
        shutil.rmtree(asked.work / "bank.zarr")
    if asked.json:
        asked.json.write_text(json.dumps({"machine": describe_machine(), "stages": results}, indent=1) + "\n")


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=500_000, help="spots of the bank")
    parser.add_argument("--sections", type=int, default=250, help="sections of the bank")
    parser.add_argument("--genes", type=int, default=19_000, help="genes of the bank")
    parser.add_argument("--dim", type=int, default=1286, help="length of an embedding")
    parser.add_argument("--work", type=Path, help="folder to write in; a temporary one if left out")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--stage", choices=sorted(STAGES), help=argparse.SUPPRESS)
    return parser.parse_args()


def expect_disk(asked: argparse.Namespace) -> None:
    """Refuses to begin what would fill the disk."""
    needed, free = asked.spots * (4 * asked.dim + 8_000) * 1.2, shutil.disk_usage(asked.work).free
    if needed > free:
        sys.exit(
            f"{needed / 1e9:.0f} GB are needed in {asked.work}, {free / 1e9:.0f} GB are free: fewer --spots, or --work"
        )
    if (asked.work / "bank.zarr").exists():
        sys.exit(f"{asked.work / 'bank.zarr'} is there already: take it away, or give another --work")


def run_stage(stage: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Runs this script anew for one stage. This process is small, so a child's peak is not this one's."""
    sizes = [word for name in ("spots", "sections", "genes", "dim") for word in (f"--{name}", getattr(asked, name))]
    command = [sys.executable, __file__, "--stage", stage, "--work", asked.work, *sizes]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(seconds: float, note: str) -> dict[str, Any]:
    """A stage's result with the process's peak (MB, 1e6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": seconds, "note": note,
        "peak": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6),
    }  # fmt: skip


class Maker:
    """Makes up sections: rows of a few base sections, so that half a million spots take minutes and not hours."""

    def __init__(self, asked: argparse.Namespace) -> None:
        rng = np.random.default_rng(0)
        self.n, self.genes, self.dim = asked.spots // asked.sections, asked.genes, asked.dim
        self.level = rng.normal(0, 2.0, asked.genes)
        self.loading = rng.normal(0, 0.5, (PROGRAMMES, asked.genes)) * (rng.random((PROGRAMMES, asked.genes)) < 0.1)
        self.view = rng.normal(0, 1, (PROGRAMMES, asked.dim)) / np.sqrt(PROGRAMMES)
        self.bases: dict[int, tuple[Any, Any]] = {}

    def base(self, number: int) -> tuple[Any, Any]:
        """Counts and embeddings of a base section."""
        import scipy.sparse as sp

        if number not in self.bases:
            rng = np.random.default_rng([1, number])
            latent = rng.normal(size=(self.n, PROGRAMMES))
            rows = []
            for low in range(0, self.n, 200):
                rate = np.exp(self.level + latent[low : low + 200] @ self.loading)
                depth = DEPTH * rng.lognormal(0, 0.4, (len(rate), 1))
                rows.append(sp.csr_matrix(rng.poisson(rate / rate.sum(axis=1, keepdims=True) * depth).astype(np.int32)))
            features = latent @ self.view + rng.normal(0, 1.5, (self.n, self.dim))
            self.bases[number] = sp.vstack(rows, format="csr"), features.astype(np.float32)
        return self.bases[number]

    def section(self, number: int) -> dict[str, Any]:
        """What a reader and a backbone would give."""
        counts, features = self.base(number % BASES)
        rng = np.random.default_rng([2, number])
        order = rng.permutation(self.n)
        counts = counts[order]
        counts.data = rng.binomial(counts.data, rng.uniform(0.8, 1.0)).astype(np.int32)
        counts.eliminate_zeros()
        shift = rng.normal(0, 0.3, self.dim) + rng.standard_normal((self.n, self.dim), np.float32) * np.float32(0.3)
        side = int(np.ceil(np.sqrt(self.n)))
        rc = np.stack([np.arange(self.n) // side, np.arange(self.n) % side], 1)
        return {
            "name": f"S{number:04d}", "patient": f"P{number // SECTIONS_PER_PATIENT:04d}", "counts": counts, "rc": rc,
            "features": (features[order] + shift).astype(np.float32),
        }  # fmt: skip


def add(writer: Any, made: dict[str, Any]) -> float:
    """Adds a section and its embeddings as `build_bank` does; returns the seconds."""
    from genrag_cli.pipeline.anchors import summarise

    began = time.perf_counter()
    counts, rc = made["counts"], made["rc"]
    names, totals = np.array([f"{r}x{c}" for r, c in rc]), np.asarray(counts.sum(axis=1), float).ravel()
    writer.add_section(
        made["name"], names=names, counts=counts, totals=totals, centres=rc * 200.0, array_rc=rc,
        statistics=summarise(counts, totals, None),
        entry={
            "key": f"{made['name']:064}", "patient": made["patient"], "technology": "visium",
            "slide": f"cohort/wsis/{made['name']}.tif", "source": "cohort", "notes": [], "metadata": {},
            "pixel_size": {"mpp": 0.5, "source": "spot pitch", "others": [["aperio property", 0.5]]},
        },
    )  # fmt: skip
    blocks = (made["features"][low : low + 64] for low in range(0, len(names), 64))
    writer.add_embeddings(card(made["features"].shape[1]), made["name"], names, blocks, f"{made['name']:064}")
    return time.perf_counter() - began


def card(dim: int) -> Any:
    """Of the backbone that gave nothing."""
    from genrag_cli.types import BackboneCard

    return BackboneCard(BACKBONE, "1", dim, 224, "none")  # type: ignore[arg-type]


def add_sections(asked: argparse.Namespace) -> dict[str, Any]:
    """All sections, one by one."""
    from genrag_cli.errors import BankError
    from genrag_cli.stores.atomic import writer_lock
    from genrag_cli.stores.bank_writer import BankWriter

    folder, maker = asked.work / "bank.zarr", Maker(asked)
    with writer_lock(folder, BankError):
        writer = BankWriter(folder)
        genes = np.array([f"GENE{i}" for i in range(asked.genes)])
        ids = np.array([f"ENSG{i:011d}" for i in range(asked.genes)])
        geometry = {"crop": "fov", "fov_um": 110.0, "pitch_um": 100.0, "spot_um": 55.0}
        writer.create(genes=genes, gene_ids=ids, geometry=geometry, train=["made up"])
        taken, nonzero = [], 0
        for number in range(asked.sections):
            made = maker.section(number)
            taken.append(add(writer, made))
            nonzero += made["counts"].nnz
    part = max(1, min(10, asked.sections // 3))
    first, last = np.mean(taken[:part]), np.mean(taken[-part:])
    return measured(
        sum(taken), f"{first:.2f} s a section at the start, {last:.2f} at the end; "
        f"{nonzero / asked.spots:.0f} genes a spot",
    )  # fmt: skip


def add_version(asked: argparse.Namespace) -> dict[str, Any]:
    """The first version of all sections."""
    from genrag_cli.pipeline.anchors import AnchorOptions
    from genrag_cli.pipeline.derive import add_version as make
    from genrag_cli.stores.bank_writer import BankWriter
    from genrag_cli.types import Listener

    began, listener = time.perf_counter(), Listener()
    writer = BankWriter(asked.work / "bank.zarr")
    make(writer, BACKBONE, [s["name"] for s in writer.manifest["sections"]], AnchorOptions(), listener)
    return measured(time.perf_counter() - began, next(t for t in listener.messages if t.startswith("anchors")))


def weigh(asked: argparse.Namespace) -> dict[str, Any]:
    """Files and bytes."""
    folder, began = asked.work / "bank.zarr", time.perf_counter()
    files = [p for p in folder.rglob("*") if p.is_file()]
    size = {p.parent.name: 0 for p in files}
    for path in files:
        size[path.parent.name] += path.stat().st_size
    per_section = sum(path.name.startswith("S") for path in files) / asked.sections
    return measured(
        time.perf_counter() - began,
        f"{len(files)} files, {per_section:g} a section; {sum(size.values()) / 1e9:.2f} GB: counts "
        f"{size['sections'] / 1e9:.2f}, embeddings {size[BACKBONE] / 1e9:.2f}, version {size['derived'] / 1e6:.1f} MB, "
        f"manifest {(folder / 'manifest.json').stat().st_size / 1e6:.2f} MB",
    )


def open_bank(asked: argparse.Namespace) -> dict[str, Any]:
    """`Bank.open` in a fresh process, with the imports that it makes."""
    from genrag_cli.stores.bank import Bank

    began = time.perf_counter()
    bank = Bank.open(asked.work / "bank.zarr", BACKBONE)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    Bank.open(asked.work / "bank.zarr", BACKBONE)
    again = time.perf_counter() - began
    return measured(seconds, f"{bank.n_spots} spots; {again:.2f} s a second time")


def append(asked: argparse.Namespace) -> dict[str, Any]:
    """One more section, and the version with it."""
    from genrag_cli.errors import BankError
    from genrag_cli.pipeline.anchors import AnchorOptions
    from genrag_cli.pipeline.derive import add_version as make
    from genrag_cli.stores.atomic import writer_lock
    from genrag_cli.stores.bank_writer import BankWriter
    from genrag_cli.types import Listener

    made = Maker(asked).section(asked.sections)
    folder, began = asked.work / "bank.zarr", time.perf_counter()
    with writer_lock(folder, BankError):
        writer = BankWriter(folder)
        opened = time.perf_counter() - began
        added = add(writer, made)
        make(writer, BACKBONE, [s["name"] for s in writer.manifest["sections"]], AnchorOptions(), Listener())
    total = time.perf_counter() - began
    return measured(total, f"{opened:.2f} s to open, {added:.2f} to add, {total - opened - added:.1f} for the version")


def remove(asked: argparse.Namespace) -> dict[str, Any]:
    """One section out of the middle."""
    from genrag_cli.pipeline.change_bank import remove_sections
    from genrag_cli.stores.bank import Bank
    from genrag_cli.types import Listener

    began = time.perf_counter()
    remove_sections(asked.work / "bank.zarr", [f"S{asked.sections // 2:04d}"], Listener())
    seconds = time.perf_counter() - began
    bank = Bank.open(asked.work / "bank.zarr", BACKBONE)
    return measured(seconds, f"{bank.n_spots} spots left, version {bank.number}")


STAGES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "sections": add_sections,
    "version": add_version,
    "weigh": weigh,
    "open": open_bank,
    "append": append,
    "remove": remove,
}
LABELS = {
    "sections": "add the sections",
    "version": "make a version",
    "weigh": "on disk",
    "open": "open",
    "append": "append a section",
    "remove": "take a section out",
}

if __name__ == "__main__":
    main()
