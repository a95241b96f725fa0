import numpy as np
import pytest

from genrag_cli.evaluation.baselines import repeat_mean, shuffle_spots, spread_library
from genrag_cli.evaluation.metrics import pearson_per_gene
from genrag_cli.types import COUNTS, LOG1P_CP10K, Scale


def test_shuffling_moves_whole_spots():
    prediction = np.arange(40.0).reshape(20, 2)
    for shuffled in shuffle_spots(prediction):
        assert sorted(shuffled.tolist()) == prediction.tolist()
        assert not np.array_equal(shuffled, prediction)


def test_shuffles_differ_from_each_other_and_follow_the_seed():
    prediction = np.arange(20.0)[:, None]
    first, again, other = (np.hstack(list(shuffle_spots(prediction, seed=s))) for s in (1, 1, 2))
    assert first.shape == (20, 10)
    assert len(set(map(tuple, first.T))) == 10
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_mean_is_the_same_at_every_spot():
    assert repeat_mean([1.0, 2.0], 3).tolist() == [[1, 2]] * 3


def test_library_size_is_shared_out_by_the_mean_profile():
    mean, totals = np.array([1.0, 3.0, 4.0]), np.array([80.0, 8.0])
    whole = spread_library(mean, mean.sum(), totals, COUNTS)
    np.testing.assert_allclose(whole, [[10, 30, 40], [1, 3, 4]])
    np.testing.assert_allclose(whole.sum(axis=1), totals)
    np.testing.assert_allclose(spread_library(mean[1:], mean.sum(), totals, COUNTS), whole[:, 1:])


def test_library_size_follows_depth_in_counts_and_nothing_in_a_normalised_scale():
    totals = np.array([80.0, 8.0, 20.0])
    counts = spread_library([1.0], 2.0, totals, COUNTS)
    assert pearson_per_gene(counts, totals[:, None])[0] == pytest.approx(1)
    assert np.ptp(spread_library([1.0], 2.0, totals, LOG1P_CP10K)) == 0


def test_library_size_is_not_shared_out_in_logs_or_by_an_empty_profile():
    assert spread_library([1.0], 1.0, np.ones(2), Scale(log="ln")) is None
    assert spread_library([0.0], 0.0, np.ones(2), COUNTS) is None


def test_shuffling_leaves_fillers_where_they_are_and_moves_the_others_among_themselves():
    random = np.random.default_rng(0)
    prediction, present = random.normal(size=(30, 6)), random.uniform(size=(30, 6)) < 0.7
    present[:, 2] = True
    plain = list(shuffle_spots(prediction, seed=3))
    for whole, shuffled in zip(plain, shuffle_spots(prediction, seed=3, present=present), strict=True):
        np.testing.assert_array_equal(shuffled[~present], prediction[~present])
        for gene in range(6):
            here = present[:, gene]
            assert sorted(shuffled[here, gene]) == sorted(prediction[here, gene])
        np.testing.assert_array_equal(shuffled[:, 2], whole[:, 2])
        assert not np.array_equal(shuffled, prediction)
