"""Seconds and peak memory of every stage of `retrieve`: a bank of 13,000 spots, 300 spots to predict, 5,000 genes.

    python tests/benchmarks/footprint.py [--work FOLDER] [--json FILE]

The bank is made once and kept in --work: real sections (her2st; made-up ones where there is no shared data), resampled
to the size asked for. Its counts are Poisson draws around a mix of two neighbouring spots, its embeddings the same mix
of theirs with a tenth of their spread as noise. The slide is a section that the bank does not hold. Every stage runs in
a process of its own, so that its peak is its own; what it needs from the stages before comes from files. Peaks hold
Python and the libraries, which the column `at start` shows together with the inputs.
"""

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from setting import HER2ST, describe_machine, format_table, slide_of

BACKBONE = "lite0"
SECTION_SPOTS = 500
HELD = "C3"
SHARES = (0.6, 0.4)
"""Of a spot itself and of its neighbour."""


def main() -> None:
    """Runs all stages one after the other and prints the table, or a single stage and its JSON."""
    asked = read_arguments()
    if asked.stage:
        print(json.dumps(STAGES[asked.stage](asked)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        asked.work = asked.work or Path(temporary)
        asked.work.mkdir(parents=True, exist_ok=True)
        print(f"machine: {describe_machine()}", flush=True)
        facts = run_stage("prepare", asked)
        print(
            f"bank: {facts['spots']} spots of {facts['sections']} sections, {facts['genes']} genes, "
            f"{facts['nonzero'] / 1e6:.0f} M counts, {facts['megabytes']} MB; backbone {BACKBONE}, d = {facts['dim']}; "
            f"{asked.queries} spots to predict; {facts['source']}\n",
            flush=True,
        )
        plan = [
            ("embed", "embed the spots", ""),
            ("open", "open the bank", ""),
            ("search", "search the strength (64 spots)", ""),
            ("solve", "solve", ""),
            ("weights", "retrieve, weights only, embedding the tissue sample", ""),
            *(("write", f"reconstruct and write {g} genes", g) for g in ("500", asked.genes, "all")),
            *(("retrieve", f"retrieve, {g} genes", g) for g in ("500", asked.genes, "all")),
            ("fresh", f"retrieve, {asked.genes} genes, embedding too", asked.genes),
        ]
        rows, results = [], []
        for stage, label, genes in plan:
            found = run_stage(stage, asked, genes)
            results.append({"stage": label, **found})
            rows.append((label, f"{found['seconds']:.1f}", f"{found['start']}", f"{found['peak']}", found["note"]))
            print(f"  {label}: {found['seconds']:.1f} s, {found['peak']} MB", file=sys.stderr, flush=True)
        print(format_table(("stage", "s", "MB at start", "MB at peak", ""), rows))
        print(
            f"\n`retrieve` without `embedding too` finds the embeddings of the {asked.queries} spots and of the "
            "tissue sample there."
        )
    if asked.json:
        asked.json.write_text(json.dumps({"machine": describe_machine(), "bank": facts, "stages": results}, indent=1))


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HER2ST, help="cohort to resample; made-up sections if not there")
    parser.add_argument("--work", type=Path, help="folder for the bank and the outputs; the bank is kept and reused")
    parser.add_argument("--bank", type=int, default=13_000, help="spots of the bank")
    parser.add_argument("--queries", type=int, default=300, help="spots to predict")
    parser.add_argument("--genes", default="5000", help="genes to write")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--stage", choices=sorted(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--write-genes", default="5000", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_stage(stage: str, asked: argparse.Namespace, genes: str = "") -> dict[str, Any]:
    """Runs this script anew for one stage. This process is small, so a child's peak is not this one's."""
    command = [
        sys.executable, __file__, "--stage", stage, "--data", asked.data, "--work", asked.work,
        "--bank", str(asked.bank), "--queries", str(asked.queries), "--write-genes", genes or asked.genes,
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(work: Callable[[], str]) -> dict[str, Any]:
    """Seconds of a piece of work, and the process's memory before it and at its peak (MB, 1e6 bytes)."""
    start, began = peak_mb(), time.perf_counter()
    note = work()
    return {"seconds": time.perf_counter() - began, "start": start, "peak": peak_mb(), "note": note}


def peak_mb() -> int:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def prepare(asked: argparse.Namespace) -> dict[str, Any]:

    from genrag_cli.backbones.registry import load_backbone
    from genrag_cli.cohorts import open_cohort
    from genrag_cli.pipeline.bank_options import BankOptions
    from genrag_cli.pipeline.build_bank import build_bank
    from genrag_cli.pipeline.cpus import allotted_cpus
    from genrag_cli.pipeline.options import RunOptions
    from genrag_cli.stores.bank import Bank
    from genrag_cli.synthetic import write_cohort
    from genrag_cli.types import Listener

    real = asked.data.is_dir()
    if not real and not (asked.work / "made-up").exists():
        write_cohort(asked.work / "made-up", n_genes=14_000)
    cohort = open_cohort(asked.data if real else asked.work / "made-up", patients="letter" if real else "prefix")
    held = cohort.section(HELD) if real else cohort.sections[-1]
    base, folder = asked.work / "base.zarr", bank_folder(asked)
    if not folder.exists():
        run = RunOptions(workers=allotted_cpus())
        build_bank([cohort], base, [load_backbone(BACKBONE)], BankOptions(exclude=(held.name,)), run, Listener())
        enlarge(Bank.open(base, BACKBONE), folder, asked.bank)
    slide = slide_of(held, asked.work / "slides") if real else held.slide
    (asked.work / "slide").write_text(str(slide))
    write_spots(asked, slide)
    bank = Bank.open(folder, BACKBONE)
    sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file()]
    return {
        "spots": bank.n_spots, "sections": len(bank.sections), "genes": len(bank.genes), "dim": bank.card.dim,
        "nonzero": int(sum(block[1].nnz for block in bank.count_blocks())), "megabytes": round(np.sum(sizes) / 1e6),
        "source": f"resampled from {'her2st' if real else 'made-up sections'} without {held.name}",
    }  # fmt: skip


def bank_folder(asked: argparse.Namespace) -> Path:
    """Where the bank is."""
    return Path(asked.work / f"bank-{asked.bank}.zarr")


def enlarge(base: Any, folder: Path, n_spots: int) -> None:
    import scipy.sparse as sp
    from scipy.spatial import cKDTree

    from genrag_cli.pipeline.anchors import AnchorOptions, summarise
    from genrag_cli.pipeline.derive import add_version
    from genrag_cli.stores.bank import SectionReader
    from genrag_cli.stores.bank_writer import BankWriter
    from genrag_cli.types import Listener

    random = np.random.default_rng(0)
    making = folder.with_name(f"making-{folder.name}")
    writer = BankWriter(making)
    if writer.is_new:
        writer.create(genes=base.genes, gene_ids=None, geometry=base.geometry, train=["resampled"])
    known = list(base.embeddings)
    names, left = [], n_spots
    while left:
        entry, values = base.sections[len(names) % len(base.sections)], known[len(names) % len(base.sections)]
        source = SectionReader.open(base.folder, entry)
        n, name = min(SECTION_SPOTS, left), f"{entry['name']}-{len(names)}"
        one = random.integers(len(source.names), size=n)
        two = cKDTree(source.centres).query(source.centres, k=2)[1][one, 1]
        counts = source.counts().astype(np.float64)
        mixed = sp.csr_matrix(SHARES[0] * counts[one] + SHARES[1] * counts[two])
        mixed.data = random.poisson(mixed.data)
        mixed.eliminate_zeros()
        features = SHARES[0] * values[one] + SHARES[1] * values[two]
        features += 0.1 * values.std(0) * random.standard_normal(features.shape)
        spots, totals = np.array([f"spot{i}" for i in range(n)]), np.asarray(mixed.sum(axis=1), float).ravel()
        writer.add_section(
            name, names=spots, counts=mixed.astype(np.int32), totals=totals, statistics=summarise(mixed, totals, None),
            centres=source.centres[one], array_rc=source.array_rc[one],
            entry={k: entry[k] for k in ("patient", "technology", "slide", "pixel_size")} | {"key": "resampled"},
        )  # fmt: skip
        writer.add_embeddings(base.card, name, spots, iter([features.astype(np.float32)]), "resampled")
        names.append(name)
        left -= n
    add_version(writer, BACKBONE, names, AnchorOptions(), Listener())
    making.rename(folder)


def write_spots(asked: argparse.Namespace, path: Path) -> None:
    """A CSV of as many spots as asked for, on tissue, as far apart as they fit."""
    from genrag_cli.slides import find_tissue, open_slide, plan_tiles, resolve_pixel_size

    with open_slide(path) as slide:
        size, _ = resolve_pixel_size(slide.pixel_size_candidates())
        tissue, pitch = find_tissue(slide, size), 250.0
        while True:
            grid = plan_tiles(slide, size, fov_um=200.0, pitch_um=pitch, tile_px=224, tissue=tissue)
            if len(grid) >= asked.queries:
                break
            pitch *= 0.95
    rows = [
        f"{name.replace(',', ' ')},{x:.2f},{y:.2f}"
        for name, (x, y) in zip(grid.names[: asked.queries], grid.centres[: asked.queries], strict=True)
    ]
    (asked.work / "spots.csv").write_text("\n".join(["name,x,y", *rows]) + "\n")


def slide_options(asked: argparse.Namespace) -> tuple[Path, Any]:
    """The slide and how it is read."""
    from genrag_cli.pipeline.options import SlideOptions

    return Path((asked.work / "slide").read_text()), SlideOptions(spots=str(asked.work / "spots.csv"))


def run_options() -> Any:
    """The CPUs given to the job."""
    import torch

    from genrag_cli.pipeline.cpus import allotted_cpus
    from genrag_cli.pipeline.options import RunOptions

    torch.set_num_threads(allotted_cpus())
    return RunOptions(workers=allotted_cpus())


def embed(asked: argparse.Namespace) -> dict[str, Any]:
    """The spots' tiles through lite0."""
    from genrag_cli.backbones.registry import load_backbone
    from genrag_cli.pipeline.batch.work import do_one
    from genrag_cli.pipeline.embed import Embedding
    from genrag_cli.stores.bank import Bank
    from genrag_cli.types import Listener

    bank, backbone, run = Bank.open(bank_folder(asked), BACKBONE), load_backbone(BACKBONE), run_options()
    slide, options = slide_options(asked)
    out = empty(asked.work / "out")
    found = measure(
        lambda: do_one(Embedding(backbone, out, options, bank.geometry, run), slide, Listener()) and "",
    )
    return {**found, "note": f"{asked.queries / found['seconds']:.1f} tiles/s on {run.workers} cores"}


def open_bank(asked: argparse.Namespace) -> dict[str, Any]:
    """Bank to dictionary; keeps the dictionary and the queries for the stages after it."""
    from genrag_cli.pipeline.options import SolveOptions
    from genrag_cli.pipeline.query_space import QuerySpace, SlideStatistics
    from genrag_cli.stores.bank import Bank
    from genrag_cli.stores.embeddings import read_embeddings
    from genrag_cli.types import Listener

    run = run_options()
    values = read_embeddings(next((asked.work / "out").glob("*.spots.zarr.zip"))).values
    kept: list[Any] = []

    def work() -> str:
        bank = Bank.open(bank_folder(asked), BACKBONE)
        space = stack.enter_context(QuerySpace.of(bank, SolveOptions(), run, Listener(), scratch=asked.work))
        kept.extend([bank, space])
        return f"dictionary {space.solver.scan.atoms.m} x {space.solver.scan.n}"

    with contextlib.ExitStack() as stack:
        found = measure(work)
        bank, space = kept
        statistics = SlideStatistics.of(values, bank)
        features, _ = space.features(values, statistics, None)
        queries = space.queries(features, space.guess(values, statistics, None))
        np.savez(asked.work / "space.npz", rows=space.solver.scan.atoms.rows.numpy(), queries=queries)
    return found


def load_space(asked: argparse.Namespace) -> tuple[Any, Any]:
    """The dictionary's rows and the queries that `open_bank` kept."""
    with np.load(asked.work / "space.npz") as source:
        return source["rows"], source["queries"]


def search(asked: argparse.Namespace) -> dict[str, Any]:
    """The strength that gives 50 references."""
    from genrag_cli.pipeline.query_space import SEARCH_QUERIES
    from genrag_cli.retrieval import prepare
    from genrag_cli.retrieval.strength import find_strength

    run_options()
    rows, queries = load_space(asked)

    def work() -> str:
        found = find_strength(prepare(rows.T), queries[:SEARCH_QUERIES].T, active=50)
        (asked.work / "strength.json").write_text(json.dumps([found.rule.l1, found.rule.l2, found.rule.power]))
        return f"{found.median_active:g} references in the median"

    return measure(work)


def solve_all(asked: argparse.Namespace) -> dict[str, Any]:
    """All queries to a gap of 1e-4."""
    from genrag_cli.retrieval import solve
    from genrag_cli.retrieval.strength import StrengthRule

    run_options()
    rows, queries = load_space(asked)
    l1, l2 = StrengthRule(*json.loads((asked.work / "strength.json").read_text())).of(queries.T)

    def work() -> str:
        codes = solve(rows.T, queries.T, l1=l1, l2=l2, nonnegative=True, gap=1e-4)
        return (
            f"{codes.n_active.mean():.1f} references in the mean, {np.median(codes.passes):g} passes in the median, "
            f"worst gap {codes.gap.max():.1e}, {int((codes.status != 'solved').sum())} stalled"
        )

    return measure(work)


def retrieve(asked: argparse.Namespace, name: str = "retrieved", fresh: bool = False, values: bool = True) -> Any:
    """`generag retrieve` from slide to file."""
    from genrag_cli.backbones.registry import load_backbone
    from genrag_cli.pipeline.batch.work import do_one
    from genrag_cli.pipeline.loading import Loaded
    from genrag_cli.pipeline.options import SolveOptions
    from genrag_cli.pipeline.query_space import QuerySpace
    from genrag_cli.pipeline.retrieve import Retrieval
    from genrag_cli.stores.bank import Bank
    from genrag_cli.types import Listener

    run, backbone = run_options(), load_backbone(BACKBONE)
    slide, options = slide_options(asked)
    out = empty(asked.work / "fresh") if fresh else asked.work / "out"
    target = out / f"{name}.h5ad"
    target.unlink(missing_ok=True)

    def work() -> str:
        bank = Bank.open(bank_folder(asked), BACKBONE)
        with QuerySpace.of(bank, SolveOptions(), run, Listener(), scratch=out) as space:
            work = Retrieval(
                bank, space, Loaded(backbone), target, options, SolveOptions(), run, asked.write_genes, values
            )
            path, done = do_one(work, slide, Listener())
        said, size = done.facts, path.stat().st_size / 1e6
        return (
            f"{said['median_references']:g} references in the median, {said['stalled']} stalled; file of {size:.0f} MB"
        )

    return measure(work)


def write(asked: argparse.Namespace) -> dict[str, Any]:
    """Expression from stored weights, as the end of `retrieve` does it."""
    from genrag_cli.pipeline.export import export_expression
    from genrag_cli.types import Listener

    run_options()

    def work() -> str:
        target = asked.work / "out" / "exported.h5ad"
        export_expression(
            asked.work / "out" / "weights.h5ad", target, asked.write_genes, None, overwrite=True, listener=Listener()
        )
        return f"file of {target.stat().st_size / 1e6:.0f} MB"

    return measure(work)


def empty(folder: Path) -> Path:
    """A folder without files of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files_of(folder):
        file.unlink()
    return folder


def files_of(folder: Path) -> Iterator[Path]:
    """The files of a folder."""
    return (path for path in folder.iterdir() if path.is_file())


STAGES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "prepare": prepare,
    "embed": embed,
    "open": open_bank,
    "search": search,
    "solve": solve_all,
    "weights": lambda asked: retrieve(asked, "weights", values=False),
    "write": write,
    "retrieve": retrieve,
    "fresh": lambda asked: retrieve(asked, fresh=True),
}

if __name__ == "__main__":
    main()
