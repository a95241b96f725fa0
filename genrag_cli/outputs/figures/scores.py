"""A dot plot of scores with intervals: methods down, one panel per metric."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.errors import OutputError
from genrag_cli.outputs.figures.canvas import (
    BLUE,
    GREY,
    INK,
    LARGE,
    PALE,
    PLAIN,
    SMALL,
    calm,
    fill_rows,
    new_figure,
    save_figure,
)

_COLUMNS = 4


@dataclass(frozen=True)
class ScoreRow:
    """One number of one method."""

    method: str
    metric: str
    value: float | None
    """None where it is undefined, which is said in its place."""
    low: float | None = None
    high: float | None = None
    """Ends of the interval; None: no bar is drawn."""
    own: bool = False
    """The method itself, drawn in colour; baselines are grey."""


def draw_scores(path: Path, rows: Sequence[ScoreRow], *, title: str = "", note: str = "") -> None:
    """Draws estimates as dots with bars from low to high.

    Methods stand in the order in which they first occur, metrics too. A metric that a method has no row for stays
    empty there.

    Args:
        path: ends in .png, .pdf or .svg; see `canvas.save_figure`.
        rows: at least one; one per method and metric.
        title: over everything.
        note: under everything, such as what the bars are.

    Raises:
        OutputError: for no row, two of one method and metric, or an interval that is turned around or endless.
    """
    if not rows:
        raise OutputError("nothing to draw: no scores")
    methods, metrics = (list(dict.fromkeys(getattr(r, key) for r in rows)) for key in ("method", "metric"))
    cells = {(r.method, r.metric): r for r in rows}
    if len(cells) < len(rows):
        raise OutputError("scores: some method has two values of one metric")
    for row in rows:
        _expect_interval(row)
    n_columns = fill_rows(len(metrics), _COLUMNS)
    n_rows = -(-len(metrics) // n_columns)
    name_in = 0.085 * max(map(len, methods)) + 0.3
    height = n_rows * (0.32 * len(methods) + 0.95) + (0.45 if title else 0.0) + (0.3 if note else 0.0) + 0.1
    figure = new_figure(name_in + n_columns * 2.5, height)
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for i, axis in enumerate(axes.ravel()):
        if i >= len(metrics):
            axis.set_visible(False)
            continue
        own = [cells.get((method, metrics[i])) for method in methods]
        _draw(axis, metrics[i], own)
        axis.set_yticks(range(len(methods)), methods if i % n_columns == 0 else [""] * len(methods))
        for label, cell in zip(axis.get_yticklabels(), own, strict=True):
            label.set_fontweight("bold" if cell is not None and cell.own else "normal")
    if title:
        figure.suptitle(title, fontsize=LARGE)
    if note:
        figure.supxlabel(note, fontsize=SMALL, color=INK)
    save_figure(figure, path)


def _draw(axis: Any, metric: str, rows: Sequence[ScoreRow | None]) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(metric, fontsize=PLAIN)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    for i, row in enumerate(rows):
        axis.axhline(i, color=PALE, linewidth=0.8, zorder=0)
        if row is None:
            continue
        if row.value is None or not np.isfinite(row.value):
            axis.text(
                0.5, i, "undefined", transform=axis.get_yaxis_transform(), fontsize=SMALL, color=GREY, ha="center",
                va="center", backgroundcolor="white",
            )  # fmt: skip
            continue
        colour = BLUE if row.own else GREY
        if row.low is not None and row.high is not None:
            axis.plot([row.low, row.high], [i, i], color=colour, linewidth=2.5, solid_capstyle="butt")
        axis.plot(row.value, i, marker="o", color=colour, markersize=8 if row.own else 6.5)
    calm(axis)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.margins(x=0.12)
    axis.xaxis.set_major_locator(MaxNLocator(4))


def _expect_interval(row: ScoreRow) -> None:
    if row.value is None or row.low is None or row.high is None:
        return
    if row.low > row.high or not np.isfinite([row.low, row.high]).all():
        raise OutputError(f"scores: {row.method} has {row.metric} from {row.low} to {row.high}")
