"""A bank's spots in memory, as folds need them: features, expression, who belongs to what.

Large banks are drawn down to an even share of each section. Nothing here is chosen by looking at expression.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.context import REACH, mix_neighbours
from genrag_cli.backbones.folds import fold_groups
from genrag_cli.backbones.regression import number_folds
from genrag_cli.errors import GeneragError, UsageError
from genrag_cli.genes.align import columns
from genrag_cli.genes.moments import GeneStatistics, pool_statistics
from genrag_cli.genes.panels import N_GLOBAL, global_panel
from genrag_cli.genes.scales import to_scale
from genrag_cli.pipeline.anchors import AnchorOptions, choose_anchors, stored_statistics
from genrag_cli.pipeline.derive import measure_spread, sample_rows
from genrag_cli.pipeline.options import FoldsBy
from genrag_cli.pipeline.tuning.settings import CP10K, Settings
from genrag_cli.retrieval.dictionary import standardise
from genrag_cli.stores.bank import Bank, SectionReader
from genrag_cli.types import LOG1P_CP10K, Doubles, Floats, Ints, Listener, Scale, Strings

TUNE_SPOTS = 50_000
"""Spots that settings are chosen on at most."""


@dataclass(frozen=True, eq=False)
class BankData:
    """Spots of a bank's version, n of them, in bank order."""

    bank: Bank
    sections: tuple[SectionReader, ...]
    rows: tuple[Ints, ...]
    """Of each section, which spots are here."""
    section_of: Ints
    """(n,) by number."""
    expression: Any
    """CSR (n, G) in `scale`."""
    scale: Scale
    common: NDArray[np.bool_]
    """(G,) genes that every section measured."""
    cache: dict[Any, Any] = field(default_factory=dict)

    @staticmethod
    def of(bank: Bank, most: int = TUNE_SPOTS, scale: Scale = LOG1P_CP10K) -> "BankData":
        """Reads a bank, at most so many spots of it, in a scale."""
        import scipy.sparse as sp

        sections = tuple(SectionReader.open(bank.folder, entry) for entry in bank.sections)
        rows = tuple(sample_rows([len(s) for s in sections], most))
        parts = [to_scale(s.counts()[r], s.totals[r], scale) for s, r in zip(sections, rows, strict=True)]
        return BankData(
            bank, sections, rows, np.repeat(np.arange(len(sections)), [len(r) for r in rows]),
            sp.vstack(parts, format="csr"), scale, np.asarray(bank.measured.all(axis=0)),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.section_of)

    @property
    def patients(self) -> Strings:
        """(S,) of the sections, empty where unknown."""
        return np.array([s.patient or "" for s in self.sections], np.str_)

    @property
    def names(self) -> Strings:
        """(S,) of the sections."""
        return np.array([s.name for s in self.sections], np.str_)

    @property
    def whole_section_of(self) -> Ints:
        """(N,) section of every spot of the version."""
        return np.repeat(np.arange(len(self.sections)), [len(s) for s in self.sections])

    def centres(self) -> Doubles:
        """(n, 2) of the spots here, in level-0 px of their own slides."""
        return np.concatenate([s.centres[r] for s, r in zip(self.sections, self.rows, strict=True)])

    def features(self, settings: Settings, train: Ints) -> tuple[Floats, float]:
        """Features (n, d) of all spots here, and what brought those of the training spots to a mean square of 1."""
        whole = settings.standardise == "bank"
        key = ("features", settings.features, train.tobytes() if whole else b"")
        if key not in self.cache:
            self.cache.pop(self.cache.get("newest"), None)  # one at a time: they are the largest thing here
            spread = self._pooled_spread(np.unique(self.section_of[train])) if whole else None
            parts = section_features(self.bank, settings, spread)
            self.cache[key] = np.concatenate([p[rows] for p, rows in zip(parts, self.rows, strict=True)])
            self.cache["newest"] = key
        values: Floats = self.cache[key]
        scale = unit_scale(values[train])
        return values * np.float32(scale), scale

    def raw(self, rows: Ints) -> Floats:
        """(r, d) embeddings as the backbone gave them."""
        if "raw" not in self.cache:
            self.cache["raw"] = np.concatenate(
                [values[r] for values, r in zip(self.bank.embeddings, self.rows, strict=True)]
            )
        found: Floats = self.cache["raw"][rows]
        return found

    def _pooled_spread(self, sections: Ints) -> tuple[Doubles, Doubles]:
        """Mean and sd (d,) over all spots of some sections."""
        chosen = [values for i, values in enumerate(self.bank.embeddings) if i in sections]
        return measure_spread(np.concatenate(chosen))

    def anchors_in(self, genes: Ints, scale: Scale, rows: Ints) -> Floats:
        """(r, A) measured expression of some genes at some spots, in the scale of the data or without its logarithm."""
        values = np.asarray(self.expression[rows][:, genes].toarray(), np.float32)
        if scale == self.scale:
            return values
        if (self.scale, scale) != (LOG1P_CP10K, CP10K):
            raise GeneragError(f"anchors in scale {scale.name} asked, expression is in {self.scale.name}")
        return np.expm1(values)

    def panels(self, among: Ints) -> tuple[Ints, Ints, GeneStatistics]:
        """Core and global panel of some sections alone, and the statistics of their genes.

        Sections count as a whole: where blocks of one section are left out, its panel and means have seen them.

        Args:
            among: sections by number.
        """
        chosen = [self.sections[i] for i in among]
        statistics = pool_statistics(stored_statistics(chosen, self.scale))
        options = AnchorOptions.recall(self.bank.version["recipe"])
        among_these = self._predicted()
        try:
            names, _ = choose_anchors(self.bank.genes, chosen, options, Listener(), among=among_these)
        except GeneragError:
            if options.number is None or options.listed() is not None:
                raise
            # In fewer sections fewer genes may pass than were asked for: all that do, then.
            fewer = dataclasses.replace(options, number=None)
            names, _ = choose_anchors(self.bank.genes, chosen, fewer, Listener(), among=among_these)
            names = names[: options.number]
        wide = global_panel(statistics, N_GLOBAL)
        return columns(self.bank.genes, names), wide[self.common[wide]], statistics

    def _predicted(self) -> Strings | None:
        from genrag_cli.stores.bank import read_predicted

        return read_predicted(self.bank.folder, self.bank.manifest["backbones"][self.bank.backbone])


def section_features(bank: Bank, settings: Settings, spread: tuple[Doubles, Doubles] | None = None) -> Iterator[Floats]:
    """(n, d) of every section in turn: standardised, with its neighbours mixed in; not scaled.

    Args:
        bank: opened.
        settings: which say how.
        spread: mean and sd (d,) of the bank, where they standardise; None: the bank's own.
    """
    for entry, values in zip(bank.sections, bank.embeddings, strict=True):
        if settings.standardise == "section":
            mean, sd = measure_spread(values)
        else:
            mean, sd = spread or (bank.derived["features/mean"], bank.derived["features/sd"])
        ready = standardise(values, mean, sd)
        if settings.context:
            section = SectionReader.open(bank.folder, entry)
            ready, _ = mix_context(ready, section.centres, entry["pixel_size"]["mpp"], bank, settings)
        yield ready


def mix_context(features: Floats, centres: Doubles, mpp: float, bank: Bank, settings: Settings) -> tuple[Floats, Ints]:
    """Mixes neighbours within `REACH` pitches of the bank into features (n, d); centres (n, 2) in level-0 px."""
    return mix_neighbours(features, centres * mpp, REACH * float(bank.geometry["pitch_um"]), settings.context)


def unit_scale(features: Floats) -> float:
    """What brings features to a mean square of 1."""
    square = float(np.mean(np.square(features, dtype=np.float64))) if features.size else 0.0
    return 1 / np.sqrt(square) if square > 0 else 1.0


def split(data: BankData, rows: Ints, by: FoldsBy = "auto") -> tuple[Ints, str]:
    """Cuts some spots into at most five folds by the rule of the project: patients, else sections, else blocks.

    Args:
        data: the bank.
        rows: which spots.
        by: `auto` for the rule, or a step of it.

    Returns:
        (r,) fold numbers, and the rule's name.

    Raises:
        UsageError: where the step asked for leaves one fold.
    """
    section_of = data.section_of[rows]
    sections, patients = data.names[section_of], data.patients[section_of]
    centres = data.centres()[rows]
    if by == "patients" and ((patients == "").any() or len(np.unique(patients)) < 2):
        raise UsageError(
            "folds by patients asked; the bank needs two patients or more, all of them known",
            "Leave --folds out: folds are then by patients, else sections, else blocks of one section.",
        )
    if by == "sections" and len(np.unique(sections)) < 2:
        raise UsageError("folds by sections asked; the bank has one section", "Add sections, or take --folds blocks.")
    if by in ("sections", "blocks"):
        patients = np.full(len(rows), "", np.str_)
    if by == "blocks":
        labels = np.full(len(rows), "", dtype=object)
        for section in np.unique(sections):
            own = sections == section
            labels[own] = fold_groups([None] * int(own.sum()), sections[own], centres[own])[0]
        return number_folds(labels.astype(np.str_)), "spatial-blocks"
    labels, rule = fold_groups(patients, sections, centres)
    return number_folds(labels), rule
