"""Anchor genes of a bank: who chooses them, and from what the bank's sections know of their genes.

Statistics of every gene are taken once, when a section is added, and stand in the section's store. The default recipe
needs nothing else; published ones work on raw counts and read every section once.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import CohortError, UsageError
from genrag_cli.genes.align import columns
from genrag_cli.genes.moments import GeneStatistics, gene_statistics
from genrag_cli.genes.panels import core_panel, read_panel_file
from genrag_cli.genes.published_panels import PANELS
from genrag_cli.stores.bank import SectionReader
from genrag_cli.stores.layout import statistic_column
from genrag_cli.types import COUNTS, LOG1P_CP10K, Doubles, Ints, Listener, Scale, Strings

SCALES = (LOG1P_CP10K, COUNTS)
"""The scales that banks have statistics and heads for."""
STATISTICS = tuple(f.name for f in dataclasses.fields(GeneStatistics) if f.name != "n_spots")


@dataclass(frozen=True)
class AnchorOptions:
    """Which anchor genes: a number taken by a recipe, or a list of names."""

    number: int | None = None
    """None: what the recipe says; for `corrected` 300, or as many as pass where those are fewer (said and stored)."""
    file: Path | None = None
    panel: str = "corrected"
    names: tuple[str, ...] | None = None
    """A list that an earlier version had from a file."""
    source: str = ""
    """Where that list came from."""

    def __post_init__(self) -> None:
        if self.panel not in PANELS:
            raise UsageError(
                f"unknown panel {self.panel!r}", f"Known: {', '.join(PANELS)}; or give names with --anchors FILE"
            )
        if self.number is not None and self.number < 1:
            raise UsageError(f"--anchors {self.number} asked; at least 1 is possible", "The usual number is 300.")

    @staticmethod
    def parse(text: str | None, panel: str) -> "AnchorOptions":
        """From `--anchors FILE|N`."""
        if text is None:
            return AnchorOptions(panel=panel)
        return AnchorOptions(int(text), None, panel) if text.isdigit() else AnchorOptions(None, Path(text), panel)

    @staticmethod
    def recall(recipe: dict[str, Any]) -> "AnchorOptions":
        """From what `recipe` wrote down."""
        names = recipe["names"]
        return AnchorOptions(
            recipe["number"], None, recipe["panel"], None if names is None else tuple(names), recipe["source"]
        )

    @property
    def recipe(self) -> dict[str, Any]:
        """All that it takes to choose anchors in the same way for other sections."""
        named = self.listed()
        source = f"file {self.file.name}" if self.file else self.source
        return {
            "number": self.number, "panel": self.panel, "names": None if named is None else named.tolist(),
            "source": source if named is not None else self.panel,
        }  # fmt: skip

    def listed(self) -> Strings | None:
        """The names given, None where a recipe chooses.

        Raises:
            GeneragError: for a file that cannot be read as a list of genes.
        """
        if self.file is not None:
            return read_panel_file(self.file)
        return None if self.names is None else np.asarray(self.names, np.str_)


def summarise(counts: Any, totals: Doubles, measured: NDArray[np.bool_] | None) -> dict[str, NDArray[Any]]:
    """What a section's store says of its genes, (G,) each by column of `var`.

    Args:
        counts: CSR (n, G) over the bank's genes.
        totals: (n,) counts over all genes of the section.
        measured: (G,) which of them the section measured; None: all.
    """
    found: dict[str, NDArray[Any]] = {}
    for scale in SCALES:
        statistics = gene_statistics([(counts, totals, measured)], scale)
        found |= {statistic_column(scale.name, name): getattr(statistics, name) for name in STATISTICS}
    return found


def stored_statistics(
    sections: Sequence[SectionReader], scale: Scale, genes: Ints | None = None
) -> Iterator[GeneStatistics]:
    """What the stores of sections say of their genes in a scale, one section at a time.

    Args:
        sections: of a bank.
        scale: one of `SCALES`.
        genes: columns to keep; None: all.
    """
    named = {name: statistic_column(scale.name, name) for name in STATISTICS}
    kept = slice(None) if genes is None else genes
    for section in sections:
        found = section.gene_columns(*named.values())
        yield GeneStatistics(n_spots=len(section), **{name: found[column][kept] for name, column in named.items()})


def choose_anchors(
    genes: Strings,
    sections: Sequence[SectionReader],
    options: AnchorOptions,
    listener: Listener,
    among: Strings | None = None,
) -> tuple[Strings, str]:
    """Chooses anchor genes among those that every section measured.

    Args:
        genes: (G,) of the bank.
        sections: of the version.
        options: which.
        listener: told where there are fewer than usual.
        among: genes that the backbone predicts by itself, so that only these can anchor; None: any.

    Returns:
        (A,) names, and where they come from.

    Raises:
        CohortError: for a list that names a gene which a section did not measure.
        GeneragError: for names that the bank does not have, or a recipe that fewer genes pass than were asked for.
    """
    common = np.ones(len(genes), bool)
    for section in sections:
        if section.entry["n_missing"]:
            common &= section.measured
    recipe = options.recipe
    predicted = np.ones(len(genes), bool) if among is None else np.isin(genes, among)
    if (listed := options.listed()) is not None:
        where = columns(genes, listed)
        if len(lost := where[~common[where]]):
            lacking = next(s.name for s in sections if s.entry["n_missing"] and not s.measured[lost[0]])
            raise CohortError(
                f"anchor gene {genes[lost[0]]} ({recipe['source']}) was not measured in section {lacking}; "
                f"{len(lost)} of {len(listed)} anchors are missing somewhere",
                "Leave such genes out of the list, or such sections out of the bank.",
            )
        if len(unknown := where[~predicted[where]]):
            raise CohortError(
                f"anchor gene {genes[unknown[0]]} ({recipe['source']}) is not predicted by the backbone; "
                f"{len(unknown)} of {len(listed)} anchors are not",
                "Leave such genes out of the list, or leave --anchors out.",
            )
        return listed, str(recipe["source"])
    rows = np.flatnonzero(common & predicted)
    if not len(rows) and common.any():
        raise CohortError(
            f"the bank has none of the {0 if among is None else len(among)} genes that the backbone predicts",
            "Are they of one species, and named by one convention? Previous names need a table (--gene-aliases).",
        )
    if not len(rows):
        raise CohortError(f"no gene was measured in all {len(sections)} sections, and anchors need such genes")
    names, panel = genes[rows], PANELS[options.panel]
    if panel.choose is None:
        chosen = core_panel(names, stored_statistics(sections, LOG1P_CP10K, rows), options.number)
    else:

        def walk() -> Iterator[Any]:
            for section in sections:
                yield section.counts()[:, rows]

        chosen = panel.choose(names, walk, options.number)
    if options.number is None and panel.number is not None and len(chosen) < panel.number:
        listener.warn(
            f"{len(chosen)} genes pass the recipe for anchors ({options.panel}), fewer than the usual {panel.number}; "
            "all are taken"
        )
    return names[chosen], options.panel
