"""Correlation of genes by rank: how far down the list of genes a method still predicts anything."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genrag_cli.errors import OutputError
from genrag_cli.outputs.figures.canvas import GREY, INK, LARGE, PLAIN, SMALL, STYLES, calm, new_figure, save_figure
from genrag_cli.types import Doubles

MARKS = (10, 50, 300, 1000, 5000)


def draw_gene_ranks(
    path: Path, curves: Sequence[tuple[str, Doubles]], *, title: str = "", marks: Sequence[int] = MARKS
) -> None:
    """Draws the correlation of every gene against its rank, one line per method.

    Ranks are each method's own: the genes are sorted by their correlation. PCC-k is the mean of a line up to k; it
    stands behind the method's name for the largest mark that the line reaches.

    Args:
        path: ends in .png, .pdf or .svg; see `canvas.save_figure`.
        curves: (label, (G,) correlations in any order); NaN where undefined. Up to seven.
        title: over everything.
        marks: ranks that get a vertical line where a curve reaches them.

    Raises:
        OutputError: for no curve, one without a defined correlation or of another shape, or too many curves.
    """
    if not 1 <= len(curves) <= len(STYLES):
        raise OutputError(f"gene ranks: 1 to {len(STYLES)} curves can be told apart, found {len(curves)}")
    ranked = []
    for label, r in curves:
        values = np.asarray(r, np.float64)
        defined = np.sort(values[np.isfinite(values)])[::-1] if values.ndim == 1 else values[:0]
        if not defined.size:
            raise OutputError(f"gene ranks: {label!r} has no defined correlation (shape {values.shape})")
        ranked.append((label, defined, len(values) - len(defined)))

    longest = max(len(r) for _, r, _ in ranked)
    low, high = min(float(r[-1]) for _, r, _ in ranked), max(float(r[0]) for _, r, _ in ranked)
    figure = new_figure(8.2, 4.8)
    axis = figure.subplots()
    axis.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    axis.set(xscale="log", xlim=(1, max(longest, 2)), ylim=(min(low, 0) - 0.04, min(max(high, 0) + 0.08, 1.05)))
    reached = [k for k in marks if k <= longest]
    for k in reached:
        axis.axvline(k, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    shown = sorted({1, *reached} | ({longest} if all(longest > 1.5 * k for k in reached) else set()))
    axis.set_xticks(shown, [str(k) for k in shown])
    axis.minorticks_off()
    for (label, r, undefined), (colour, dashes) in zip(ranked, STYLES, strict=False):
        text = _name(label, r, undefined, reached)
        axis.plot(np.arange(1, len(r) + 1), r, color=colour, linestyle=dashes, linewidth=2, label=text)
    calm(axis)
    figure.legend(
        loc="outside right upper", frameon=False, fontsize=SMALL, labelcolor=INK, handlelength=3.2, labelspacing=1.0
    )
    axis.set_xlabel("gene, by rank of its correlation", fontsize=PLAIN)
    axis.set_ylabel("Pearson correlation over spots", fontsize=PLAIN)
    if title:
        figure.suptitle(title, fontsize=LARGE)
    save_figure(figure, path)


def _name(label: str, r: Doubles, undefined: int, reached: Sequence[int]) -> str:
    """Its name, and the mean down to the last mark that the line reaches."""
    k = max((k for k in reached if k <= len(r)), default=len(r))
    return f"{label}\nPCC-{k} {np.mean(r[:k]):.3f}" + (f", {undefined} undefined" if undefined else "")
