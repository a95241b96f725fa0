"""The solver on realistic problems: looks at the bank, seconds, gap by definition, memory, and other solvers beside it.

    python tests/benchmarks/solver.py [--n 13000] [--variant std raw l2] [--gaps 1e-4 1e-6] [--queries 256] [--json]

Problems come from `tools/solver_problems.py` of the shared data (real anchor genes, made-up embeddings), or --problem.
All queries of a cell share one strength: l1 = rho times the median over queries of max_j D_j'b, l2 = l1 / 9.

Seconds are the best of three after a warm-up. `time / pass` divides the time of a query by its share of one dense
product D'R over the whole bank in float32, measured just before and after: what a look at the bank costs at the least
here. Gaps are recomputed in float64 from the weights by the definition, in code that shares nothing with the solver.
Memory is the resident high-water mark above the problem itself.

Rivals see a few of the same queries: scikit-learn, celer and skglm one by one, each at the loosest tolerance of
1e-1 ... 1e-10 with which all of these reach the asked gap, in float32 where that suffices; published FISTA as one
batch, with a rule of its own. `times ours` is their time per query over ours, whose queries are solved together. A
rival's `stalled` counts queries above the gap.
"""

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import rivals
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from rivals import Found, Measured, Problem
from setting import REPOSITORY, describe_machine, format_table

from genrag_cli.retrieval import solve
from genrag_cli.types import SparseCodes

TOOL = REPOSITORY.parent / "shared" / "tools" / "solver_problems.py"
RHO = {"raw": 0.2, "l2": 0.1, "std": 0.25}
"""Strengths that give about 50 references."""
L1_RATIO = 0.9
PASS_REPEATS = 5
COLUMN_BLOCK, QUERY_BLOCK = 4096, 64
LARGEST_OUTPUT = 2**26
"""Numbers of a dense pass's result that are kept at once (256 MB)."""


@dataclass(frozen=True)
class Cell:
    """One problem: where it is from, the dictionary with its penalties, and queries (q, m)."""

    variant: str
    seed: int | None
    rho: float | None
    problem: Problem
    queries: NDArray[np.float32]

    def facts(self) -> dict[str, Any]:
        """What identifies it, for JSON."""
        n, m = self.problem.atoms.shape
        return {
            "n": n, "m": m, "variant": self.variant, "signed": not self.problem.nonnegative, "seed": self.seed,
            "rho": self.rho, "l1": self.problem.l1, "l2": self.problem.l2,
        }  # fmt: skip


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
        print(f"load at the end: {load_average()}\nrivals: on {asked.rival_queries} of {asked.queries} queries\n")
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
    parser.add_argument("--json", action="store_true", help="one object per solver and gap, one per line")
    asked = parser.parse_args()
    asked.n, asked.variant = asked.n or [13_000], asked.variant or ["std", "raw", "l2"]
    asked.rivals, asked.gaps = rivals.NAMES if asked.rivals is None else asked.rivals, sorted(asked.gaps, reverse=True)
    asked.rival_queries = min(asked.rival_queries, asked.queries)
    if asked.npz and not asked.problem and len(asked.n) * len(asked.variant) > 1:
        parser.error("--npz writes one problem: give one --n and one --variant")
    if not asked.problem and not TOOL.exists():
        parser.error(f"{TOOL} is not there: give a problem with --problem")
    return asked


def load_average() -> float | None:
    """How busy the machine is: a core that somebody else uses slows a dense pass and a solver by different factors."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def say(text: str) -> None:
    """Talk goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def run_source(variant: str, n: int, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Makes or reads a problem and runs it; it is let go before the next one is made."""
    kept = load(asked.problem) if asked.problem else make(n, variant, asked.seed)
    if kept["queries"].shape[1] < asked.queries:
        sys.exit(f"--queries {asked.queries}: the problem has {kept['queries'].shape[1]}")
    # Rows of spots, as the pipeline holds a bank; the solver is given its transpose, which costs no copy.
    atoms = np.ascontiguousarray(kept.pop("dictionary").T, dtype=np.float32)
    queries = np.ascontiguousarray(kept.pop("queries").T[: asked.queries], dtype=np.float32)
    if "l1" in kept and not asked.rho:
        rho, l1, l2 = None, float(kept["l1"]), float(kept["l2"])
    else:
        rho = asked.rho or RHO.get(variant)
        if rho is None:
            sys.exit(f"{asked.problem} has no l1: give --rho")
        l1 = rho * float(np.median((atoms @ queries.T).max(0)))
        l2 = l1 * (1 - L1_RATIO) / L1_RATIO
    if asked.npz:
        np.savez(asked.npz, dictionary=atoms.T, queries=queries.T, l1=l1, l2=l2)
        say(f"wrote {asked.npz}: dictionary {atoms.T.shape}, queries {queries.T.shape}, l1 {l1:.6g}, l2 {l2:.6g}")
        return
    for nonnegative in {"nonnegative": [True], "signed": [False], "both": [True, False]}[asked.signs]:
        problem = Problem(atoms, l1, l2, nonnegative)
        yield from run_cell(Cell(variant, None if asked.problem else asked.seed, rho, problem, queries), asked)


def make(n: int, variant: str, seed: int) -> dict[str, Any]:
    """A problem of the shared tool."""
    spec = importlib.util.spec_from_file_location("solver_problems", TOOL)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    dictionary, queries = tool.problem(n, variant, seed)
    return {"dictionary": dictionary, "queries": queries}


def load(path: Path) -> dict[str, Any]:
    """A problem written by --npz, or by the shared tool."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def ours(problem: Problem, queries: NDArray[np.float32], gap: float) -> SparseCodes:
    """The front door over a dictionary in memory."""
    return solve(
        problem.atoms.T, queries.T, l1=problem.l1, l2=problem.l2, nonnegative=problem.nonnegative, gap=gap
    )  # fmt: skip


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
    for name in asked.rivals:
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
    passes_ms = [dense_pass_ms(cell)]
    measure = Meter()
    runs = [measure(lambda: solver(cell.problem, cell.queries, gap)) for _ in range(rivals.REPEATS)]
    passes_ms.append(dense_pass_ms(cell))
    codes: SparseCodes = runs[-1].result
    weights = sp.csr_matrix((codes.weights, codes.indices, codes.indptr), (len(codes), codes.n_bank))
    gaps = gaps_by_definition(cell.problem, cell.queries, weights)
    best = min(run.seconds for run in runs)
    say(f"  {name} {gap:g}: {best:.2f} s, pass {min(passes_ms):.0f} ms, worst gap {gaps.max():.2e}")
    return {
        **cell.facts(), "solver": name, "dtype": "float32", "gap_asked": gap, "tolerance": None,
        "queries": len(codes), "passes_mean": float(codes.passes.mean()), "passes_worst": float(codes.passes.max()),
        "seconds": best, "seconds_all": [run.seconds for run in runs], "dense_pass_ms": min(passes_ms),
        "dense_pass_ms_all": passes_ms, "time_over_pass": best * 1e3 / min(passes_ms),
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


def dense_pass_ms(cell: Cell) -> float:
    """One product D'R in float32 over all spots and queries, best of five after a warm-up."""
    atoms, rest = torch.from_numpy(cell.problem.atoms), torch.from_numpy(np.ascontiguousarray(cell.queries.T))
    n, q = len(atoms), rest.shape[1]
    block = n if n * q <= LARGEST_OUTPUT else COLUMN_BLOCK
    out = torch.empty(block, q)
    taken = []
    for _ in range(PASS_REPEATS + 1):
        start = time.perf_counter()
        for low in range(0, n, block):
            part = atoms[low : low + block]
            torch.mm(part, rest, out=out[: len(part)])
        taken.append(time.perf_counter() - start)
    return 1e3 * min(taken[1:])


def gaps_in(cell: Cell) -> Callable[[Any, Any], NDArray[np.float64]]:
    """The check below for dense rows of weights."""
    return lambda queries, weights: gaps_by_definition(cell.problem, queries, sp.csr_matrix(weights))


def gaps_by_definition(problem: Problem, queries: NDArray[Any], weights: Any) -> NDArray[np.float64]:
    """Relative duality gap (P - best valid dual bound) / P of CSR weights (q, N), all in float64, block by block.

    With r = b - D a and c = D'r there are two bounds: the Fenchel-Young sum, and the dual value of s r for the best
    admissible scale s. The better one counts; where P is 0 the weights are 0 and the gap is 0.
    """
    found = []
    for first in range(0, len(queries), QUERY_BLOCK):
        b, a = queries[first : first + QUERY_BLOCK].astype(np.float64), weights[first : first + QUERY_BLOCK]
        a = a.astype(np.float64).tocsc()
        used = np.flatnonzero(np.diff(a.indptr))
        r = b - a[:, used] @ problem.atoms[used].astype(np.float64)
        excess, largest = np.zeros(len(b)), np.full(len(b), -np.inf)
        for low in range(0, len(problem.atoms), COLUMN_BLOCK):
            c = r @ problem.atoms[low : low + COLUMN_BLOCK].astype(np.float64).T
            inside = a[:, low : low + COLUMN_BLOCK].toarray()
            slack = c - problem.l2 * inside
            if not problem.nonnegative:
                c, slack = np.abs(c), np.abs(slack)
            excess += (np.maximum(c - problem.l1, 0) ** 2).sum(1)
            largest = np.maximum(largest, slack.max(1))
        residual, size = (r**2).sum(1), np.asarray(abs(a).sum(1)).ravel()
        square = np.asarray(a.multiply(a).sum(1)).ravel()
        primal = residual / 2 + problem.l1 * size + problem.l2 * square / 2
        gap = np.full(len(b), np.inf)
        if problem.l2 > 0:  # sum_j a_j c_j = (D a)'r
            gap = problem.l1 * size + problem.l2 * square / 2 + excess / (2 * problem.l2) - ((b - r) * r).sum(1)
        br, q = (b * r).sum(1), residual + problem.l2 * square
        with np.errstate(divide="ignore", invalid="ignore"):
            s = np.where(q > 0, np.clip(br / q, 0, np.where(largest > 0, problem.l1 / largest, np.inf)), 0)
            gap = np.minimum(gap, primal - (s * br - s**2 * q / 2))
            found.append(np.where(primal > 0, gap / primal, 0.0))
    return np.concatenate(found)


class Meter:
    """Times pieces of work, with the memory that they need above what was resident when the meter was made."""

    def __init__(self) -> None:
        self.before = reset_peak()

    def __call__(self, work: Callable[[], Any]) -> Measured:
        reset_peak(tidy=False)
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        return Measured(result, seconds, None if self.before is None else (resident("VmHWM") - self.before) / 1e6)


def reset_peak(tidy: bool = True) -> int | None:
    """Forgets the resident high-water mark and returns what is resident, None where the kernel does not say.

    `tidy` first gives freed memory back to the system; not right before timing, which would pay for it.
    """
    if tidy:
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return resident("VmRSS")
    except OSError:
        return None


def resident(what: str) -> int:
    """A size in bytes from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def highest(peaks: list[float | None]) -> float | None:
    """The largest, if all are known."""
    known = [p for p in peaks if p is not None]
    return max(known) if len(known) == len(peaks) else None


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
        "time / pass": lambda x: f"{x['time_over_pass']:.3g}",
        "ms / query": lambda x: f"{x['ms_per_query']:.3g}",
        "worst gap": lambda x: f"{x['worst_gap']:.1e}",
        "active": lambda x: f"{x['median_active']:g}",
        "stalled": lambda x: f"{x['stalled']}",
        "peak MB": lambda x: "n/a" if x["peak_mb"] is None else f"{x['peak_mb']:.0f}",
        "times ours": lambda x: f"{x['times_ours']:.3g}",
    }
    rows = [
        [columns[c](x) for c in columns]
        if not x.get("missing")
        else [columns["N"](x), columns["space"](x), f"{x['solver']}: not installed", *["-"] * (len(columns) - 3)]
        for x in lines
    ]
    return format_table(list(columns), rows)


if __name__ == "__main__":
    main()
