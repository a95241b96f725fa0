"""Other solvers of the same elastic net, for `solver.py`: scikit-learn, celer, skglm, and FISTA as it was published.

Everybody minimises 1/2 |b - D a|^2 + l1 |a|_1 + l2/2 |a|^2 with the penalties given. The three packages take one query
at a time and stop on criteria of their own, each scaled differently, so the same tolerance does not mean the same gap:
here the loosest tolerance that reaches the asked gap is searched for, and the time at that tolerance alone is counted.
What a gap is, and how time and memory are measured, this module does not know: it is handed both.
"""

import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from meter import Measured
from numpy.typing import NDArray

Floats = NDArray[Any]
Fit = Callable[[Floats, float], Floats]
"""Query (m,) and tolerance to weights (N,)."""
GapsOf = Callable[[Floats, Floats], Floats]
"""Rows of queries (q, m) and of weights (q, N) to relative gaps (q,)."""
TOLERANCES = tuple(10.0**-k for k in range(1, 11))
MOST_SWEEPS = 20_000
"""Of scikit-learn's coordinate descent; raw embeddings need hundreds, its own default of 1,000 stops short."""
REPEATS = 3
POWER_STEPS = 30
PUBLISHED_ITERATIONS, PUBLISHED_EVERY, PUBLISHED_CHANGE = 2000, 25, 1e-4


@dataclass(frozen=True)
class Problem:
    """One dictionary with its penalties.

    Args:
        atoms: (N, m) float32, one row per bank spot: an array, or for our own solver a store that is read by slices.
        l1: weight of |a|_1.
        l2: weight of |a|^2 / 2.
        nonnegative: a >= 0, or signed.
    """

    atoms: Any
    l1: float
    l2: float
    nonnegative: bool


Measure = Callable[[Callable[[], Any]], Measured]


@dataclass(frozen=True)
class Found:
    """What a rival reached on the first `len(gaps)` queries.

    Args:
        tolerance: the one that it was run at; None where it has a rule of its own.
        gaps: relative, recomputed.
        seconds: per query.
        n_active: per query.
        passes: looks at the whole bank, where that is defined.
        peak_mb: largest memory above what was there before it started.
    """

    tolerance: float | None
    gaps: list[float]
    seconds: list[float]
    n_active: list[int]
    passes: float | None
    peak_mb: float | None


def prepare_sklearn(problem: Problem, dtype: str) -> Fit:
    """scikit-learn's ElasticNet: cyclic coordinate descent; tolerance times |b|^2 bounds the gap."""
    from sklearn.linear_model import ElasticNet

    own = {"max_iter": MOST_SWEEPS, "copy_X": False}
    return one_by_one(lambda tol: ElasticNet(tol=tol, **own, **penalties(problem)), problem, dtype)


def prepare_celer(problem: Problem, dtype: str) -> Fit:
    """celer's ElasticNet: working sets and dual extrapolation; tolerance times |b|^2 bounds the gap."""
    from celer import ElasticNet

    return one_by_one(lambda tol: ElasticNet(tol=tol, **penalties(problem)), problem, dtype)


def prepare_skglm(problem: Problem, dtype: str) -> Fit:
    """skglm's ElasticNet: working sets and Anderson acceleration.

    Its tolerance bounds the violation of the optimality conditions, in the units of l1 / m: it is given as a share of
    that, else no fixed list of tolerances would fit both raw and standardised spaces.
    """
    from skglm import ElasticNet

    unit = problem.l1 / problem.atoms.shape[1]
    return one_by_one(lambda tol: ElasticNet(tol=tol * unit, **penalties(problem)), problem, dtype)


PREPARE: dict[str, Callable[[Problem, str], Fit]] = {
    "sklearn": prepare_sklearn,
    "celer": prepare_celer,
    "skglm": prepare_skglm,
}
PACKAGES = {"sklearn": "scikit-learn", "celer": "celer", "skglm": "skglm"}
NAMES = (*PREPARE, "published")


def is_installed(name: str) -> bool:
    """Whether a rival can be run here."""
    return name == "published" or importlib.util.find_spec(name) is not None


def describe(name: str) -> str:
    """Name and version."""
    return f"{name} {version(PACKAGES[name])}" if name in PACKAGES else "FISTA as published"


def penalties(problem: Problem) -> dict[str, Any]:
    """The same penalties in the parameters that all three packages share: their loss is divided by the rows m."""
    total = problem.l1 + problem.l2
    return {
        "alpha": total / problem.atoms.shape[1], "l1_ratio": problem.l1 / total, "fit_intercept": False,
        "positive": problem.nonnegative,
    }  # fmt: skip


def one_by_one(make: Callable[[float], Any], problem: Problem, dtype: str) -> Fit:
    """A fit from an estimator; the dictionary is brought into the layout that the packages want once, untimed."""
    # Rows of spots seen as columns are Fortran-ordered, which is what coordinate descent reads without a copy.
    matrix = problem.atoms.astype(dtype).T

    def fit(query: Floats, tolerance: float) -> Floats:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "did not converge": the gap is recomputed and printed
            return np.ravel(make(tolerance).fit(matrix, query.astype(dtype)).coef_)

    return fit


def warm_up(name: str, problem: Problem, queries: Floats, dtype: str) -> None:
    """Imports and compiles: one query on a corner of the bank, so that neither counts as the rival's time or memory."""
    corner = Problem(problem.atoms[:500], problem.l1, problem.l2, problem.nonnegative)
    if name in PREPARE:
        PREPARE[name](corner, dtype)(queries[0], 1e-4)
    else:
        published_fista(corner, queries[:1])


def run_one_by_one(
    name: str, problem: Problem, queries: Floats, asked: list[float], dtype: str, patience: float,
    measure: Measure, gaps_of: GapsOf,
) -> list[Found]:  # fmt: skip
    """What a package needs for each asked gap.

    Args:
        name: a key of `PREPARE`.
        problem: dictionary and penalties.
        queries: (q, m) float32.
        asked: relative gaps, loosest first.
        dtype: what the package computes in.
        patience: seconds per asked gap. Past them no tighter tolerance is tried, no query beyond the second is run, and
            nothing is timed again.
        measure: runs a piece of work.
        gaps_of: recomputes gaps.

    Returns:
        One for each asked gap: at the loosest tolerance at which all queries reach it, else where they come closest.
        Seconds are each query's best of three.
    """
    fit = PREPARE[name](problem, dtype)
    known: dict[tuple[float, int], tuple[float, float, int, float | None]] = {}
    spent = 0.0

    def run(tolerance: float, i: int) -> float:
        nonlocal spent
        if (tolerance, i) not in known:
            done = measure(lambda: fit(queries[i], tolerance))
            spent += done.seconds
            gap = float(gaps_of(queries[i : i + 1], done.result[None])[0])
            known[tolerance, i] = gap, done.seconds, int(np.count_nonzero(done.result)), done.peak_mb
        return known[tolerance, i][0]

    def again(tolerance: float, i: int) -> None:
        nonlocal spent
        done, (gap, seconds, active, peak) = measure(lambda: fit(queries[i], tolerance)), known[tolerance, i]
        spent += done.seconds
        known[tolerance, i] = gap, min(seconds, done.seconds), active, peak

    def is_enough(n: int) -> bool:
        return n == len(queries) or (n >= 2 and spent > patience)

    def reaches(tolerance: float, gap: float) -> bool:
        n = 0
        while not is_enough(n):
            # The first query that misses the gap settles it: a tolerance that is too loose costs one query, not all.
            if run(tolerance, n) > gap:
                return False
            n += 1
        return True

    def closest() -> float:
        worst = {t: max(k[0] for (other, _), k in known.items() if other == t) for t, _ in known}
        return min(worst, key=worst.__getitem__)

    found = []
    for gap in asked:
        spent, tolerance = 0.0, None
        for candidate in (t for t in TOLERANCES if t > np.finfo(dtype).eps):
            if reaches(candidate, gap):
                tolerance = candidate
                break
            if spent > patience:
                break
        if tolerance is None:
            tolerance = closest()
            why = f"did not reach {gap:g}{' in time' if spent > patience else ''}, closest at tolerance {tolerance:g}"
            print(f"  {name} {dtype} {why}", file=sys.stderr, flush=True)
            n = 0
            while not is_enough(n):
                run(tolerance, n)
                n += 1
        chosen = sorted(key for key in known if key[0] == tolerance)
        for _, i in chosen * (REPEATS - 1):
            if spent <= patience:
                again(tolerance, i)
        of_queries = [known[key] for key in chosen]
        gaps, seconds, active, peaks = map(list, zip(*of_queries, strict=True))
        peak = None if None in peaks else max(peaks)
        found.append(Found(tolerance, gaps, seconds, active, None, peak))
    return found


def run_published(problem: Problem, queries: Floats, patience: float, measure: Measure, gaps_of: GapsOf) -> Found:
    """FISTA as published, all queries in one batch: its stopping rule is its own, whatever gap is asked.

    Best of three as long as another run would end within `patience` seconds in all.
    """
    runs = [measure(lambda: published_fista(problem, queries))]
    while len(runs) < REPEATS and sum(run.seconds for run in runs) + runs[-1].seconds <= patience:
        runs.append(measure(lambda: published_fista(problem, queries)))
    done = min(runs, key=lambda run: run.seconds)
    codes, iterations = done.result
    passes = 2.0 * iterations + 2.0 * POWER_STEPS / len(queries)
    return Found(
        None, gaps_of(queries, codes).tolist(), [done.seconds / len(queries)] * len(queries),
        np.count_nonzero(codes, axis=1).tolist(), passes, done.peak_mb,
    )  # fmt: skip


def published_fista(problem: Problem, queries: Floats) -> tuple[Floats, int]:
    """Dense accelerated proximal gradient in float32 from zero, without restart.

    The step is 1/(L + l2), L = |D|^2 by 30 power iterations. Every 25th iteration it stops if no weight of any query of
    the batch has just moved by 1e-4 of the batch's largest weight, and at 2,000 in any case. An iteration looks at the
    bank twice: D a, and D' of the residual.

    Returns:
        Weights (q, N) and the number of iterations.
    """
    import torch

    atoms, b = torch.from_numpy(problem.atoms), torch.from_numpy(np.ascontiguousarray(queries))
    direction = torch.randn(atoms.shape[1], generator=torch.Generator().manual_seed(0))
    largest = torch.tensor(0.0)
    for _ in range(POWER_STEPS):
        image = (atoms @ direction) @ atoms
        largest = image.norm() / direction.norm()
        direction = image / image.norm()
    step = 1.0 / (float(largest) + problem.l2)
    shrink, a, t = step * problem.l1, torch.zeros(len(b), len(atoms)), 1.0
    ahead = a
    iteration = 0
    while iteration < PUBLISHED_ITERATIONS:
        slope = torch.addmm(problem.l2 * ahead, ahead @ atoms - b, atoms.T)
        moved = ahead - step * slope
        new = (moved - shrink).clamp_(min=0) if problem.nonnegative else moved.sign() * (moved.abs() - shrink).clamp(0)
        change = new - a
        longer = (1.0 + (1.0 + 4.0 * t * t) ** 0.5) / 2.0
        ahead = new + ((t - 1.0) / longer) * change
        a, t, iteration = new, longer, iteration + 1
        if iteration % PUBLISHED_EVERY == 0 and change.abs().max() < PUBLISHED_CHANGE * new.abs().max():
            break
    return a.numpy(), iteration
