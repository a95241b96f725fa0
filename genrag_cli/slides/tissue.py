"""Where on a slide the tissue is.

Knows how a small overview of a slide is averaged from its pyramid, and tells stained tissue from glass of any
colour, from pen, printed dots, dust and black surroundings.
Does not know spots or tiles; `tissue_share` answers for any squares.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genrag_cli.slides.base import Level, Mask, Pixels, Slide
from genrag_cli.slides.masks import read_mask
from genrag_cli.types import Doubles, PixelSize

Method = Literal["density", "otsu"]
_METHODS: dict[str | Path, Method] = {"density": "density", "otsu": "otsu"}

OVERVIEW_UM = 8.0
"""um per px of the overview: a nucleus, so that tissue is rough and glass is smooth."""
LEVEL0_LIMIT = 24_000_000
"""Up to this many px level 0 itself is averaged, so that files with and without a pyramid give the same overview."""
_BLOCK = (1024, 4096)

# In optical density (log10) of stain; chosen on breast, skin, lung and heart sections from four laboratories.
_ROUGH = 0.010
_ROUGH_CAP = 0.0125
_DENSE = 0.10
_USUAL_STAIN = 0.13
_LEAST_CONTRAST = 0.4
_WINDOW_UM = 40.0
_SMALLEST_PIECE_UM2 = 40_000.0
_LARGEST_FILLED_HOLE_UM2 = 20_000.0
_SMALLEST_PEN_UM2 = 4_000.0
_VOID = 45
_LEAST_OTSU = 0.02
"""Below this stain there is no tissue, whatever separates best: on bare glass that is noise from noise."""


@dataclass(frozen=True, eq=False)
class Tissue:
    """The overview of a slide and its tissue."""

    overview: Pixels
    """(h, w, 3) RGB."""
    mask: Mask
    """(h, w) True on tissue."""
    scale: float
    """Overview px per level-0 px: level-0 coordinates times this are overview coordinates."""


def find_tissue(
    slide: Slide, pixel_size: PixelSize, um_per_px: float = OVERVIEW_UM, how: str | Path = "density"
) -> Tissue:
    """Makes the overview of a slide and finds the tissue on it.

    Args:
        slide: what to look at.
        pixel_size: of level 0.
        um_per_px: of the overview.
        how: `density` or `otsu` (see `tissue_mask`); `none`: all of the slide is tissue; or a file that says where it
            is (see `read_mask`). A file that is called like one of these words is given with its folder: `./none`.

    Raises:
        UsageError: for a file that is missing or says nothing.
        SlideError: for a file that does not fit this slide.
    """
    rgb, scale = overview(slide, pixel_size, um_per_px)
    if how == "none":
        mask = np.ones(rgb.shape[:2], bool)
    elif how in _METHODS:
        mask = tissue_mask(rgb, pixel_size.mpp / scale, _METHODS[how])
    else:
        mask = read_mask(how, slide, rgb.shape[:2], scale)
    return Tissue(rgb, mask, scale)


def overview(slide: Slide, pixel_size: PixelSize, um_per_px: float = OVERVIEW_UM) -> tuple[Pixels, float]:
    """Averages a slide down to an overview, in memory that does not depend on its size.

    Every px of the overview is the mean over exactly its area of the coarsest level that is at or finer than
    `um_per_px`; the last row and column take what is left over (half to one and a half times the usual area).

    Args:
        slide: what to look at.
        pixel_size: of level 0.
        um_per_px: of the overview; never finer than level 0.

    Returns:
        (h, w, 3) RGB, and overview px per level-0 px.
    """
    step = max(um_per_px / pixel_size.mpp, 1.0)
    index, level = _overview_level(slide, step)
    n_cols, n_rows = (max(1, math.ceil(side / step - 0.5)) for side in slide.size)
    xs, ys = _edges(n_cols, step / level.downsample, level.width), _edges(n_rows, step / level.downsample, level.height)
    out = np.empty((n_rows, n_cols, 3), np.uint8)
    rows_at_once, cols_at_once = (max(1, int(side * level.downsample / step)) for side in _BLOCK)
    for r in range(0, n_rows, rows_at_once):
        y = ys[r : r + rows_at_once + 1]
        top, bottom = math.floor(y[0]), math.ceil(y[-1])
        for c in range(0, n_cols, cols_at_once):
            x = xs[c : c + cols_at_once + 1]
            left, right = math.floor(x[0]), math.ceil(x[-1])
            block = slide.read_region(left, top, right - left, bottom - top, index)
            means = _average(_average(block, y - top, 0), x - left, 1)
            out[r : r + rows_at_once, c : c + cols_at_once] = np.rint(means)
    return out, 1.0 / step


def _overview_level(slide: Slide, step: float) -> tuple[int, Level]:
    """The coarsest level that is at or finer than `step` level-0 px, or level 0 of a small slide."""
    width, height = slide.size
    if width * height <= LEVEL0_LIMIT:
        return 0, slide.levels[0]
    fine = [(i, level) for i, level in enumerate(slide.levels) if level.downsample <= step]
    return max(fine, key=lambda entry: entry[1].downsample)


def _edges(n: int, step: float, side: int) -> Doubles:
    """The n + 1 edges of n intervals of `step` px; the last one is the edge of the image."""
    edges = np.arange(n + 1, dtype=np.float64) * np.float64(step)
    edges[-1] = side
    return edges


def _average(block: NDArray[Any], edges: Doubles, axis: int) -> NDArray[np.float32]:
    """Means over intervals of at least one px along an axis; px cut by an edge count with their share."""
    first = np.floor(edges[:-1]).astype(np.int64)
    whole = np.moveaxis(np.add.reduceat(block, first, axis=axis, dtype=np.float32), axis, 0)
    lines = np.moveaxis(block, axis, 0)
    shape = (-1,) + (1,) * (block.ndim - 1)
    before = (edges[:-1] - first).astype(np.float32).reshape(shape) * lines[first]
    after = np.zeros_like(before)
    after[:-1] = before[1:]
    after[-1] = (edges[-1] - len(lines)) * lines[-1]
    means = (whole - before + after) / np.diff(edges).astype(np.float32).reshape(shape)
    return np.moveaxis(means, 0, axis)


def tissue_mask(rgb: Pixels, um_per_px: float = OVERVIEW_UM, how: Method = "density") -> Mask:
    """Finds stained tissue on an overview.

    Stain is optical density relative to the slide's own glass, less what all channels share: glass of any tint,
    printed dots, dust and shadows have none.

    Args:
        rgb: (h, w, 3) overview.
        um_per_px: of the overview.
        how: `density`: tissue is where stain is rough at the scale of cells, or dense; smears of eosin beside the
            tissue are neither. `otsu`: where stain, averaged over a few cells, is above Otsu's threshold.

    Returns:
        (h, w) True on tissue; holes below 0.02 mm2 are filled, pieces below 0.04 mm2 left out.
    """
    from scipy import ndimage
    from skimage import filters, morphology

    void = rgb.max(axis=2) < _VOID
    if void.all():
        return np.zeros_like(void)
    stain, pen = _stain(rgb, void, um_per_px)
    window = max(3, 2 * round((_WINDOW_UM / um_per_px - 1) / 2) + 1)
    mean = ndimage.uniform_filter(stain, window)
    if how == "otsu":
        mask = mean > max(float(filters.threshold_otsu(mean[~void & ~pen])), _LEAST_OTSU)
    else:
        mask = _rough_or_dense(stain, mean, window, void)
    mask &= ~ndimage.binary_dilation(void, iterations=2)
    mask &= ~ndimage.binary_dilation(pen, iterations=4)
    mask = ndimage.binary_closing(np.pad(mask, 4), iterations=2)[4:-4, 4:-4]  # joins cells
    if how == "density":  # whose window reaches past the edge of the tissue: the erosion takes the rim away again
        mask = ndimage.binary_erosion(mask, border_value=1)
    mask = ndimage.binary_opening(mask)
    area = um_per_px**2
    mask = morphology.remove_small_holes(mask, max_size=round(_LARGEST_FILLED_HOLE_UM2 / area))
    mask = morphology.remove_small_objects(mask, max_size=round(_SMALLEST_PIECE_UM2 / area))
    return np.asarray(mask & ~void, bool)


def _rough_or_dense(stain: NDArray[np.float32], mean: NDArray[np.float32], window: int, void: Mask) -> Mask:
    """Where stain varies from cell to cell, or there is much of it, measured against what the slide has."""
    from scipy import ndimage

    rough = np.sqrt(np.clip(ndimage.uniform_filter(stain**2, window) - mean**2, 0, None))
    # Glass that is noisy itself must not pass for tissue, and a faded slide has less of everything.
    noise = min(3 * float(np.percentile(rough[~void], 10)), _ROUGH_CAP)
    likely = mean[(rough > max(_ROUGH * _LEAST_CONTRAST, noise)) & ~void]
    contrast = np.percentile(likely, 90) / _USUAL_STAIN if likely.size else 1.0
    contrast = float(np.clip(contrast, _LEAST_CONTRAST, 1))
    limit = max(_ROUGH * contrast, noise)
    return np.asarray(((rough > limit) & (mean > _ROUGH * contrast)) | (mean > _DENSE * contrast), bool)


def _stain(rgb: Pixels, void: Mask, um_per_px: float) -> tuple[NDArray[np.float32], Mask]:
    """Optical density of stain, 0 on void and pen; and where pen is.

    Haematoxylin and eosin both take green away most; haematoxylin lets blue through, eosin red. A blue pen takes
    more red than green and hardly any blue, a red pen as much blue as green, a green or black one shows no stain.
    """
    from skimage import morphology

    pixels = rgb.astype(np.float32)
    glass = np.percentile(pixels[~void], 97, axis=0).astype(np.float32)
    density = np.clip(np.log10((glass + 1) / (pixels + 1)), 0, 2)
    density[void] = 0
    r, g, b = density[..., 0], density[..., 1], density[..., 2]
    blue_pen = (r > 1.1 * g) & (b < 0.42 * r) & (r > 0.25)
    red_pen = (b > 0.82 * g) & (r < 0.2 * g) & (g > 0.4)
    pen = morphology.remove_small_objects(blue_pen | red_pen, max_size=round(_SMALLEST_PEN_UM2 / um_per_px**2))
    stain = np.clip(g - np.minimum(r, b), 0, None)
    stain[pen] = 0
    return stain, pen


def tissue_share(mask: Mask, scale: float, centres: Doubles, side_px: float) -> Doubles:
    """The share of squares that is tissue; what lies outside the mask is none.

    Args:
        mask: (h, w) from `tissue_mask`.
        scale: overview px per level-0 px.
        centres: (n, 2) x, y of the squares in level-0 px.
        side_px: of the squares, in level-0 px.

    Returns:
        (n,) between 0 and 1, exact for squares that cut px of the mask.
    """
    from scipy import ndimage

    h, w = mask.shape
    sums = np.zeros((h + 1, w + 1))
    sums[1:, 1:] = mask.cumsum(0, dtype=np.float64).cumsum(1)
    low, high = (centres - side_px / 2) * scale, (centres + side_px / 2) * scale

    def below(x: Doubles, y: Doubles) -> Doubles:
        corner = [np.clip(y, 0, h), np.clip(x, 0, w)]
        return np.asarray(ndimage.map_coordinates(sums, corner, order=1, prefilter=False), np.float64)

    (x0, y0), (x1, y1) = low.T, high.T
    inside = below(x1, y1) - below(x0, y1) - below(x1, y0) + below(x0, y0)
    return np.clip(inside / (side_px * scale) ** 2, 0, 1)
