"""Finding test data in a bank: sections under other names, one patient under two names, panels chosen with the test.

Works on counts and labels alone: two spots with the same counts of every gene are the same measurement, as spots of
some depth never agree by chance. Sections that were measured twice, cut from the same block or processed again with
other counts do not match; for them only the patient's label speaks.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import GeneragError
from genrag_cli.types import Ints

MIN_TOTAL = 20
"""Spots with fewer counts may agree by chance."""
MIN_SHARE = 0.2
MIN_SPOTS = 3
PANEL_JACCARD = 0.95

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class CountedSection:
    """A section by its counts."""

    name: str
    patient: str | None
    """None where unknown."""
    counts: Any
    """(n, G) CSR of raw counts over the genes common to all sections, in one order."""


@dataclass(frozen=True)
class Leak:
    """One finding."""

    kind: Literal["section", "patient", "same-patient", "panel"]
    """`section`: a test section stands in the bank; `patient`: sections of two patients hold the same spots;
    `same-patient`: a patient is on both sides, which is no error where that is meant; `panel`: genes chosen with the
    test sections."""
    text: str
    """One sentence that names sections, patients and numbers."""
    sections: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    share: float | None = None
    """Identical spots over the spots of the smaller section; Jaccard index of a panel."""


@dataclass(frozen=True, eq=False)
class _Hashed:
    """A section with the hashes of its spots; `of_test` says on which side it stands."""

    section: CountedSection
    hashes: Hashes
    of_test: bool

    @property
    def called(self) -> str:
        side = "test" if self.of_test else "bank"
        return f"{side} section {self.section.name} (patient {self.section.patient or 'unknown'})"


def identical_spots(counts_a: Any, counts_b: Any, min_total: int = MIN_TOTAL) -> Ints:
    """Finds spots that have the same counts of every gene.

    Args:
        counts_a: (n, G) CSR of raw counts.
        counts_b: (N, G) CSR over the same genes in the same order.
        min_total: spots with fewer counts than this are never matched.

    Returns:
        (n,) the first row of `counts_b` with equal counts, -1 where there is none.

    Raises:
        GeneragError: where the numbers of genes differ.
    """
    a, b = _canonical(counts_a), _canonical(counts_b)
    if a.shape[1] != b.shape[1]:
        raise GeneragError(f"spots over {a.shape[1]} and over {b.shape[1]} genes cannot be compared")
    return _match(a, b, _hash_rows(a, min_total), _hash_rows(b, min_total))


def find_leaks(test_sections: Sequence[CountedSection], bank_sections: Sequence[CountedSection]) -> list[Leak]:
    """Finds sections and patients that stand on both sides, whatever they are called.

    Two sections hold the same measurement where at least 20 % of the spots of the smaller one, and at least 3, have the
    counts of a spot of the other. That is a leak of kind `section` between test and bank, and of kind `patient`
    between any two sections whose patients are known and differ. A patient named on both sides is `same-patient`.

    Raises:
        GeneragError: where the numbers of genes differ.
    """
    every = [
        _Hashed(section, _hash_rows(_canonical(section.counts), MIN_TOTAL), of_test)
        for of_test, sections in ((True, test_sections), (False, bank_sections))
        for section in sections
    ]
    if len(widths := {h.section.counts.shape[1] for h in every}) > 1:
        raise GeneragError(f"sections over {sorted(widths)} genes cannot be compared", "Take the genes common to all.")
    leaks = []
    for one, other in itertools.combinations(every, 2):
        patients = (one.section.patient, other.section.patient)
        across = one.of_test != other.of_test
        strangers = None not in patients and patients[0] != patients[1]
        if (across or strangers) and (found := _count_shared(one, other)):
            leaks += _say_shared(one, other, found, across=across, strangers=strangers)
    return sorted(leaks, key=lambda leak: leak.kind != "section") + _shared_patients(test_sections, bank_sections)


def judge_panel(
    panel: Sequence[str], chosen_with: Mapping[str, Sequence[str]], chosen_without: Mapping[str, Sequence[str]]
) -> Leak | None:
    """Whether a panel was chosen with the test sections in sight.

    Args:
        panel: the genes, in any order.
        chosen_with: recipe -> what it chooses from bank and test sections together.
        chosen_without: recipe -> what it chooses from the bank alone.

    Returns:
        A leak where a choice with the test sections has a Jaccard index of at least .95 with the panel and is nearer to
        it than every choice without them. None else; also where both choices are the same, which tells nothing.
    """
    if not chosen_with:
        return None
    recipe = max(chosen_with, key=lambda name: _jaccard(panel, chosen_with[name]))
    near = _jaccard(panel, chosen_with[recipe])
    without = max((_jaccard(panel, genes) for genes in chosen_without.values()), default=0.0)
    if near < PANEL_JACCARD or near <= without:
        return None
    shared = len(set(panel) & set(chosen_with[recipe]))
    text = (
        f"The panel of {len(set(panel))} genes is what recipe {recipe} chooses with the test sections in sight "
        f"({shared} genes shared, Jaccard {near:.3f}); without them the nearest choice has Jaccard {without:.3f}."
    )
    return Leak("panel", text, share=near)


def _say_shared(one: _Hashed, other: _Hashed, found: int, *, across: bool, strangers: bool) -> list[Leak]:
    smaller = min(len(one.hashes), len(other.hashes))
    names = (one.section.name, other.section.name)
    patients = tuple(dict.fromkeys(p for p in (one.section.patient, other.section.patient) if p is not None))
    numbers = f"{found} of {smaller} spots have identical counts"
    leaks = []
    if across:
        text = f"The {one.called} stands in the bank as {other.called}: {numbers}."
        leaks.append(Leak("section", text, names, patients, found / smaller))
    if strangers:
        text = f"The {one.called} and the {other.called} are said to be of two patients, yet {numbers}."
        leaks.append(Leak("patient", text, names, patients, found / smaller))
    return leaks


def _count_shared(one: _Hashed, other: _Hashed) -> int:
    """How many spots two sections share, one to one; 0 where that is too few to say anything."""
    needed = max(MIN_SPOTS, MIN_SHARE * min(len(one.hashes), len(other.hashes)))
    if np.sum(np.isin(one.hashes[one.hashes != 0], other.hashes)) < needed:
        return 0
    a, b = _canonical(one.section.counts), _canonical(other.section.counts)
    both = [_match(a, b, one.hashes, other.hashes), _match(b, a, other.hashes, one.hashes)]
    found = min(int(np.sum(rows >= 0)) for rows in both)
    return found if found >= needed else 0


def _shared_patients(test: Sequence[CountedSection], bank: Sequence[CountedSection]) -> list[Leak]:
    leaks = []
    for patient in dict.fromkeys(s.patient for s in test if s.patient is not None):
        ours, theirs = ([s.name for s in side if s.patient == patient] for side in (test, bank))
        if theirs:
            text = (
                f"Patient {patient} is on both sides: {len(ours)} test section{'s' * (len(ours) > 1)} "
                f"({_shorten(ours)}) and {len(theirs)} in the bank ({_shorten(theirs)})."
            )
            leaks.append(Leak("same-patient", text, (*ours, *theirs), (patient,)))
    return leaks


def _shorten(names: Sequence[str], n: int = 5) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def _jaccard(one: Sequence[str], other: Sequence[str]) -> float:
    a, b = set(one), set(other)
    return len(a & b) / len(a | b) if a | b else 0.0


def _canonical(counts: Any) -> Any:
    """A CSR in float64 without repeated or stored zero entries, so that equal rows are stored equally."""
    own = counts.tocsr().astype(np.float64, copy=True)
    own.sum_duplicates()
    own.eliminate_zeros()
    return own


def _hash_rows(counts: Any, min_total: int) -> Hashes:
    """(n,) one number per row, equal for equal rows; 0 for rows with fewer than `min_total` counts.

    The bits of each value times a random odd number of its gene, summed up modulo 2^64.
    """
    weights = np.random.default_rng(0).integers(0, 2**63, size=counts.shape[1], dtype=np.uint64) * np.uint64(2) + 1
    # Mixed first: small whole numbers in float64 differ in their upper bits only, which a product shifts out.
    bits = counts.data.view(np.uint64)
    bits = (bits ^ (bits >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    bits ^= bits >> np.uint64(29)
    summed = np.concatenate([np.zeros(1, np.uint64), np.cumsum(bits * weights[counts.indices], dtype=np.uint64)])
    hashes = summed[counts.indptr[1:]] - summed[counts.indptr[:-1]]
    hashes[hashes == 0] = 1
    deep = np.asarray(counts.sum(axis=1)).reshape(-1) >= min_total
    return np.where(deep, hashes, np.uint64(0))


def _match(a: Any, b: Any, hashes_a: Hashes, hashes_b: Hashes) -> Ints:
    """As `identical_spots`, of canonical counts. Equal hashes propose, counts decide."""
    out = np.full(len(hashes_a), -1, np.int64)
    order = np.argsort(hashes_b, kind="stable")
    place = np.searchsorted(hashes_b[order], hashes_a)
    rows = np.flatnonzero((place < len(order)) & (hashes_a != 0))
    rows = rows[hashes_b[order[place[rows]]] == hashes_a[rows]]
    if len(rows):
        candidates = order[place[rows]]
        differs = np.asarray((a[rows] != b[candidates]).sum(axis=1)).reshape(-1)
        out[rows] = np.where(differs == 0, candidates, -1)
    return out
