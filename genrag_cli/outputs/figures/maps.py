"""Maps: some genes over the slide, predicted and, where known, measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import OutputError
from genrag_cli.outputs.figures.canvas import (
    LARGE,
    PLAIN,
    SMALL,
    Shapes,
    expect_shapes,
    fill_rows,
    new_figure,
    save_figure,
)
from genrag_cli.types import Doubles, Floats

MAX_GENES = 12
_PANEL_IN = 3.1
"""Longer side of a panel, in inch, where few genes are drawn; more make it smaller."""
_FADE = 0.55
"""How much of the thumbnail gives way to white, so that the spots stand out."""
_SPOT_SHARE = 0.72
"""Diameter of a drawn spot as a share of the distance to its neighbour."""
_UNKNOWN = "#B8B8B8"
_LETTER_IN = 0.1
"""Width of a letter of a panel's name."""
_MANY = 20_000
"""From so many spots on over all panels, they are kept as pixels in a PDF or SVG, which would open slowly."""


def draw_maps(
    path: Path,
    centres: Doubles,
    genes: Sequence[str],
    predicted: Floats | Doubles,
    measured: Floats | Doubles | None = None,
    r: Sequence[float | None] | None = None,
    *,
    thumbnail: NDArray[np.uint8] | None = None,
    thumb_scale: float = 1.0,
    unit: str = "",
    title: str = "",
) -> None:
    """Draws predicted over measured expression of one to twelve genes, four in a row at most.

    Every panel has its own colours, from its 1st to its 99th percentile: a prediction varies less than what it
    predicts, and one range for both would hide its pattern. The panels are cut to where the spots are; values that are
    not finite are drawn in grey.

    Args:
        path: ends in .png, .pdf or .svg; written beside and renamed, so it is there whole or not at all. Its folder
            must exist.
        centres: (n, 2) x, y of the spots in level-0 px.
        genes: (k,) names, one column of panels each.
        predicted: (n, k).
        measured: (n, k), or None where nothing was measured.
        r: (k,) Pearson correlation over the spots, None or NaN where undefined; leave out where nothing was measured.
        thumbnail: (h, w, 3) RGB of the slide; None: white ground.
        thumb_scale: level-0 px per thumbnail px.
        unit: of the expression, written along the colour bars.
        title: over everything.

    Raises:
        OutputError: for shapes that do not fit, more genes than fit, or a path that cannot be written.
    """
    rows = [("predicted", predicted)] + ([("measured", measured)] if measured is not None else [])
    _expect_fit(thumbnail, centres, genes, rows, r)
    spacing = _find_spacing(centres)
    low, high = centres.min(axis=0) - spacing, centres.max(axis=0) + spacing
    n_columns = fill_rows(len(genes), 4)
    n_blocks = -(-len(genes) // n_columns)
    longer = _PANEL_IN if len(genes) <= 3 else 2.5
    width, height = np.maximum((high - low) / (high - low).max() * longer, 1.0)

    # Room for the colour bar beside a panel, for the names above it and for the title.
    figure = new_figure(
        n_columns * (width + 1.15) + 0.4,
        n_blocks * (len(rows) * (height + 0.25) + 0.35) + (0.45 if title else 0.1),
    )
    axes = figure.subplots(len(rows) * n_blocks, n_columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_visible(False)
    faded = None if thumbnail is None else (thumbnail * (1 - _FADE) + 255 * _FADE).astype(np.uint8)
    as_pixels = len(centres) * len(genes) * len(rows) > _MANY
    for j, gene in enumerate(genes):
        block, column = divmod(j, n_columns)
        for i, (name, values) in enumerate(rows):
            axis = axes[block * len(rows) + i, column]
            axis.set_visible(True)
            if faded is not None:
                axis.imshow(faded, extent=(0, faded.shape[1] * thumb_scale, faded.shape[0] * thumb_scale, 0))
            spots = _draw_spots(axis, centres, np.asarray(values[:, j], np.float64), spacing * _SPOT_SHARE)
            spots.set_rasterized(as_pixels)
            axis.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            _draw_bar(figure, axis, spots, unit)
            if i == 0:
                name_of = gene if r is None else _name_judged(gene, r[j], width + 0.9)
                axis.set_title(name_of, fontsize=PLAIN + 1)
            if column == 0:
                axis.set_ylabel(name, fontsize=PLAIN + 1)
    if title:
        figure.suptitle(title, fontsize=LARGE)
    save_figure(figure, path)


def _name_judged(gene: str, r: float | None, width_in: float) -> str:
    """A gene and its correlation, in one line where that fits, else in two."""
    said = f"PCC {r:.2f}" if r is not None and np.isfinite(r) else "PCC undefined"
    gap = "   " if (len(gene) + len(said)) * _LETTER_IN < width_in else "\n"
    return f"{gene}{gap}{said}"


def _draw_bar(figure: Any, axis: Any, spots: Any, unit: str) -> None:
    from matplotlib.ticker import MaxNLocator

    bar = figure.colorbar(spots, ax=axis, shrink=0.85, aspect=22, pad=0.02, ticks=MaxNLocator(5))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL, length=2)
    if unit:
        bar.set_label(unit, fontsize=SMALL)


def _draw_spots(axis: Any, centres: Doubles, values: Doubles, diameter: float) -> Any:
    from matplotlib import colormaps
    from matplotlib.collections import EllipseCollection

    sizes = np.full(len(centres), diameter)
    spots = EllipseCollection(
        sizes, sizes, np.zeros(len(centres)), units="xy", offsets=centres, offset_transform=axis.transData
    )
    spots.set(array=np.ma.masked_invalid(values), edgecolor="none")
    spots.set_cmap(colormaps["viridis"].with_extremes(bad=_UNKNOWN))
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


def _expect_fit(
    thumbnail: NDArray[Any] | None,
    centres: Doubles,
    genes: Sequence[str],
    rows: Sequence[tuple[str, NDArray[Any]]],
    r: Sequence[float | None] | None,
) -> None:
    n, k = len(centres), len(genes)
    if not n or not k:
        raise OutputError(f"nothing to draw: {n} spots, {k} genes")
    if k > MAX_GENES:
        raise OutputError(f"{k} genes asked; one figure shows at most {MAX_GENES}", "Draw several figures.")
    found: Shapes = {"centres": ((n, 2), centres.shape)}
    if thumbnail is not None:
        found["thumbnail"] = ((*thumbnail.shape[:2], 3), thumbnail.shape)
    found |= {name: ((n, k), values.shape) for name, values in rows}
    found |= {"r": ((k,), (len(r),))} if r is not None else {}
    expect_shapes("maps", found)
