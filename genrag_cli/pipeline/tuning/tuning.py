"""Tuned settings of a bank with everything that using them takes: read from the bank, or just found."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.regression import Basis
from genrag_cli.outputs import keys
from genrag_cli.pipeline.tuning.data import mix_context, section_features
from genrag_cli.pipeline.tuning.settings import Settings
from genrag_cli.pipeline.tuning.trust import LEVEL, Q, percentile_of
from genrag_cli.reconstruction import Blend
from genrag_cli.retrieval.dictionary import Blocks
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.tunings import read_tuning
from genrag_cli.types import Floats, Ints, TileGrid

OUT_OF_BANK = 99.0
"""Percentile of the morphology residual above which a spot is flagged: it looks like nothing that the bank holds."""


@dataclass(frozen=True, eq=False)
class Tuning:
    """Settings, a regression of every gene, and what folds said of genes and spots."""

    number: int
    """Of the tuning in the bank's version; 0 where it was not stored."""
    settings: Settings
    arrays: dict[str, NDArray[Any]]
    """By path, as `stores.layout.TUNING`."""
    about: dict[str, Any]

    @staticmethod
    def read(bank: Bank, number: int | None = None) -> "Tuning | None":
        """The newest of an opened version, or that of a number; None where it was never tuned."""
        if (found := read_tuning(bank, number)) is None:
            return None
        number, arrays, about = found
        return Tuning(number, Settings.recall(about["settings"]), arrays, about)

    @property
    def key(self) -> str:
        """Digest of what the settings were found on."""
        return str(self.about["key"])

    @property
    def basis(self) -> Basis:
        """Of the regression."""
        return Basis(self.arrays["basis/centre"], self.arrays["basis/directions"])

    def blocks(self, dim: int) -> Blocks:
        """Of the dictionary."""
        return Blocks(
            self.settings.omega, 1 / np.sqrt(dim), self.arrays["anchors/centre"], self.arrays["anchors/scale"]
        )

    def bank_rows(self, bank: Bank) -> Any:
        """Features (n, d) of each section of the bank."""
        for values in section_features(bank, self.settings):
            yield values * np.float32(self.about["feature_scale"])

    def features(self, standardised: Floats, grid: TileGrid | None, bank: Bank) -> tuple[Floats, Ints]:
        """Features (n, d) of a slide's spots, and how many neighbours were mixed into each."""
        count = np.zeros(len(standardised), np.int64)
        if self.settings.context:
            assert grid is not None
            standardised, count = mix_context(standardised, grid.centres, grid.pixel_size.mpp, bank, self.settings)
        return standardised * np.float32(self.about["feature_scale"]), count

    def guess(self, features: Floats, genes: Ints) -> Floats:
        """(n, k) regression of some of the bank's genes."""
        coef = self.arrays["regression/coef"][:, genes]
        out: Floats = self.basis.scores(features) @ coef[:-1] + coef[-1]
        return out

    def blend(self, scores: Floats, bank: Bank, chosen: Ints) -> Blend:
        """The regression beside the references, of chosen genes."""
        common = np.asarray(bank.measured.all(axis=0))[chosen]
        share = np.where(common, self.settings.share, 1.0)
        return Blend(scores, np.asarray(self.arrays["regression/coef"][:, chosen], np.float32), share)

    def describe_genes(self, chosen: Ints) -> dict[str, NDArray[Any]]:
        """Columns of `var` of chosen genes."""
        observed, expected, q = (self.arrays[f"genes/{n}"][chosen] for n in ("oof_pcc", "expected_pcc", "q_value"))
        with np.errstate(invalid="ignore"):
            predictable = (q <= Q) & (observed > 0)
        return {
            keys.VAR_OOF: observed, keys.VAR_EXPECTED: expected, keys.VAR_Q: q, keys.VAR_PREDICTABLE: predictable,
            keys.VAR_LOW: self.arrays["genes/low"][chosen], keys.VAR_HIGH: self.arrays["genes/high"][chosen],
        }  # fmt: skip

    def describe_spots(self, morphology: Floats, anchor: Floats) -> dict[str, NDArray[Any]]:
        """Columns of `obs` from the residuals (n,) of a slide's spots."""
        looks, speaks = (
            percentile_of(values, self.arrays[f"spots/{name}"])
            for name, values in (("morphology", morphology), ("anchor", anchor))
        )
        return {
            keys.MORPHOLOGY_PERCENTILE: looks, keys.ANCHOR_PERCENTILE: speaks, keys.OUT_OF_BANK: looks > OUT_OF_BANK,
        }  # fmt: skip

    def provenance(self) -> dict[str, Any]:
        """What a prediction says of it."""
        return {
            "tuning": self.number, "tuning_key": self.key, "settings": self.settings.words(),
            "settings_by": self.about["rule"], "share": self.settings.share, "interval_level": LEVEL,
        }  # fmt: skip
