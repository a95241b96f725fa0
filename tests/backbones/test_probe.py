import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from genrag_cli.backbones.folds import cut_folds
from genrag_cli.backbones.probe import fit_folds, fit_head
from genrag_cli.errors import BackboneError


def make_problem(n: int = 90, d: int = 12, n_genes: int = 7, noise: float = 1.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d) + 0.3
    y = x @ rng.normal(size=(d, n_genes)) + noise * rng.normal(size=(n, n_genes)) + rng.uniform(1, 5, n_genes)
    return x.astype(np.float32), y.astype(np.float32), np.array(["a", "b", "c"])[rng.integers(0, 3, n)]


def naive_errors(x, y, groups, strengths, p=None):
    errors = np.zeros(len(strengths))
    for group in np.unique(groups):
        train, held = groups != group, groups == group
        pca = PCA(p, svd_solver="full").fit(x[train]) if p else None
        x_train, x_held = (pca.transform(x[train]), pca.transform(x[held])) if pca else (x[train], x[held])
        for i, s in enumerate(strengths):
            ridge = Ridge(alpha=s * train.sum(), solver="svd").fit(x_train, y[train])
            errors[i] += ((y[held] - ridge.predict(x_held)) ** 2 / y.var(axis=0)).sum()
    return errors / y.size


def test_head_is_the_ridge_of_its_strength() -> None:
    x, y, groups = make_problem()
    head = fit_head(x, y, groups)
    ridge = Ridge(alpha=head.strength * len(x)).fit(x.astype(float), y.astype(float))
    assert head.components is None
    np.testing.assert_allclose(head.predict(x), ridge.predict(x), rtol=1e-4, atol=1e-4)


def test_head_with_components_is_the_ridge_on_principal_components() -> None:
    x, y, groups = make_problem()
    head = fit_head(x, y, groups, max_components=5)
    pca = PCA(5, svd_solver="full").fit(x.astype(float))
    ridge = Ridge(alpha=head.strength * len(x)).fit(pca.transform(x.astype(float)), y.astype(float))
    assert head.components is not None
    assert head.components.shape == (12, 5)
    np.testing.assert_allclose(head.predict(x), ridge.predict(pca.transform(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [None, 5])
def test_curve_is_that_of_refitting_every_fold(p: int | None) -> None:
    x, y, groups = make_problem()
    strengths = [0.001, 0.1, 1.0, 30.0]
    head = fit_head(x, y, groups, max_components=p or 128, strengths=strengths)
    expected = naive_errors(x.astype(float), y.astype(float), groups, strengths, p)
    np.testing.assert_allclose([error for _, error in head.curve], expected, rtol=1e-6)
    assert head.strength == strengths[int(np.argmin(expected))]


def test_folds_in_the_span_of_all_spots_choose_as_folds_in_the_whole_space(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, groups = make_problem(n=400, d=40, noise=3.0)
    x = x * np.logspace(0.5, -1, 40, dtype=np.float32)
    monkeypatch.setattr("genrag_cli.backbones.folds.SPAN", 40)
    whole = fit_head(x, y, groups, max_components=5)
    monkeypatch.setattr("genrag_cli.backbones.folds.SPAN", 10)
    within = fit_head(x, y, groups, max_components=5)
    assert within.strength == whole.strength
    np.testing.assert_allclose([e for _, e in within.curve], [e for _, e in whole.curve], rtol=1e-2)
    assert within.curve != whole.curve
    np.testing.assert_allclose(within.predict(x), whole.predict(x), rtol=1e-5)


def test_folds_serve_several_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, groups = make_problem()
    monkeypatch.setattr("genrag_cli.backbones.folds._ROWS", 7)
    folds = cut_folds(x, groups, rule="r", max_components=5)
    for targets in (y, y[:, :2]):
        head, alone = fit_folds(folds, targets), fit_head(x, targets, groups, rule="r", max_components=5)
        assert (head.strength, head.rule) == (alone.strength, "r")
        np.testing.assert_allclose(head.predict(x), alone.predict(x), rtol=1e-6)


def test_more_noise_asks_for_more_strength() -> None:
    quiet, loud = (fit_head(*make_problem(noise=noise)).strength for noise in (0.1, 20.0))
    assert quiet < loud


def test_chunks_of_genes_and_sparse_targets_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, groups = make_problem(n_genes=11)
    whole = fit_head(x, y, groups)
    monkeypatch.setattr("genrag_cli.backbones.probe._CHUNK_ELEMENTS", 3 * len(x))
    for targets in (y, scipy.sparse.csr_array(y), scipy.sparse.csr_matrix(y)):
        head = fit_head(x, targets, groups)
        assert head.strength == whole.strength
        np.testing.assert_allclose(head.predict(x), whole.predict(x), rtol=1e-5)


def test_constant_genes_are_predicted_but_not_counted() -> None:
    x, y, groups = make_problem()
    with_constant = np.column_stack([y, np.full(len(y), 0.1, np.float32)])
    head, plain = fit_head(x, with_constant, groups), fit_head(x, y, groups)
    np.testing.assert_allclose(head.curve, plain.curve, rtol=1e-6)
    np.testing.assert_allclose(head.predict(x)[:, -1], 0.1, rtol=1e-5)


def test_more_features_than_spots_keeps_what_is_real() -> None:
    x, y, groups = make_problem(n=20, d=200)
    head = fit_head(x, y, groups)
    assert head.components is not None
    assert head.components.shape == (200, 19)
    assert np.isfinite(head.predict(x)).all()


def test_constant_features_predict_the_mean() -> None:
    _, y, groups = make_problem()
    head = fit_head(np.ones((len(y), 4)), y, groups)
    np.testing.assert_allclose(head.predict(np.zeros((2, 4))), np.tile(y.mean(axis=0), (2, 1)), rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_of_spots_does_not_matter(seed: int) -> None:
    x, y, groups = make_problem(seed=seed)
    order = np.random.default_rng(seed).permutation(len(x))
    head = fit_head(x, y, groups, max_components=4)
    turned = fit_head(x[order], y[order], groups[order], max_components=4)
    assert head.strength == turned.strength
    np.testing.assert_allclose(head.predict(x), turned.predict(x), rtol=1e-3, atol=1e-3)


def test_components_point_where_their_largest_entry_is_positive() -> None:
    x, y, groups = make_problem()
    components = fit_head(x, y, groups, max_components=6).components
    assert components is not None
    assert (components[np.abs(components).argmax(axis=0), np.arange(6)] > 0).all()


def test_features_of_another_length_are_refused() -> None:
    head = fit_head(*make_problem())
    with pytest.raises(BackboneError, match=r"\(n, 12\), found \(3, 11\)"):
        head.predict(np.zeros((3, 11)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, y, g: (x[:-1], y, g), "do not fit"),
        (lambda x, y, g: (x * np.nan, y, g), "features hold values"),
        (lambda x, y, g: (x, y * np.inf, g), "targets hold values"),
        (lambda x, y, g: (x, y, np.full(len(g), "a")), "1 group"),
        (lambda x, y, g: (x, np.ones_like(y), g), "none of the 7 target genes varies"),
    ],
)
def test_problem_that_cannot_be_fitted_is_refused(change, reason: str) -> None:
    with pytest.raises(BackboneError, match=reason):
        fit_head(*change(*make_problem()))


def test_strengths_must_be_positive() -> None:
    with pytest.raises(BackboneError, match="must be > 0"):
        fit_head(*make_problem(), strengths=[0.0, 1.0])
