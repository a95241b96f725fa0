"""Neighbours mixed into embeddings, on lattices small enough to count by hand."""

import numpy as np
import pytest

from genrag_cli.backbones.context import REACH, mix_neighbours

SQUARE = np.array([(x, y) for y in range(3) for x in range(3)], float) * 200
HEXAGON = np.array([(0, 0), *((np.cos(a), np.sin(a)) for a in np.arange(6) * np.pi / 3)]) * 100
NUMBERS = np.arange(9, dtype=np.float32)[:, None] ** 2
"""One dimension: 0, 1, 4, 9, 16, 25, 36, 49, 64 on the square, row by row."""


def test_on_a_square_lattice_up_to_eight_neighbours_are_mixed_in():
    mixed, count = mix_neighbours(NUMBERS, SQUARE, REACH * 200, 0.5)
    assert count.tolist() == [3, 5, 3, 5, 8, 5, 3, 5, 3]
    corner, edge = (1 + 9 + 16) / 3, (0 + 4 + 9 + 16 + 25) / 5
    middle = (0 + 1 + 4 + 9 + 25 + 36 + 49 + 64) / 8
    np.testing.assert_allclose(mixed[[0, 1, 4], 0], [corner / 2, (1 + edge) / 2, (16 + middle) / 2], rtol=1e-6)


def test_on_a_hexagonal_lattice_a_spot_has_its_six_neighbours():
    values = np.array([[7, 1], [1, 0], [2, 0], [3, 0], [4, 0], [5, 0], [6, 6]], np.float32)
    mixed, count = mix_neighbours(values, HEXAGON, REACH * 100, 0.75)
    assert count.tolist() == [6, 3, 3, 3, 3, 3, 3]
    np.testing.assert_allclose(mixed[0], [0.25 * 7 + 0.75 * 21 / 6, 0.25 * 1 + 0.75 * 1], rtol=1e-6)
    np.testing.assert_allclose(mixed[1], [0.25 * 1 + 0.75 * (7 + 2 + 6) / 3, 0.75 * (1 + 6) / 3], rtol=1e-6)


def test_each_dimension_is_mixed_by_itself():
    values = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    together, _ = mix_neighbours(values, SQUARE, 300, 0.3)
    single = [mix_neighbours(values[:, [j]], SQUARE, 300, 0.3)[0] for j in range(4)]
    np.testing.assert_array_equal(together, np.hstack(single))
    assert (together.shape, together.dtype) == ((9, 4), np.float32)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_spot_without_neighbours_keeps_its_own(share):
    far = np.vstack([SQUARE, [[5000, 5000]]])
    mixed, count = mix_neighbours(np.vstack([NUMBERS, [[123]]]), far, 300, share)
    assert (count[-1], mixed[-1, 0]) == (0, 123)
    np.testing.assert_array_equal(mixed[:-1], mix_neighbours(NUMBERS, SQUARE, 300, share)[0])


@pytest.mark.parametrize("n", [0, 1])
def test_a_section_of_one_spot_or_none_is_left_as_it_is(n):
    mixed, count = mix_neighbours(NUMBERS[4 : 4 + n], SQUARE[:n], 300, 0.5)
    assert (mixed[:, 0].tolist(), count.tolist()) == ([16.0] * n, [0] * n)


def test_a_share_of_nothing_changes_nothing_and_still_counts():
    mixed, count = mix_neighbours(NUMBERS, SQUARE, 300, 0.0)
    np.testing.assert_array_equal(mixed, NUMBERS)
    assert count.tolist() == [3, 5, 3, 5, 8, 5, 3, 5, 3]


def test_a_share_of_everything_is_the_mean_of_the_neighbours():
    mixed, _ = mix_neighbours(NUMBERS, SQUARE, 300, 1.0)
    assert mixed[8, 0] == pytest.approx((16 + 25 + 49) / 3)


def test_the_order_of_the_spots_does_not_matter():
    rng = np.random.default_rng(1)
    centres, values = rng.uniform(0, 1000, (80, 2)), rng.normal(size=(80, 5)).astype(np.float32)
    order = rng.permutation(80)
    mixed, count = mix_neighbours(values, centres, 150, 0.5)
    turned, turned_count = mix_neighbours(values[order], centres[order], 150, 0.5)
    np.testing.assert_allclose(turned, mixed[order], atol=1e-6)
    np.testing.assert_array_equal(turned_count, count[order])
    assert count.min() < count.max()


def test_the_unit_of_places_does_not_matter():
    one, other = (mix_neighbours(NUMBERS, SQUARE * s, REACH * 200 * s, 0.5)[0] for s in (1, 0.37))
    np.testing.assert_array_equal(one, other)
