"""Every expected number is worked out by hand: the correlations of the columns below are exact."""

import math

import numpy as np
import pytest

from genrag_cli.errors import GeneragError
from genrag_cli.evaluation.codebases import SCORINGS, average_folds, score_slides

# Logs to base 2 of 1 + counts. With T centred at 2.5: (-3, -1, 1, 3) / 2, norm^2 = 5.
T = (1, 2, 3, 4)
UP = (2, 3, 4, 5)  # r = 1
DOWN = (4, 3, 2, 1)  # r = -1
NONE = (2, 1, 1, 2)  # centred (1, -1, -1, 1) / 2: sum of products (-3 + 1 - 1 + 3) / 4 = 0, r = 0
SWAPPED = (2, 1, 4, 3)  # centred (-1, -3, 3, 1) / 2: (3 + 3 + 3 + 3) / 4 = 3, r = 3 / 5
FLAT = (1, 1, 1, 1)


def counts(*columns):
    """Raw counts whose log2(1 + x) are these columns."""
    return np.exp2(np.array(columns, dtype=float).T) - 1


def score(name, prediction, truth, ks=None):
    return SCORINGS[name].score(counts(*prediction), counts(*truth), ks)


def said(scores, words):
    return sum(words in note for note in scores.notes) == 1


def test_four_codebases_are_known_by_their_names():
    assert {name: (s.prediction_log, s.truth_log, s.pools_slides, s.panel) for name, s in SCORINGS.items()} == {
        "stem": ("log2", "log2", False, "core"),
        "generag": ("ln", "log2", False, "all"),
        "hest-bench": ("ln", "ln", True, "50 genes"),
        "genar": ("log2", "log2", False, "core"),
    }
    assert SCORINGS["generag"].ks == (10, 50, 300, 1000, 2000, 3000, 5000, 10000)
    assert SCORINGS["stem"].ks == SCORINGS["genar"].ks == (10, 50, 200)


@pytest.mark.parametrize("name", ["stem", "generag", "genar"])
def test_pcc_k_is_the_mean_of_the_largest_by_hand(name):
    scores = score(name, (DOWN, UP, NONE, SWAPPED), (T,) * 4, ks=(1, 2, 3, 4))
    assert scores.pcc == pytest.approx({1: 1, 2: 1.6 / 2, 3: 1.6 / 3, 4: 0.6 / 4})
    assert scores.mean == pytest.approx(0.15)
    assert (scores.n_spots, scores.n_genes, scores.n_undefined) == (4, 4, 0)


@pytest.mark.parametrize("name", ["stem", "generag", "genar"])
def test_genes_of_equal_correlation_fill_the_best_whichever_comes_first(name):
    for order in ((SWAPPED, NONE, SWAPPED, DOWN), (DOWN, SWAPPED, SWAPPED, NONE)):
        scores = score(name, order, (T,) * 4, ks=(1, 2, 3))
        assert scores.pcc == pytest.approx({1: 0.6, 2: 0.6, 3: 0.4})


@pytest.mark.parametrize("name", ["stem", "generag", "genar"])
def test_more_genes_than_there_are_give_the_mean_of_all_and_a_note(name):
    scores = score(name, (UP, NONE), (T, T))
    assert list(scores.pcc.values()) == pytest.approx([0.5] * len(SCORINGS[name].ks))
    assert said(scores, "the mean of all 2 genes, as there are no more")


@pytest.mark.parametrize("name", ["generag", "genar"])
def test_undefined_genes_are_dropped_and_counted(name):
    scores = score(name, (UP, FLAT, SWAPPED, UP), (T, T, T, FLAT), ks=(2, 3))
    assert scores.pcc == pytest.approx({2: 0.8, 3: 0.8})
    assert scores.n_undefined == 2
    assert said(scores, "2 of 4 genes without a correlation dropped")
    assert said(scores, "PCC-3: the mean of all 2 genes")
    assert said(scores, "2 of 4 genes are constant")


def test_in_stem_one_undefined_gene_takes_every_pcc_k():
    scores = score("stem", (UP, FLAT, SWAPPED), (T, T, T), ks=(1, 3))
    assert all(map(math.isnan, [*scores.pcc.values(), scores.mean]))
    assert scores.n_undefined == 1
    assert said(scores, "1 of 3 correlations are NaN, which leaves the order of Python's sorted() undefined")


@pytest.mark.parametrize("name", ["generag", "genar"])
def test_without_any_defined_gene_there_is_no_number(name):
    scores = score(name, (FLAT, FLAT), (T, T))
    assert all(map(math.isnan, scores.pcc.values()))
    assert scores.n_undefined == 2


def test_errors_of_stem_and_genar_by_hand():
    # UP is 1 too high everywhere, SWAPPED 1 too high or too low.
    for name in ("stem", "genar"):
        scores = score(name, (UP, SWAPPED), (T, T))
        assert (scores.mse, scores.mae, scores.rvd) == pytest.approx((1, 1, 0))
    # NONE against T: differences 1, -1, -2, -2; variances 1/4 against 5/4.
    scores = score("stem", (NONE,), (T,))
    assert (scores.mse, scores.mae, scores.rvd) == pytest.approx((10 / 4, 6 / 4, (4 / 5) ** 2))
    assert not any("mix" in note for note in scores.notes)


def test_rvd_is_guarded_against_flat_truth_in_genar_and_not_in_stem():
    stem, genar = (score(name, (NONE, UP), (T, FLAT)) for name in ("stem", "genar"))
    assert stem.rvd == math.inf
    assert said(stem, "RVD divides by the variance of 1 genes")
    assert genar.rvd == pytest.approx((4 / 5) ** 2)
    assert said(genar, "RVD leaves out 1 genes")
    assert math.isnan(score("stem", (FLAT,), (FLAT,)).rvd)
    assert math.isnan(score("genar", (FLAT,), (FLAT,)).rvd)


def test_generag_mixes_ln_and_log2_which_errors_see_and_correlations_do_not():
    generag, stem = (score(name, (T, SWAPPED), (T, T), ks=(1, 2)) for name in ("generag", "stem"))
    assert generag.pcc == pytest.approx(stem.pcc)
    assert generag.pcc == pytest.approx({1: 1, 2: 0.8})
    # ln(1 + x) = ln 2 * log2(1 + x), so a perfect prediction is off by (1 - ln 2) * T: 1 + 4 + 9 + 16 = 30.
    perfect = score("generag", (T,), (T,))
    gap = 1 - math.log(2)
    assert perfect.mse == pytest.approx(gap**2 * 30 / 4)
    assert perfect.mae == pytest.approx(gap * 10 / 4)
    assert perfect.rvd == pytest.approx((math.log(2) ** 2 - 1) ** 2)
    assert said(perfect, "MSE, MAE and RVD mix ln (prediction) and log2 (truth)")
    assert score("stem", (T,), (T,)).mse == pytest.approx(0)


def test_errors_of_generag_are_over_the_300_genes_that_correlate_best():
    prediction, truth = (T,) * 300 + (DOWN,) * 20, (T,) * 320
    gap = 1 - math.log(2)
    scores = score("generag", prediction, truth)
    assert scores.mse == pytest.approx(gap**2 * 30 / 4)
    assert said(scores, "over 300 of 320 genes, those of largest r on the test section itself")
    assert scores.pcc[300] == pytest.approx(1)
    assert scores.pcc[1000] == pytest.approx(280 / 320)


def test_errors_of_generag_take_undefined_genes_where_there_are_not_enough_others():
    scores = score("generag", (T, FLAT), (T, FLAT))
    # The flat gene: ln 2 against 1 in all four spots.
    gap = 1 - math.log(2)
    assert scores.mse == pytest.approx((gap**2 * 30 + gap**2 * 4) / 8)
    assert said(scores, "1 genes without a correlation are among them")
    assert said(scores, "RVD leaves out 1 genes")


def test_values_that_are_missing_are_skipped_by_generag_refused_by_genar_and_spread_in_the_others():
    prediction = counts(UP, SWAPPED)
    prediction[:, 1] = np.nan
    truth = counts(T, T)
    generag = SCORINGS["generag"].score(prediction, truth, ks=(1,))
    assert (generag.pcc[1], generag.n_undefined) == (pytest.approx(1), 1)
    assert generag.mse == pytest.approx(sum((t - math.log(2) * (t + 1)) ** 2 for t in T) / 4)
    with pytest.raises(GeneragError, match="genar refuses values that are not finite: 4 of the prediction"):
        SCORINGS["genar"].score(prediction, truth)
    assert math.isnan(SCORINGS["stem"].score(prediction, truth).mse)
    assert math.isnan(SCORINGS["hest-bench"].score(prediction, truth).mean)


def test_hest_bench_is_a_plain_mean_and_has_no_pcc_k():
    scores = score("hest-bench", (UP, SWAPPED, NONE, DOWN), (T,) * 4)
    assert scores.mean == pytest.approx(0.6 / 4)
    assert (scores.pcc, scores.mse, scores.mae, scores.rvd) == ({}, None, None, None)
    # Deviations from .15: .85, .45, -.15, -1.15.
    assert scores.others["pearson_std"] == pytest.approx(math.sqrt((0.7225 + 0.2025 + 0.0225 + 1.3225) / 4))
    assert said(score("hest-bench", (UP,), (T,), ks=(10,)), "hest-bench has no PCC-k")


def test_hest_bench_gives_quartiles_of_errors_in_ln():
    scores = score("hest-bench", (UP, UP, UP), (T, T, T))
    assert scores.others["l2_error_q2"] == pytest.approx(math.log(2) ** 2)
    assert scores.others["r2_score_q1"] == pytest.approx(1 - 4 / 5)


def test_in_hest_bench_one_constant_gene_takes_the_mean():
    scores = score("hest-bench", (UP, UP), (T, FLAT))
    assert math.isnan(scores.mean)
    assert scores.n_undefined == 1
    assert said(scores, "1 of 2 correlations are NaN, so the mean is NaN")


def test_pooling_two_slides_is_not_the_mean_of_two_slides():
    # Within each slide r = -1; the slides lie 10 apart on both sides, which makes them agree when thrown together.
    low, high = (counts(DOWN), counts(T)), (counts(np.add(DOWN, 10)), counts(np.add(T, 10)))
    apart = score_slides(SCORINGS["stem"], [low, high], ks=(1,))
    assert [s.pcc[1] for s in apart] == pytest.approx([-1, -1])
    (pooled,) = score_slides(SCORINGS["hest-bench"], [low, high])
    # Deviations around 7.5: within +-1.5, +-.5 of -5 or 5. Norms^2 8 * 25 + 2 * 5 = 210, products 200 - 10 = 190.
    assert pooled.mean == pytest.approx(190 / 210)
    assert pooled.n_spots == 8


def test_a_task_of_hest_bench_is_the_mean_over_folds():
    folds = [score("hest-bench", (column,), (T,)) for column in (UP, NONE)]
    assert average_folds(folds) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("name", SCORINGS)
def test_predictions_below_zero_are_taken_as_zero_and_counted(name):
    prediction = counts((0, 1, 2, 3), (0, 2, 2, 3))
    below = prediction.copy()
    below[0] = (-0.5, -3)
    clipped, plain = (SCORINGS[name].score(p, counts(T, T), ks=(1,)) for p in (below, prediction))
    assert (clipped.pcc, clipped.mean, clipped.mse) == (plain.pcc, plain.mean, plain.mse)
    assert said(clipped, "2 predictions below 0 taken as 0; the codebase")


def test_a_correlation_from_rounding_is_named():
    # The mean of 7 equal logs is not always that log, and np.corrcoef divides what is left.
    t = np.arange(7.0)[:, None]
    for value in np.linspace(0.1, 3, 30):
        scores = SCORINGS["stem"].score(np.full((7, 1), value), t, ks=(1,))
        assert said(scores, "1 of 1 genes are constant")
        assert said(scores, "from rounding alone") == math.isfinite(scores.mean)


@pytest.mark.parametrize("name", SCORINGS)
def test_what_cannot_be_scored_is_refused(name):
    with pytest.raises(GeneragError, match=r"\(4, 1\) against a truth of shape \(4, 2\)"):
        score(name, (T,), (T, T))
    with pytest.raises(GeneragError, match="at least 2 spots"):
        SCORINGS[name].score([[1.0]], [[1.0]])
    with pytest.raises(GeneragError, match="1 values of the truth are below 0"):
        SCORINGS[name].score([[1.0], [1.0]], [[1.0], [-1.0]])
    with pytest.raises(GeneragError, match="k must be at least 1"):
        score(name, (T,), (T,), ks=(0,))
