import json
import uuid

import numpy as np
import pytest
from scipy import ndimage

from genrag_cli.outputs.contours import tissue_geojson
from genrag_cli.slides import find_tissue, open_slide
from genrag_cli.slides.masks import read_mask
from genrag_cli.types import PixelSize
from genrag_cli.units import Mpp

SIZE = (1500, 1200)


class Glass:
    """As much of a slide as a mask asks for."""

    path, size = "made-up", SIZE


def blobs(seed):
    """Tissue with ragged edges and many holes, cut by the edge; 150 x 120 px."""
    noise = np.random.default_rng(seed).normal(size=SIZE[::-1])
    smooth = ndimage.gaussian_filter(noise, 40)[5::10, 5::10]
    return ndimage.binary_opening(smooth > np.quantile(smooth, 0.2))


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def read_back(geojson, folder, shape, scale, slide=Glass):
    path = folder / "tissue.geojson"
    path.write_text(json.dumps(geojson))
    return read_mask(path, slide, shape, scale)


@pytest.mark.parametrize("seed", range(5))
def test_a_mask_comes_back_from_its_outlines(tmp_path, seed):
    mask = blobs(seed)
    assert iou(read_back(tissue_geojson(mask, 0.1), tmp_path, mask.shape, 0.1), mask) > 0.98


def test_a_mask_of_any_scale_comes_back(tmp_path):
    mask = np.zeros((41, 52), bool)
    mask[:30, 20:] = True
    mask[5:20, 30:40] = False
    scale = 52 / 1500
    assert iou(read_back(tissue_geojson(mask, scale), tmp_path, mask.shape, scale), mask) > 0.98


def test_outlines_are_polygons_that_other_programs_take():
    import shapely.geometry

    mask = blobs(1)
    polygons = [shapely.geometry.shape(f["geometry"]) for f in tissue_geojson(mask, 0.1)["features"]]
    assert all(polygon.is_valid and polygon.exterior.is_closed for polygon in polygons)
    assert len(polygons) == ndimage.label(mask)[1]
    assert sum(len(polygon.interiors) for polygon in polygons) > 10
    assert sum(polygon.area for polygon in polygons) == pytest.approx(100 * mask.sum(), rel=0.02)
    assert all(polygon.exterior.is_ccw and not any(hole.is_ccw for hole in polygon.interiors) for polygon in polygons)


def test_coordinates_are_level_0_px_along_the_borders_of_px():
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:7] = True
    outline = np.array(tissue_geojson(mask, 0.25)["features"][0]["geometry"]["coordinates"][0])
    assert outline.min(axis=0).tolist() == [12, 8]
    assert outline.max(axis=0).tolist() == [28, 16]
    assert len(outline) == 9, "a rectangle with its corners cut, and closed"


def test_qupath_finds_what_it_reads():
    features = tissue_geojson(blobs(0), 0.1)["features"]
    assert all(f["properties"] == {"objectType": "annotation", "name": "tissue"} for f in features)
    assert len({uuid.UUID(f["id"]) for f in features}) == len(features)
    assert features == tissue_geojson(blobs(0), 0.1)["features"]


def test_a_ring_has_a_hole_and_what_touches_at_a_corner_is_two():
    ring = np.ones((5, 5), bool)
    ring[1:4, 1:4] = False
    (feature,) = tissue_geojson(ring, 1.0)["features"]
    assert len(feature["geometry"]["coordinates"]) == 2
    assert len(tissue_geojson(np.kron(np.eye(2), np.ones((3, 3))).astype(bool), 1.0)["features"]) == 2


def test_no_tissue_has_no_outline():
    assert tissue_geojson(np.zeros((5, 5), bool), 1.0) == {"type": "FeatureCollection", "features": []}


@pytest.mark.real
def test_outlines_of_a_real_section_come_back(shared_data, tmp_path):
    with open_slide(shared_data / "her2st" / "images" / "C4.jpg", pictures=True) as slide:
        size = PixelSize(Mpp(200 / 290), "pitch")
        tissue = find_tissue(slide, size)
        back = read_back(tissue_geojson(tissue.mask, tissue.scale), tmp_path, tissue.mask.shape, tissue.scale, slide)
    assert iou(back, tissue.mask) > 0.98
