"""Reported gaps are those of the definition, for every way in which a query may end."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.retrieval import certificate, solve
from genrag_cli.retrieval.atoms import HeldAtoms
from genrag_cli.retrieval.certificate import bank_parts, combined, gap_from, pool_gap
from genrag_cli.retrieval.problem import Batch
from genrag_cli.retrieval.reference import coordinate_descent, value
from genrag_cli.synthetic import solver_problem
from genrag_cli.testing.solver_contract import exact_gap

SIGNS = pytest.mark.parametrize("nonnegative", [True, False])


def problem(m=30, n=200, q=8, seed=0):
    dictionary, rows = solver_problem(m, n, q, seed=seed)
    queries = np.ascontiguousarray(rows.T)
    return dictionary, queries, float(np.median((dictionary.T @ queries).max(0)))


def definitions(dictionary, queries, codes, l1, l2, nonnegative):
    rows = zip(queries.T, codes.dense(), strict=True)
    return np.array([exact_gap(dictionary, b, a, l1, l2, nonnegative) for b, a in rows])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6), st.sampled_from([0.5, 0.1, 0.01, 0.001]), st.sampled_from([0.0, 1e-4, 0.1, 1.0]),
    st.booleans(), st.sampled_from([1, 2, 60]), st.sampled_from([1e-2, 1e-4, 1e-7]),
)  # fmt: skip
def test_gaps_are_never_better_than_the_definitions(seed, share, ridge, nonnegative, max_iter, gap):
    dictionary, queries, top = problem(seed=seed, q=4)
    l1, l2 = float(np.float32(share * top)), float(np.float32(ridge * share * top))
    codes = solve(dictionary, queries, l1=l1, l2=l2, nonnegative=nonnegative, gap=gap, max_iter=max_iter)
    exact = definitions(dictionary, queries, codes, l1, l2, nonnegative)
    assert (codes.gap >= exact * (1 - 1e-3) - 1e-9).all()
    assert l2 == 0 or (codes.gap <= exact * (1 + 1e-3) + 1e-9).all()
    assert ((codes.gap <= gap) == (codes.status == "solved")).all()


@SIGNS
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_gaps_without_a_ridge_are_not_overstated(share, nonnegative):
    dictionary, queries, top = problem(q=40)
    l1 = float(np.float32(share * top))
    codes = solve(dictionary, queries, l1=l1, l2=0.0, nonnegative=nonnegative, gap=1e-4)
    exact = definitions(dictionary, queries, codes, l1, 0.0, nonnegative)
    assert (codes.gap >= exact * (1 - 1e-3) - 1e-9).all()
    assert (codes.gap <= exact + 1e-6).all()  # atoms outside a pool are only known to be below l1


@SIGNS
def test_gaps_of_queries_that_are_bank_spots_are_not_overstated(nonnegative):
    dictionary, _, _ = problem()
    queries, l1 = dictionary[:, :12].copy(), float(np.float32(1e-3))
    codes = solve(dictionary, queries, l1=l1, l2=0.0, nonnegative=nonnegative, gap=1e-5)
    exact = definitions(dictionary, queries, codes, l1, 0.0, nonnegative)
    assert (codes.gap >= exact * (1 - 1e-3) - 1e-9).all()
    assert (codes.gap <= exact + 1e-6).all()  # atoms outside a pool are only known to be below l1
    assert set(codes.status) == {"solved"}


@SIGNS
@pytest.mark.parametrize("l2", [0.0, 0.02])
@pytest.mark.parametrize("max_iter", [1, 60])
def test_no_query_is_farther_from_the_minimum_than_its_gap(l2, max_iter, nonnegative):
    dictionary, queries, top = problem(m=25, n=90, q=5)
    l1, wide = float(np.float32(0.03 * top)), dictionary.astype(np.float64)
    codes = solve(dictionary, queries, l1=l1, l2=l2, nonnegative=nonnegative, gap=1e-7, max_iter=max_iter)
    for b, a, gap in zip(queries.T.astype(np.float64), codes.dense().astype(np.float64), codes.gap, strict=True):
        reached = value(wide, b, a, l1, float(np.float32(l2)))
        least = value(wide, b, coordinate_descent(wide, b, l1, float(np.float32(l2)), nonnegative), l1, l2)
        assert (reached - least) / reached <= gap + 1e-12


def some_weights(n, q, width, seed=0):
    rng = np.random.default_rng(seed)
    index = np.stack([rng.choice(n, width, replace=False) for _ in range(q)])
    weights = np.where(rng.random((q, width)) < 0.7, rng.uniform(0, 0.3, (q, width)), 0)
    return torch.from_numpy(index), torch.from_numpy(weights).float()


def batch_of(queries, l1, l2, nonnegative):
    rows = torch.from_numpy(np.ascontiguousarray(queries.T))
    return Batch(rows, torch.full((len(rows),), l1), torch.full((len(rows),), l2), nonnegative)


@SIGNS
@pytest.mark.parametrize("columns", [7, 4096])
@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_a_pass_in_blocks_gives_the_gap_of_any_weights(monkeypatch, columns, l2, nonnegative):
    monkeypatch.setattr(certificate, "COLUMNS", columns)
    dictionary, queries, _ = problem()
    atoms = HeldAtoms(torch.from_numpy(np.ascontiguousarray(dictionary.T)))
    batch, (index, weights) = batch_of(queries, 0.25, l2, nonnegative), some_weights(200, 8, 10)
    left = combined(batch, *atoms.table(index), weights)
    found = gap_from(batch, left, weights, bank_parts(atoms, 0, batch, left, index, weights))
    dense = torch.zeros(8, 200).scatter_(1, index, weights).numpy()
    for i in range(8):
        ridge = float(np.float32(l2))
        exact = exact_gap(dictionary, queries[:, i], dense[i], 0.25, ridge, nonnegative)
        assert float(found[i]) == pytest.approx(exact, rel=1e-9)


@SIGNS
def test_parts_of_some_columns_join_to_those_of_all(nonnegative):
    dictionary, queries, _ = problem()
    rows = torch.from_numpy(np.ascontiguousarray(dictionary.T))
    batch, (index, weights) = batch_of(queries, 0.25, 0.1, nonnegative), some_weights(200, 8, 10)
    left = combined(batch, rows, index, weights)
    whole = bank_parts(HeldAtoms(rows), 0, batch, left, index, weights)
    parts = [
        bank_parts(HeldAtoms(rows[s]), s.start, batch, left, index, weights) for s in (slice(0, 63), slice(63, 200))
    ]
    joined = parts[0].join(parts[1])
    torch.testing.assert_close(joined.excess, whole.excess, rtol=1e-12, atol=0)
    torch.testing.assert_close(joined.top, whole.top, rtol=1e-12, atol=0)


@SIGNS
@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_a_pool_that_nobody_can_join_bounds_the_gap_over_the_bank(l2, nonnegative):
    dictionary, queries, top = problem()
    l1 = float(np.float32(0.2 * top))
    codes = solve(dictionary, queries, l1=l1, l2=l2, nonnegative=nonnegative, gap=1e-6).dense()
    atoms, batch = torch.from_numpy(dictionary.T.copy()).double(), batch_of(queries, l1, l2, nonnegative)
    rough = torch.from_numpy(codes).double() * 0.999
    left = batch.b.double() - rough @ atoms
    c = left @ atoms.T
    inside = ((c if nonnegative else c.abs()) > 0.5 * l1) | (rough != 0)
    order = (~inside).to(torch.int8).sort(dim=1, stable=True).indices
    found = pool_gap(batch, rough.gather(1, order), left, c.gather(1, order), inside.sum(1), batch.l1.double())
    for i in range(8):
        exact = exact_gap(dictionary, queries[:, i], rough[i].numpy(), l1, float(np.float32(l2)), nonnegative)
        assert float(found[i]) >= exact * (1 - 1e-9) - 1e-15
        assert float(found[i]) <= 1.01 * exact + 0.01


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_weights_that_are_not_finite_have_no_gap(wrong):
    dictionary, queries, _ = problem()
    atoms = HeldAtoms(torch.from_numpy(dictionary.T.copy()))
    batch, (index, weights) = batch_of(queries, 0.25, 0.1, True), some_weights(200, 8, 10)
    weights[:, 0] = wrong
    left = combined(batch, *atoms.table(index), weights)
    found = gap_from(batch, left, weights, bank_parts(atoms, 0, batch, left, index, weights))
    assert not bool((found < 1).any())
