"""Small multiples of tuning curves: a score against a setting, fold by fold and on average."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import OutputError
from genrag_cli.outputs.figures.canvas import (
    BLUE,
    GREY,
    INK,
    LARGE,
    PLAIN,
    SMALL,
    VERMILLION,
    calm,
    expect_shapes,
    fill_rows,
    new_figure,
    save_figure,
)
from genrag_cli.types import Doubles

_COLUMNS = 3


@dataclass(frozen=True, eq=False)
class CurvePanel:
    """One setting that was tried at several values."""

    title: str
    x: Sequence[float] | Sequence[str] | NDArray[Any]
    """(m,) values tried: numbers, or words that stand side by side in this order."""
    folds: Doubles
    """(f, m) score of each fold; NaN where there is none."""
    x_label: str = ""
    y_label: str = "score"
    chosen: float | str | None = None
    """The value of `x` that was taken; None: none is marked."""
    log_x: bool = False
    note: str = ""
    """A line below the title, such as what the folds are."""


def draw_curves(path: Path, panels: Sequence[CurvePanel], *, title: str = "") -> None:
    """Draws one panel per setting: a thin line per fold, a thick one for their mean, and the chosen value marked.

    The mean at a value is over the folds that have a score there.

    Args:
        path: ends in .png, .pdf or .svg; see `canvas.save_figure`.
        panels: at least one; three in a row.
        title: over everything.

    Raises:
        OutputError: for no panel, shapes that do not fit, or a chosen value that is not among those tried.
    """
    if not panels:
        raise OutputError("nothing to draw: no curves")
    for panel in panels:
        _expect_fit(panel)
    n_columns = fill_rows(len(panels), _COLUMNS)
    n_rows = -(-len(panels) // n_columns)
    figure = new_figure(max(3.9 * n_columns, 4.6) + 0.2, 3.3 * n_rows + (0.75 if title else 0.4))
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel)
    figure.supxlabel("thin lines: folds; thick line: their mean", fontsize=SMALL, color=INK)
    if title:
        figure.suptitle(title, fontsize=LARGE)
    save_figure(figure, path)


def _draw(axis: Any, panel: CurvePanel) -> None:
    words = [str(x) for x in panel.x]
    named = any(isinstance(x, str) for x in panel.x)
    x = np.arange(len(words), dtype=np.float64) if named else np.asarray(panel.x, np.float64)
    order = np.argsort(x)
    folds = np.asarray(panel.folds, np.float64)[:, order]
    mean = _mean(folds)
    for fold in folds:
        axis.plot(x[order], fold, color=GREY, linewidth=1, marker="o", markersize=2.5)
    axis.plot(x[order], mean, color=BLUE, linewidth=2.5, marker="o", markersize=4)
    if panel.log_x:
        axis.set_xscale("log")
    calm(axis)
    if named:
        axis.set_xticks(x, words)
        axis.margins(x=0.15)
    elif len(x) <= 7:
        axis.set_xticks(x, [f"{value:g}" for value in x])
        axis.minorticks_off()
    if panel.chosen is not None:
        _mark(axis, panel, x[order], mean, words if named else None)
    axis.set_title(panel.title + (f"\n{panel.note}" if panel.note else ""), fontsize=PLAIN, color=INK, pad=22)
    axis.set_xlabel(panel.x_label, fontsize=PLAIN)
    axis.set_ylabel(panel.y_label, fontsize=PLAIN)


def _mark(axis: Any, panel: CurvePanel, x: Doubles, mean: Doubles, words: list[str] | None) -> None:
    """A line at the chosen value with its name above the frame, where no curve can cross it."""
    at = words.index(str(panel.chosen)) if words else _find(panel, x)
    axis.axvline(x[at], color=VERMILLION, linewidth=1.2, linestyle="--", zorder=1)
    axis.plot(x[at], mean[at], marker="D", color=VERMILLION, markersize=7, zorder=5)
    name = panel.chosen if isinstance(panel.chosen, str) else f"{panel.chosen:g}"
    place = axis.transAxes.inverted().transform(axis.transData.transform((x[at], 0.0)))[0]
    score = f": {mean[at]:.3f}" if np.isfinite(mean[at]) else ""
    axis.annotate(
        f"chosen {name}{score}", (x[at], 1), (0, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
        ha="left" if place < 0.25 else "right" if place > 0.75 else "center", va="bottom", fontsize=SMALL,
        color=VERMILLION,
    )  # fmt: skip


def _mean(folds: Doubles) -> Doubles:
    known = np.isfinite(folds)
    total, n = np.where(known, folds, 0).sum(axis=0), known.sum(axis=0)
    return np.asarray(np.where(n > 0, total / np.maximum(n, 1), np.nan), np.float64)


def _find(panel: CurvePanel, x: Doubles) -> int:
    near = np.flatnonzero(np.isclose(x, float(panel.chosen or 0.0)))
    return int(near[0]) if len(near) else -1


def _expect_fit(panel: CurvePanel) -> None:
    if not len(panel.x) or not len(panel.folds):
        raise OutputError(f"curves of {panel.title!r}: {len(panel.x)} values, {len(panel.folds)} folds")
    expect_shapes(f"curves of {panel.title!r}", {"folds": ((len(panel.folds), len(panel.x)), panel.folds.shape)})
    words = [str(x) for x in panel.x]
    named = any(isinstance(x, str) for x in panel.x)
    if panel.chosen is None:
        return
    there = str(panel.chosen) in words if named else _find(panel, np.asarray(panel.x, np.float64)) >= 0
    if not there:
        raise OutputError(f"curves of {panel.title!r}: {panel.chosen} was not among the values {', '.join(words)}")
