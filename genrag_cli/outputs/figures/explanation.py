"""Why one spot got its values: its tile, its references, what each contributes, and how it depends on omega.

The figure has a strip of pictures and words above (`reference_strip`) and panels of numbers below (`contributions`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import OutputError
from genrag_cli.outputs.figures.canvas import LARGE, Shapes, expect_shapes, new_figure, save_figure
from genrag_cli.types import Doubles

MAX_GENES, MAX_REFERENCES = 4, 8
WIDTH_IN, HEIGHT_IN, DPI = 13.0, 8.0, 110
Tile = NDArray[np.uint8] | None


@dataclass(frozen=True, eq=False)
class Reference:
    """A bank spot that a prediction draws on."""

    spot: str
    section: str
    patient: str
    """Empty where unknown."""
    weight: float
    expression: Doubles
    """(k,) measured there, NaN where it was not."""
    contribution: Doubles
    """(k,) what it adds to each gene's value."""
    tile: Tile = None
    """(s, s, 3) RGB; None: not at hand."""


@dataclass(frozen=True, eq=False)
class OmegaSweep:
    """The same spot predicted at other weights of morphology."""

    omegas: Doubles
    """(w,) ascending."""
    kept: Doubles
    """(w,) share of the weight on the references that were chosen at the present omega."""
    predicted: Doubles
    """(w, k)"""
    present: float
    """The omega of the prediction."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Everything that is drawn of one spot."""

    spot: str
    slide: str
    genes: Sequence[str]
    """k names, 1 to `MAX_GENES`."""
    unit: str
    predicted: Doubles
    """(k,)"""
    base: Sequence[tuple[str, Doubles]]
    """Named terms, (k,) each, that are no reference, such as the bank's mean."""
    references: Sequence[Reference]
    """Those of largest weight, the largest first; up to `MAX_REFERENCES`."""
    n_others: int
    others: Doubles
    """(k,) what all other references add together."""
    sweep: OmegaSweep | None = None
    measured: Doubles | None = None
    """(k,) where the spot was measured too."""
    tile: Tile = None
    """(s, s, 3) RGB of the spot itself; None: not at hand."""
    tile_um: float | None = None
    """Side of the tiles."""
    notes: Sequence[str] = ()
    """A line or two below the strip, such as where the pictures came from."""


def count_decimals(given: Explanation) -> list[int]:
    """For each gene, 2 to 4 decimals: as many as tell apart what single references add."""
    largest = np.max([np.zeros(len(given.genes)), *(np.abs(r.contribution) for r in given.references)], axis=0)
    return [2 if top >= 0.1 or top == 0 else 3 if top >= 0.01 else 4 for top in largest.tolist()]


def draw_explanation(path: Path, given: Explanation) -> None:
    """Draws one spot: its tile and references, the contributions to up to four genes, and a sweep over omega.

    Base terms, references and the sum of the others must add up to the predicted value: what is missing is drawn as a
    bar of its own, called `rest`, where it is more than a thousandth of the largest predicted value.

    Args:
        path: ends in .png, .pdf or .svg; see `canvas.save_figure`.
        given: what is drawn.

    Raises:
        OutputError: for shapes that do not fit, no gene, or more genes or references than fit.
    """
    from genrag_cli.outputs.figures.contributions import draw_contributions, draw_sweep
    from genrag_cli.outputs.figures.reference_strip import draw_strip

    _expect_fit(given)
    figure = new_figure(WIDTH_IN, HEIGHT_IN, dpi=DPI, constrained=False)
    figure.text(0.25 / WIDTH_IN, 1 - 0.26 / HEIGHT_IN, f"{given.slide}, spot {given.spot}", fontsize=LARGE, va="center")
    bottom_in = draw_strip(figure, given)
    right = WIDTH_IN - (3.45 if given.sweep is not None else 0.3)
    draw_contributions(figure, given, left_in=0.25, right_in=right, top_in=bottom_in - 0.55)
    if given.sweep is not None:
        draw_sweep(
            figure, given, given.sweep, left_in=WIDTH_IN - 2.75, right_in=WIDTH_IN - 0.3, top_in=bottom_in - 0.55
        )
    save_figure(figure, path)


def _expect_fit(given: Explanation) -> None:
    k = len(given.genes)
    if not 1 <= k <= MAX_GENES:
        raise OutputError(f"explanation: 1 to {MAX_GENES} genes fit, found {k}", "Ask for fewer genes at a time.")
    if len(given.references) > MAX_REFERENCES:
        raise OutputError(
            f"explanation: at most {MAX_REFERENCES} references fit, found {len(given.references)}",
            "Sum the lesser ones up as the others.",
        )
    found: Shapes = {"predicted": ((k,), given.predicted.shape), "others": ((k,), given.others.shape)}
    found |= {f"base {name!r}": ((k,), values.shape) for name, values in given.base}
    for reference in given.references:
        found |= {
            f"{what} of {reference.spot}": ((k,), getattr(reference, what).shape)
            for what in ("expression", "contribution")
        }
    if given.measured is not None:
        found["measured"] = ((k,), given.measured.shape)
    if given.sweep is not None:
        w = len(given.sweep.omegas)
        found |= {"kept": ((w,), given.sweep.kept.shape), "swept": ((w, k), given.sweep.predicted.shape)}
    for tile in (given.tile, *(r.tile for r in given.references)):
        if tile is not None:
            found[f"tile {tile.shape}"] = ((*tile.shape[:2], 3), tile.shape)
    expect_shapes("explanation", found)
