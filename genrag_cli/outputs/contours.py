"""Outlines of tissue as GeoJSON that QuPath opens.

Knows masks and the few keys that QuPath reads. Does not know slides, and writes no file.
"""

import uuid
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.types import Doubles

_NAMESPACE = uuid.UUID("5d5a6bd2-0f6e-5c0f-9b0e-8b6f3f6f7f1d")
"""Of the ids of annotations: the same outline has the same id in every run."""


def tissue_geojson(mask: NDArray[np.bool_], scale: float | tuple[float, float]) -> dict[str, Any]:
    """Outlines of the pieces of tissue, one annotation each, their holes kept.

    Outlines run along the borders of px and cut their corners; px that touch at a corner only are two pieces.

    Args:
        mask: (h, w) True on tissue.
        scale: px of the mask per level-0 px; across and down where level-0 px are not square.

    Returns:
        a FeatureCollection of Polygons in level-0 px, from the largest piece to the smallest.
    """
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    pieces = []
    for number, window in enumerate(ndimage.find_objects(labels), start=1):
        corner = np.array([window[1].start, window[0].start])
        rings = _trace(labels[window] == number)
        pieces.append([np.round((ring + corner) / np.array(scale), 2) for ring in rings])
    pieces.sort(key=lambda rings: -np.ptp(rings[0], axis=0).prod())
    return {"type": "FeatureCollection", "features": [_annotation(rings) for rings in pieces]}


def _trace(piece: NDArray[np.bool_]) -> list[Doubles]:
    """The outline of one piece and then its holes, closed, (k, 2) x, y in px, as GeoJSON wants them wound."""
    from skimage import measure

    rings = [ring[:, ::-1] - 0.5 for ring in measure.find_contours(np.pad(piece, 1), 0.5)]  # px 0 begins at 0
    areas = [_signed_area(ring) for ring in rings]
    outer = int(np.argmax(np.abs(areas)))
    order = [outer, *(i for i in range(len(rings)) if i != outer)]
    wound = [rings[i] if (areas[i] > 0) == (i == outer) else rings[i][::-1] for i in order]
    return [_without_straight_points(ring) for ring in wound]


def _without_straight_points(ring: Doubles) -> Doubles:
    """A closed ring of multiples of half a px without the points that lie on straight lines."""
    (x0, y0), (x1, y1) = (ring[:-1] - np.roll(ring[:-1], 1, axis=0)).T, np.diff(ring, axis=0).T
    corners = ring[:-1][x0 * y1 != x1 * y0]
    return np.concatenate([corners, corners[:1]])


def _signed_area(ring: Doubles) -> float:
    x, y = ring.T
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2


def _annotation(rings: list[Doubles]) -> dict[str, Any]:
    outlines = [ring.tolist() for ring in rings]
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, str(outlines))),
        "geometry": {"type": "Polygon", "coordinates": outlines},
        "properties": {"objectType": "annotation", "name": "tissue"},
    }
