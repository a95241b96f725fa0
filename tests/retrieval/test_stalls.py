"""Problems that a solver can stall on: each ends with a certificate, or says that it did not, or is refused."""

import contextlib
import importlib

import numpy as np
import pytest

from genrag_cli.errors import SolverError
from genrag_cli.retrieval import solve, working_set
from genrag_cli.synthetic import solver_problem
from genrag_cli.testing.solver_contract import exact_gap

SIGNS = pytest.mark.parametrize("nonnegative", [True, False])
RIDGES = pytest.mark.parametrize("l2", [0.0, 0.01])
GAP = 1e-5
front = importlib.import_module("genrag_cli.retrieval.solve")


def made_up(m=40, n=300, q=8, seed=1):
    dictionary, rows = solver_problem(m, n, q, seed=seed)
    return dictionary, np.ascontiguousarray(rows.T)


@pytest.fixture
def honest():
    """Solves, and holds every status and gap against the definition."""

    def run(dictionary, queries, l1, l2, nonnegative=True, gap=GAP, **options):
        codes = solve(dictionary, queries, l1=l1, l2=l2, nonnegative=nonnegative, gap=gap, **options)
        assert np.isfinite(codes.weights).all()
        strengths = (np.broadcast_to(np.asarray(v, np.float32), queries.shape[1]).astype(float) for v in (l1, l2))
        for b, a, lo, hi, said, status in zip(
            queries.T, codes.dense(), *strengths, codes.gap, codes.status, strict=True
        ):
            exact = exact_gap(dictionary, b, a, lo, hi, nonnegative)
            assert said >= exact * (1 - 1e-3) - 1e-9
            assert status == ("solved" if said <= gap else "stalled")
        assert not nonnegative or codes.weights.min(initial=0) >= 0
        return codes

    return run


def assert_solved(codes):
    assert set(codes.status) == {"solved"}


@SIGNS
@RIDGES
def test_a_bank_that_holds_every_spot_twice(honest, l2, nonnegative):
    dictionary, queries = made_up()
    once = honest(dictionary, queries, 0.05, l2, nonnegative)
    twice = honest(np.concatenate([dictionary, dictionary], 1), queries, 0.05, l2, nonnegative)
    assert_solved(twice)
    if l2 == 0:
        together = twice.dense()[:, :300] + twice.dense()[:, 300:]
        np.testing.assert_allclose(dictionary @ together.T, dictionary @ once.dense().T, atol=1e-3)
    else:
        assert (twice.n_active >= once.n_active).all()


@SIGNS
@RIDGES
def test_a_bank_of_few_spots_many_times(honest, l2, nonnegative):
    dictionary, queries = made_up()
    assert_solved(honest(np.tile(dictionary[:, :5], (1, 60)), queries, 0.05, l2, nonnegative))


@SIGNS
@RIDGES
@pytest.mark.parametrize("empty", [1, 250])
def test_columns_of_zeros_get_no_weight(honest, empty, l2, nonnegative):
    dictionary, queries = made_up()
    dictionary[:, :empty] = 0
    codes = honest(dictionary, queries, 0.05, l2, nonnegative)
    assert_solved(codes)
    assert codes.indices.min() >= empty


@SIGNS
@pytest.mark.parametrize("n", [1, 300])
@pytest.mark.parametrize("l1", [0.05, 0.0])
def test_a_bank_of_zeros_gives_no_weights(honest, n, l1, nonnegative):
    _, queries = made_up()
    codes = honest(np.zeros((40, n), np.float32), queries, l1, 0.01, nonnegative)
    assert_solved(codes)
    assert len(codes.indices) == 0


@SIGNS
@RIDGES
def test_a_query_of_zeros_among_others_gets_no_weights(honest, l2, nonnegative):
    dictionary, queries = made_up()
    queries[:, 3] = 0
    codes = honest(dictionary, queries, 0.05, l2, nonnegative)
    assert_solved(codes)
    assert codes.n_active[3] == 0
    assert codes.gap[3] == 0
    assert np.delete(codes.n_active, 3).min() > 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["dictionary", "queries"])
@pytest.mark.parametrize("method", ["working-set", "dense"])
def test_values_that_are_not_finite_are_refused(wrong, where, method):
    dictionary, queries = made_up()
    {"dictionary": dictionary, "queries": queries}[where][7, 2] = wrong
    with pytest.raises(SolverError, match=f"{where}: 1 values are not finite"):
        solve(dictionary, queries, l1=0.05, l2=0.01, method=method)


@pytest.mark.parametrize("name", ["l1", "l2"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1e-9])
def test_strengths_that_are_not_possible_are_refused(name, wrong):
    dictionary, queries = made_up()
    with pytest.raises(SolverError, match=f"{name}: must be finite and not negative"):
        solve(dictionary, queries, **{"l1": 0.1, "l2": 0.1, name: wrong})


def test_no_l1_is_solved_where_weights_are_nonnegative(honest):
    assert_solved(honest(*made_up(), 0.0, 0.01))


def test_no_l1_is_solved_for_signed_weights_over_a_small_bank(honest):
    dictionary, queries = made_up()
    codes = honest(dictionary, queries, 0.0, 0.01, False)
    wide = dictionary.astype(np.float64)
    ridge = np.linalg.solve(wide.T @ wide + 0.01 * np.eye(300), wide.T @ queries)
    assert_solved(codes)
    np.testing.assert_allclose(codes.dense(), ridge.T, atol=1e-4)


def narrow(monkeypatch, pool, widest):
    """Working sets of other widths: what thousands of spots do to the real ones, in little."""
    monkeypatch.setattr(working_set, "START", pool)
    monkeypatch.setattr(working_set, "POOL", pool)
    monkeypatch.setattr(working_set, "WIDEST", widest)
    monkeypatch.setattr(front, "WIDEST", widest)


def test_no_l1_is_solved_for_signed_weights_over_the_widest_bank_that_is_allowed(monkeypatch, honest):
    dictionary, queries = made_up(n=100)
    narrow(monkeypatch, 8, 100)
    assert_solved(honest(dictionary, queries, 0.0, 0.01, False))


def test_no_l1_is_refused_for_signed_weights_over_a_bank_that_is_wider(monkeypatch):
    dictionary, queries = made_up(m=10, n=working_set.WIDEST + 1, q=1)
    with pytest.raises(SolverError, match="l1 is 0 and weights are signed"):
        solve(dictionary, queries, l1=0.0, l2=0.01, nonnegative=False)


@SIGNS
@pytest.mark.parametrize("n", [20, 300])
def test_no_penalty_at_all_ends_with_a_gap(honest, n, nonnegative):
    dictionary, queries = made_up(n=n)
    codes = honest(dictionary, queries, 0.0, 0.0, nonnegative)
    left = queries - dictionary @ codes.dense().T
    best = np.linalg.lstsq(dictionary.astype(float), queries.astype(float), rcond=None)[0]
    least = np.linalg.norm(queries - dictionary @ best, axis=0)
    if not nonnegative:
        assert (np.linalg.norm(left, axis=0) <= 1.001 * least + 1e-3).all()
    assert (np.linalg.norm(left, axis=0) <= np.linalg.norm(queries, axis=0)).all()


@SIGNS
@RIDGES
def test_a_strength_above_the_largest_useful_one_gives_no_weights(honest, l2, nonnegative):
    dictionary, queries = made_up()
    codes = honest(dictionary, queries, 1.001 * np.abs(dictionary.T @ queries).max(0), l2, nonnegative)
    assert_solved(codes)
    assert len(codes.indices) == 0
    assert codes.gap.max() <= 1e-12


@SIGNS
@RIDGES
def test_a_strength_just_below_it_gives_one_weight(honest, l2, nonnegative):
    dictionary, queries = made_up()
    c = dictionary.T @ queries
    codes = honest(dictionary, queries, 0.999 * (c if nonnegative else np.abs(c)).max(0), l2, nonnegative)
    assert_solved(codes)
    assert codes.n_active.min() == 1
    assert codes.n_active.max() <= 2


@SIGNS
@RIDGES
def test_a_bank_of_one_spot(honest, l2, nonnegative):
    dictionary, queries = made_up(n=1)
    codes = honest(dictionary, queries, 0.01, l2, nonnegative)
    assert_solved(codes)
    c, norm = (dictionary.T @ queries)[0], float((dictionary**2).sum())
    pull = np.maximum(c - 0.01, 0) if nonnegative else np.sign(c) * np.maximum(np.abs(c) - 0.01, 0)
    np.testing.assert_allclose(codes.dense()[:, 0], pull / (norm + l2), atol=1e-6)


@SIGNS
@RIDGES
def test_a_dictionary_of_one_row(honest, l2, nonnegative):
    dictionary, queries = made_up()
    assert_solved(honest(dictionary[:1], queries[:1], 0.01, l2, nonnegative))


@SIGNS
@RIDGES
@pytest.mark.parametrize("l1", [0.1, 1e-3])
def test_queries_that_are_bank_spots(honest, l1, l2, nonnegative):
    dictionary, _ = made_up()
    codes = honest(dictionary, dictionary[:, 10:30].copy(), l1, l2, nonnegative, gap=1e-4)
    assert_solved(codes)
    assert (codes.dense().argmax(1) == np.arange(10, 30)).all()


@SIGNS
@RIDGES
def test_queries_of_very_different_sizes_in_one_batch(honest, l2, nonnegative):
    dictionary, queries = made_up()
    sizes = (10.0 ** np.arange(-9, 7, 2)).astype(np.float32)
    plain = honest(dictionary, queries, 0.05, l2, nonnegative).dense()
    codes = honest(dictionary, queries * sizes, 0.05 * sizes, l2, nonnegative)
    assert_solved(codes)
    np.testing.assert_allclose(codes.dense() / sizes[:, None], plain, atol=1e-5)


@SIGNS
@pytest.mark.parametrize("scale", [1e-15, 1e-9, 1e9, 1e15])
def test_banks_and_queries_of_any_size(honest, scale, nonnegative):
    dictionary, queries = made_up()
    scaled = [(scale * v).astype(np.float32) for v in (dictionary, queries)]
    codes = honest(*scaled, np.float32(0.05 * scale**2), 0.0, nonnegative)
    assert_solved(codes)


@SIGNS
@pytest.mark.parametrize("scale", [1e-22, 1e-25])
def test_a_bank_too_small_for_float32_is_refused_or_solved_honestly(honest, scale, nonnegative):
    dictionary, queries = made_up()
    with contextlib.suppress(SolverError):
        honest((scale * dictionary).astype(np.float32), queries, np.float32(0.05 * scale), 0.0, nonnegative)


def test_a_bank_too_large_for_float32_is_refused_for_what_it_is():
    dictionary, queries = made_up()
    with pytest.raises(SolverError) as raised:
        solve(dictionary * np.float32(1e25), queries, l1=0.05, l2=0.01)
    assert " 0 values" not in str(raised.value)


@SIGNS
@pytest.mark.parametrize("pool", [8, 1])
@pytest.mark.parametrize("share", [0.01, 0.001])
def test_a_working_set_at_its_cap_does_not_claim_more_than_it_has(monkeypatch, honest, share, pool, nonnegative):
    dictionary, queries = made_up(m=60, n=400)
    top = float(np.median((dictionary.T @ queries).max(0)))
    assert solve(dictionary, queries, l1=share * top, l2=share * top / 9, nonnegative=nonnegative).n_active.mean() > 20
    narrow(monkeypatch, pool, 2 * pool)
    honest(dictionary, queries, share * top, share * top / 9, nonnegative)


@SIGNS
def test_a_support_that_fits_the_widest_working_set_is_found(monkeypatch, honest, nonnegative):
    dictionary, queries = made_up(m=60, n=600)
    wanted = honest(dictionary, queries, 1e-3, 1e-2, nonnegative)
    narrow(monkeypatch, 8, 400)
    assert 100 < wanted.n_active.max() < 300
    codes = honest(dictionary, queries, 1e-3, 1e-2, nonnegative)
    assert_solved(codes)
    np.testing.assert_array_equal(codes.indices, wanted.indices)


@SIGNS
def test_a_bank_of_strongly_correlated_spots(honest, nonnegative):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 300))
    dictionary = (shared + 1e-3 * rng.normal(size=shared.shape)).astype(np.float32)
    queries = dictionary[:, :6] @ rng.random((6, 8)).astype(np.float32) + rng.normal(size=(40, 8)).astype(np.float32)
    assert_solved(honest(dictionary, queries, 0.5, 0.05, nonnegative))


@SIGNS
def test_a_round_is_too_few_and_is_said_to_be(honest, nonnegative):
    dictionary, queries = made_up(m=80, n=600)
    codes = honest(dictionary, queries, 1e-3, 0.0, nonnegative, gap=1e-7, max_iter=1)
    assert "stalled" in codes.status
    assert (codes.gap[codes.status == "stalled"] > 1e-7).all()
