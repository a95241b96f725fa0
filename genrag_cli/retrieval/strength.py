"""Strengths for queries: the same for all or by size, the one that gives a wanted number of references, and paths.

A query's penalties are a scale times |b|^power. Power 0 is one strength for all. With power 1/2, supports are even in
every space that was measured (within 35 to 65 for 95 % of fresh queries at a median of 50, where powers 0 and 1 leave
up to 10 % outside, and a fraction of each query's own maximum 35 %). This module does not choose which queries stand
for a slide.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrag_cli.errors import SolverError, UsageError
from genrag_cli.retrieval.dictionary import ROWS_AT_ONCE
from genrag_cli.retrieval.problem import Batch
from genrag_cli.retrieval.scan import Scan
from genrag_cli.retrieval.solve import solve
from genrag_cli.retrieval.working_set import solve_working_set
from genrag_cli.types import Floats, SparseCodes

EVEN = 0.5
"""The power that keeps supports even."""
WEAKEST = 1e-4
"""Share of the largest useful l1 below which a search gives up: the bank has no more references to offer."""
GROWTH = 0.13
"""Supports grow with about N^.13 at one strength (solver study: 32 to 59 from 1,600 to 200,000 spots)."""
FEW = 48
"""Queries with which the sub-bank, and the bank at first, are asked."""
SUB_STEPS, STEPS = 8, 8
"""Strengths tried on the sub-bank with few queries, and on the bank with all of them, at most; two are the rule."""
NEAR_ENOUGH = 0.04
"""Miss, in logs, that a line makes up for."""
SLOPE, SLOPES, NEAR = -0.8, (-2.0, -0.25), 0.7
"""Of log count over log strength: before anything is known, its bounds, and how near the goal it is measured."""
MIDDLE = (0.4, 0.45, 0.5, 0.55, 0.6)
"""Quantiles whose mean stands for the median: counts are whole numbers, and a search needs to see halves."""
FAR, ROUNDS = 0.2, 20
"""Miss, in logs, of certified counts of some queries from which on all are counted so; rounds that a count may take."""
COLD = 2
"""Passes after which a count that had no weights to begin from is near enough; one is, from weights nearby."""
Found = tuple[Tensor, Tensor]
"""Atoms (q, p) and weights (q, p)."""


@dataclass(frozen=True)
class StrengthRule:
    """Penalties of a query b: `l1` x |b|^`power` and `l2` x |b|^`power`.

    Raises:
        UsageError: for values out of range.
    """

    l1: float
    l2: float
    power: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.l1 < np.inf and 0 <= self.l2 < np.inf and 0 <= self.power <= 1):
            raise UsageError(
                f"l1 {self.l1:g}, l2 {self.l2:g}, power {self.power:g} asked; l1, l2 >= 0 and power 0..1 are possible"
            )

    def scaled(self, factor: float) -> "StrengthRule":
        """The same shape, stronger or weaker."""
        return StrengthRule(self.l1 * factor, self.l2 * factor, self.power)

    def of(self, queries: Floats) -> tuple[Floats, Floats]:
        """l1 (n,) and l2 (n,) of queries (m, n)."""
        size = np.empty(queries.shape[1])
        for low in range(0, len(size), ROWS_AT_ONCE):
            part = slice(low, low + ROWS_AT_ONCE)
            size[part] = np.linalg.norm(np.asarray(queries[:, part], np.float64), axis=0)
        size **= self.power
        return np.asarray(self.l1 * size, np.float32), np.asarray(self.l2 * size, np.float32)


@dataclass(frozen=True)
class FoundStrength:
    """A rule, and the median number of references that it gave on the queries of the search."""

    rule: StrengthRule
    median_active: float
    n_queries: int
    reached: bool
    """False where no strength gives as many; then the weakest one tried is returned."""
    passes: float
    """What the search cost: passes over the bank, summed over queries."""


def find_strength(
    scan: Scan, queries: Floats, *, active: int, l1_ratio: float = 0.9, nonnegative: bool = True, power: float = EVEN
) -> FoundStrength:
    """Searches the scale for a median of `active` references over the queries.

    A sub-bank and few queries say where to look, few queries how the bank differs from it; then all queries count,
    twice as a rule, the second time from the weights of the first. Counts come from pools without a certificate; where
    a few queries with one are far from what was expected, the search goes on with certified counts.

    Args:
        scan: the bank, from `prepare`.
        queries: (m, n), the queries that stand for a slide.
        active: wanted median number of references.
        l1_ratio: l1 / (l1 + l2), kept fixed.
        nonnegative: one-sided problem.
        power: of the rule.
    """
    if active < 1:
        raise UsageError(f"--active {active} asked; at least 1 is possible")
    if not 0 < l1_ratio <= 1:
        raise UsageError(f"l1_ratio {l1_ratio} asked; 0 < l1_ratio <= 1 is possible when --active decides")
    ratio = (1 - l1_ratio) / l1_ratio
    rule = StrengthRule(1.0, ratio, power)
    rows = torch.as_tensor(np.ascontiguousarray(np.asarray(queries, np.float32).T)).to(scan.atoms.device)
    if not len(rows):
        return FoundStrength(rule, 0.0, 0, False, 0.0)
    few = rows[: min(FEW, len(rows))]
    sizes = torch.as_tensor(rule.of(queries)[0]).to(rows.device)
    top = _largest(scan, few, sizes[: len(few)], nonnegative)
    if top <= 0:
        return FoundStrength(rule, 0.0, len(rows), False, 0.0)
    search, cost = _Search(top), 0.0

    def count(where: Scan, b: Tensor, start: Found | None, *, certified: bool = False) -> tuple[float, Found]:
        nonlocal cost
        l1 = search.scale * sizes[: len(b)]
        warm = start is not None and len(start[0]) == len(b)
        rounds = ROUNDS if certified else 1 if warm else COLD
        found = solve_working_set(
            where, Batch(b, l1, l1 * ratio, nonnegative), gap=1e-3, max_rounds=rounds, start=start if warm else None,
            certified=certified,
        )  # fmt: skip
        cost += float(found.passes.double().sum()) * where.n / scan.n
        kept = (found.index, found.weights)
        return _middle(kept), kept

    if scan.n > scan.sub.n:
        where, goal, start = Scan(scan.sub, scan.precision), active * (scan.sub.n / scan.n) ** GROWTH, None
        for _ in range(SUB_STEPS):
            n_active, start = count(where, few, start)
            if search.learn(n_active, goal):
                break
        search = _Search(top, search.scale, search.slope)
        search.learn(count(scan, few, None)[0], active)
        search = _Search(top, search.scale, search.slope)
    start = None
    for step in range(STEPS):
        n_active, start = count(scan, rows, start)
        # A cold count is a little low, so a warm one follows it in any case; the last line is better than its points.
        if (search.learn(n_active, active) or abs(np.log(max(n_active, 0.5) / active)) < NEAR_ENOUGH) and step:
            break
    assert start is not None
    # Where counts fall steeply the last line leads astray: some of the queries, with a certificate, say whether it did.
    some = slice((len(few) + 1) // 2)
    seen = (start[0][some], start[1][some])
    if not search.agrees(count(scan, few[some], seen, certified=True)[0], active * _middle(seen) / max(n_active, 0.5)):
        search, start = _Search(top, search.scale, search.slope), None
        for _ in range(STEPS):
            n_active, start = count(scan, rows, start, certified=True)
            if search.learn(n_active, active) or abs(np.log(max(n_active, 0.5) / active)) < NEAR_ENOUGH:
                break
    reached = search.scale > WEAKEST * top * 1.01 or n_active >= active - search.close(active)
    return FoundStrength(rule.scaled(search.scale), n_active, len(rows), reached, cost)


def _middle(found: Found) -> float:
    """The middle of the queries' numbers of references."""
    counts = (found[1] != 0).sum(1).double()
    return float(counts.quantile(counts.new_tensor(MIDDLE)).mean())


class _Search:
    """The next scale to try, from what earlier ones gave: lines through points of log count over log scale."""

    def __init__(self, top: float, first: float | None = None, slope: float = SLOPE) -> None:
        self.scale = 0.2 * top if first is None else first
        self.slope = slope
        self._top, self._least = top, WEAKEST * top
        self._points: list[tuple[float, float]] = []

    @staticmethod
    def close(wanted: float) -> float:
        """How near a count must come."""
        return max(0.5, 0.01 * wanted)

    @staticmethod
    def agrees(n_active: float, wanted: float) -> bool:
        """Whether a count is what a line promised."""
        return abs(float(np.log(max(n_active, 0.5) / max(wanted, 0.5)))) < FAR

    def learn(self, n_active: float, wanted: float) -> bool:
        """Takes the count at the present scale and moves on; True where it is near enough or cannot get nearer."""
        if abs(n_active - wanted) <= self.close(wanted):
            return True
        if self.scale <= self._least and n_active < wanted:
            return True
        x, y, goal = np.log(self.scale), np.log(max(n_active, 0.5)), np.log(wanted)
        self._points.append((x, y))
        near = np.array([p for p in self._points if abs(p[1] - goal) < NEAR])
        if len(near) > 1 and np.ptp(near[:, 0]) > 0.1:
            self.slope = float(np.clip(np.polyfit(near[:, 0], near[:, 1], 1)[0], *SLOPES))
        step = x + float(np.clip((goal - y) / self.slope, -1.6, 1.6))
        below = [p[0] for p in self._points if p[1] < goal]
        above = [p[0] for p in self._points if p[1] > goal]
        if below and above and max(above) < min(below) and not max(above) < step < min(below):
            step = (max(above) + min(below)) / 2
        self.scale = float(np.clip(np.exp(step), self._least, self._top))
        return False


def _largest(scan: Scan, rows: Tensor, sizes: Tensor, nonnegative: bool) -> float:
    """The scale from which on the median query has no reference, over the sub-bank."""
    c = rows @ scan.sub.rows.T
    top = c.amax(1) if nonnegative else c.abs().amax(1)
    return float((top / sizes.clamp(min=1e-30)).median())


def solve_path(
    scan: Scan, queries: Floats, rules: Sequence[StrengthRule], *, nonnegative: bool = True, gap: float = 1e-4
) -> Iterator[tuple[StrengthRule, SparseCodes]]:
    """Solves the same queries at several strengths, strongest first, each from the codes of the last.

    Args:
        scan: the bank, from `prepare`.
        queries: (m, n).
        rules: strengths of one power, in any order.
        nonnegative: one-sided problem.
        gap: relative duality gap of every query at every strength.

    Yields:
        rules with their codes, in falling order of strength.
    """
    if len({r.power for r in rules}) > 1:
        raise SolverError("a path goes over strengths of one power")
    codes: SparseCodes | None = None
    for rule in sorted(rules, key=lambda r: -r.l1):
        l1, l2 = rule.of(queries)
        codes = solve(scan, queries, l1=l1, l2=l2, nonnegative=nonnegative, gap=gap, start=codes)
        yield rule, codes
