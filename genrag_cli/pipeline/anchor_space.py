"""Which genes anchor a query, and the scale in which bank and query give them, whoever makes the first guess.

The bank's head guesses its anchor genes in the preset's scale. A model or a file guesses genes of its own in a scale of
its own: either its values are brought to the preset's scale, or, on request, the bank's anchors to its. Nothing is
compared across scales, and no gene is left out unless that was asked for.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from genrag_cli.errors import BackboneError, GeneragError
from genrag_cli.genes.align import columns
from genrag_cli.genes.scales import convert, smooth_spots, to_scale
from genrag_cli.pipeline.anchors import SCALES
from genrag_cli.pipeline.options import AnchorScale
from genrag_cli.stores.bank import Bank, SectionReader
from genrag_cli.types import Doubles, Expression, Floats, Scale, Strings


@dataclass(frozen=True, eq=False)
class Guessed:
    """What a first guess that no head makes is of."""

    what: str
    """Who makes it, for messages."""
    genes: Strings
    """(k,) in its own order; empty where it guesses whatever it is asked for."""
    scale: Scale | None
    """None where it comes in the scale that is asked for."""


@dataclass(frozen=True, eq=False)
class AnchorSpace:
    """The anchor block of the problem: genes, and the scale of both sides."""

    genes: Strings
    """(A,) in the order of the block."""
    scale: Scale
    library: Strings | None = None
    """Genes over which a library size of scope `panel` is summed; None for other scopes."""
    dropped: tuple[str, ...] = ()
    """Genes of the guess that the bank lacks, left out on request."""

    @staticmethod
    def settle(
        bank: Bank, guessed: Guessed, scale: Scale, *, anchor_scale: AnchorScale, drop_missing: bool, own_anchors: bool
    ) -> "AnchorSpace":
        """The block for a guess that no head makes.

        Args:
            bank: opened.
            guessed: who guesses what, in which scale.
            scale: of the preset.
            anchor_scale: `bank`: the guess is brought to the preset's scale; `model`: the bank's anchors to the scale
                of the guess.
            drop_missing: leave out genes that the bank lacks, and record them.
            own_anchors: take the bank's anchor genes (a model's bank has anchors that it predicts) instead of all genes
                that are guessed (a file).

        Raises:
            BackboneError: where the scales do not meet, or genes are missing.
        """
        genes = bank.anchors if own_anchors else guessed.genes
        theirs = guessed.scale
        if anchor_scale == "bank" or theirs is None:
            if theirs is not None:
                expect_convertible(guessed.what, theirs, scale)
            wanted, library = scale, None
        else:
            wanted = theirs
            library = guessed.genes if theirs.library == "panel" else None
        known = bank.genes[bank.measured.all(axis=0)]
        asked = genes if library is None else np.concatenate([genes, library])
        missing = [g for g in dict.fromkeys(asked.tolist()) if g not in set(known.tolist())]
        if missing and not drop_missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise BackboneError(
                f"{guessed.what} guesses {len(missing)} of {len(set(asked.tolist()))} genes that not every section of "
                f"the bank {bank.folder} measured: {shown}",
                "Leave them out, and have that recorded: --drop-missing-anchors.",
            )
        kept = genes[~np.isin(genes, missing)]
        if not len(kept):
            raise BackboneError(f"{guessed.what} guesses no gene that the bank {bank.folder} measured everywhere")
        if own_anchors and len(guessed.genes) and len(lost := kept[~np.isin(kept, guessed.genes)]):
            raise BackboneError(
                f"{guessed.what} does not predict {len(lost)} anchor genes of the bank {bank.folder}, such as "
                f"{lost[0]}",
                "Build the bank's version with this model, so that anchors are chosen among its genes.",
            )
        return AnchorSpace(
            kept, wanted, None if library is None else library[~np.isin(library, missing)], tuple(missing)
        )

    def rows(self, bank: Bank) -> Iterator[Floats]:
        """(n, A) of each section of the bank, in `scale`."""
        base = dataclasses.replace(self.scale, smooth=False)
        read = self.genes if self.library is None else self.library
        read = np.concatenate([read, np.setdiff1d(self.genes, read)]) if self.library is not None else read
        where, place = columns(bank.genes, read), columns(read, self.genes)
        blocks = bank.count_blocks()
        for entry in bank.sections:
            parts, n = [], 0
            while n < entry["n_spots"]:
                _, some, totals = next(blocks)
                parts.append(to_scale(some[:, where], totals, base)[:, place].toarray().astype(np.float32))
                n += len(parts[-1])
            values = np.concatenate(parts)
            yield smooth_spots(values, SectionReader.open(bank.folder, entry).array_rc) if self.scale.smooth else values

    def statistics(self, bank: Bank) -> tuple[Doubles, Doubles]:
        """Mean and sd (A,) over the bank's spots; stored ones where the bank has them in this scale."""
        if self.scale in SCALES:
            where = columns(bank.genes, self.genes)
            mean, sd = (bank.derived[f"genes/{self.scale.name}/{name}"][where] for name in ("mean", "sd"))
            return mean, sd
        n, total, squares = 0, np.zeros(len(self.genes)), np.zeros(len(self.genes))
        for values in self.rows(bank):
            wide = values.astype(np.float64)
            n, total, squares = n + len(wide), total + wide.sum(0), squares + (wide**2).sum(0)
        return total / n, np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0))


def expect_convertible(what: str, source: Scale, wanted: Scale) -> None:
    """Refuses a guess that cannot be brought to the scale of the bank's anchors.

    Raises:
        BackboneError: naming both scales.
    """
    if source == wanted or (source.library, source.smooth) == (wanted.library, wanted.smooth) != ("panel", False):
        return
    remedies = ["bring the bank's anchors to the guess's scale (--anchor-scale model)"]
    preset = {"none": "in counts (--preset paper)", "all": "per 10,000 (--preset default)"}.get(source.library)
    if preset and not source.smooth:
        remedies.insert(0, f"work {preset}")
    raise BackboneError(
        f"{what} is in scale {source.name}, the bank's anchors are in {wanted.name}, and one cannot be brought to the "
        "other without the library size of every spot",
        f"Either {', or '.join(remedies)}.",
    )


def bring(guess: Expression, scale: Scale) -> tuple[Expression, int]:
    """A guess in the scale of the bank's anchors, and how many values below 0 were taken as 0 on the way.

    A guess that is in that scale already is left as it is.

    Raises:
        GeneragError: where there is no way.
    """
    if guess.scale == scale:
        return guess, 0
    below = int((guess.values < 0).sum())
    with np.errstate(over="ignore"):  # what is too large for its scale is refused as not finite
        return convert(dataclasses.replace(guess, values=np.maximum(guess.values, 0)), scale), below


def take_genes(guess: Expression, genes: Sequence[str] | Strings) -> Expression:
    """Some genes of a guess, by name.

    Raises:
        GeneragError: for genes that it lacks.
    """
    where = columns(guess.genes, genes)
    return dataclasses.replace(guess, values=guess.values[:, where], genes=guess.genes[where])


def expect_finite(guess: Expression, what: str) -> None:
    """Refuses values that are not finite numbers.

    Raises:
        GeneragError: naming a spot and a gene.
    """
    bad = np.argwhere(~np.isfinite(guess.values))
    if len(bad):
        spot, gene = bad[0]
        raise GeneragError(
            f"{what}: {len(bad)} values are not finite numbers, such as {guess.genes[gene]} at {guess.names[spot]}",
            "Is its scale the right one (--anchors-scale)?",
        )
