"""Bank and slide in the space where they are compared, in one place, so that both go the same way in both presets."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from genrag_cli.backbones.probe import Head
from genrag_cli.genes.align import columns
from genrag_cli.genes.scales import to_scale
from genrag_cli.pipeline.derive import load_head, standardise_sections
from genrag_cli.pipeline.options import SolveOptions
from genrag_cli.retrieval.dictionary import Blocks, standardise
from genrag_cli.retrieval.objective import Strength
from genrag_cli.retrieval.strength import FoundStrength, find_strength
from genrag_cli.stores.bank import Bank
from genrag_cli.types import COUNTS, LOG1P_CP10K, Doubles, Floats, Scale

L1_RATIO = 0.9
SEARCH_QUERIES = 64
"""Spots of a slide on which `--active` is searched."""
WALK_ROWS = 256
"""Bank rows in memory at a time while expression is reconstructed (20 MB for 14,000 genes)."""
FEWEST_TILES = 20
"""A slide with fewer tissue tiles is standardised with the bank's mean and sd."""


@dataclass(frozen=True, eq=False)
class SlideStatistics:
    """What standardises a slide's embeddings, and over what it was taken."""

    mean: Doubles
    sd: Doubles
    source: str

    @staticmethod
    def of(sample: Floats, bank: Bank) -> "SlideStatistics":
        """From a slide's own sample of tissue tiles, or the bank's where there are too few."""
        if len(sample) < FEWEST_TILES:
            derived = bank.derived
            why = f"the bank's: the slide has {len(sample)} tissue tiles, {FEWEST_TILES} are needed"
            return SlideStatistics(derived["features/mean"], derived["features/sd"], why)
        wide = sample.astype(np.float64)
        return SlideStatistics(wide.mean(0), wide.std(0), f"{len(sample)} tissue tiles of the slide")


@dataclass(frozen=True, eq=False)
class QuerySpace:
    """A bank as a dictionary, and how a slide's embeddings become queries to it."""

    rows: Floats
    """D' (N, d + A)."""
    blocks: Blocks
    head: Head
    scale: Scale
    standardised: bool
    """Whether the dictionary holds standardised embeddings (preset default) or raw ones (preset paper)."""
    dim: int

    @staticmethod
    def of(bank: Bank, options: SolveOptions) -> "QuerySpace":
        """Reads a bank into memory in one preset's space."""
        default = options.preset == "default"
        scale = LOG1P_CP10K if default else COUNTS
        where = columns(bank.genes, bank.anchors)
        anchors = np.concatenate(
            [to_scale(counts[:, where], totals, scale).toarray() for _, counts, totals in bank.count_blocks()]
        ).astype(np.float32)
        embeddings = standardise_sections(bank.embeddings) if default else bank.embeddings
        features = np.concatenate(embeddings)
        head = load_head(bank.derived, bank.version, scale)
        if default:
            mean = bank.derived[f"genes/{scale.name}/mean"][where]
            sd = bank.derived[f"genes/{scale.name}/sd"][where]
            guess_sd = head.predict(features).std(0, dtype=np.float64)
            blocks = Blocks.balanced(options.weight, features.shape[1], mean, sd, guess_sd)
        else:
            blocks = Blocks.as_published(options.weight, anchors.shape[1])
        return QuerySpace(blocks.rows(features, anchors), blocks, head, scale, default, features.shape[1])

    def guess(self, embeddings: Floats, statistics: SlideStatistics) -> Floats:
        """y_init (n, A) of raw embeddings (n, d), in `scale`."""
        return self.head.predict(standardise(embeddings, statistics.mean, statistics.sd))

    def queries(self, embeddings: Floats, statistics: SlideStatistics) -> Floats:
        """(n, d + A) queries of raw embeddings (n, d)."""
        features = standardise(embeddings, statistics.mean, statistics.sd) if self.standardised else embeddings
        return self.blocks.rows(features, self.guess(embeddings, statistics))

    def strength(self, options: SolveOptions, sample: Floats, seed: int) -> tuple[Strength, FoundStrength | None]:
        """The strength asked for, or the one that gives the asked number of references on a slide's sample.

        Args:
            options: may name a strength; the preset's way otherwise (50 references, or alpha .01).
            sample: (s, d + A) queries that stand for the slide; not used where a strength is named.
            seed: of the choice among them.
        """
        m = self.rows.shape[1]
        if options.lambda_ is not None:
            gamma = (1 - L1_RATIO) / (1 + L1_RATIO) if options.gamma is None else options.gamma
            return Strength.from_paper(options.lambda_, gamma, m), None
        if options.alpha is not None or (options.preset == "paper" and options.active is None):
            return Strength.from_code(0.01 if options.alpha is None else options.alpha, L1_RATIO, m), None
        chosen = np.random.default_rng(seed).permutation(len(sample))[:SEARCH_QUERIES]
        found = find_strength(
            self.rows.T, sample[np.sort(chosen)].T, active=options.wanted_references, l1_ratio=L1_RATIO,
            nonnegative=not options.signed,
        )  # fmt: skip
        return found.strength, found


def bank_blocks(bank: Bank, genes: Any, scale: Scale) -> Any:
    """A walk over the bank's rows in a scale, cut down to some columns; for `reconstruct`.

    Columns are cut first, as each scale here is normalised by totals over all genes or not at all.
    """

    def walk() -> Any:
        for first, counts, totals in bank.count_blocks(WALK_ROWS):
            yield first, to_scale(counts[:, genes], totals, scale)

    return walk
