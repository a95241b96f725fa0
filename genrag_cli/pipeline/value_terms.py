"""The exact terms of which a predicted value is the sum: the bank's mean, a regression, and what each reference adds.

With mu_g the bank's mean, a_i the weights, y_ig what a reference measured, w the share of the references and h a tuned
bank's regression (w = 1 without one), a value of the centred form is

    mu_g + (1 - w) (h_g(x) - mu_g) + sum_i w f_g a_i (y_ig - mu_g),

and of the plain form (preset `paper`) sum_i f_g a_i y_ig. f_g makes up for references whose section did not measure the
gene, as `reconstruction` has it; where those hold too much of the weight, the value is missing and its filler is mu_g.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genrag_cli.genes.scales import to_scale
from genrag_cli.outputs import keys
from genrag_cli.outputs.prediction import StoredPrediction
from genrag_cli.pipeline.tuning.tuning import Tuning
from genrag_cli.reconstruction import MIN_SHARE
from genrag_cli.stores.bank import Bank, SectionReader
from genrag_cli.types import Doubles, Ints, Scale

MEAN, REGRESSION, FILLER = "bank mean", "regression", "bank mean (missing)"
"""Names of the terms that are no reference."""


@dataclass(frozen=True, eq=False)
class Terms:
    """What the values of k genes at one spot are made of, for r references."""

    measured: Doubles
    """(r, k) expression of the references, NaN where their section did not measure a gene."""
    contributions: Doubles
    """(r, k)"""
    base: tuple[tuple[str, Doubles], ...]
    """Named terms, (k,) each."""
    present: NDArray[np.bool_]
    """(k,) False where the value is missing and the base is a filler."""

    @property
    def total(self) -> Doubles:
        """(k,) the values."""
        return np.asarray(sum((values for _, values in self.base), self.contributions.sum(axis=0)), np.float64)


@dataclass(frozen=True, eq=False)
class Formula:
    """How values of some genes at one spot follow from weights of bank spots."""

    bank: Bank
    chosen: Ints
    """(k,) columns of the bank."""
    scale: Scale
    centred: bool
    mean: Doubles
    """(k,) mu over the bank."""
    share: Doubles
    """(k,) of the references; 1 where nothing else speaks."""
    regression: Doubles | None
    """(k,) h at the spot; None without one."""
    _read: dict[int, Doubles] = field(default_factory=dict)
    """Rows of the bank that were read already."""

    @staticmethod
    def of(stored: StoredPrediction, bank: Bank, tuning: Tuning | None, row: int, chosen: Ints) -> "Formula":
        """The formula of one spot of a prediction.

        Args:
            stored: the prediction.
            bank: that its weights point into.
            tuning: the settings that it was made with; None where there were none.
            row: of the spot.
            chosen: (k,) columns of the bank, whether they are in X or not.
        """
        scale = stored.expression.scale
        mean = np.asarray(bank.derived[f"genes/{scale.name}/mean"][chosen], np.float64)
        centred = bool(stored.about["centred"])
        if tuning is None:
            return Formula(bank, chosen, scale, centred, mean, np.ones(len(chosen)), None)
        blend = tuning.blend(stored.obsm[keys.COMPONENTS][row : row + 1], bank, chosen)
        return Formula(bank, chosen, scale, centred, mean, blend.share, blend.regression(slice(0, 1))[0])

    def terms(self, rows: Ints, weights: Doubles) -> Terms:
        """The terms of the references in some rows (r,) of the bank, with their weights (r,): all that have one."""
        measured = self.measured(rows)
        there, size = np.isfinite(measured), np.abs(weights)
        lost = size @ ~there
        held = size.sum() - lost
        somewhere = self.bank.measured[:, self.chosen].any(axis=0)
        present = somewhere & (held >= MIN_SHARE * size.sum())
        raised = np.divide(size.sum(), held, out=np.ones_like(held), where=present & (lost > 0))
        centre = self.mean if self.centred else np.zeros(len(self.chosen))
        each = self.share * raised * weights[:, None] * (measured - centre)
        return Terms(measured, np.where(there & present, each, 0.0), tuple(self._base(present)), present)

    def measured(self, rows: Ints) -> Doubles:
        """(r, k) what some spots of the bank measured, in the scale of the prediction; NaN what their section did not.

        A section is read once, for all of the rows that are not known yet.
        """
        sizes = [section["n_spots"] for section in self.bank.sections]
        firsts = np.cumsum([0, *sizes])
        unknown = np.unique([row for row in rows.tolist() if row not in self._read]).astype(np.int64)
        section_of = np.searchsorted(firsts, unknown, side="right") - 1
        for number in np.unique(section_of).tolist():
            section = SectionReader.open(self.bank.folder, self.bank.sections[number])
            own = unknown[section_of == number]
            local = own - firsts[number]
            counts = section.counts()[local][:, self.chosen]
            values = to_scale(counts, section.totals[local], self.scale).toarray().astype(np.float64)
            values[:, ~self.bank.measured[number, self.chosen]] = np.nan
            self._read.update(zip(own.tolist(), values, strict=True))
        return np.array([self._read[row] for row in rows.tolist()], np.float64).reshape(len(rows), len(self.chosen))

    def _base(self, present: NDArray[np.bool_]) -> list[tuple[str, Doubles]]:
        if self.centred:
            base = [(MEAN, self.mean)]
        else:
            base = [] if present.all() else [(FILLER, np.where(present, 0.0, self.mean))]
        if self.regression is not None:
            # Genes that a section lacks have share 1, and so nothing of it.
            base.append((REGRESSION, (1 - self.share) * (self.regression - self.mean)))
        return base
