"""Choosing settings by folds: one step at a time, each from the best so far, with strengths along a warm path.

The score of a setting on a section left out is the mean of the project's PCC-k (core 10, 50, 300; global 10, 50, 300,
1000, 5000; those that the panels are large enough for). Sections count equally within a fold, folds equally.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrag_cli.errors import GeneragError
from genrag_cli.evaluation.metrics import pcc_k, pearson_per_gene
from genrag_cli.pipeline.tuning.data import BankData
from genrag_cli.pipeline.tuning.model import ROUGHLY_ON, STEPS, Fit, Parts, Retriever, fit
from genrag_cli.pipeline.tuning.settings import Settings
from genrag_cli.types import Floats, Ints

CORE_KS, GLOBAL_KS = (10, 50, 300), (10, 50, 300, 1000, 5000)
SHARES = (0.5, 0.25, 0.75, 1.0)
"""Of the references; 0 would be the regression alone, of which no value can be traced."""
MARGIN = 0.001
"""By how much a setting must score better at least to take the place of the present one."""
QUERY_SPOTS, SECTION_SPOTS, FEWEST_SPOTS = 3000, 600, 10
"""Spots that settings are judged on at most, of them from one section, and at least for a correlation to be taken."""


@dataclass(frozen=True)
class Tried:
    """One setting and what it scored."""

    stage: str
    settings: Settings
    score: float
    by_fold: tuple[float, ...]
    references: float
    """Median number."""


@dataclass(frozen=True, eq=False)
class Split:
    """One fold: who trains, and the groups of spots (of one section each) that are asked about."""

    train: Ints
    asked: tuple[Ints, ...]


OMEGAS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Both halves of a query always speak, so that both residuals of a spot are known."""

STAGES: tuple[tuple[str, Callable[[Settings], list[dict[str, Any]]]], ...] = (
    ("context", lambda _: [{"context": c} for c in (0.0, 0.5, 0.7)]),
    ("ridge", lambda _: [{"ridge": r} for r in (1.0, 3.0, 10.0)]),
    ("omega", lambda _: [{"omega": o} for o in OMEGAS]),
    ("l1_ratio", lambda _: [{"l1_ratio": r} for r in (0.9, 0.5, 0.99)]),
    ("preparation", lambda _: [{}, {"centred": False}, {"spread": False}, {"anchor_scale": "cp10k"},
                               {"standardise": "bank"}]),
)  # fmt: skip
"""What is varied, one after the other; the first of a stage's list that is the present setting is not solved again."""


PATHS = ("context",)
"""Stages in which every setting goes over several numbers of references (about 25, 50 and 90)."""


def make_splits(data: BankData, rows: Ints, folds: Ints, *, seed: int = 0, most: int = QUERY_SPOTS) -> list[Split]:
    """Folds as splits, with a seeded choice of spots to ask about: whole sections as far as they go.

    Args:
        data: the bank.
        rows: (r,) spots that take part.
        folds: (r,) number of the fold of each.
        seed: of the choice.
        most: spots asked about over all folds.

    Raises:
        GeneragError: where no fold has a section with enough spots.
    """
    rng, n_folds = np.random.default_rng(seed), int(folds.max()) + 1
    splits = []
    for fold in range(n_folds):
        own = rows[folds == fold]
        asked: list[Ints] = []
        left = most // n_folds
        for section in rng.permutation(np.unique(data.section_of[own])):
            here = own[data.section_of[own] == section]
            here = np.sort(rng.permutation(here)[: min(SECTION_SPOTS, left)])
            if len(here) >= FEWEST_SPOTS:
                asked.append(here)
                left -= len(here)
        if asked:
            splits.append(Split(rows[folds != fold], tuple(sorted(asked, key=lambda r: int(r[0])))))
    if len(splits) < 2:
        raise GeneragError(
            f"the bank has {len(splits)} folds with {FEWEST_SPOTS} spots or more of one section; two are needed",
            "Add sections, or leave the settings as they are.",
        )
    return splits


def search(
    data: BankData, splits: Sequence[Split], start: Settings, tell: Callable[[str], None]
) -> tuple[Tried, list[Tried]]:
    """The best setting, and all that were tried.

    Args:
        data: the bank.
        splits: the folds.
        start: where to begin.
        tell: told each stage.
    """
    tried: list[Tried] = []
    best: Tried | None = None
    for stage, vary in STAGES:
        now = start if best is None else best.settings
        candidates: list[Settings] = []
        for change in vary(now):
            candidate = dataclasses.replace(now, **change)
            if candidate not in candidates and (best is None or candidate != now):
                candidates.append(candidate)
        found = list(try_settings(data, splits, stage, candidates, STEPS if stage in PATHS else (1.0,)))
        # The present setting stands in every stage, so that a curve shows what it was compared with.
        tried += [dataclasses.replace(best, stage=stage), *found] if best is not None else found
        if best is None:
            best = nearest_to(start, found)
        best = pick(best, found)
        tell(f"{stage}: best {best.score:.4f}")
    assert best is not None
    return best, tried


def nearest_to(start: Settings, found: Sequence[Tried]) -> Tried:
    """What was tried with the settings to start from, at the number of references that is nearest to theirs."""
    own = [t for t in found if dataclasses.replace(t.settings, references=start.references) == start]
    return min(own or found, key=lambda t: abs(t.settings.references - start.references))


def pick(best: Tried, found: Sequence[Tried]) -> Tried:
    """The best of what is better than the present setting by more than chance; else the present one.

    Better: in the mean over folds by more than `MARGIN`, and by more than a standard error of the folds' differences.
    """
    better = [best]
    for one in found:
        lead = np.subtract(one.by_fold, best.by_fold)
        error = float(lead.std(ddof=1) / np.sqrt(len(lead))) if len(lead) > 1 else 0.0
        if lead.mean() > max(MARGIN, error):
            better.append(one)
    return max(better, key=lambda t: t.score)


def try_settings(
    data: BankData, splits: Sequence[Split], stage: str, candidates: Sequence[Settings], steps: Sequence[float]
) -> Iterator[Tried]:
    """Scores settings over all folds, each at several numbers of references and every share of them."""
    grouped: dict[tuple[float, str, float], list[Settings]] = {}
    for candidate in candidates:
        grouped.setdefault(candidate.fitted, []).append(candidate)
    for group in grouped.values():
        # Fold by fold, so that one regression at a time is held.
        found: dict[tuple[Settings, int], list[tuple[Fit, list[Parts]]]] = {}
        for part in splits:
            fitted = fit(data, group[0], part.train)
            for settings in group:
                retriever = Retriever.of(fitted, settings)
                answers = [retriever.ask(rows, steps, gap=1e-3, searched_on=ROUGHLY_ON) for rows in part.asked]
                for step in range(len(steps)):
                    pieces = [retriever.parts(rows, a[step]) for rows, a in zip(part.asked, answers, strict=True)]
                    found.setdefault((settings, step), []).append((fitted, pieces))
        for (settings, _), over_folds in found.items():
            yield from judge(stage, settings, over_folds)


def judge(stage: str, settings: Settings, over_folds: list[tuple[Fit, list[Parts]]]) -> Iterator[Tried]:
    """Scores one setting at every share of the references."""
    references = float(np.median([p.references for _, parts in over_folds for p in parts]))
    for share in SHARES:
        by_fold = tuple(
            float(np.mean([score(fitted, p.predict(share), p.truth) for p in parts])) for fitted, parts in over_folds
        )
        used = dataclasses.replace(settings, references=max(1, round(references)), share=share)
        yield Tried(stage, used, float(np.mean(by_fold)), by_fold, references)


def score(fitted: Fit, prediction: Floats, truth: Floats) -> float:
    """The mean of the project's PCC-k on one section; where no gene of a panel varies, its PCC-k counts as 0."""
    return float(np.mean([value or 0.0 for value in scores_of(fitted, prediction, truth).values()]))


def scores_of(fitted: Fit, prediction: Floats, truth: Floats) -> dict[str, float | None]:
    """`core 10`, ... `global 5000`: those that the panels are large enough for, else the mean over all genes.

    Where fewer than k genes vary on the section, the mean of those is taken; where none does, there is no value.
    """
    out: dict[str, float | None] = {}
    for panel, places, ks in (("core", fitted.core, CORE_KS), ("global", fitted.wide, GLOBAL_KS)):
        r = pearson_per_gene(prediction[:, places], truth[:, places])
        for k in [k for k in ks if k <= len(places)] or [len(places)]:
            out[f"{panel} {k}"] = pcc_k(r, k, allow_short=True).value if k else None
    return out
