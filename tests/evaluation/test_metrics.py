import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import pearsonr

from genrag_cli.errors import GeneragError
from genrag_cli.evaluation.metrics import (
    log_counts,
    mean_absolute_error,
    mean_squared_error,
    pcc_k,
    pearson_per_gene,
    relative_variance_distance,
)

TABLES = arrays(np.float64, (2, 5, 3), elements=st.integers(-50, 50).map(float))


@given(TABLES)
def test_pearson_agrees_with_scipy_gene_by_gene(both):
    p, t = both
    r = pearson_per_gene(p, t)
    for gene in range(3):
        if np.ptp(p[:, gene]) == 0 or np.ptp(t[:, gene]) == 0:
            assert np.isnan(r[gene])
        else:
            assert r[gene] == pytest.approx(pearsonr(p[:, gene], t[:, gene])[0], abs=1e-12)


def test_pearson_agrees_with_corrcoef_over_blocks_of_genes(monkeypatch):
    p, t = np.random.default_rng(0).normal(size=(2, 40, 30)).astype(np.float32)
    expected = [np.corrcoef(p[:, g].astype(float), t[:, g].astype(float))[0, 1] for g in range(30)]
    monkeypatch.setattr("genrag_cli.evaluation.metrics._GENES_AT_ONCE", 7)
    np.testing.assert_allclose(pearson_per_gene(p, t), expected, atol=1e-12)


def test_pearson_is_taken_in_float64_even_far_from_zero():
    t = np.arange(5.0)[:, None]
    assert pearson_per_gene(1e6 + t.astype(np.float32), t)[0] == pytest.approx(1, abs=1e-9)


def test_a_gene_that_hardly_varies_is_undefined():
    t = np.array([[0.0], [1.0], [2.0]])
    assert np.isnan(pearson_per_gene(t * 1e-13, t)[0])
    assert pearson_per_gene(t * 1e-9, t)[0] == pytest.approx(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_with_their_side(bad):
    fine, odd = np.zeros((3, 2)), np.full((3, 2), bad)
    with pytest.raises(GeneragError, match="6 values of the prediction are not finite"):
        pearson_per_gene(odd, fine)
    with pytest.raises(GeneragError, match="of the truth"):
        mean_squared_error(fine, odd)


def test_arrays_of_different_shape_are_refused():
    with pytest.raises(GeneragError, match=r"\(3, 2\) against a truth of shape \(2, 3\)"):
        mean_absolute_error(np.zeros((3, 2)), np.zeros((2, 3)))


def test_pcc_k_is_the_mean_of_the_k_largest():
    r = np.array([0.1, np.nan, 0.9, -0.5, 0.5])
    assert pcc_k(r, 2).value == pytest.approx(0.7)
    assert pcc_k(r, 4).value == pytest.approx(0.25)
    assert pcc_k(r, 2).reason == ""


@given(arrays(np.float64, 12, elements=st.floats(-1, 1)))
def test_pcc_k_falls_with_k(r):
    values = [pcc_k(r, k).value for k in range(1, 13)]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(values))


def test_more_genes_than_are_defined_are_refused_unless_asked_for():
    r = np.array([0.2, np.nan, 0.4])
    assert pcc_k(r, 3).value is None
    assert pcc_k(r, 3).reason == "refused: 3 genes asked for, 2 of 3 are defined"
    short = pcc_k(r, 3, allow_short=True)
    assert short.value == pytest.approx(0.3)
    assert "all 2 defined genes" in short.reason
    with pytest.raises(GeneragError, match="PCC-3: refused"):
        pcc_k(r, 3, strict=True)


def test_no_defined_gene_gives_no_value_even_when_short_is_allowed():
    assert pcc_k(np.full(4, np.nan), 2, allow_short=True).value is None
    with pytest.raises(GeneragError, match="at least 1"):
        pcc_k(np.zeros(3), 0)


def test_errors_by_hand():
    p, t = np.array([[1.0, 0], [3, 0]]), np.array([[0.0, 0], [1, 4]])
    assert mean_squared_error(p, t) == pytest.approx((1 + 4 + 16) / 4)
    assert mean_absolute_error(p, t) == pytest.approx((1 + 2 + 4) / 4)


def test_relative_variance_distance_by_hand_leaves_out_genes_that_do_not_vary():
    p, t = np.array([[0.0, 5, 0], [4, 1, 0]]), np.array([[0.0, 2, 0], [2, 2, 6]])
    # Variances of the prediction 4, 4, 0; of the truth 1, 0, 9.
    assert relative_variance_distance(p, t) == pytest.approx((9 + 1) / 2)
    assert relative_variance_distance(p[:, 1:2], t[:, 1:2]) is None


def test_counts_are_scored_as_logs_with_predictions_clipped_and_counted():
    p, t, clipped = log_counts(np.array([[-2.0, 1.0]]), np.array([[3, 0]]))
    np.testing.assert_allclose(p, np.log([[1, 2]]))
    np.testing.assert_allclose(t, np.log([[4, 1]]))
    assert clipped == 1


def test_the_published_mix_of_log_bases_gives_the_same_correlation():
    rng = np.random.default_rng(3)
    prediction, truth = rng.normal(2, 2, (30, 4)), rng.poisson(2, (30, 4))
    published = pearson_per_gene(np.log1p(np.clip(prediction, 0, None)), np.log2(1.0 + truth))
    np.testing.assert_allclose(pearson_per_gene(*log_counts(prediction, truth)[:2]), published, atol=1e-12)


@given(TABLES, arrays(bool, (5, 3)))
def test_values_that_are_missing_count_in_no_metric(both, present):
    p, t = both
    r = pearson_per_gene(p, t, present)
    for gene in range(3):
        here = present[:, gene]
        own = (p[here, gene], t[here, gene])
        if here.sum() < 3 or np.ptp(own[0]) == 0 or np.ptp(own[1]) == 0:
            assert np.isnan(r[gene])
        else:
            assert r[gene] == pytest.approx(pearsonr(*own)[0], abs=1e-9)
    apart = (p - t)[present]
    expected = (np.mean(apart**2), np.mean(abs(apart))) if present.any() else (None, None)
    found = (mean_squared_error(p, t, present), mean_absolute_error(p, t, present))
    assert found == pytest.approx(expected)


def test_variances_are_over_the_spots_present_and_need_three():
    p, t = np.array([[0.0, 1], [4, 2], [8, 9], [70, 9]]), np.array([[0.0, 3], [2, 9], [4, 9], [90, 1]])
    present = np.array([[True, True], [True, True], [True, False], [False, False]])
    assert relative_variance_distance(p, t, present) == pytest.approx(9)  # gene 0: 4 times the variance
    assert relative_variance_distance(p[:, 1:], t[:, 1:], present[:, 1:]) is None


def test_saying_that_all_is_present_changes_no_bit():
    p, t = np.random.default_rng(0).normal(size=(2, 40, 30))
    here = np.ones((40, 30), bool)
    np.testing.assert_array_equal(pearson_per_gene(p, t, here), pearson_per_gene(p, t))
    assert mean_squared_error(p, t, here) == mean_squared_error(p, t)
    assert relative_variance_distance(p, t, here) == pytest.approx(relative_variance_distance(p, t), rel=1e-12)


def test_presence_of_another_shape_is_refused():
    with pytest.raises(GeneragError, match=r"of which \(3,\) are said present"):
        pearson_per_gene(np.zeros((3, 2)), np.zeros((3, 2)), np.ones(3, bool))


def test_only_predictions_that_are_present_are_counted_as_clipped():
    present = np.array([[True, False, True]])
    assert log_counts(np.array([[-1.0, -1.0, 2.0]]), np.zeros((1, 3)), present)[2] == 1
