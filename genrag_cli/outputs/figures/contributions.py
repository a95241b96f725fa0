"""The lower part of an explanation: how a value adds up, term by term, and how it depends on omega."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from genrag_cli.outputs.figures.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    PLAIN,
    SKY,
    SMALL,
    STYLES,
    VERMILLION,
    calm,
    cut,
    spread,
)
from genrag_cli.outputs.figures.explanation import HEIGHT_IN, WIDTH_IN, Explanation, OmegaSweep, count_decimals
from genrag_cli.types import Doubles

_BOTTOM_IN = 0.62
_NAMES_IN = 1.75
"""Room for the names of the terms, left of the first panel."""
_NUMBER_IN = 0.58
_CUT_BELOW = 0.4
"""An axis does not begin at 0 where all that happens does so within this share of the largest value."""
_NOTABLE = 1e-3
"""A rest above this share of the largest predicted value is shown as a term of its own."""


class _Term(NamedTuple):
    name: str
    values: Doubles
    """(k,)"""
    colour: str


def draw_contributions(figure: Any, given: Explanation, *, left_in: float, right_in: float, top_in: float) -> None:
    """One panel per gene: each term's bar begins where the one above it ended, the last ends at the predicted value."""
    terms, places = _list_terms(given), count_decimals(given)
    k = len(given.genes)
    gap_in = 0.22
    first_in = left_in + _NAMES_IN
    width_in = min((right_in - first_in - gap_in * (k - 1)) / k, 7.5)
    for j, gene in enumerate(given.genes):
        axis = _add_axes(figure, first_in + j * (width_in + gap_in), _BOTTOM_IN, width_in, top_in - _BOTTOM_IN)
        measured = None if given.measured is None else float(given.measured[j])
        _draw_gene(axis, terms, j, float(given.predicted[j]), measured, places[j])
        names = [*(t.name for t in terms), "predicted", *(["measured"] if given.measured is not None else [])]
        axis.set_yticks(range(len(names)), names if j == 0 else [""] * len(names))
        axis.get_yticklabels()[len(terms)].set_fontweight("bold")
        axis.tick_params(axis="y", length=0)
        axis.set_title(gene, fontsize=PLAIN + 1, pad=6)
        cut_off = ", not from 0" if axis.get_xlim()[0] > 0 else ""
        axis.set_xlabel(f"{given.unit}{cut_off}", fontsize=SMALL)


def draw_sweep(
    figure: Any, given: Explanation, sweep: OmegaSweep, *, left_in: float, right_in: float, top_in: float
) -> None:
    """Two panels over omega: the share of weight that the present references keep, and the predicted values."""
    height_in, gap_in = (top_in - _BOTTOM_IN - 0.5) / 2, 0.5
    upper = _add_axes(figure, left_in, _BOTTOM_IN + height_in + gap_in, right_in - left_in, height_in)
    lower = _add_axes(figure, left_in, _BOTTOM_IN, right_in - left_in - 0.55, height_in)
    upper.plot(sweep.omegas, sweep.kept, color=BLUE, linewidth=2, marker="o", markersize=3)
    upper.fill_between(sweep.omegas, 0, sweep.kept, color="#E0EEF6")
    upper.set(ylim=(0, 1.05))
    upper.set_title("weight kept by these references", fontsize=PLAIN, pad=18)
    lower.set_title(f"predicted, {given.unit}", fontsize=PLAIN)
    lower.set_xlabel("omega (share of morphology)", fontsize=SMALL)
    for j, (colour, dashes) in zip(range(len(given.genes)), STYLES, strict=False):
        lower.plot(sweep.omegas, sweep.predicted[:, j], color=colour, linestyle=dashes, linewidth=2)
    for axis in (upper, lower):
        calm(axis)
        axis.set_xlim(min(0.0, float(sweep.omegas.min())), max(1.0, float(sweep.omegas.max())))
        axis.set_xticks([0, 0.5, 1])
        axis.axvline(sweep.present, color=VERMILLION, linewidth=1.2, linestyle="--")
    upper.annotate(
        f"now {sweep.present:g}", (sweep.present, 1.05), (0, 2), textcoords="offset points", ha="center", va="bottom",
        fontsize=SMALL, color=VERMILLION,
    )  # fmt: skip
    low, high = lower.get_ylim()
    gap = (high - low) * (SMALL + 3) / 72 / height_in
    for gene, at, (colour, _) in zip(given.genes, spread(sweep.predicted[-1], gap), STYLES, strict=False):
        lower.annotate(
            cut(gene, 0.8), (1, at), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            fontsize=SMALL, color=colour, va="center", annotation_clip=False,
        )  # fmt: skip


def _list_terms(given: Explanation) -> list[_Term]:
    terms = [_Term(name, values, GREY) for name, values in given.base]
    terms += [
        _Term(cut(f"{i + 1}  {r.section}", _NAMES_IN), r.contribution, BLUE) for i, r in enumerate(given.references)
    ]
    if given.n_others:
        plural = "s" if given.n_others > 1 else ""
        terms.append(_Term(f"{given.n_others} other reference{plural}", given.others, SKY))
    total = np.sum([t.values for t in terms], axis=0) if terms else np.zeros(len(given.genes))
    rest = np.asarray(given.predicted - total, np.float64)
    size = max(float(np.abs(given.predicted).max()), 1e-12)
    if np.abs(rest).max() > _NOTABLE * size:
        terms.append(_Term("rest", rest, GREEN))
    return terms


def _draw_gene(
    axis: Any, terms: list[_Term], j: int, predicted: float, measured: float | None, places: int
) -> None:  # fmt: skip
    from matplotlib.ticker import MaxNLocator

    n = len(terms)
    ends = np.cumsum([0.0, *(float(t.values[j]) for t in terms)])
    known = measured is not None and np.isfinite(measured)
    reach = [*ends, predicted, *([float(measured or 0.0)] if known else [])]
    start = _cut_at([*ends[1:], *reach[len(ends) :]])
    low, high = start or min(reach), max(reach)
    span = max(high - low, 1e-9)
    # Room for the numbers, which stand right of the bars.
    room = _NUMBER_IN / (axis.get_position().width * WIDTH_IN - _NUMBER_IN)
    left = low if start else low - (0.5 * room if low < 0 else 0.04) * span
    axis.set_xlim(left, high + room * span)
    axis.set_ylim(n + (0.6 if measured is None else 1.6), -0.6)
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.axvline(predicted, color=VERMILLION, linewidth=1.2, linestyle="--", zorder=0)
    for i, term in enumerate(terms):
        begin, end = ends[i], ends[i + 1]
        axis.barh(i, end - begin, left=begin, height=0.62, color=term.colour)
        _break(axis, i, begin, left, start)
        axis.plot([end, end], [i - 0.31, i + 1.31 if i < n - 1 else i + 1], color=GREY, linewidth=0.7, zorder=1)
        _number(axis, f"{end - begin:+.{places}f}", max(begin, end), i)
    axis.barh(n, predicted, height=0.62, color=VERMILLION)
    _break(axis, n, 0.0, left, start)
    _number(axis, f"{predicted:.2f}", max(predicted, 0.0), n, fontweight="bold")
    if known and measured is not None:
        axis.plot(measured, n + 1, marker="D", color="black", markersize=6)
        _number(axis, f"{measured:.2f}", measured, n + 1, away=8)
    elif measured is not None:
        _number(axis, "not measured", left if start else 0.0, n + 1)
    calm(axis)
    axis.xaxis.set_major_locator(MaxNLocator(4, prune="upper"))  # no number near the next panel's
    axis.spines["left"].set_visible(False)


def _cut_at(ends: Sequence[float]) -> float:
    """Where an axis begins so that small terms on top of a large one can be seen; 0 where it begins as ever.

    Args:
        ends: where bars end, the predicted value, and the measured one.
    """
    low, high = min(ends), max(ends)
    return low - 0.25 * (high - low) if high > low > 0 and high - low < _CUT_BELOW * high else 0.0


def _break(axis: Any, i: int, begin: float, left: float, start: float) -> None:
    """Two strokes over a bar that begins left of a cut axis, so that nobody takes it for whole."""
    if not start or begin >= left:
        return
    how = {"transform": axis.get_yaxis_transform(), "color": "white", "linewidth": 1.6, "zorder": 3}
    for at in (0.02, 0.045):
        axis.plot([at, at + 0.02], [i + 0.4, i - 0.4], **how)


def _number(axis: Any, text: str, x: float, y: float, *, away: float = 4, **how: Any) -> None:
    """A number right of where something ends, on white, so that no line runs through it."""
    axis.annotate(
        text, (x, y), (away, 0), textcoords="offset points", va="center", fontsize=SMALL, color=INK, zorder=4,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8}, **how,
    )  # fmt: skip


def _add_axes(figure: Any, left_in: float, bottom_in: float, width_in: float, height_in: float) -> Any:
    return figure.add_axes((left_in / WIDTH_IN, bottom_in / HEIGHT_IN, width_in / WIDTH_IN, height_in / HEIGHT_IN))
