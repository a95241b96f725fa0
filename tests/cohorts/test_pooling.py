import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from genrag_cli.cohorts.pooling import pool
from genrag_cli.errors import CohortError

SMALL = settings(max_examples=40, deadline=None)


@st.composite
def units(draw):
    seed = draw(st.integers(0, 2**31))
    m = draw(st.integers(1, 40))
    rng = np.random.default_rng(seed)
    xy = rng.uniform(-draw(st.sampled_from([50, 500, 3000])), 700, (m, 2))
    return sparse.csr_matrix(rng.poisson(0.7, (m, 3))), xy, draw(st.sampled_from([20.0, 100.0, 128.0]))


@given(units())
@SMALL
def test_every_unit_is_summed_into_the_square_that_it_lies_in(made):
    counts, xy, side = made
    pooled = pool(counts, xy, side)
    expected = np.zeros(pooled.counts.shape)
    n_units = np.zeros(len(pooled.rc))
    for i, place in enumerate(xy):
        inside = np.all(np.abs(pooled.centres_um - place) <= side / 2 + 1e-9, axis=1)
        assert inside.sum() == 1
        expected[inside] += counts[[i]].toarray()
        n_units += inside
    np.testing.assert_array_equal(pooled.counts.toarray(), expected)
    np.testing.assert_array_equal(pooled.n_units, n_units)


@given(units())
@SMALL
def test_names_are_unique_and_indices_follow_the_geometry(made):
    counts, xy, side = made
    pooled = pool(counts, xy, side)
    assert len(set(pooled.names.tolist())) == len(pooled.rc)
    assert pooled.rc.min() == 0
    steps = (pooled.centres_um - pooled.centres_um[0]) / side
    np.testing.assert_allclose(steps[:, ::-1], pooled.rc - pooled.rc[0], atol=1e-9)


@given(units())
@SMALL
def test_the_order_of_the_units_does_not_matter(made):
    counts, xy, side = made
    pooled, turned = pool(counts, xy, side), pool(counts[::-1], xy[::-1], side)
    assert pooled.names.tolist() == turned.names.tolist()
    assert (pooled.counts != turned.counts).nnz == 0


def test_empty_squares_are_absent_and_still_counted():
    pooled = pool(sparse.csr_matrix(np.eye(3)), np.array([[10.0, 5], [250, 5], [10, 305]]), 100.0)
    assert pooled.names.tolist() == ["0000x0000", "0000x0002", "0003x0000"]
    assert pooled.centres_um[2].tolist() == [60, 355]


@pytest.mark.parametrize("noise", [0.0, 1e-6, 0.5])
def test_bins_fill_squares_however_their_centres_are_rounded(noise):
    grid = np.stack(np.meshgrid(np.arange(24), np.arange(16)), axis=-1).reshape(-1, 2) * 16.0
    grid += np.random.default_rng(0).uniform(-noise, noise, grid.shape)
    pooled = pool(sparse.csr_matrix(np.ones((len(grid), 1), np.int32)), grid, 128.0, unit_um=16.0)
    assert pooled.n_units.tolist() == [64] * 6
    assert pooled.counts.toarray().ravel().tolist() == [64] * 6


def test_counts_of_8_bits_do_not_overflow():
    pooled = pool(sparse.csr_matrix(np.full((3, 1), 200, np.uint8)), np.zeros((3, 2)), 10.0)
    assert pooled.counts.toarray().tolist() == [[600]]


def test_no_units_give_no_squares():
    pooled = pool(sparse.csr_matrix((0, 4)), np.zeros((0, 2)), 10.0)
    assert pooled.counts.shape == (0, 4)
    assert pooled.names.tolist() == []


@pytest.mark.parametrize(
    ("values", "xy", "side", "said"),
    [
        ([[1.0], [-1.0]], [[0, 0], [1, 1]], 10, "table.h5: negative"),
        ([[1.0], [np.nan]], [[0, 0], [1, 1]], 10, "non-finite"),
        ([[1.0], [np.inf]], [[0, 0], [1, 1]], 10, "non-finite"),
        ([[1.0], [1.0]], [[0, 0], [np.nan, 1]], 10, "finite x, y"),
        ([[1.0], [1.0]], [[0, 0]], 10, "2 rows of counts"),
        ([[1.0], [1.0]], [[0, 0], [1, 1]], 0, "above 0"),
    ],
)
def test_what_a_sum_would_hide_is_refused(values, xy, side, said):
    with pytest.raises(CohortError, match=said):
        pool(sparse.csr_matrix(np.array(values)), np.array(xy, np.float64), side, source="table.h5")
