"""Joining a prediction and a truth: spots by name, genes by name, values in the prediction's scale."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import CohortError, GeneragError
from genrag_cli.types import Doubles, Expression, Ints, Scale, Strings

MIN_SPOTS = 3
ToScale = Callable[[Any, Doubles, Scale], Any]
"""(counts, total_counts, scale) -> counts in that scale, as `genes.scales.to_scale`."""


@dataclass(frozen=True, eq=False)
class SpotJoin:
    """Spots that a prediction and a truth share by name, in the order of the prediction."""

    prediction_rows: Ints
    truth_rows: Ints
    only_predicted: int
    only_measured: int

    @property
    def note(self) -> str:
        """What was not joined; empty where everything was."""
        if not self.only_predicted and not self.only_measured:
            return ""
        return f"{self.only_predicted} predicted spots not measured, {self.only_measured} measured spots not predicted"


@dataclass(frozen=True, eq=False)
class Truth:
    """Measured values of the joined spots and of the genes that are scored, in the prediction's scale."""

    values: NDArray[np.floating]
    """(n, k)"""
    place: dict[str, int]
    """Gene name -> column."""


def join_spots(predicted: Strings, measured: Strings) -> SpotJoin:
    """Joins spots by name.

    Raises:
        CohortError: for names that occur twice on one side, or fewer than 3 shared; shows a name of either side.
    """
    for side, names in (("prediction", predicted), ("truth", measured)):
        if len(set(names.tolist())) < len(names):
            raise CohortError(f"the spot names of the {side} are not unique, so spots cannot be joined by name")
    place = {name: i for i, name in enumerate(measured.tolist())}
    rows = [(i, place[name]) for i, name in enumerate(predicted.tolist()) if name in place]
    if len(rows) < MIN_SPOTS:
        examples = [repr(str(names[0])) if len(names) else "none" for names in (predicted, measured)]
        raise CohortError(
            f"{len(rows)} of {len(predicted)} predicted and {len(measured)} measured spots share a name, "
            f"{MIN_SPOTS} are needed; predicted {examples[0]}, measured {examples[1]}",
            "Predict at the measured spots (--spots), under their names.",
        )
    both = np.array(rows, dtype=np.int64)
    return SpotJoin(both[:, 0], both[:, 1], len(predicted) - len(rows), len(measured) - len(rows))


def rows_of(expression: Expression, names: Strings, what: str) -> Ints:
    """Where the spots called `names` stand in `expression`.

    Raises:
        GeneragError: for a spot that is not there; `what` says in what.
    """
    place = {name: i for i, name in enumerate(expression.names.tolist())}
    if missing := [name for name in names.tolist() if name not in place]:
        raise GeneragError(f"{what} lacks {len(missing)} of {len(names)} scored spots, such as {missing[0]}")
    return np.array([place[name] for name in names.tolist()], dtype=np.int64)


def take_truth(
    counts: Any,
    genes: Strings,
    totals: Doubles,
    *,
    rows: Ints,
    prediction: Expression,
    wanted: Strings,
    to_scale: ToScale,
) -> Truth:
    """The measured values of some spots and genes in the scale of a prediction.

    Args:
        counts: (N, H) CSR or dense raw counts.
        genes: (H,) unique symbols.
        totals: (N,) library sizes over all genes.
        rows: the joined spots.
        prediction: gives the scale, and the panel where the scale is normalised by one.
        wanted: genes to be scored; those that were not measured are left out.
        to_scale: brings counts to a scale.

    Raises:
        GeneragError: for repeated genes, or a panel-normalised scale of which genes were not measured.
    """
    column = {gene: i for i, gene in enumerate(genes.tolist())}
    if len(column) < len(genes):
        raise GeneragError("some genes of the truth occur twice, so genes cannot be joined by name")
    scale = prediction.scale
    if scale.library == "panel":
        # The library is the sum over the prediction's genes, so all of them are needed to come to its scale.
        taken = prediction.genes.tolist()
        if missing := [gene for gene in taken if gene not in column]:
            raise GeneragError(
                f"scale {scale.name} is normalised by the sum over the {len(taken)} predicted genes, and the truth "
                f"lacks {len(missing)} of them, such as {missing[0]}"
            )
    else:
        taken = [gene for gene in wanted.tolist() if gene in column]
    # Rows first: CSR takes rows by copying, columns by sorting.
    chosen = counts[rows][:, [column[gene] for gene in taken]]
    scaled = to_scale(chosen, totals[rows], scale)
    values = scaled.toarray() if hasattr(scaled, "toarray") else scaled
    return Truth(np.asarray(values), {gene: i for i, gene in enumerate(taken)})
