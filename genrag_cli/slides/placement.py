"""Whether spots lie on tissue: how dark a slide is under them, beside elsewhere.

A picture that is mirrored, swapped, scaled or another section's puts spots on glass. Knows luminance; does not look for
tissue, and cannot tell where the whole slide is tissue.
"""

import numpy as np

from genrag_cli.slides.base import Slide
from genrag_cli.slides.tissue import overview
from genrag_cli.types import Doubles, PixelSize

UM_PER_PX = 20.0
_LUMA = np.array([0.299, 0.587, 0.114])
_FEWEST = 50


def darkness_under_spots(slide: Slide, pixel_size: PixelSize, centres: Doubles, diameter_um: float) -> float | None:
    """The chance that a spot is darker than a place of its size away from all spots (area under the ROC curve).

    Args:
        slide: to look at.
        pixel_size: of level 0.
        centres: (n, 2) x, y in level-0 px.
        diameter_um: of a spot.

    Returns:
        .5 for spots that lie anyhow, 1 where each is darker than all else; None where the spots leave too little of the
        slide to compare with.
    """
    from scipy.ndimage import distance_transform_edt, uniform_filter
    from scipy.stats import rankdata

    image, scale = overview(slide, pixel_size, um_per_px=UM_PER_PX)
    side = max(1, round(diameter_um / UM_PER_PX))
    # A disc or a square makes no difference to a mean over a spot.
    light = uniform_filter(image @ _LUMA, size=side, mode="nearest")
    where = np.floor(centres * scale).astype(np.int64)
    inside = ((where >= 0) & (where < [light.shape[1], light.shape[0]])).all(axis=1)
    column, row = where[inside].T
    free = np.ones(light.shape, bool)
    free[row, column] = False
    away = light[distance_transform_edt(free) > 1.5 * max(side, 2)] if len(row) else light[:0, 0]
    if len(row) < 2 or len(away) < _FEWEST:
        return None
    under = light[row, column]
    ranks = rankdata(np.concatenate([away, under]))[len(away) :]
    above = ranks.sum() - len(under) * (len(under) + 1) / 2
    return float(1 - above / (len(under) * len(away)))
