"""A bank's spots in memory, as folds need them: features, expression, who belongs to what.

Large banks are drawn down to an even share of each section. Nothing here is chosen by looking at expression.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.context import REACH, mix_neighbours
from genrag_cli.backbones.folds import fold_groups
from genrag_cli.backbones.regression import number_folds
from genrag_cli.errors import UsageError
from genrag_cli.genes.align import columns
from genrag_cli.genes.moments import GeneStatistics, pool_statistics
from genrag_cli.genes.panels import N_GLOBAL, global_panel
from genrag_cli.genes.scales import to_scale
from genrag_cli.pipeline.anchors import AnchorOptions, choose_anchors, stored_statistics
from genrag_cli.pipeline.derive import measure_spread, sample_rows
from genrag_cli.pipeline.options import FoldsBy
from genrag_cli.pipeline.tuning.settings import Settings
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
    """CSR (n, G) log1p of counts per 10,000."""
    common: NDArray[np.bool_]
    """(G,) genes that every section measured."""
    cache: dict[Any, Any] = field(default_factory=dict)

    @staticmethod
    def of(bank: Bank, most: int = TUNE_SPOTS) -> "BankData":
        """Reads a bank."""
        import scipy.sparse as sp

        sections = tuple(SectionReader.open(bank.folder, entry) for entry in bank.sections)
        rows = tuple(sample_rows([len(s) for s in sections], most))
        parts = [to_scale(s.counts()[r], s.totals[r], LOG1P_CP10K) for s, r in zip(sections, rows, strict=True)]
        return BankData(
            bank, sections, rows, np.repeat(np.arange(len(sections)), [len(r) for r in rows]),
            sp.vstack(parts, format="csr"), np.asarray(bank.measured.all(axis=0)),
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

    def features(self, settings: Settings) -> Floats:
        """(n, d) as `prepare_section` makes them, of unit mean square over the spots here."""
        key = ("features", settings.features)
        if key not in self.cache:
            self.cache.clear()  # one at a time: they are the largest thing here
            parts = [part[rows] for part, rows in zip(bank_features(self.bank, settings), self.rows, strict=True)]
            values = np.concatenate(parts)
            scale = unit_scale(values)
            self.cache[key] = (values * np.float32(scale), scale)
        found: Floats = self.cache[key][0]
        return found

    def feature_scale(self, settings: Settings) -> float:
        """What `features` multiplied by, so that their mean square is 1."""
        self.features(settings)
        return float(self.cache["features", settings.features][1])

    def anchors_in(self, genes: Ints, scale: Scale, rows: Ints) -> Floats:
        """(r, A) measured expression of some genes at some spots in a scale."""
        if scale == LOG1P_CP10K:
            return np.asarray(self.expression[rows][:, genes].toarray(), np.float32)
        key = ("scaled", scale.name)
        if key not in self.cache:
            import scipy.sparse as sp

            parts = [to_scale(s.counts()[r], s.totals[r], scale) for s, r in zip(self.sections, self.rows, strict=True)]
            self.cache[key] = sp.vstack(parts, format="csr")
        return np.asarray(self.cache[key][rows][:, genes].toarray(), np.float32)

    def panels(self, among: Ints) -> tuple[Ints, Ints, GeneStatistics]:
        """Core and global panel of some sections alone, and the statistics of their genes.

        Args:
            among: sections by number.
        """
        chosen = [self.sections[i] for i in among]
        statistics = pool_statistics(stored_statistics(chosen, LOG1P_CP10K))
        options = AnchorOptions.recall(self.bank.version["recipe"])
        names, _ = choose_anchors(self.bank.genes, chosen, options, Listener(), among=self._predicted())
        wide = global_panel(statistics, N_GLOBAL)
        return columns(self.bank.genes, names), wide[self.common[wide]], statistics

    def _predicted(self) -> Strings | None:
        from genrag_cli.stores.bank import read_predicted

        return read_predicted(self.bank.folder, self.bank.manifest["backbones"][self.bank.backbone])


def bank_features(bank: Bank, settings: Settings) -> Any:
    """(n, d) of every section in turn: standardised, with its neighbours mixed in; not scaled."""
    derived = bank.derived
    for entry, values in zip(bank.sections, bank.embeddings, strict=True):
        mean, sd = (
            measure_spread(values)
            if settings.standardise == "section"
            else (derived["features/mean"], derived["features/sd"])
        )
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
        raise UsageError("folds by patients asked; the bank needs two patients or more, all of them known")
    if by == "sections" and len(np.unique(sections)) < 2:
        raise UsageError("folds by sections asked; the bank has one section")
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
