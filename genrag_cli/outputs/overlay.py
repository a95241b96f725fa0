"""The picture that shows what was taken for tissue and where the spots are.

Knows pixels, masks and places. Does not know slides or predictions; its colours stand out on pink and purple.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genrag_cli.types import Doubles

LONG_SIDE_PX = 1500
MOST_ENLARGED = 5.0
"""Beyond it a small overview shows no more."""
PNG_LEVEL = 4
"""Below the usual 6, which takes longer and hardly makes pictures of tissue smaller."""
_CONTOUR, _SPOT = (0, 158, 115), (255, 225, 0)
_MARK_SHARE = 0.15
"""Radius of a mark over the side of a tile, so that the tissue stays in sight."""
_MARK_PX = (0.6, 4.0)


def tissue_overlay(
    overview: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    scale: float,
    centres: Doubles,
    side_px: float,
    long_side: int = LONG_SIDE_PX,
) -> NDArray[np.uint8]:
    """Draws the outline of the tissue and a mark at every spot on the overview of a slide.

    Args:
        overview: (h, w, 3) RGB.
        mask: (h, w) True on tissue.
        scale: overview px per level-0 px.
        centres: (n, 2) x, y of the spots in level-0 px; n may be 0.
        side_px: side of a tile in level-0 px.
        long_side: px of the longer side of the picture; fewer where the overview is enlarged `MOST_ENLARGED` times.

    Returns:
        (H, W, 3) RGB.
    """
    from PIL import Image, ImageDraw
    from scipy import ndimage

    height, width = mask.shape
    factor = min(long_side / max(height, width), MOST_ENLARGED)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    pixels = np.array(
        Image.fromarray(overview).resize(size, Image.Resampling.BOX if factor < 1 else Image.Resampling.BILINEAR)
    )
    shown = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) > 127
    pixels[ndimage.binary_dilation(shown, iterations=1) & ~ndimage.binary_erosion(shown, iterations=1)] = _CONTOUR
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    radius = float(np.clip(_MARK_SHARE * side_px * scale * factor, *_MARK_PX))
    places = centres * scale * np.array([size[0] / width, size[1] / height]) - 0.5
    for x, y in places.tolist():
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_SPOT)
    return np.asarray(image)


def write_overlay(pixels: NDArray[np.uint8], path: Path) -> None:
    """Writes a picture as PNG, whatever the path ends in; whoever calls sees to it that nobody sees half of it.

    The same pixels give the same bytes.

    Raises:
        OSError: where the path cannot be written.
    """
    from PIL import Image

    Image.fromarray(pixels).save(path, format="PNG", compress_level=PNG_LEVEL)
