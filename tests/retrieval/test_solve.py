"""The front door: the contract for every way to solve, agreement with scikit-learn, and what it refuses."""

import numpy as np
import pytest
import torch

from genrag_cli.errors import SolverError
from genrag_cli.retrieval import solve
from genrag_cli.retrieval.reference import value
from genrag_cli.retrieval.solve import empty_codes
from genrag_cli.synthetic import solver_problem
from genrag_cli.testing.solver_contract import SolverContract


class TestSolve(SolverContract):
    """The default solver."""


class TestTorchEngine(SolverContract):
    """The default solver on machines that have no numba."""

    @pytest.fixture(autouse=True)
    def torch_engine(self, monkeypatch):
        monkeypatch.setattr("genrag_cli.retrieval.pools.engine", lambda _: "torch")


class TestDense(SolverContract):
    """FISTA over the whole bank: the oracle."""

    def solve(self, dictionary, queries, **options):
        return solve(dictionary, queries, method="dense", **options)


def made_up(m=60, n_bank=300, n_queries=6, seed=0):
    dictionary, rows = solver_problem(m, n_bank, n_queries, seed=seed)
    return dictionary, np.ascontiguousarray(rows.T)


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
        max_iter=200_000, precompute=wide.T @ wide,
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
def test_real_problems_agree_with_scikit_learn(real_problem, variant, nonnegative):
    dictionary, queries = real_problem(variant)
    assert_agrees_with_sklearn(dictionary, queries[:, :4], 0.2, nonnegative)


@pytest.mark.real
@pytest.mark.parametrize("chunk", [1, 32, 256])
def test_real_codes_are_the_same_bits_for_any_chunk_and_order(real_problem, chunk):
    dictionary, queries = real_problem("std")
    queries = queries[:, :36]
    l1 = 0.2 * float(np.median((dictionary.T @ queries).max(0)))
    expected = solve(dictionary, queries, l1=l1, l2=l1 / 9, gap=1e-6, chunk=36).dense()
    order = np.random.default_rng(chunk).permutation(queries.shape[1])
    found = solve(dictionary, queries[:, order], l1=l1, l2=l1 / 9, gap=1e-6, chunk=chunk).dense()
    np.testing.assert_array_equal(found, expected[order])


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


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_that_may_not_be_written_to_are_taken_without_a_word(order, every_warning):
    dictionary, queries = (np.array(v, order=order) for v in made_up())
    wanted = solve(dictionary, queries, l1=0.3, l2=0.03)
    dictionary.flags.writeable = queries.flags.writeable = False
    np.testing.assert_array_equal(solve(dictionary, queries, l1=0.3, l2=0.03).weights, wanted.weights)


@pytest.mark.parametrize("method", ["working-set", "dense"])
def test_nothing_that_is_given_is_changed(method):
    given = [np.asfortranarray(v) for v in made_up()]
    before = [v.copy() for v in given]
    start = solve(*given, l1=0.5, l2=0.05)
    weights = start.weights.copy()
    solve(*given, l1=0.3, l2=0.03, start=start, method=method)
    for now, then in zip([*given, start.weights], [*before, weights], strict=True):
        np.testing.assert_array_equal(now, then)


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
        ({"l2": np.ones(5)}, "one value or"),
        ({"gap": 1e-9}, "gap"),
        ({"gap": 1.0}, "gap"),
        ({"chunk": 0}, "chunk"),
        ({"max_iter": 0}, "max_iter"),
        ({"method": "guess"}, "unknown method"),
        ({"start": empty_codes(300)}, "start is for 0 queries"),
    ],
)
def test_malformed_problems_are_refused(change, says):
    dictionary, queries = made_up()
    given = {"dictionary": dictionary, "queries": queries, "l1": 1.0, "l2": 1.0, **change}
    with pytest.raises(SolverError, match=says):
        solve(given.pop("dictionary"), given.pop("queries"), **given)
