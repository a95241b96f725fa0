"""Finding the strength at which queries use a wanted number of references.

One l1 for all queries of a slide keeps supports the most even (measured in the solver study; a fraction of each query's
own maximum is the worst rule). This module does not choose which queries stand for a slide; its caller does.
"""

from dataclasses import dataclass

import numpy as np
import torch

from genrag_cli.errors import UsageError
from genrag_cli.retrieval.objective import Strength, strongest_useful_l1
from genrag_cli.retrieval.solve import solve
from genrag_cli.types import Floats, SparseCodes

SEARCH_GAP = 1e-3
SEARCH_STEPS = 16
WEAKEST = 1e-5
"""Share of the largest useful l1 below which the search gives up: the bank has no more references to offer."""


@dataclass(frozen=True)
class FoundStrength:
    """A strength, and the median number of references that it gave on the queries of the search."""

    strength: Strength
    median_active: float
    n_queries: int
    reached: bool
    """False where no strength gives as many; then the weakest one tried is returned."""


def find_strength(
    dictionary: Floats, queries: Floats, *, active: int, l1_ratio: float = 0.9, nonnegative: bool = True
) -> FoundStrength:
    """Searches log l1 for a median of `active` references over the queries, each step warm-started from the last.

    Args:
        dictionary: D (m, N).
        queries: (m, n), the queries that stand for a slide.
        active: wanted median number of references.
        l1_ratio: l1 / (l1 + l2), kept fixed.
        nonnegative: one-sided problem.
    """
    if active < 1:
        raise UsageError(f"--active {active} asked; at least 1 is possible")
    if not 0 < l1_ratio <= 1:
        raise UsageError(f"l1_ratio {l1_ratio} asked; 0 < l1_ratio <= 1 is possible when --active decides")
    correlations = torch.as_tensor(queries).T @ torch.as_tensor(dictionary)
    top = float(strongest_useful_l1(correlations, nonnegative).median())
    codes: SparseCodes | None = None

    def median_at(l1: float) -> float:
        nonlocal codes
        codes = solve(
            dictionary, queries, l1=l1, l2=l1 * (1 - l1_ratio) / l1_ratio, nonnegative=nonnegative, gap=SEARCH_GAP,
            start=codes, max_iter=2000,
        )  # fmt: skip
        return float(np.median(codes.n_active))

    def found(l1: float, median: float, reached: bool) -> FoundStrength:
        ridge = l1 * (1 - l1_ratio) / l1_ratio
        return FoundStrength(Strength(l1, ridge, len(dictionary)), median, queries.shape[1], reached)

    if top <= 0:
        return found(1.0, 0.0, False)
    strong, weak = top, top * 0.2
    n_weak = median_at(weak)
    while n_weak < active and weak > WEAKEST * top:
        strong, weak = weak, weak / 2
        n_weak = median_at(weak)
    if n_weak < active:
        return found(weak, n_weak, False)
    best = (weak, n_weak)
    for _ in range(SEARCH_STEPS):
        if abs(best[1] - active) <= max(0.5, 0.02 * active):
            break
        middle = float(np.sqrt(strong * weak))
        n_middle = median_at(middle)
        if abs(n_middle - active) < abs(best[1] - active):
            best = (middle, n_middle)
        if n_middle >= active:
            weak = middle
        else:
            strong = middle
    return found(*best, True)
