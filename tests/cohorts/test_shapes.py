"""Geometries of SpatialData elements, against shapely's own reading of them."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.cohorts.shapes import read_radii, read_shapes
from genrag_cli.errors import CohortError

COORDINATES = st.integers(-1000, 1000).map(lambda v: v / 8)
ANGLES = st.lists(st.floats(0, 6.2), min_size=3, max_size=8, unique_by=lambda a: round(a, 1))


def write(folder, geometries, **options):
    import geopandas

    encoding = options.pop("geometry_encoding", "WKB")
    frame = geopandas.GeoDataFrame({**options, "geometry": geometries}, index=[f"s{i}" for i in range(len(geometries))])
    frame.to_parquet(folder / "shapes.parquet", geometry_encoding=encoding)
    return folder


def polygon(angles, x=0.0, y=0.0, radius=5.0):
    """A convex polygon on a circle."""
    return shapely.Polygon([(x + radius * np.cos(a), y + radius * np.sin(a)) for a in sorted(angles)])


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(COORDINATES, COORDINATES), min_size=1, max_size=9), st.sampled_from(["WKB", "geoarrow"]))
def test_circles_keep_their_names_places_and_radii(tmp_path_factory, points, encoding):
    folder = tmp_path_factory.mktemp("circles")
    radii = np.arange(len(points)) + 1.0
    write(folder, [shapely.Point(*p) for p in points], radius=radii, geometry_encoding=encoding)
    shapes = read_shapes(folder)
    np.testing.assert_array_equal(shapes.centres, points)
    assert shapes.index.tolist() == [f"s{i}" for i in range(len(points))]
    assert shapes.radii.tolist() == read_radii(folder).tolist() == radii.tolist()


@settings(max_examples=15, deadline=None)
@given(st.lists(ANGLES, min_size=1, max_size=6), st.sampled_from([0.0, 1e6]))
def test_polygons_have_the_centroids_that_shapely_finds(tmp_path_factory, rings, far):
    folder = tmp_path_factory.mktemp("polygons")
    made = [polygon(angles, far + 3 * i, far) for i, angles in enumerate(rings)]
    expected = [(p.centroid.x, p.centroid.y) for p in made]
    np.testing.assert_allclose(read_shapes(write(folder, made)).centres, expected, atol=1e-6 * max(far, 1))


def test_of_several_parts_the_largest_counts_and_holes_do_not(tmp_path):
    large, small = shapely.box(0, 0, 4, 2), shapely.box(10, 10, 11, 11)
    holed = shapely.Polygon(shapely.box(0, 0, 4, 2).exterior, [shapely.box(0.5, 0.5, 1, 1).exterior])
    shapes = read_shapes(write(tmp_path, [shapely.MultiPolygon([small, large]), holed, large]))
    np.testing.assert_allclose(shapes.centres, [(2, 1)] * 3)
    assert shapes.radii is None
    assert read_radii(tmp_path) is None


@pytest.mark.parametrize(("big_endian", "z"), [(True, False), (False, True), (True, True)])
def test_byte_order_and_a_third_coordinate_do_not_matter(tmp_path, big_endian, z):
    import pandas as pd

    made = [shapely.Point(3, 4, 5) if z else shapely.Point(3, 4), shapely.box(0, 0, 2, 2)]
    packed = [shapely.to_wkb(g, byte_order=int(not big_endian), output_dimension=3 if z else 2) for g in made]
    pd.DataFrame({"geometry": packed}).to_parquet(tmp_path / "shapes.parquet")
    np.testing.assert_allclose(read_shapes(tmp_path).centres, [(3, 4), (1, 1)])


def test_what_is_no_point_or_polygon_is_refused(tmp_path):
    with pytest.raises(CohortError, match="cannot be decoded"):
        read_shapes(write(tmp_path, [shapely.LineString([(0, 0), (1, 1)])]))


def test_a_damaged_element_is_named(tmp_path):
    (tmp_path / "shapes.parquet").write_bytes(b"PAR1")
    with pytest.raises(CohortError, match="cannot be read as a shapes element"):
        read_shapes(tmp_path)
