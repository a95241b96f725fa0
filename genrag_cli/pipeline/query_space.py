"""Bank and slide in the space where they are compared, in one place, so that both go the same way in both presets."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.backbones.probe import Head
from genrag_cli.genes.align import columns
from genrag_cli.genes.scales import to_scale
from genrag_cli.pipeline.anchor_space import AnchorSpace, Guessed
from genrag_cli.pipeline.bank_rows import guess_spread, place_rows, row_blocks, section_features
from genrag_cli.pipeline.derive import load_head
from genrag_cli.pipeline.options import RunOptions, SolveOptions
from genrag_cli.pipeline.solver import Ranks, Solver
from genrag_cli.pipeline.tuning.settings import to_anchor_scale
from genrag_cli.pipeline.tuning.tuning import Tuning
from genrag_cli.retrieval.dictionary import Blocks, floor_sd, standardise
from genrag_cli.retrieval.objective import Strength
from genrag_cli.retrieval.solve import prepare
from genrag_cli.retrieval.strength import FoundStrength, StrengthRule
from genrag_cli.stores.bank import Bank
from genrag_cli.types import COUNTS, LOG1P_CP10K, Doubles, Floats, Ints, Listener, Scale, TileGrid

L1_RATIO = 0.9
SEARCH_QUERIES = 160
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
    def of(sample: Floats, bank: Bank, what: str = "tissue tiles") -> "SlideStatistics":
        """From a slide's own sample of tissue tiles or spots, or the bank's where there are too few."""
        if len(sample) < FEWEST_TILES:
            derived = bank.derived
            why = f"the bank's: the slide has {len(sample)} {what}, {FEWEST_TILES} are needed"
            return SlideStatistics(derived["features/mean"], derived["features/sd"], why)
        wide = sample.astype(np.float64)
        return SlideStatistics(wide.mean(0), wide.std(0), f"{len(sample)} {what} of the slide")


@dataclass(frozen=True, eq=False)
class QuerySpace:
    """A bank as a dictionary, and how a slide's embeddings become queries to it."""

    solver: Solver
    blocks: Blocks
    head: Head
    anchors: AnchorSpace
    guessed: Guessed | None
    """Of a first guess that the head does not make."""
    scale: Scale
    """Of what is predicted."""
    standardised: bool
    """Whether the dictionary holds standardised embeddings (preset default) or raw ones (preset paper)."""
    dim: int
    bank: Bank
    tuning: Tuning | None
    """None where the settings are the untuned ones."""

    @staticmethod
    @contextlib.contextmanager
    def of(
        bank: Bank, options: SolveOptions, run: RunOptions, listener: Listener, *, scratch: Path = Path(),
        guessed: Guessed | None = None, own_anchors: bool = True, tuning: Tuning | None = None,
    ) -> Iterator["QuerySpace"]:  # fmt: skip
        """A bank in one preset's space, in memory or streamed from a scratch file, here or over ranks.

        The anchors of a head are divided by how spread its guesses are (`Blocks.balanced`). How spread the guesses of a
        model or a file are over the bank is not known, so theirs are divided by sd and sqrt(k) alone.

        Args:
            bank: the bank.
            options: the preset and omega.
            run: device and memory.
            listener: told where the bank went.
            scratch: folder for a bank that does not fit in memory.
            guessed: what a model or a file guesses; None: the bank's head does.
            own_anchors: whether anchors are the bank's, or all genes that are guessed.
            tuning: settings of the bank for preset `default` and guesses of its own, from `choose_tuning`.
        """
        default = options.preset == "default"
        scale = LOG1P_CP10K if default else COUNTS
        head = load_head(bank.derived, bank.version, scale)
        dim = bank.card.dim
        anchors = AnchorSpace(bank.anchors, scale)
        if guessed is not None:
            anchors = AnchorSpace.settle(
                bank, guessed, scale, anchor_scale=options.anchor_scale, drop_missing=options.drop_missing_anchors,
                own_anchors=own_anchors,
            )  # fmt: skip
        if tuning is not None:
            anchors = AnchorSpace(bank.anchors, tuning.settings.anchors_in)
            blocks = tuning.blocks(dim)
        elif default:
            mean, sd = anchors.statistics(bank)
            spread = guess_spread(bank, head) if guessed is None else floor_sd(sd)
            blocks = Blocks.balanced(options.weight, dim, mean, sd, spread)
        else:
            blocks = Blocks.as_published(options.weight, len(anchors.genes))
        features = section_features(bank, standardised=default) if tuning is None else tuning.bank_rows(bank)
        rows = row_blocks(bank, blocks, anchors, features)
        ranks = Ranks.join(run.device)
        try:
            share = ranks.share(bank.n_spots)
            with place_rows(rows, dim + len(anchors.genes), share, run, scratch, listener) as (atoms, streamed):
                solver = Solver(prepare(atoms, group=ranks.group), ranks, streamed)
                try:
                    yield QuerySpace(solver, blocks, head, anchors, guessed, scale, default, dim, bank, tuning)
                finally:
                    if ranks.rank == 0:
                        solver.dismiss()
        finally:
            ranks.leave()

    def guess(self, embeddings: Floats, statistics: SlideStatistics, grid: TileGrid | None) -> Floats:
        """The bank's own y_init (n, A) of raw embeddings (n, d), in the scale of the anchors; grid as `features`."""
        if self.tuning is None:
            return self.head.predict(standardise(embeddings, statistics.mean, statistics.sd))
        ready, _ = self.features(embeddings, statistics, grid)
        guess = self.tuning.guess(ready, columns(self.bank.genes, self.anchors.genes))
        return to_anchor_scale(guess, self.tuning.settings)

    def statistics(self, sample: Floats, what: str) -> SlideStatistics:
        """What standardises a slide: its own sample (s, d), or the bank's where settings say so or it is too small."""
        if self.tuning is not None and self.tuning.settings.standardise == "bank":
            derived = self.bank.derived
            return SlideStatistics(derived["features/mean"], derived["features/sd"], "the bank's, as tuned")
        return SlideStatistics.of(sample, self.bank, what)

    @property
    def needs_places(self) -> bool:
        """Whether features of a spot depend on the spots around it."""
        return self.tuning is not None and self.tuning.settings.context > 0

    def features(self, embeddings: Floats, statistics: SlideStatistics, grid: TileGrid | None) -> tuple[Floats, Ints]:
        """What the dictionary holds of embeddings (n, d): (n, d), and how many neighbours stand in each.

        Args:
            embeddings: as the backbone gave them.
            statistics: of the slide.
            grid: of the spots; None only where features do not need places.
        """
        none = np.zeros(len(embeddings), np.int64)
        if not self.standardised:
            return embeddings, none
        if self.tuning is None:
            return standardise(embeddings, statistics.mean, statistics.sd), none
        return self.tuning.features(standardise(embeddings, statistics.mean, statistics.sd), grid, self.bank)

    def queries(self, features: Floats, y_init: Floats) -> Floats:
        """(n, d + A) queries of features (n, d), from `features`, and first guesses (n, A)."""
        return self.blocks.rows(features, y_init)

    def references(self, options: SolveOptions) -> int:
        """References per spot in the median that the strength is searched for."""
        return options.wanted_references if self.tuning is None else self.tuning.settings.references

    def strength(self, options: SolveOptions, sample: Floats, seed: int) -> tuple[StrengthRule, FoundStrength | None]:
        """The strength asked for, or the one that gives the asked number of references on a slide's sample.

        Args:
            options: may name a strength; the preset's way otherwise (50 references, or alpha .01).
            sample: (s, d + A) queries that stand for the slide; not used where a strength is named.
            seed: of the choice among them.
        """
        m = self.solver.scan.atoms.m
        if options.strength is not None:
            return options.strength, None
        if options.lambda_ is not None:
            gamma = (1 - L1_RATIO) / (1 + L1_RATIO) if options.gamma is None else options.gamma
            named = Strength.from_paper(options.lambda_, gamma, m)
            return StrengthRule(named.l1, named.l2), None
        if options.alpha is not None or (options.preset == "paper" and options.active is None):
            named = Strength.from_code(0.01 if options.alpha is None else options.alpha, L1_RATIO, m)
            return StrengthRule(named.l1, named.l2), None
        chosen = np.sort(np.random.default_rng(seed).permutation(len(sample))[:SEARCH_QUERIES])
        found = self.solver.find_strength(
            sample[chosen].T, active=self.references(options), nonnegative=not options.signed,
            l1_ratio=L1_RATIO if self.tuning is None else self.tuning.settings.l1_ratio,
        )  # fmt: skip
        return found.rule, found


def bank_blocks(bank: Bank, genes: Any, scale: Scale) -> Any:
    """A walk over the bank's rows in a scale, cut down to some columns; for `reconstruct`.

    Columns are cut first, as each scale here is normalised by totals over all genes or not at all.
    """

    def walk() -> Any:
        for first, counts, totals in bank.count_blocks(WALK_ROWS):
            yield first, to_scale(counts[:, genes], totals, scale)

    return walk
