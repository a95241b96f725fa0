#!/usr/bin/env python3
"""Are solver and encoders right on a GPU, and how fast? One call of about 8 minutes; needs torch, numpy and timm.

    PYTHONPATH=. python tests/benchmarks/gpu_check.py [--problem FILE ...] [--seconds 480] [--json FILE]

First right, then fast. Right: over each problem (npz files from `solver.py --npz`, or a made-up one), both signs, the
weights of the CPU, of the GPU, and of the GPU with passes in float32 and in bfloat16 are certified on the CPU in
float64 by the definition, and compared with the CPU's: reconstructions, and supports, to `APART` and `FAINT`. Fast: the
same problems, then made-up ones on the device, up to a million spots and 50,000 queries. A cell that does not fit into
memory, or into what is left of --seconds, is left out with a word. A dense pass is one product D'R over all spots and
queries, in float32 without TF32 and in bfloat16. Gaps of large cells are recomputed for some of the queries.

Encoders: UNI at full size on random weights, against float64 on the CPU (`encoders_on_gpu.py`).

Without a GPU it says so, and checks the CPU alone, on small problems, with both precisions of passes.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoders_on_gpu import check_encoders
from gaps import Codes, relative_gaps
from setting import describe_machine, format_table
from torch import Tensor

from genrag_cli.retrieval import prepare, solve
from genrag_cli.retrieval.atoms import HeldAtoms
from genrag_cli.retrieval.memory import chunk_for
from genrag_cli.retrieval.pools import engine
from genrag_cli.retrieval.scan import Precision, Scan
from genrag_cli.types import SparseCodes

D, K, OMEGA, PROGRAMS, CLUSTERS, SECTION = 1024, 300, 0.75, 30, 12, 340
"""Made-up problems: embedding and anchors (m = 1,324), weight of embeddings, what varies, spots of a section."""
RHO = 0.25
APART = 1e-4
"""How far reconstructions may be apart, relative to their size."""
FAINT = 1e-3
"""Share of a query's largest weight below which an atom may be missing from the other's support."""
SIZES = [(13_000, 300), (61_000, 1_418), (200_000, 1_000), (1_000_000, 1_000), (1_000_000, 50_000)]
SMALL_SIZES = [(2_000, 64), (4_000, 64)]
CHECKED = 128
"""Queries of a timed cell whose gaps are recomputed."""
ROWS, QUERIES = 16_384, 8_192
"""Bank spots and queries of one block of a dense pass."""


@dataclass(frozen=True)
class Problem:
    """Rows of the dictionary (N, m) and of queries (Q, m), float32, on any device, with penalties."""

    name: str
    atoms: Tensor
    queries: Tensor
    l1: float
    l2: float

    def to(self, device: torch.device) -> "Problem":
        """The same elsewhere."""
        return replace(self, atoms=self.atoms.to(device), queries=self.queries.to(device))

    def gaps(self, codes: SparseCodes, some: slice, nonnegative: bool) -> np.ndarray:
        """By the definition, on the CPU."""
        low, high = some.indices(len(codes))[:2]
        found = Codes(codes.indptr[low : high + 1], codes.indices, codes.weights)
        atoms, queries = self.atoms.cpu().numpy(), self.queries[some].cpu().numpy()
        return relative_gaps(atoms, queries, found, self.l1, self.l2, nonnegative)


def main() -> None:
    """Prints one table of checks and one of times; fails where a check does."""
    began = time.perf_counter()
    asked = read_arguments()
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = {
        "machine": f"{describe_machine()}, {torch.get_num_threads()} threads", "cpu_engine": engine("cpu"),
        "device": torch.cuda.get_device_name() if on_gpu(device) else None, "cuda": torch.version.cuda,
    }  # fmt: skip
    print(f"machine: {where['machine']}, pools on CPUs by {where['cpu_engine']}")
    print(f"device: {where['device'] or 'no GPU here: the CPU alone is checked, on small problems'}", flush=True)
    checks: list[dict[str, Any]] = []
    given, sizes = [load(path) for path in asked.problem], SIZES if on_gpu(device) else SMALL_SIZES
    for problem in given or [make(*sizes[0], torch.device("cpu"))]:
        for nonnegative in (True, False):
            checks += check(problem, nonnegative, device, asked.gap)
    show(checks)
    encoders = check_encoders(device)
    show(encoders)
    clock, times = Clock(began + asked.seconds), []
    for problem in given:
        times += clock.run(len(problem.atoms), len(problem.queries), lambda p=problem: p.to(device), asked.gap, device)
    for n, q in sizes:
        times += clock.run(n, q, lambda n=n, q=q: make(n, q, device), asked.gap, device)
    show(times)
    right = all(line.get("right", True) for line in checks + encoders + times)
    print(f"{'all right' if right else 'FAILED'}; {time.perf_counter() - began:.0f} s")
    if asked.json:
        asked.json.write_text(
            json.dumps({**where, "right": right, "checks": checks, "encoders": encoders, "times": times}, indent=1)
        )
    sys.exit(not right)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", type=Path, nargs="+", action="extend", default=[], help="npz of solver.py --npz")
    parser.add_argument("--gap", type=float, default=1e-4)
    parser.add_argument("--seconds", type=float, default=480.0, help="of the whole call")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def load(path: Path) -> Problem:
    """A problem in a file."""
    with np.load(path) as file:
        atoms, queries = (torch.from_numpy(np.ascontiguousarray(file[k].T)) for k in ("dictionary", "queries"))
        return Problem(path.stem, atoms, queries, float(file["l1"]), float(file["l2"]))


def make(n: int, q: int, device: torch.device, seed: int = 0) -> Problem:
    """Makes standardised spots after the pattern of the shared problems, on any device.

    Embeddings follow 30 programs of expression, straight and bent, with an offset per section and noise of a power-law
    spectrum. Anchors follow the same programs, and those of queries are less noisy, as guesses are.
    """
    rng = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, device=device)

    centres = normal(CLUSTERS, PROGRAMS)
    linear = normal(PROGRAMS, D) * torch.arange(1, PROGRAMS + 1, device=device)[:, None] ** -0.5
    bent, anchors = normal(PROGRAMS, D), normal(PROGRAMS, K)
    spectrum = torch.arange(1, D + 1, device=device) ** -0.5
    noise = torch.linalg.qr(normal(D, D)).Q * (spectrum / spectrum.square().sum().sqrt() * D**0.5)[:, None]
    linear *= (D / linear.square().sum()) ** 0.5
    bent *= (D / bent.square().sum()) ** 0.5

    def fill(out: Tensor, guessed: float) -> None:
        for low in range(0, len(out), ROWS):
            rows = out[low : low + ROWS]
            which = torch.randint(CLUSTERS, (len(rows),), generator=rng, device=device)
            programs = 0.7 * centres[which] + 0.7 * normal(len(rows), PROGRAMS)
            f = 0.45 * programs @ linear + 0.3 * torch.tanh(programs) @ bent + 0.5 * normal(len(rows), D) @ noise
            offset = 0.3 * normal(-(-len(rows) // SECTION), D) @ noise
            rows[:, :D] = f + offset.repeat_interleave(SECTION, 0)[: len(rows)]
            rows[:, D:] = programs @ anchors / PROGRAMS**0.5 + guessed * normal(len(rows), K)

    atoms, queries = (torch.empty(k, D + K, device=device) for k in (n, q))
    fill(atoms, 0.8)
    fill(queries, 0.1)
    scale = torch.tensor([OMEGA / D] * D + [(1 - OMEGA) / K] * K, device=device).sqrt()
    mean, scale = atoms.mean(0), scale / atoms[:100_000].std(0)
    atoms.sub_(mean).mul_(scale)
    queries.sub_(mean).mul_(scale)
    some = queries[: min(q, 256)]
    top = torch.stack([(some @ atoms[low : low + ROWS].T).amax(1) for low in range(0, n, ROWS)]).amax(0)
    l1 = RHO * float(top.median())
    return Problem("made up", atoms, queries, l1, l1 / 9)


def check(problem: Problem, nonnegative: bool, device: torch.device, gap: float) -> Iterator[dict[str, Any]]:
    """Is every way to an answer right, and the same as the CPU's?"""
    ways: list[tuple[str, torch.device, Precision | None]] = [("CPU", torch.device("cpu"), None)]
    ways += [(device.type.upper(), device, None)] if on_gpu(device) else []
    ways += [(f"{device.type.upper()}, {p} passes", device, p) for p in ("float32", "bfloat16")]
    atoms, first = problem.atoms.double().numpy(), None
    for way, place, precision in ways:
        scan = Scan(HeldAtoms(problem.atoms.to(place)), precision)
        codes = solve(scan, problem.queries.T.to(place), l1=problem.l1, l2=problem.l2, nonnegative=nonnegative, gap=gap)
        worst = float(problem.gaps(codes, slice(None), nonnegative).max())
        weights = codes.dense().astype(np.float64)
        first = weights if first is None else first
        apart = np.linalg.norm((weights - first) @ atoms, axis=1) / np.linalg.norm(first @ atoms, axis=1).clip(1e-30)
        missing = lost(first, weights) + lost(weights, first)
        stalled = int((codes.status != "solved").sum())
        yield {
            "problem": problem.name, "N": len(atoms), "Q": len(codes), "signed": not nonnegative, "way": way,
            "gap asked": gap, "worst gap": worst, "worst gap reported": float(codes.gap.max()), "stalled": stalled,
            "reconstructions apart": float(apart.max()), "atoms missing": missing,
            "supports that differ": int(((weights != 0) != (first != 0)).any(1).sum()),
            "right": worst <= gap and not stalled and float(apart.max()) <= APART and missing == 0,
        }  # fmt: skip


def lost(weights: np.ndarray, other: np.ndarray) -> int:
    """Atoms with more than a faint weight that the other support lacks."""
    large = np.abs(weights) > FAINT * np.abs(weights).max(1, keepdims=True)
    return int((large & (other == 0)).sum())


class Clock:
    """Times cells as long as there is time, and memory for them."""

    def __init__(self, end: float) -> None:
        self.end = end
        self.per_spot = self.per_pair = np.inf

    def run(
        self, n: int, q: int, make_problem: Callable[[], Problem], gap: float, device: torch.device
    ) -> list[dict[str, Any]]:
        """One cell, or why not."""
        began, head = time.perf_counter(), {"problem": "", "N": n, "Q": q}
        if on_gpu(device):
            # Rows in float32 and bfloat16, queries several times over, room to work.
            needed, free = 6 * n * (D + K) + 40 * q * (D + K) + (3 << 30), torch.cuda.mem_get_info()[0]
            if needed > free:
                return [{**head, "left out": f"needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB free"}]
        # What the cheapest cell so far took per spot and per pair; small cells are mostly overhead, so this is high.
        seconds = self.per_spot * n + self.per_pair * n * q if np.isfinite(self.per_spot) else 10.0
        if (left := self.end - began) < seconds:
            return [{**head, "left out": f"needs about {seconds:.0f} s, {left:.0f} s left"}]
        line = {**head, **measure(make_problem(), gap, device, self.end)}
        if on_gpu(device):
            torch.cuda.empty_cache()
        each = (4 * (line["pass float32, ms"] + line["pass bfloat16, ms"]) + line["solve, ms"]) / 1e3
        rest = time.perf_counter() - began - each - (line["runs"] - 1) * line["solve, ms"] / 1e3
        self.per_spot, self.per_pair = min(self.per_spot, max(rest, 0) / n), min(self.per_pair, each / (n * q))
        return [line]


def measure(problem: Problem, gap: float, device: torch.device, end: float) -> dict[str, Any]:
    """Dense passes, then `prepare` and `solve`, each at its best of up to three."""
    atoms, queries = problem.atoms, problem.queries
    passes = {p: dense_pass_ms(atoms, queries, p) for p in (torch.float32, torch.bfloat16)}
    options = {"l1": problem.l1, "l2": problem.l2, "gap": gap}
    solve(prepare(atoms[:4096].T), queries[:64].T, **options)
    before = 0
    if on_gpu(device):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    taken: list[tuple[float, float]] = []
    while len(taken) < 3 and (not taken or time.perf_counter() + 2 * sum(taken[-1]) < end - 20):
        scan, prepared = timed(lambda: prepare(atoms.T), device)
        chunk = min(chunk_for(scan.atoms), len(queries))
        codes, solved = timed(lambda scan=scan: solve(scan, queries.T, **options), device)
        taken.append((prepared, solved))
        del scan
    prepared, solved = map(min, zip(*taken, strict=True))
    peak = (torch.cuda.max_memory_allocated() - before) / 1e9 if on_gpu(device) else None
    worst = float(problem.gaps(codes, slice(0, CHECKED), True).max())
    single, half = passes[torch.float32], passes[torch.bfloat16]
    stalled, total = int((codes.status != "solved").sum()), 1e3 * (prepared + solved)
    return {
        "problem": problem.name, "pass float32, ms": single, "pass bfloat16, ms": half, "prepare, ms": 1e3 * prepared,
        "solve, ms": 1e3 * solved, "ms / query": 1e3 * solved / len(codes), "time / float32 pass": total / single,
        "time / bfloat16 pass": total / half, "passes": float(codes.passes.mean()),
        "most passes": float(codes.passes.max()), "active": float(np.median(codes.n_active)),
        "worst gap": worst, "worst gap reported": float(codes.gap.max()), "stalled": stalled,
        "problem, GB": before / 1e9 if peak is not None else None, "peak above it, GB": peak, "chunk": chunk,
        "out of memory": torch.cuda.memory_stats().get("num_ooms", 0) if on_gpu(device) else 0,
        "runs": len(taken), "right": worst <= gap and not stalled,
    }  # fmt: skip


def on_gpu(device: torch.device) -> bool:
    """Whether memory and clocks are a card's."""
    return device.type == "cuda"


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What came out, and seconds until the device is done."""
    if on_gpu(device):
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if on_gpu(device):
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def dense_pass_ms(atoms: Tensor, queries: Tensor, dtype: torch.dtype) -> float:
    """One product of all spots with all queries, block by block, nothing kept; best of three after a warm-up."""
    rows, rest = atoms.to(dtype), queries.to(dtype).T

    def product() -> None:
        for first in range(0, rest.shape[1], QUERIES):
            for low in range(0, len(rows), ROWS):
                rows[low : low + ROWS] @ rest[:, first : first + QUERIES]

    return 1e3 * min([timed(product, atoms.device)[1] for _ in range(4)][1:])


def show(lines: list[dict[str, Any]]) -> None:
    """A table."""
    columns = list(dict.fromkeys(key for line in lines for key in line))

    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else "-" if value is None else str(value)

    print("\n" + format_table(columns, [[cell(line.get(c)) for c in columns] for line in lines]) + "\n", flush=True)


if __name__ == "__main__":
    main()
