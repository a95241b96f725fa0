#!/usr/bin/env python3
"""Is the solver right on a GPU, and how fast? One call; needs torch and numpy alone.

    PYTHONPATH=. python tests/benchmarks/gpu_check.py [--bank 13000] [--queries 300] [--json FILE]

Correctness: codes from the GPU are certified on the CPU in float64 by the definition, and compared with the CPU's.
Timing: the same problem on CPU and GPU in the same run, after a warm-up, with the device's name and the ratio.
Without a GPU it says so and checks the CPU against float64 only.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from genrag_cli.retrieval import solve

PARTS = 40


def make_problem(n_bank: int, n_queries: int, m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Spots as noisy mixtures of a few tissue parts, standardised rows: what a prepared bank looks like."""
    rng = np.random.default_rng(seed)
    parts = rng.normal(size=(PARTS, m)) / np.sqrt(np.arange(1, PARTS + 1))[:, None]
    rows = [rng.gamma(0.3, 1, (n, PARTS)) @ parts + 0.3 * rng.normal(size=(n, m)) for n in (n_bank, n_queries)]
    mean, sd = rows[0].mean(0), rows[0].std(0)
    bank, queries = (((r - mean) / sd / np.sqrt(m)).astype(np.float32).T for r in rows)
    return np.ascontiguousarray(bank), np.ascontiguousarray(queries)


def gaps_by_definition(
    dictionary: np.ndarray, queries: np.ndarray, codes: np.ndarray, l1: float, l2: float
) -> np.ndarray:
    """Relative duality gap of non-negative codes (n, N) in float64: the Fenchel-Young sum of the definitions."""
    d, b, a = dictionary.astype(np.float64), queries.T.astype(np.float64), codes.astype(np.float64)
    r = b - a @ d.T
    c = r @ d
    gap = (l1 * a + l2 * a**2 / 2 + np.maximum(c - l1, 0) ** 2 / (2 * l2) - a * c).sum(1)
    primal = (r**2).sum(1) / 2 + l1 * a.sum(1) + l2 * (a**2).sum(1) / 2
    return gap / primal


def timed(dictionary: torch.Tensor, queries: torch.Tensor, **options: object) -> tuple[object, float]:
    """Codes and seconds."""
    if dictionary.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    codes = solve(dictionary, queries, **options)
    if dictionary.is_cuda:
        torch.cuda.synchronize()
    return codes, time.perf_counter() - start


def main() -> None:
    """Prints a table and, with --json, writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=int, default=13_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--rows", type=int, default=1586)
    parser.add_argument("--gap", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    dictionary, queries = make_problem(args.bank, args.queries, args.rows, args.seed)
    l1 = 0.2 * float(np.median((dictionary.T @ queries).max(0)))
    options = {"l1": l1, "l2": l1 / 9, "gap": args.gap}
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    cpu = platform.processor() or platform.machine()
    print(f"machine: {cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"device: {torch.cuda.get_device_name() if len(devices) > 1 else 'no GPU: CPU only'}")
    print(f"problem: N {args.bank}, m {args.rows}, Q {args.queries}, gap {args.gap:g}, seed {args.seed}")
    results: dict[str, dict[str, float]] = {}
    kept: dict[str, np.ndarray] = {}
    for device in devices:
        d, q = torch.from_numpy(dictionary).to(device), torch.from_numpy(queries).to(device)
        timed(d, q[:, :8], **options)
        codes, seconds = timed(d, q, **options)
        kept[device] = codes.dense()
        by_definition = gaps_by_definition(dictionary, queries, kept[device], l1, l1 / 9)
        results[device] = {
            "seconds": seconds,
            "worst_reported_gap": float(codes.gap.max()),
            "worst_gap_by_definition": float(by_definition.max()),
            "stalled": int((codes.status != "solved").sum()),
            "median_references": float(np.median(codes.n_active)),
            "median_passes": float(np.median(codes.passes)),
        }
        print(device, " ".join(f"{k}={v:.3g}" for k, v in results[device].items()))
    if "cuda" in kept:
        bank = dictionary.astype(np.float64)
        apart = np.linalg.norm((kept["cuda"] - kept["cpu"]) @ bank.T, axis=1) / np.linalg.norm(
            kept["cpu"] @ bank.T, axis=1
        )
        ratio = results["cpu"]["seconds"] / results["cuda"]["seconds"]
        print(
            f"reconstructions of CPU and GPU differ by {apart.max():.2e} at most; the GPU is {ratio:.1f} times as fast"
        )
    wrong = [d for d, r in results.items() if r["stalled"] or r["worst_reported_gap"] > args.gap]
    print("FAILED: " + ", ".join(wrong) if wrong else "all queries certified")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
