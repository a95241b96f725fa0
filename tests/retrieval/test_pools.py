"""Pools: what is in them, and that both engines find their optimum."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.retrieval import pools as module
from genrag_cli.retrieval.pools import Answer, Pools, engine, settle, solve_pools, support
from genrag_cli.retrieval.problem import Batch
from genrag_cli.retrieval.reference import coordinate_descent, value
from genrag_cli.synthetic import solver_problem

EXACT = 1e-11


@pytest.fixture(params=["compiled", "torch"])
def either_engine(request, monkeypatch):
    monkeypatch.setattr(module, "engine", lambda _: request.param)
    return request.param


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 30), st.integers(1, 12))
def test_pools_hold_each_atom_asked_for_once_and_every_atom_with_a_weight(seed, q, n, k):
    rng = np.random.default_rng(seed)
    old = Pools.of(torch.from_numpy(rng.integers(0, n + 1, (q, k))), n)
    inside = torch.arange(old.index.shape[1]) < old.filled[:, None]
    weights = torch.where(inside, torch.from_numpy(rng.normal(size=old.weights.shape).round()), 0.0)
    place = torch.from_numpy(rng.integers(0, n + 1, (q, rng.integers(1, 12))))
    new = Pools.of(place, n, Pools(old.index, weights, old.filled))
    for i, size in enumerate(new.filled.tolist()):
        had = {j: w for j, w in zip(old.index[i].tolist(), weights[i].tolist(), strict=True) if w}
        found = new.index[i, :size].tolist()
        assert found == sorted({*place[i].tolist(), *had} - {n})
        assert {j: w for j, w in zip(found, new.weights[i].tolist(), strict=False) if w} == had
        assert bool((new.weights[i, size:] == 0).all())
    assert bool(((new.index >= 0) & (new.index < n)).all())
    assert new.index.shape == new.weights.shape == (q, max(1, int(new.filled.max())))


def test_the_support_keeps_the_order_of_its_atoms():
    index, weights = torch.tensor([[2, 5, 7, 9], [0, 1, 2, 3]]), torch.tensor([[0.0, 3, 0, -1], [0, 0, 0, 4]])
    kept, values = support(index, weights, 99)
    assert kept.tolist() == [[5, 9], [3, 99]]
    assert values.tolist() == [[3, -1], [4, 0]]
    assert support(index[:0], weights[:0], 99)[0].shape == (0, 0)


def test_pools_of_no_queries_are_pools_of_no_queries():
    assert len(Pools.of(torch.zeros(0, 3, dtype=torch.long), 10).index) == 0


def problem(l2, nonnegative, q=19, m=30, width=50, seed=0):
    """Pools of different sizes over a table of 80 atoms, in no order, and weights to begin from."""
    dictionary, rows = solver_problem(m, 80, q, seed=seed)
    rng = np.random.default_rng(seed)
    share = rng.uniform(0.02, 0.5, q)
    l1 = torch.from_numpy(share * (rows @ dictionary).max(1)).float()
    batch = Batch(torch.from_numpy(rows), l1, torch.full((q,), l2), nonnegative)
    local = torch.from_numpy(np.stack([rng.permutation(80)[:width] for _ in range(q)]))
    filled = torch.from_numpy(rng.integers(5, width + 1, q))
    start = np.where(rng.random((q, width)) < 0.1, rng.uniform(0, 0.3, (q, width)), 0)
    start[np.arange(width) >= filled.numpy()[:, None]] = 0
    table = torch.from_numpy(np.ascontiguousarray(dictionary.T))
    return table, local, batch, Pools(local, torch.from_numpy(start), filled)


def dense_problem(table, local, batch, pools, i):
    atoms = table[local[i, : pools.filled[i]]].numpy().astype(np.float64).T
    return atoms, batch.b[i].numpy().astype(np.float64), float(batch.l1[i]), float(batch.l2[i])


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("l2", [0.0, 1e-4, 0.1])
def test_both_engines_find_the_minimum_of_every_pool(either_engine, l2, nonnegative):
    given_ = problem(l2, nonnegative)
    answer = solve_pools(*given_, loops=60, exact=EXACT)
    pools = given_[-1]
    for i in range(len(pools.index)):
        atoms, b, l1, ridge = dense_problem(*given_, i)
        a = answer.weights[i, : pools.filled[i]].numpy()
        best = coordinate_descent(atoms, b, l1, ridge, nonnegative)
        least = value(atoms, b, best, l1, ridge)
        assert value(atoms, b, a, l1, ridge) == pytest.approx(least, rel=1e-9)
        assert np.linalg.norm(atoms @ (a - best)) <= 1e-6 * np.linalg.norm(b)
        assert not nonnegative or a.min() >= 0
    assert bool((answer.weights[torch.arange(50) >= pools.filled[:, None]] == 0).all())


def assert_looked_at(answer: Answer, table, local, batch, pools):
    for i in range(len(pools.index)):
        atoms, b, _, _ = dense_problem(table, local, batch, pools, i)
        left = b - atoms @ answer.weights[i, : pools.filled[i]].numpy()
        np.testing.assert_allclose(answer.residual[i].numpy(), left, atol=1e-12 * np.linalg.norm(b))
        np.testing.assert_allclose(answer.c[i, : pools.filled[i]].numpy(), atoms.T @ left, atol=1e-11)


@pytest.mark.parametrize("loops", [0, 1, 40])
def test_residuals_and_slopes_are_those_of_the_weights_that_come_back(either_engine, loops):
    given_ = problem(0.01, True)
    assert_looked_at(solve_pools(*given_, loops=loops, exact=1e-6), *given_)
    assert_looked_at(settle(*given_), *given_)


def test_settled_weights_are_float32_and_leave_out_what_is_nothing(either_engine):
    table, local, batch, pools = problem(0.01, True)
    answer = solve_pools(table, local, batch, pools, loops=60, exact=EXACT)
    first = answer.weights.argmin(1, keepdim=True)
    faint = answer.weights.scatter(1, first, 1e-9 * answer.weights.amax(1, keepdim=True))
    settled = settle(table, local, batch, Pools(local, faint, pools.filled))
    assert torch.equal(settled.weights, settled.weights.float().double())
    assert bool((settled.weights.gather(1, first) == 0).all())
    assert float((settled.weights - answer.weights).abs().max()) <= 1e-6 * float(answer.weights.max())


@pytest.mark.parametrize("nonnegative", [True, False])
def test_settled_weights_do_not_show_how_their_support_was_found(nonnegative):
    table, local, batch, pools = problem(0.01, nonnegative)
    index = local.sort(dim=1).values
    everyone = Pools(index, torch.zeros_like(pools.weights), torch.full((len(index),), index.shape[1]))
    answer = solve_pools(table, index, batch, everyone, loops=60, exact=EXACT)
    noise = 1 + 1e-6 * torch.randn(answer.weights.shape, generator=torch.Generator().manual_seed(0)).double()
    expected = settle(table, index, batch, Pools(index, answer.weights, everyone.filled))
    shaken = settle(table, index, batch, Pools(index, answer.weights * noise, everyone.filled))
    kept = [support(index, w, 80) for w in (expected.weights, answer.weights * noise)]
    narrow = Pools(kept[1][0].clamp(max=79), kept[1][1], (kept[1][0] < 80).sum(1))
    alone = settle(table, narrow.index, batch, narrow)
    assert torch.equal(shaken.weights, expected.weights)
    assert torch.equal(support(narrow.index, alone.weights, 80)[1], kept[0][1])


def test_answers_do_not_depend_on_how_many_threads_there_are():
    given_ = problem(0.01, True)
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(solve_pools(*given_, loops=60, exact=EXACT))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0].weights, found[1].weights)
    assert torch.equal(found[0].c, found[1].c)


def test_only_cpus_run_compiled_code():
    assert engine("cuda") == "torch"


def test_without_numba_cpus_run_torch(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    engine.cache_clear()
    try:
        assert engine("cpu") == "torch"
    finally:
        engine.cache_clear()
