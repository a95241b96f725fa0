import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.cohorts import affine
from genrag_cli.errors import CohortError

NUMBERS = st.floats(-50, 50)


def similarity(angle=0.3, scale=1.29, mirror=False, shift=(800.0, 7000.0)):
    """A turn with a scale, perhaps mirrored, and a shift."""
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    flip = -1 if mirror else 1
    return (c, -s * flip, shift[0], s, c * flip, shift[1])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=5), st.booleans(), st.floats(-3, 3))
def test_the_way_back_leads_back(points, mirror, angle):
    xy = np.array(points)
    one = similarity(angle, mirror=mirror)
    np.testing.assert_allclose(affine.apply(affine.invert(one), affine.apply(one, xy)), xy, atol=1e-9)


def test_maps_are_done_in_the_order_given():
    doubled, shifted = (2.0, 0, 0, 0, 2.0, 0), (1.0, 0, 5.0, 0, 1.0, 0)
    assert affine.apply(affine.compose([doubled, shifted]), np.array([[1.0, 1.0]])).tolist() == [[7.0, 2.0]]


@pytest.mark.parametrize("mirror", [False, True])
def test_a_turn_and_a_mirror_image_change_no_length(mirror):
    assert affine.length_scale(similarity(1.1, 1.29, mirror)) == pytest.approx(1.29)


@pytest.mark.parametrize("bad", [(1.0, 0.2, 0, 0, 1.0, 0), (1.0, 0, 0, 0, 1.2, 0), (1.0, 1.0, 0, 1.0, 1.0, 0)])
def test_a_shear_or_an_unequal_stretch_has_no_length_scale(bad):
    with pytest.raises(CohortError, match="shears or stretches"):
        affine.length_scale(bad)


@pytest.mark.parametrize("bad", [np.eye(2), [[1, 0, np.nan], [0, 1, 0]], [[1, 0, 0], [0, 1, 0], [0.1, 0, 1]]])
def test_what_is_no_affine_map_is_refused(bad):
    with pytest.raises(CohortError, match="no affine map"):
        affine.from_matrix(bad)


def test_a_map_that_flattens_the_plane_has_no_way_back():
    with pytest.raises(CohortError, match="inverted"):
        affine.invert((1.0, 1.0, 0, 1.0, 1.0, 0))
