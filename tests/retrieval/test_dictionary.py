"""Blocks, residuals and the search for a strength."""

import numpy as np
import pytest

from genrag_cli.errors import SolverError, UsageError
from genrag_cli.retrieval import prepare, solve
from genrag_cli.retrieval.dictionary import Blocks, floor_sd, standardise
from genrag_cli.retrieval.residuals import block_residuals

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(3, 2, (50, 7)).astype(np.float32)
ANCHORS = RNG.gamma(2, 1, (50, 4)).astype(np.float32)


def test_balanced_blocks_weigh_omega_in_a_query_whatever_their_sizes_and_spreads():
    guesses = ANCHORS.mean(0) + 0.05 * (ANCHORS - ANCHORS.mean(0))
    blocks = Blocks.balanced(0.25, 7, ANCHORS.mean(0), ANCHORS.std(0), guesses.std(0))
    query = blocks.rows(standardise(FEATURES, FEATURES.mean(0), FEATURES.std(0)), guesses)
    energy = (query.astype(float) ** 2).mean(0)
    assert energy[:7].sum() == pytest.approx(0.25, rel=1e-3)
    assert energy[7:].sum() == pytest.approx(0.75, rel=1e-3)


def test_a_head_that_guesses_nothing_is_not_blown_up():
    blocks = Blocks.balanced(0.25, 7, ANCHORS.mean(0), ANCHORS.std(0), np.zeros(4))
    assert blocks.anchor_scale.max() <= 100 / ANCHORS.std(0).min()


def test_published_blocks_are_the_values_times_the_roots_of_the_weights():
    rows = Blocks.as_published(0.75, 4).rows(FEATURES, ANCHORS)
    np.testing.assert_allclose(rows[:, :7], np.sqrt(0.75) * FEATURES, rtol=1e-6)
    np.testing.assert_allclose(rows[:, 7:], 0.5 * ANCHORS, rtol=1e-6)


def test_a_dimension_that_does_not_move_is_not_blown_up():
    sd = floor_sd(np.array([1.0, 1.0, 1e-9]))
    assert sd[2] > 1e-3
    assert (floor_sd(np.zeros(3)) == 1).all()


@pytest.mark.parametrize("omega", [-0.1, 1.1])
def test_an_impossible_omega_is_refused(omega):
    with pytest.raises(UsageError, match="omega"):
        Blocks.as_published(omega, 4)


def test_blocks_of_another_size_are_refused():
    with pytest.raises(SolverError, match="anchors"):
        Blocks.as_published(0.5, 3).rows(FEATURES, ANCHORS)


def test_residuals_are_those_of_each_block():
    rows = np.concatenate([FEATURES, ANCHORS], 1)
    codes = solve(rows.T, rows[:5].T * 0.9, l1=0.1, l2=0.01)
    morphology, anchors = block_residuals(prepare(rows.T), rows[:5] * 0.9, codes, 7)
    left = rows[:5] * 0.9 - codes.dense() @ rows
    by_hand = np.linalg.norm(left[:, :7], axis=1) / np.linalg.norm(rows[:5, :7] * 0.9, axis=1)
    np.testing.assert_allclose(morphology, by_hand, rtol=1e-4)
    assert anchors.shape == (5,)
