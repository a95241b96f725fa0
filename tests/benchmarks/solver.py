"""The solver on realistic problems: looks at the bank, seconds, gap by definition, memory, and other solvers beside it.

    python tests/benchmarks/solver.py [--n 13000] [--variant std raw l2] [--gaps 1e-4 1e-6] [--queries 256] [--json]
    python tests/benchmarks/solver.py --stream --n 1000000 --variant std [--scratch FOLDER --keep]

Problems come from `tools/solver_problems.py` of the shared data (real anchor genes, made-up embeddings), or --problem.
All queries of a cell share one strength: l1 = rho times the median over queries of max_j D_j'b, l2 = l1 / 9.

Seconds are the best of three after a warm-up. `time / pass` divides the time of a query by its share of one dense
product D'R over the whole bank in float32, measured just before and after: what a look at the bank costs at the least
here. Gaps are recomputed in float64 from the weights by the definition, in code that shares nothing with the solver.
Memory is the resident high-water mark above the problem itself.

With --stream, and from 500,000 spots on in any case, the bank stays on disk (Zarr, 8,192 spots a chunk, not compressed)
and the seconds are those of `prepare` and `solve` together, reading included. The dense pass is then the product of one
chunk in memory times the number of chunks; `pass from disk` reads the chunks as the solver does: mapped, or through
zarr (--reader), whose copies cost more than the product. What the system keeps of the files in memory counts as
nobody's, but for what is mapped.

Rivals see a few of the same queries: scikit-learn, celer and skglm one by one, each at the loosest tolerance of
1e-1 ... 1e-10 with which all of these reach the asked gap, in float32 where that suffices; published FISTA as one
batch, with a rule of its own. `times ours` is their time per query over ours, whose queries are solved together. A
rival's `stalled` counts queries above the gap.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import problems
import rivals
import torch
from gaps import Codes, relative_gaps
from meter import Meter, best_ms, highest, load_average
from numpy.typing import NDArray
from rivals import Found, Problem
from setting import describe_machine, format_table

from genrag_cli.retrieval import StreamedAtoms, prepare, solve
from genrag_cli.types import SparseCodes

RHO = {"raw": 0.2, "l2": 0.1, "std": 0.25}
"""Strengths that give about 50 references."""
L1_RATIO = 0.9
PASS_REPEATS, DISK_REPEATS = 5, 1
COLUMN_BLOCK = 4096
LARGEST_OUTPUT = 2**26
"""Numbers of a dense pass's result that are kept at once (256 MB)."""
ALWAYS_STREAMED = 500_000
"""Bank spots from which on a problem is not held in memory."""


@dataclass(frozen=True)
class Cell:
    """One problem: where it is from, the dictionary with its penalties, and queries (q, m)."""

    variant: str
    seed: int | None
    rho: float | None
    problem: Problem
    queries: NDArray[np.float32]

    @property
    def streamed(self) -> bool:
        """Whether the dictionary stays on disk."""
        return not isinstance(self.problem.atoms, np.ndarray)

    def facts(self) -> dict[str, Any]:
        """What identifies it, for JSON."""
        n, m = self.problem.atoms.shape
        return {
            "n": n, "m": m, "variant": self.variant, "signed": not self.problem.nonnegative, "seed": self.seed,
            "rho": self.rho, "l1": self.problem.l1, "l2": self.problem.l2, "streamed": self.streamed,
        }  # fmt: skip


@dataclass(frozen=True)
class Pass:
    """Milliseconds of one dense product: the product alone, and with reading where the dictionary is on disk."""

    alone: float
    from_disk: float | None = None


def main() -> None:
    """Runs every cell and prints one table, or one JSON object per solver and asked gap as they come."""
    asked = read_arguments()
    where = {"machine": describe_machine(), "date": datetime.now(UTC).date().isoformat()}
    head = f"machine: {where['machine']}, load {load_average()}\ndate: {where['date']}"
    print(head, file=sys.stderr if asked.json else sys.stdout, flush=True)
    lines: list[dict[str, Any]] = []
    for variant, n in [(asked.problem.stem, 0)] if asked.problem else [(v, n) for n in asked.n for v in asked.variant]:
        for line in run_source(variant, n, asked):
            lines.append(line)
            if asked.json:
                print(json.dumps({**where, "load": load_average(), **line}), flush=True)
    if lines and not asked.json:
        print(f"load at the end: {load_average()}")
        if any(line["solver"] not in OURS for line in lines):
            print(f"rivals: on {asked.rival_queries} of {asked.queries} queries")
        print()
        print(as_table(lines))


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", action="extend", help="bank spots; several make several cells")
    parser.add_argument("--variant", choices=sorted(RHO), nargs="+", action="extend", help="spaces; default all")
    parser.add_argument("--signs", choices=("nonnegative", "signed", "both"), default="nonnegative")
    parser.add_argument("--signed", dest="signs", action="store_const", const="signed", help="same as --signs signed")
    parser.add_argument("--gaps", type=float, nargs="+", default=[1e-4, 1e-6])
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--rival-queries", type=int, default=8)
    parser.add_argument("--rivals", choices=rivals.NAMES, nargs="*", help="default: all; those not installed are named")
    parser.add_argument(
        "--rival-dtype", choices=("float32", "float64"), nargs="+", default=["float32", "float64"],
        help="in this order; the second only for gaps that the first does not reach",
    )  # fmt: skip
    parser.add_argument("--patience", type=float, default=300.0, help="seconds for a rival to find a gap's tolerance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rho", type=float, help=f"strength; default {RHO}")
    parser.add_argument("--problem", type=Path, help="npz with dictionary (m, N), queries (m, Q), perhaps l1 and l2")
    parser.add_argument("--npz", type=Path, help="write the (one) problem there and stop")
    parser.add_argument(
        "--stream", action="store_true", help=f"bank on disk; always so from N = {ALWAYS_STREAMED:,} on"
    )
    parser.add_argument("--scratch", type=Path, help="folder for banks on disk; one that is there and whole is reused")
    parser.add_argument(
        "--reader",
        choices=("mapped", "zarr"),
        default="mapped",
        help="chunks of banks on disk: mapped, or zarr's own way",
    )
    parser.add_argument("--keep", action="store_true", help="leave the banks that were made in --scratch")
    parser.add_argument("--json", action="store_true", help="one object per solver and gap, one per line")
    asked = parser.parse_args()
    asked.n, asked.variant = asked.n or [13_000], asked.variant or ["std", "raw", "l2"]
    asked.rivals, asked.gaps = rivals.NAMES if asked.rivals is None else asked.rivals, sorted(asked.gaps, reverse=True)
    asked.rival_queries = min(asked.rival_queries, asked.queries)
    if asked.npz and not asked.problem and len(asked.n) * len(asked.variant) > 1:
        parser.error("--npz writes one problem: give one --n and one --variant")
    if (asked.problem or asked.npz) and (asked.stream or max(asked.n) >= ALWAYS_STREAMED):
        parser.error("--problem and --npz are for banks in memory")
    if asked.keep and not asked.scratch:
        parser.error("--keep needs --scratch")
    if not asked.problem and not problems.TOOL.exists():
        parser.error(f"{problems.TOOL} is not there: give a problem with --problem")
    return asked


def say(text: str) -> None:
    """Talk goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def run_source(variant: str, n: int, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Makes or reads a problem and runs it; it is let go before the next one is made."""
    if asked.stream or n >= ALWAYS_STREAMED:
        mapped = asked.reader == "mapped"
        with problems.stored(n, variant, asked.seed, asked.scratch, asked.keep, mapped) as (bank, queries):
            for line in run_problem(variant, bank, queries, {}, asked):
                yield {**line, "reader": asked.reader}
        return
    kept = problems.load(asked.problem) if asked.problem else problems.make(n, variant, asked.seed)
    # Rows of spots, as the pipeline holds a bank; the solver is given its transpose, which costs no copy.
    atoms = np.ascontiguousarray(kept.pop("dictionary").T, dtype=np.float32)
    yield from run_problem(variant, atoms, kept.pop("queries").T, kept, asked)


def run_problem(
    variant: str, atoms: Any, queries: NDArray[Any], given: dict[str, Any], asked: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Runs one dictionary (N, m) with queries (Q, m), for both signs where both are asked for."""
    if len(queries) < asked.queries:
        sys.exit(f"--queries {asked.queries}: the problem has {len(queries)}")
    queries = np.ascontiguousarray(queries[: asked.queries], dtype=np.float32)
    if "l1" in given and not asked.rho:
        rho, l1, l2 = None, float(given["l1"]), float(given["l2"])
    else:
        rho = asked.rho or RHO.get(variant)
        if rho is None:
            sys.exit(f"{asked.problem} has no l1: give --rho")
        l1 = rho * float(np.median(largest_products(atoms, queries)))
        l2 = l1 * (1 - L1_RATIO) / L1_RATIO
    if asked.npz:
        np.savez(asked.npz, dictionary=atoms.T, queries=queries.T, l1=l1, l2=l2)
        say(f"wrote {asked.npz}: dictionary {atoms.T.shape}, queries {queries.T.shape}, l1 {l1:.6g}, l2 {l2:.6g}")
        return
    for nonnegative in {"nonnegative": [True], "signed": [False], "both": [True, False]}[asked.signs]:
        problem = Problem(atoms, l1, l2, nonnegative)
        yield from run_cell(Cell(variant, None if asked.problem else asked.seed, rho, problem, queries), asked)


def largest_products(atoms: Any, queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """max_j D_j'b of every query, from the same products wherever the dictionary is."""
    best = np.full(len(queries), -np.inf, np.float32)
    for low in range(0, atoms.shape[0], problems.ROWS):
        best = np.maximum(best, (atoms[low : low + problems.ROWS] @ queries.T).max(0))
    return best


def ours(problem: Problem, queries: NDArray[np.float32], gap: float) -> SparseCodes:
    """The front door, over a dictionary in memory or on disk."""
    bank = problem.atoms.T if isinstance(problem.atoms, np.ndarray) else prepare(as_read(problem.atoms))
    return solve(bank, queries.T, l1=problem.l1, l2=problem.l2, nonnegative=problem.nonnegative, gap=gap)


def as_read(bank: Any) -> StreamedAtoms:
    """A dictionary (N, m) on disk."""
    return StreamedAtoms(*bank.shape, lambda low, high: bank[low:high], block=problems.ROWS)


OURS: dict[str, Callable[[Problem, NDArray[np.float32], float], SparseCodes]] = {"generag": ours}


def run_cell(cell: Cell, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Our solver at every asked gap, then the rivals one after the other."""
    say(f"{cell.facts()}")
    per_query: dict[float, float] = {}
    pass_ms = np.inf
    for name, solver in OURS.items():
        solver(cell.problem, cell.queries[:8], asked.gaps[0])
        for gap in asked.gaps:
            line = run_ours(cell, name, solver, gap)
            per_query.setdefault(gap, line["ms_per_query"])
            pass_ms = min(pass_ms, line["dense_pass_ms"])
            yield line
    if cell.streamed and asked.rivals:
        say("  rivals need the dictionary in memory: none is run")
    for name in [] if cell.streamed else asked.rivals:
        if not rivals.is_installed(name):
            say(f"  {name}: not installed")
            yield {**cell.facts(), "solver": name, "missing": True}
            continue
        for gap, (dtype, found) in run_rival(cell, name, asked).items():
            yield rival_line(cell, name, dtype, gap, found, pass_ms, per_query[gap])


def run_rival(cell: Cell, name: str, asked: argparse.Namespace) -> dict[float, tuple[str, Found]]:
    """What a rival reached for each asked gap, and in what precision: a later one is tried where an earlier misses."""
    queries, missed = cell.queries[: asked.rival_queries], asked.gaps
    best: dict[float, tuple[str, Found]] = {}
    for dtype in ["float32"] if name == "published" else asked.rival_dtype:
        if not missed:
            break
        rivals.warm_up(name, cell.problem, queries, dtype)
        measure = Meter()
        if name == "published":  # its own rule decides when it stops: one run serves every asked gap
            found = [rivals.run_published(cell.problem, queries, asked.patience, measure, gaps_in(cell))] * len(missed)
        else:
            found = rivals.run_one_by_one(
                name, cell.problem, queries, missed, dtype, asked.patience, measure, gaps_in(cell)
            )
        for gap, one in zip(missed, found, strict=True):
            if gap not in best or max(one.gaps) < max(best[gap][1].gaps):
                best[gap] = dtype, one
        missed = [gap for gap in missed if max(best[gap][1].gaps) > gap]
    return best


def run_ours(cell: Cell, name: str, solver: Callable[..., SparseCodes], gap: float) -> dict[str, Any]:
    """Our solver on all queries: best of three, between two measurements of a dense pass."""
    looks = [dense_pass(cell)]
    measure = Meter()
    runs = [measure(lambda: solver(cell.problem, cell.queries, gap)) for _ in range(rivals.REPEATS)]
    looks.append(dense_pass(cell))
    passes_ms, from_disk = [look.alone for look in looks], [look.from_disk for look in looks]
    disk_ms = min(from_disk) if cell.streamed else None
    codes: SparseCodes = runs[-1].result
    problem, found = cell.problem, Codes(codes.indptr, codes.indices, codes.weights)
    gaps = relative_gaps(problem.atoms, cell.queries, found, problem.l1, problem.l2, problem.nonnegative)
    best = min(run.seconds for run in runs)
    say(f"  {name} {gap:g}: {best:.2f} s, pass {min(passes_ms):.0f} ms, worst gap {gaps.max():.2e}")
    return {
        **cell.facts(), "solver": name, "dtype": "float32", "gap_asked": gap, "tolerance": None,
        "queries": len(codes), "passes_mean": float(codes.passes.mean()), "passes_worst": float(codes.passes.max()),
        "seconds": best, "seconds_all": [run.seconds for run in runs], "dense_pass_ms": min(passes_ms),
        "dense_pass_ms_all": passes_ms, "time_over_pass": best * 1e3 / min(passes_ms),
        "pass_from_disk_ms": disk_ms, "time_over_pass_from_disk": None if disk_ms is None else best * 1e3 / disk_ms,
        "resident_before_mb": None if measure.before is None else measure.before / 1e6,
        "ms_per_query": best * 1e3 / len(codes), "worst_gap": float(gaps.max()), "median_gap": float(np.median(gaps)),
        "worst_gap_reported": float(codes.gap.max()), "median_active": float(np.median(codes.n_active)),
        "stalled": int((codes.status != "solved").sum()), "above_gap": int((gaps > gap).sum()),
        "peak_mb": highest([run.peak_mb for run in runs]), "times_ours": 1.0,
    }  # fmt: skip


def rival_line(
    cell: Cell, name: str, dtype: str, gap: float, found: Found, pass_ms: float, our_ms: float
) -> dict[str, Any]:
    """A rival's line. It reports no stalls of its own here: stalled are the queries above the asked gap."""
    n, ms = len(found.gaps), 1e3 * float(np.mean(found.seconds))
    say(f"  {name} {dtype} {gap:g}: {ms:.1f} ms a query, worst gap {max(found.gaps):.2e}, {ms / our_ms:.0f} times ours")
    above = sum(g > gap for g in found.gaps)
    return {
        **cell.facts(), "solver": rivals.describe(name), "dtype": dtype, "gap_asked": gap, "tolerance": found.tolerance,
        "queries": n, "passes_mean": found.passes, "passes_worst": found.passes, "seconds": sum(found.seconds),
        "seconds_all": [sum(found.seconds)], "dense_pass_ms": pass_ms,
        "time_over_pass": ms * len(cell.queries) / pass_ms, "ms_per_query": ms, "worst_gap": max(found.gaps),
        "median_gap": float(np.median(found.gaps)), "median_active": float(np.median(found.n_active)),
        "stalled": above, "above_gap": above, "peak_mb": found.peak_mb, "times_ours": ms / our_ms,
    }  # fmt: skip


def dense_pass(cell: Cell) -> Pass:
    """One product D'R in float32 over all spots and queries, best of five after a warm-up."""
    if cell.streamed:
        return dense_pass_from_disk(cell)
    atoms, rest = torch.from_numpy(cell.problem.atoms), torch.from_numpy(np.ascontiguousarray(cell.queries.T))
    n, q = len(atoms), rest.shape[1]
    block = n if n * q <= LARGEST_OUTPUT else COLUMN_BLOCK
    out = torch.empty(block, q)

    def product() -> None:
        for low in range(0, n, block):
            part = atoms[low : low + block]
            torch.mm(part, rest, out=out[: len(part)])

    return Pass(best_ms(product, PASS_REPEATS, warm=True))


def dense_pass_from_disk(cell: Cell) -> Pass:
    """The same where the spots are on disk: one chunk's product times the chunks, and all of it with reading."""
    bank, rest = cell.problem.atoms, torch.from_numpy(np.ascontiguousarray(cell.queries.T))
    first = torch.from_numpy(bank[: problems.ROWS])
    out = torch.empty(len(first), rest.shape[1])

    def all_of_it() -> None:
        for _, part in as_read(bank).blocks(problems.ROWS):
            torch.mm(part, rest, out=out[: len(part)])

    alone = best_ms(lambda: torch.mm(first, rest, out=out), PASS_REPEATS, warm=True) * bank.shape[0] / len(first)
    return Pass(alone, best_ms(all_of_it, DISK_REPEATS, warm=False))


def gaps_in(cell: Cell) -> Callable[[Any, Any], NDArray[np.float64]]:
    """Gaps of dense rows of weights, of any of the queries."""
    p = cell.problem
    return lambda queries, weights: relative_gaps(p.atoms, queries, Codes.of_dense(weights), p.l1, p.l2, p.nonnegative)


def as_table(lines: list[dict[str, Any]]) -> str:
    """All lines as one Markdown table."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "N": lambda x: f"{x['n']}",
        "space": lambda x: x["variant"] + (", signed" if x["signed"] else ""),
        "solver": lambda x: x["solver"] + (" " + x["dtype"] if x.get("tolerance") else ""),
        "gap asked": lambda x: f"{x['gap_asked']:g}",
        "tolerance": lambda x: f"{x['tolerance']:g}" if x["tolerance"] else "-",
        "queries": lambda x: f"{x['queries']}",
        "passes": lambda x: "-" if x["passes_mean"] is None else f"{x['passes_mean']:.2f} ({x['passes_worst']:.2f})",
        "s": lambda x: f"{x['seconds']:.3g}",
        "pass, ms": lambda x: f"{x['dense_pass_ms']:.1f}",
        "pass from disk, ms": lambda x: f"{x['pass_from_disk_ms']:.0f}" if x.get("pass_from_disk_ms") else "-",
        "time / pass": lambda x: f"{x['time_over_pass']:.3g}",
        "ms / query": lambda x: f"{x['ms_per_query']:.3g}",
        "worst gap": lambda x: f"{x['worst_gap']:.1e}",
        "active": lambda x: f"{x['median_active']:g}",
        "stalled": lambda x: f"{x['stalled']}",
        "peak MB": lambda x: "n/a" if x["peak_mb"] is None else f"{x['peak_mb']:.0f}",
        "times ours": lambda x: f"{x['times_ours']:.3g}",
    }
    if not any(x.get("pass_from_disk_ms") for x in lines):
        del columns["pass from disk, ms"]
    rows = [
        [columns[c](x) for c in columns]
        if not x.get("missing")
        else [columns["N"](x), columns["space"](x), f"{x['solver']}: not installed", *["-"] * (len(columns) - 3)]
        for x in lines
    ]
    return format_table(list(columns), rows)


if __name__ == "__main__":
    main()
