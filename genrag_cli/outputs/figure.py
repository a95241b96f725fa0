"""A picture of a prediction: a few genes over the slide, predicted and, where known, measured.

Knows how to draw and nothing of where the numbers come from. Uses matplotlib's objects directly, without pyplot:
no window system, no state that outlives the call. matplotlib is imported when something is drawn.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import OutputError
from genrag_cli.types import Doubles, Floats

_PANEL_IN = 3.1
"""Longer side of a panel, in inch."""
_DPI = 120
_FADE = 0.55
"""How much of the thumbnail gives way to white, so that the spots stand out."""
_SPOT_SHARE = 0.72
"""Diameter of a drawn spot as a share of the distance to its neighbour."""


def draw_prediction(
    path: Path,
    thumbnail: NDArray[np.uint8],
    thumb_scale: float,
    centres: Doubles,
    genes: Sequence[str],
    predicted: Floats,
    measured: Floats | None = None,
    r: Sequence[float | None] | None = None,
    *,
    scale_name: str = "",
    title: str = "",
) -> None:
    """Draws predicted over measured expression of some genes (three look best) and writes a PNG.

    Every panel has its own colours, from its 1st to its 99th percentile: a prediction varies less than what it
    predicts, and one range for both would hide its pattern. The panels are cut to where the spots are.

    Args:
        path: the PNG; written beside and renamed, so it is there whole or not at all. Its folder must exist.
        thumbnail: (h, w, 3) RGB of the slide.
        thumb_scale: level-0 px per thumbnail px.
        centres: (n, 2) x, y of the spots in level-0 px.
        genes: (k,) names, one column of panels each.
        predicted: (n, k).
        measured: (n, k), or None where nothing was measured.
        r: (k,) Pearson correlation over the spots, None or NaN where undefined; leave out where nothing was measured.
        scale_name: of the expression, written along the colour bars.
        title: over everything.

    Raises:
        OutputError: for shapes that do not fit or a path that cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [("predicted", predicted)] + ([("measured", measured)] if measured is not None else [])
    _expect_shapes(thumbnail, centres, genes, rows, r)
    spacing = _find_spacing(centres)
    low, high = centres.min(axis=0) - spacing, centres.max(axis=0) + spacing
    width, height = np.maximum((high - low) / (high - low).max() * _PANEL_IN, 1.0)

    # Room for the colour bar beside a panel, for the names above it and for the title.
    size = (len(genes) * (width + 0.95) + 0.4, len(rows) * (height + 0.2) + 0.45 + (0.4 if title else 0.0))
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    axes = figure.subplots(len(rows), len(genes), squeeze=False)
    faded = (thumbnail * (1 - _FADE) + 255 * _FADE).astype(np.uint8)
    for i, (name, values) in enumerate(rows):
        for j, gene in enumerate(genes):
            axis = axes[i, j]
            axis.imshow(faded, extent=(0, faded.shape[1] * thumb_scale, faded.shape[0] * thumb_scale, 0))
            spots = _draw_spots(axis, centres, values[:, j], spacing * _SPOT_SHARE)
            axis.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            bar = figure.colorbar(spots, ax=axis, shrink=0.8, aspect=22, pad=0.02)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=8, length=2)
            if scale_name and j == len(genes) - 1:
                bar.set_label(scale_name, fontsize=9)
            if i == 0:
                axis.set_title(_name_panel(gene, None if r is None else r[j], judged=measured is not None), fontsize=11)
            if j == 0:
                axis.set_ylabel(name, fontsize=11)
    if title:
        figure.suptitle(title, fontsize=12)
    _write(figure, path)


def _name_panel(gene: str, r: float | None, *, judged: bool) -> str:
    if not judged:
        return gene
    return f"{gene}   PCC {r:.2f}" if r is not None and np.isfinite(r) else f"{gene}   PCC undefined"


def _draw_spots(axis: Any, centres: Doubles, values: NDArray[Any], diameter: float) -> Any:
    from matplotlib.collections import EllipseCollection

    sizes = np.full(len(centres), diameter)
    spots = EllipseCollection(
        sizes, sizes, np.zeros(len(centres)), units="xy", offsets=centres, offset_transform=axis.transData
    )
    spots.set(array=np.asarray(values, float), cmap="viridis", edgecolor="none")
    known = values[np.isfinite(values)]
    bottom, top = np.percentile(known, [1, 99]) if len(known) else (0.0, 0.0)
    # Colours of a gene that does not vary: the lowest, and a bar that still has a length.
    spots.set_clim(bottom, top if top > bottom else bottom + 1)
    axis.add_collection(spots, autolim=False)
    return spots


def _find_spacing(centres: Doubles) -> float:
    """Median distance to the nearest other spot, in level-0 px."""
    from scipy.spatial import KDTree

    places = np.unique(centres, axis=0)
    if len(places) < 2:
        return 100.0
    return float(np.median(KDTree(places).query(places, k=2)[0][:, 1]))


def _write(figure: Any, path: Path) -> None:
    try:
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}", "Give a path in a folder that you may write to.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            # No version of matplotlib within: the same numbers give the same bytes on one machine.
            figure.savefig(file, format="png", metadata={"Software": None})
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    finally:
        Path(beside).unlink(missing_ok=True)


def _expect_shapes(
    thumbnail: NDArray[Any],
    centres: Doubles,
    genes: Sequence[str],
    rows: Sequence[tuple[str, Floats]],
    r: Sequence[float | None] | None,
) -> None:
    n, k = len(centres), len(genes)
    if not n or not k:
        raise OutputError(f"nothing to draw: {n} spots, {k} genes")
    found = {"thumbnail": ((*thumbnail.shape[:2], 3), thumbnail.shape), "centres": ((n, 2), centres.shape)}
    found |= {name: ((n, k), values.shape) for name, values in rows}
    found |= {"r": ((k,), (len(r),))} if r is not None else {}
    for name, (expected, shape) in found.items():
        if shape != expected:
            raise OutputError(f"figure: {name} should be of shape {expected}, found {shape}")
