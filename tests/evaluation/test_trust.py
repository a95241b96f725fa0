import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import false_discovery_control, kstest

from genrag_cli.errors import GeneragError
from genrag_cli.evaluation import trust
from genrag_cli.evaluation.baselines import shuffle_spots
from genrag_cli.evaluation.metrics import pearson_per_gene
from genrag_cli.evaluation.trust import (
    conformal_offsets,
    coverage,
    flagged_error,
    p_values,
    q_values,
    rank_agreement,
    spin_null,
)

NAN = math.nan


def test_agreement_is_of_ranks_and_leaves_out_what_is_unknown():
    assert rank_agreement([0.1, 0.2, 0.3, NAN, 0.9], [1, 4, 9, 5, NAN]) == (pytest.approx(1), 3)
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15) = .6
    assert rank_agreement([1, 2, 3, 4], [2, 1, 40, 3]) == (pytest.approx(0.6), 4)


def test_agreement_needs_three_genes_that_differ():
    for expected, realised, n in (([1, 2], [1, 2], 2), ([1, 1, 1], [1, 2, 3], 3), ([1, 2, NAN], [1, 2, 3], 2)):
        value, found = rank_agreement(expected, realised)
        assert (math.isnan(value), found) == (True, n)
    with pytest.raises(GeneragError, match="do not belong together"):
        rank_agreement([1, 2], [1, 2, 3])


def test_error_of_flagged_spots_is_set_against_that_of_the_others():
    found = flagged_error([4, 1, 2, 6, NAN], [True, False, False, True, True])
    assert (found.flagged, found.unflagged, found.ratio, found.n_flagged) == (5, 1.5, pytest.approx(10 / 3), 2)


def test_without_flagged_or_other_spots_there_is_no_ratio():
    none, every = (flagged_error([1, 2], [f, f]) for f in (False, True))
    assert (none.flagged, none.unflagged, none.ratio, none.n_flagged) == (None, 1.5, None, 0)
    assert (every.flagged, every.unflagged, every.ratio, every.n_flagged) == (1.5, None, None, 2)
    assert flagged_error([1, 0], [True, False]).ratio is None


def test_coverage_counts_ends_and_open_intervals_and_leaves_out_what_is_missing():
    truth = np.array([[0.0, 5, NAN], [1, 5, NAN], [2, 5, NAN], [3, NAN, NAN]])
    low = np.array([[0.0, -np.inf, 0]] * 4)
    high = np.array([[2.0, np.inf, 1]] * 3 + [[2, 1, 1]])
    shares, mean = coverage(truth, low, high)
    np.testing.assert_array_equal(shares, [0.75, 1, NAN])
    assert mean == pytest.approx(0.875)
    assert math.isnan(coverage(truth[:, 2:], low[:, 2:], high[:, 2:])[1])


def test_offsets_are_the_order_statistics_by_hand():
    # n = 19, a = .1: number floor(20 * .05) = 1 and number ceil(20 * .95) = 19. n = 39: numbers 2 and 38.
    assert [float(v[0]) for v in conformal_offsets(np.arange(1.0, 20)[::-1, None])] == [1, 19]
    assert [float(v[0]) for v in conformal_offsets(np.arange(1.0, 40)[:, None])] == [2, 38]


def test_too_few_residuals_leave_the_interval_open():
    assert [float(v[0]) for v in conformal_offsets(np.arange(18.0)[:, None])] == [-math.inf, math.inf]
    assert [float(v[0]) for v in conformal_offsets(np.zeros((0, 1)))] == [-math.inf, math.inf]


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95, 0.98, 0.99])
def test_the_least_number_of_residuals_is_two_over_a_less_one(level):
    least = round(2 / (1 - level)) - 1
    for n in range(1, 220):
        low, high = conformal_offsets(np.arange(float(n))[:, None], level)
        assert (math.isfinite(low[0]), math.isfinite(high[0])) == (n >= least, n >= least)


def test_missing_residuals_count_gene_by_gene():
    residuals = np.arange(1.0, 40)[:, None] * [1, 1]
    residuals[19:, 1] = NAN
    low, high = conformal_offsets(residuals)
    assert (low.tolist(), high.tolist()) == ([2, 1], [38, 19])


def test_offsets_cover_new_spots_at_the_level_asked_for_with_tails_apart():
    random = np.random.default_rng(0)
    skewed = random.exponential(size=(200 + 200, 2000))
    low, high = conformal_offsets(skewed[:200], level=0.9)
    new = skewed[200:]
    _, held = coverage(new, np.broadcast_to(low, new.shape), np.broadcast_to(high, new.shape))
    assert held == pytest.approx(0.9, abs=0.02)
    assert np.mean(new < low) == pytest.approx(0.05, abs=0.01)
    assert np.mean(new > high) == pytest.approx(0.05, abs=0.01)


def test_offsets_need_a_level_and_a_table():
    for residuals, level in ((np.zeros((5, 1)), 1), (np.zeros(5), 0.9)):
        with pytest.raises(GeneragError, match="are needed"):
            conformal_offsets(residuals, level)


def disc(side=24):
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    centres = np.stack([x, y], axis=-1).reshape(-1, 2).astype(float)
    return centres, np.hypot(*(centres - (side - 1) / 2).T) < side / 2


def smooth_fields(n_genes, seed, sd=2):
    centres, inside = disc()
    noise = np.random.default_rng(seed).normal(size=(2, 48, 48, n_genes))
    fields = gaussian_filter(noise, (0, sd, sd, 0))[:, 12:36, 12:36].reshape(2, -1, n_genes)
    return *fields[:, inside], centres[inside]


def test_the_null_of_turns_is_honest_for_smooth_fields_and_that_of_shuffles_is_not():
    prediction, truth, centres = smooth_fields(300, seed=1)
    observed = pearson_per_gene(prediction, truth)
    turned = p_values(observed, spin_null(prediction, truth, centres, 40))
    shuffled = p_values(observed, [pearson_per_gene(s, truth) for s in shuffle_spots(prediction, times=40)])
    assert 0.02 < np.mean(turned <= 0.05) < 0.09
    assert kstest(turned, "uniform").statistic < 0.1
    assert np.mean(shuffled <= 0.05) > 0.25


def test_a_prediction_that_follows_the_tissue_beats_its_turns():
    _, truth, centres = smooth_fields(30, seed=2)
    observed = pearson_per_gene(truth + 0.05, truth)
    assert np.median(p_values(observed, spin_null(truth, truth, centres, 40))) < 0.02


def test_turns_keep_the_section_whole():
    centres, inside = disc()
    turns = trust._spin(centres[inside], 30, np.random.default_rng(0))
    assert turns.shape == (30, inside.sum())
    # Most spots of a disc are still some spot's prediction, and neighbours stay neighbours.
    assert min(len(set(rows)) for rows in turns) > 0.7 * inside.sum()
    landed = centres[inside][turns]
    neighbours = np.flatnonzero(np.hypot(*np.diff(centres[inside], axis=0).T) == 1)
    steps = np.hypot(*(landed[:, neighbours + 1] - landed[:, neighbours]).transpose(2, 0, 1))
    assert steps.max() <= 1 + math.sqrt(2)


def test_turns_include_mirrored_ones():
    centres = np.array([[0, 0], [4, 0], [4, 1], [0, 1], [1, 3.0]])
    crosses = []
    for rows in trust._spin(np.repeat(centres, 1, axis=0) * 10, 60, np.random.default_rng(0)):
        (ax, ay), (bx, by) = centres[rows[1]] - centres[rows[0]], centres[rows[3]] - centres[rows[0]]
        crosses.append(np.sign(ax * by - ay * bx))
    assert {-1, 1} <= set(crosses)


def test_turns_follow_the_seed_and_leave_undefined_genes_undefined():
    prediction, truth, centres = smooth_fields(3, seed=3)
    truth[:, 1] = 1
    first, again, other = (spin_null(prediction, truth, centres, 4, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other, equal_nan=True)
    assert np.isnan(first).any(axis=0).tolist() == [False, True, False]
    assert spin_null(prediction, truth, centres, 0).shape == (0, 3)


def test_centres_must_fit_the_spots():
    with pytest.raises(GeneragError, match=r"centres of shape \(5, 2\)"):
        spin_null(np.zeros((5, 1)), np.zeros((5, 1)), np.zeros((4, 2)), 1)


def test_p_values_by_hand():
    null = np.array([[0.1, 0.2], [0.3, NAN]])
    np.testing.assert_allclose(p_values([0.3, 0.31, -1, NAN], null), [2 / 4, 1 / 4, 1, NAN])


def test_q_values_agree_with_scipy_rise_with_p_and_keep_what_is_undefined():
    p = np.random.default_rng(0).uniform(size=50) ** 3
    q = q_values(np.r_[NAN, p, NAN])
    np.testing.assert_array_equal(q[1:-1], false_discovery_control(p))
    assert np.isnan(q[[0, -1]]).all()
    assert (np.diff(q[1:-1][np.argsort(p)]) >= 0).all()
    assert (q[1:-1] >= p).all()


def test_q_values_by_hand():
    # p * 4 / rank: .01 * 4 = .04, .04 * 4 / 3, .03 * 4 / 2 = .06 (no more than that of the next larger p), .5
    np.testing.assert_allclose(q_values([0.01, 0.04, 0.03, 0.5]), [0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert np.isnan(q_values([NAN, NAN])).all()
