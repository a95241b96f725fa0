"""The upper part of an explanation: the spot's own tile, and its references side by side with what they are."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from genrag_cli.outputs.figures.canvas import BLUE, GREY, INK, PALE, SMALL, VERMILLION, cut
from genrag_cli.outputs.figures.explanation import (
    HEIGHT_IN,
    WIDTH_IN,
    Explanation,
    Reference,
    Tile,
    count_decimals,
)

_LEFT_IN, _LINE_IN, _TOP_IN = 0.25, 0.195, 0.62
_OWN_IN = 2.0
"""Width of the column with the spot itself."""
_HEADS_IN = 1.15
"""Width of the column with the names of the rows."""
_TILE_IN = 1.4


def draw_strip(figure: Any, given: Explanation) -> float:
    """Draws it and returns how far above the figure's lower edge it ends, in inch."""
    n = max(len(given.references), 1)
    pictures = any(tile is not None for tile in (given.tile, *(r.tile for r in given.references)))
    first_in = _LEFT_IN + _OWN_IN + _HEADS_IN
    width_in = min((WIDTH_IN - first_in - 0.15) / n, 1.9)
    tile_in = min(_TILE_IN, width_in - 0.12) if pictures else 0.0
    top_in = HEIGHT_IN - _TOP_IN
    n_lines = 4 + len(given.genes)
    text_in = top_in - tile_in - 0.18

    own_in = tile_in + 0.35 if pictures else 0.0
    if pictures:
        scale = f"{given.tile_um:g} um wide" if given.tile_um else ""
        _draw_tile(figure, given.tile, _LEFT_IN, top_in, own_in, VERMILLION)
        _write(figure, _LEFT_IN, top_in - own_in - 0.12, scale, color=GREY)
    _write_own(figure, given, top_in - own_in - (0.34 if pictures else 0.1))

    heads = ["spot", "section", "patient", "weight", *(f"{gene}" for gene in given.genes)]
    for line, head in enumerate(heads):
        at = text_in - line * _LINE_IN
        _write(figure, first_in - 0.1, at, cut(head, _HEADS_IN), color=INK if line >= 4 else GREY, ha="right")
    for i, reference in enumerate(given.references):
        x = first_in + i * width_in
        if pictures:
            _draw_tile(figure, reference.tile, x, top_in, tile_in, BLUE)
        _write_reference(figure, reference, i, x, text_in, width_in, count_decimals(given))
    if not given.references:
        _write(figure, first_in, text_in, "no reference has a weight", color=GREY)
    last_in = text_in - (n_lines - 1) * _LINE_IN
    for line, note in enumerate(_notes(given)):
        _write(figure, first_in - 0.1 - _HEADS_IN + 0.35, last_in - 0.27 - line * _LINE_IN, note, color=GREY)
    return last_in - 0.2 - _LINE_IN * len(_notes(given))


def _notes(given: Explanation) -> list[str]:
    legend = f"weights, then expression there ({given.unit}) and, in brackets, what the reference adds to the value"
    return [legend, *given.notes]


def _write_own(figure: Any, given: Explanation, top_in: float) -> None:
    """Predicted and, where known, measured values of the spot."""
    for line, gene in enumerate(given.genes):
        text = f"{cut(gene, 0.85)}  {given.predicted[line]:.2f}"
        if given.measured is not None:
            text += f", measured {given.measured[line]:.2f}"
        _write(figure, _LEFT_IN, top_in - line * _LINE_IN, text)


def _write_reference(
    figure: Any, reference: Reference, i: int, x: float, top_in: float, width_in: float, decimals: Sequence[int]
) -> None:
    head = f"{i + 1}  {reference.spot}"
    lines = [cut(head, width_in), cut(reference.section, width_in), cut(reference.patient or "unknown", width_in)]
    lines.append(f"{reference.weight:.3f}")
    for value, added, places in zip(reference.expression, reference.contribution, decimals, strict=True):
        known = f"{value:.2f}" if np.isfinite(value) else "n/a"
        lines.append(f"{known} ({added:+.{places}f})")
    for line, text in enumerate(lines):
        _write(figure, x, top_in - line * _LINE_IN, text, weight="bold" if line == 0 else "normal")


def _draw_tile(figure: Any, tile: Tile, left_in: float, top_in: float, side_in: float, colour: str) -> None:
    axis = figure.add_axes(
        (left_in / WIDTH_IN, (top_in - side_in) / HEIGHT_IN, side_in / WIDTH_IN, side_in / HEIGHT_IN)
    )
    axis.set(xticks=[], yticks=[])
    if tile is None:
        axis.set_facecolor("#F2F2F2")
        axis.text(0.5, 0.5, "no image", transform=axis.transAxes, ha="center", va="center", fontsize=SMALL, color=GREY)
        colour = PALE
    else:
        axis.imshow(tile, aspect="auto", interpolation="antialiased")
    axis.spines[:].set_color(colour)
    axis.spines[:].set_linewidth(1.5)


def _write(figure: Any, x_in: float, y_in: float, text: str, **how: Any) -> None:
    figure.text(x_in / WIDTH_IN, y_in / HEIGHT_IN, text, **{"fontsize": SMALL, "va": "center", "color": INK, **how})
