"""Ridge regression to every gene, against scikit-learn and against folds that are really left out."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from genrag_cli.backbones.regression import Basis, Moments, fit_moments, number_folds, regress
from genrag_cli.errors import BackboneError

RNG = np.random.default_rng(0)
N, P, G = 120, 7, 15
SCORES = (RNG.normal(size=(N, P)) * np.linspace(3, 0.5, P) + 0.5).astype(np.float32)
FOLDS = RNG.integers(0, 4, N)
RATE = np.exp(0.3 * SCORES @ RNG.normal(size=(P, G)) + RNG.uniform(-1.5, 1, G))
DENSE = np.log1p(RNG.poisson(RATE)).astype(np.float32)
DENSE[:, 4] = 0
SPARSE = sp.csr_matrix(DENSE)
GRID = (0.01, 0.3, 2.0, 40.0)
VARIES = np.arange(G) != 4


def error_by_hand(strength, genes):
    """Squared error over variance on every fold, predicted by a model of the others."""
    wide, squares = DENSE[:, genes].astype(float), np.zeros(len(genes))
    for k in range(4):
        held = np.equal(FOLDS, k)
        rest = ~held
        model = Ridge(alpha=strength * rest.sum()).fit(SCORES[rest], wide[rest])
        squares += ((model.predict(SCORES[held]) - wide[held]) ** 2).sum(axis=0)
    return np.mean(squares / N / wide.var(axis=0))


@pytest.mark.parametrize("expression", [DENSE, SPARSE], ids=["dense", "csr"])
@pytest.mark.parametrize("strength", GRID)
def test_every_gene_is_fitted_as_scikit_learn_fits_it(expression, strength):
    found = regress(SCORES, expression, FOLDS, strengths=[strength])
    model = Ridge(alpha=N * strength).fit(SCORES.astype(float), DENSE.astype(float))
    np.testing.assert_allclose(found.predict(SCORES), model.predict(SCORES), atol=1e-5)
    np.testing.assert_allclose(found.coef[:-1], model.coef_.T, atol=1e-5)
    np.testing.assert_allclose(found.coef[-1], model.intercept_, atol=1e-5)


@pytest.mark.parametrize("expression", [DENSE, SPARSE], ids=["dense", "csr"])
@pytest.mark.parametrize("judged", [None, np.array([0, 3, 4, 11])], ids=["all", "some"])
def test_the_curve_is_the_error_of_models_that_did_not_see_the_fold(expression, judged):
    found = regress(SCORES, expression, FOLDS, judged=judged, strengths=GRID)
    genes = np.flatnonzero(VARIES) if judged is None else judged[VARIES[judged]]
    strengths, errors = zip(*found.curve, strict=True)
    assert strengths == GRID
    np.testing.assert_allclose(errors, [error_by_hand(s, genes) for s in GRID], rtol=1e-6)


def test_the_strength_of_least_error_is_taken():
    found = regress(SCORES, SPARSE, FOLDS)
    strengths, errors = map(np.array, zip(*found.curve, strict=True))
    best = int(np.argmin(errors))
    assert 0 < best < len(strengths) - 1
    assert found.strength == strengths[best]
    expected = fit_moments(Moments.of(SCORES, SPARSE), found.strength)
    np.testing.assert_allclose(found.coef, expected, rtol=1e-5, atol=1e-6)


def test_a_multiple_of_that_strength_is_fitted_where_it_is_asked_for():
    plain, more = (regress(SCORES, SPARSE, FOLDS, times=t) for t in (1.0, 3.0))
    assert (more.strength, more.curve) == (3 * plain.strength, plain.curve)
    model = Ridge(alpha=N * more.strength).fit(SCORES.astype(float), DENSE.astype(float))
    np.testing.assert_allclose(more.predict(SCORES), model.predict(SCORES), atol=1e-5)


def test_genes_that_are_judged_decide_the_strength_of_all():
    noise = RNG.normal(size=(N, 3)).astype(np.float32)
    both = np.hstack([DENSE, noise])
    by_noise = regress(SCORES, both, FOLDS, judged=np.arange(G, G + 3))
    by_signal = regress(SCORES, both, FOLDS, judged=np.arange(3))
    assert by_noise.strength > 10 * by_signal.strength
    assert by_noise.coef.shape == (P + 1, G + 3)


def test_a_few_columns_are_predicted_as_among_all():
    found, columns = regress(SCORES, DENSE, FOLDS), np.array([9, 2])
    np.testing.assert_allclose(found.predict(SCORES, columns), found.predict(SCORES)[:, columns], atol=1e-6)


@pytest.mark.parametrize(
    ("folds", "values", "text"),
    [(np.zeros(N, int), DENSE, "1 folds, two are needed"), (FOLDS, np.ones((N, 2)), "none of 2 genes varies")],
)
def test_what_cannot_be_regressed_is_refused(folds, values, text):
    with pytest.raises(BackboneError, match=text):
        regress(SCORES, values, folds)


def assert_equal(one, other):
    for name, value in vars(one).items():
        np.testing.assert_allclose(value, getattr(other, name), rtol=1e-9, atol=1e-9, err_msg=name)


def test_moments_of_two_groups_add_up_to_those_of_both_and_can_be_taken_away():
    low, high, whole = (Moments.of(SCORES[r], SPARSE[r]) for r in (slice(50), slice(50, None), slice(None)))
    assert_equal(low + high, whole)
    assert_equal(whole - high, low)
    assert whole.n == N


def test_moments_are_the_same_of_dense_and_sparse_expression_and_of_some_genes():
    some = np.array([2, 14, 5])
    assert_equal(Moments.of(SCORES, SPARSE), Moments.of(SCORES, DENSE))
    assert_equal(Moments.of(SCORES, DENSE).genes(some), Moments.of(SCORES, DENSE[:, some]))


def test_sums_over_many_spots_keep_a_small_variance_beside_a_large_mean():
    values = (8 + 0.05 * np.random.default_rng(1).normal(size=(20_000, 1))).astype(np.float32)
    found = Moments.of(np.zeros((20_000, 1), np.float32), sp.csr_matrix(values))
    assert found.yy[0] / found.n - (found.y[0] / found.n) ** 2 == pytest.approx(values.astype(float).var(), rel=1e-6)


@pytest.mark.parametrize("most", [128, 4])
def test_a_basis_is_what_principal_components_are(most):
    features = (RNG.normal(size=(60, 9)) @ RNG.normal(size=(9, 9)) + 3).astype(np.float32)
    found, expected = Basis.of(features, most), PCA(min(most, 9)).fit(features.astype(float))
    turned = np.sign(np.sum(found.directions * expected.components_.T, axis=0))
    np.testing.assert_allclose(found.directions * turned, expected.components_.T, atol=1e-4)
    np.testing.assert_allclose(found.scores(features) * turned, expected.transform(features), atol=1e-3)


def test_directions_in_which_nothing_moves_are_left_out():
    flat = RNG.normal(size=(50, 3)) @ RNG.normal(size=(3, 8))
    assert Basis.of(flat.astype(np.float32)).directions.shape == (8, 3)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
def test_features_that_are_all_the_same_are_refused(value):
    with pytest.raises(BackboneError, match="do not vary"):
        Basis.of(np.full((33, 5), value, np.float32))


def test_folds_are_balanced_and_no_group_is_cut():
    sizes = [50, 40, 31, 30, 20, 12, 10, 9, 3]
    labels = RNG.permutation(np.repeat([f"p{i}" for i in range(len(sizes))], sizes))
    folds = number_folds(labels)
    assert all(len(np.unique(folds[labels == label])) == 1 for label in np.unique(labels))
    # The largest first, each to the smallest fold: 50, 40, 31 + 9, 30 + 10, 20 + 12 + 3.
    assert np.bincount(folds).tolist() == [50, 40, 40, 40, 35]


@pytest.mark.parametrize(("n_groups", "expected"), [(1, 1), (3, 3), (5, 5), (8, 5)])
def test_there_are_as_many_folds_as_groups_up_to_five(n_groups, expected):
    labels = np.repeat(np.arange(n_groups), 4)
    assert sorted(np.unique(number_folds(labels)).tolist()) == list(range(expected))
