"""What `generag tune` chooses, as frozen values."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from genrag_cli.errors import UsageError
from genrag_cli.retrieval.dictionary import Blocks, floor_sd
from genrag_cli.types import COUNTS, LOG1P_CP10K, Doubles, Floats, Scale

CP10K = Scale(library="all", size_factor=1e4)
"""Counts per 10,000 of all genes, without a logarithm."""
Standardise = Literal["section", "bank"]


@dataclass(frozen=True)
class Settings:
    """One way to predict in preset `default`.

    Raises:
        UsageError: for values out of range.
    """

    context: float = 0.0
    """Share of the neighbouring spots' mean embedding in a spot's own (`backbones.context`)."""
    standardise: Standardise = "section"
    """Embeddings by the mean and sd of their own section, or of the bank."""
    ridge: float = 1.0
    """Strength of the regression, and of the first guess that it makes, as a multiple of the one with the least squared
    error on spots left out: what correlates best over spots may be shrunk more or less than that."""
    omega: float = 0.25
    references: int = 50
    l1_ratio: float = 0.9
    centred: bool = True
    """Anchors around their mean over the bank, or as they are."""
    spread: bool = True
    """Anchors divided by how spread first guesses are beside measured spots."""
    anchor_scale: str = "log1p_cp10k"
    """Scale in which anchors are compared; what is predicted stays in log1p_cp10k."""
    share: float = 1.0
    """Of the references in a value; the rest is the regression's: (1 - share) h(x) + share (mu + sum a (y - mu))."""

    alpha: float | None = None
    """The published code's strength, which names one instead of a number of references."""
    published: bool = False
    """Preset `paper`: raw counts and raw embeddings as they are, y = sum a y."""

    def __post_init__(self) -> None:
        shares = (self.context, self.omega, self.share)
        if not all(0 <= v <= 1 for v in shares) or not 0 < self.l1_ratio <= 1 or self.references < 1 or self.ridge <= 0:
            raise UsageError(f"settings out of range: {self}")

    @property
    def features(self) -> tuple[float, str]:
        """What decides over features: those of equal value are equal."""
        return self.context, self.standardise

    @property
    def fitted(self) -> tuple[float, str, float]:
        """What decides over a fit: those of equal value share one."""
        return *self.features, self.ridge

    @property
    def anchors_in(self) -> Scale:
        """The scale of the anchor block."""
        return {"log1p_cp10k": LOG1P_CP10K, "cp10k": CP10K, "counts": COUNTS}[self.anchor_scale]

    def blocks(self, dim: int, mean: Doubles, sd: Doubles, guess_sd: Doubles) -> Blocks:
        """How rows are weighed: `mean`, `sd`, `guess_sd` (A,) of measured anchors and of first guesses in the bank."""
        if self.published:
            return Blocks.as_published(self.omega, len(mean))
        centre = mean if self.centred else np.zeros_like(mean)
        return Blocks.balanced(self.omega, dim, centre, sd, guess_sd if self.spread else floor_sd(sd))

    def words(self) -> dict[str, Any]:
        """Flat values, for files."""
        return dataclasses.asdict(self)

    @staticmethod
    def recall(words: dict[str, Any]) -> "Settings":
        """From `words`."""
        return Settings(**words)


PAPER = Settings(omega=0.75, alpha=0.01, anchor_scale="counts", centred=False, spread=False, published=True)
"""Preset `paper`."""


def describe(settings: Settings) -> str:
    """In one line, what differs from the untuned default named first."""
    plain = Settings()
    changed = [
        f"{f.name} {getattr(settings, f.name)}"
        for f in dataclasses.fields(Settings)
        if getattr(settings, f.name) != getattr(plain, f.name)
    ]
    kept = f"omega {settings.omega:g}, {settings.references} references"
    return f"{kept}; " + (", ".join(changed) if changed else "all as untuned")


def to_anchor_scale(guess: Floats, settings: Settings) -> Floats:
    """First guesses, made in log1p_cp10k, in the scale of the anchor block."""
    return guess if settings.anchors_in != CP10K else np.expm1(np.maximum(guess, 0)).astype(np.float32)
