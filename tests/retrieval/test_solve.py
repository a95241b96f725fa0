"""The front door: agreement with scikit-learn, honesty about what was not solved, and its refusals."""

import importlib.util

import numpy as np
import pytest
import torch

from genrag_cli.errors import SolverError
from genrag_cli.retrieval import solve
from genrag_cli.retrieval.reference import value
from genrag_cli.synthetic import solver_problem
from genrag_cli.testing.solver_contract import SolverContract


class TestSolve(SolverContract):
    """The default solver."""


def made_up(m=60, n_bank=300, n_queries=6, seed=0):
    dictionary, rows = solver_problem(m, n_bank, n_queries, seed=seed)
    return dictionary, np.ascontiguousarray(rows.T)


def real(shared_data, variant):
    path = shared_data.parent / "tools" / "solver_problems.py"
    spec = importlib.util.spec_from_file_location("solver_problems", path)
    tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    dictionary, queries = tools.problem(1500, variant, data=shared_data / "solver" / "her2st_counts_top1000.h5ad")
    return dictionary, np.ascontiguousarray(queries[:, :4])


def assert_agrees_with_sklearn(dictionary, queries, share, nonnegative):
    from sklearn.linear_model import ElasticNet

    m = len(dictionary)
    l1 = share * float(np.median((dictionary.T @ queries).max(0)))
    l2 = l1 / 9
    codes = solve(dictionary, queries, l1=l1, l2=l2, nonnegative=nonnegative, gap=1e-7)
    assert set(codes.status) == {"solved"}
    wide = dictionary.astype(np.float64)
    model = ElasticNet(
        alpha=(l1 + l2) / m, l1_ratio=l1 / (l1 + l2), positive=nonnegative, fit_intercept=False, tol=1e-10,
        max_iter=200_000,
    )  # fmt: skip
    for b, a in zip(queries.T.astype(np.float64), codes.dense().astype(np.float64), strict=True):
        theirs = model.fit(wide, b).coef_
        ours, least = value(wide, b, a, l1, l2), value(wide, b, theirs, l1, l2)
        assert abs(ours - least) <= 1e-6 * least
        assert np.linalg.norm(wide @ (a - theirs)) <= 1e-3 * np.linalg.norm(wide @ theirs)


@pytest.mark.parametrize("nonnegative", [True, False])
def test_made_up_problems_agree_with_scikit_learn(nonnegative):
    assert_agrees_with_sklearn(*made_up(), 0.1, nonnegative)


@pytest.mark.real
@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("variant", ["std", "raw"])
def test_real_problems_agree_with_scikit_learn(shared_data, variant, nonnegative):
    assert_agrees_with_sklearn(*real(shared_data, variant), 0.2, nonnegative)


@pytest.mark.real
@pytest.mark.parametrize("chunk", [1, 32, 256])
def test_real_codes_are_the_same_for_any_chunk_and_order(shared_data, chunk):
    dictionary, _ = real(shared_data, "std")
    queries = dictionary[:, ::40][:, :36] * 0.7 + dictionary[:, 5::40][:, :36] * 0.3
    l1 = 0.2 * float(np.median((dictionary.T @ queries).max(0)))
    expected = solve(dictionary, queries, l1=l1, l2=l1 / 9, gap=1e-6, chunk=36).dense()
    order = np.random.default_rng(chunk).permutation(queries.shape[1])
    found = solve(dictionary, queries[:, order], l1=l1, l2=l1 / 9, gap=1e-6, chunk=chunk).dense()
    np.testing.assert_array_equal(found > 1e-4, expected[order] > 1e-4)
    np.testing.assert_allclose(found, expected[order], atol=1e-5)


def test_an_unreached_gap_is_said_and_not_hidden():
    dictionary, queries = made_up(m=80, n_bank=400)
    codes = solve(dictionary, queries, l1=1e-3, l2=0.0, gap=1e-7, max_iter=1)
    assert "stalled" in codes.status
    assert (codes.gap[codes.status == "stalled"] > 1e-7).all()


def test_float32_rounding_of_large_counts_does_not_stall():
    rng = np.random.default_rng(0)
    m, n_bank, n = 200, 150, 12
    programs = rng.gamma(0.5, 1, (6, m))
    rates = rng.gamma(1, 1, (n_bank, 6)) @ programs
    dictionary = rng.poisson(rates * 4 + 2).astype(np.float32).T * 3
    mixed = dictionary[:, rng.integers(0, n_bank, (n, 8))].mean(2) * 0.9
    queries = (mixed + rng.normal(0, 2, (m, n))).astype(np.float32)
    codes = solve(dictionary, queries, l1=0.009 * m, l2=0.001 * m, gap=1e-5)
    assert set(codes.status) == {"solved"}


def test_numpy_and_torch_give_the_same_codes():
    dictionary, queries = made_up()
    ours = solve(dictionary, queries, l1=0.3, l2=0.03)
    theirs = solve(torch.from_numpy(dictionary), torch.from_numpy(queries), l1=0.3, l2=torch.tensor(0.03))
    np.testing.assert_array_equal(ours.weights, theirs.weights)


def test_a_warm_start_reaches_the_same_codes():
    dictionary, queries = made_up()
    cold = solve(dictionary, queries, l1=0.3, l2=0.03, gap=1e-6)
    near = solve(dictionary, queries, l1=0.4, l2=0.04, gap=1e-3)
    warm = solve(dictionary, queries, l1=0.3, l2=0.03, gap=1e-6, start=near)
    np.testing.assert_allclose(warm.dense(), cold.dense(), atol=1e-4)


def test_no_queries_give_no_codes():
    dictionary, queries = made_up()
    codes = solve(dictionary, queries[:, :0], l1=1.0, l2=1.0)
    assert len(codes) == 0
    assert codes.n_bank == dictionary.shape[1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"queries": np.zeros((3, 2))}, "rows"),
        ({"dictionary": np.zeros(3)}, "matrix"),
        ({"dictionary": np.zeros((60, 0))}, "no columns"),
        ({"queries": np.full((60, 2), np.nan)}, "not finite"),
        ({"l1": -1.0}, "not negative"),
        ({"l2": np.ones(5)}, "one value or"),
        ({"gap": 1e-9}, "gap"),
        ({"chunk": 0}, "chunk"),
    ],
)
def test_malformed_problems_are_refused(change, says):
    dictionary, queries = made_up()
    given = {"dictionary": dictionary, "queries": queries, "l1": 1.0, "l2": 1.0, **change}
    with pytest.raises(SolverError, match=says):
        solve(given.pop("dictionary"), given.pop("queries"), **given)


class TestDense(SolverContract):
    """FISTA over the whole bank: the oracle."""

    def solve(self, dictionary, queries, **options):
        return solve(dictionary, queries, method="dense", **options)
