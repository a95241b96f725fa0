"""Working sets: the optimum, whatever the chunk, the company, the precision or the start, in few passes."""

import functools

import numpy as np
import pytest
import torch

from genrag_cli.retrieval import prepare, solve
from genrag_cli.retrieval.atoms import HeldAtoms
from genrag_cli.retrieval.problem import Batch
from genrag_cli.retrieval.scan import Scan
from genrag_cli.retrieval.working_set import solve_working_set
from genrag_cli.synthetic import solver_problem

SIGNS = pytest.mark.parametrize("nonnegative", [True, False])
SHARE = 0.1
STRENGTH = {"std": 0.25, "raw": 0.1, "l2": 0.1}
"""Shares of the largest useful l1 at which queries use about 30 of 1,500 real spots."""


@functools.cache
def problem(n_queries=640):
    dictionary, rows = solver_problem(60, 1500, n_queries, seed=5)
    queries = np.ascontiguousarray(rows.T)
    return dictionary, queries, SHARE * float(np.median((dictionary.T @ queries).max(0)))


@functools.cache
def expected(nonnegative, gap=1e-6):
    dictionary, queries, l1 = problem()
    codes = solve(prepare(dictionary), queries, l1=l1, l2=l1 / 9, nonnegative=nonnegative, gap=gap, chunk=640)
    assert set(codes.status) == {"solved"}
    return codes


def assert_same_bits(found, wanted):
    np.testing.assert_array_equal(found.indptr, wanted.indptr)
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_array_equal(found.weights, wanted.weights)


@SIGNS
@pytest.mark.parametrize("gap", [1e-4, 1e-6])
@pytest.mark.parametrize("chunk", [32, 128, 512])
def test_codes_are_the_same_bits_for_any_chunk(chunk, gap, nonnegative):
    dictionary, queries, l1 = problem()
    found = solve(dictionary, queries, l1=l1, l2=l1 / 9, nonnegative=nonnegative, gap=gap, chunk=chunk)
    assert_same_bits(found, expected(nonnegative))


@SIGNS
@pytest.mark.parametrize("gap", [1e-4, 1e-6])
def test_codes_are_the_same_bits_in_any_order(gap, nonnegative):
    dictionary, queries, l1 = problem()
    order = np.random.default_rng(0).permutation(queries.shape[1])
    found = solve(dictionary, queries[:, order], l1=l1, l2=l1 / 9, nonnegative=nonnegative, gap=gap, chunk=100)
    np.testing.assert_array_equal(found.dense(), expected(nonnegative).dense()[order])


@SIGNS
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_codes_are_the_same_bits_for_either_precision_of_passes(precision, nonnegative):
    dictionary, queries, l1 = problem()
    scan = Scan(HeldAtoms(torch.from_numpy(np.ascontiguousarray(dictionary.T))), precision=precision)
    found = solve(scan, queries, l1=l1, l2=l1 / 9, nonnegative=nonnegative, gap=1e-6)
    assert_same_bits(found, expected(nonnegative))


@SIGNS
@pytest.mark.parametrize("share", [0.5, 1.0, 3.0])
def test_codes_are_the_same_bits_from_a_warm_start(share, nonnegative):
    dictionary, queries, l1 = problem()
    start = solve(dictionary, queries, l1=share * l1, l2=l1 / 5, nonnegative=nonnegative, gap=1e-2)
    found = solve(dictionary, queries, l1=l1, l2=l1 / 9, nonnegative=nonnegative, gap=1e-6, start=start)
    assert_same_bits(found, expected(nonnegative))


def test_codes_are_the_same_bits_for_any_number_of_threads():
    dictionary, queries, l1 = problem()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 3)
        found = solve(dictionary, queries, l1=l1, l2=l1 / 9, gap=1e-6)
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(found, expected(True))


@pytest.mark.parametrize("method", ["working-set", "dense"])
def test_a_start_of_the_other_problem_leaves_no_negative_weight(method):
    dictionary = np.eye(4, dtype=np.float32)
    queries = np.array([[-1.0, 1, 0.7, -2]], np.float32).T
    start = solve(dictionary, queries, l1=0.5, l2=0.0, nonnegative=False)
    found = solve(dictionary, queries, l1=0.5, l2=0.0, start=start, method=method)
    assert start.weights.min() < 0
    np.testing.assert_allclose(found.dense(), [[0, 0.5, 0.2, 0]], atol=1e-6)


def test_a_start_at_the_solution_takes_one_pass_and_the_pool():
    dictionary, queries, l1 = problem()
    start = expected(True)
    warm = solve(dictionary, queries, l1=l1, l2=l1 / 9, gap=1e-6, start=start)
    assert warm.passes.mean() < 0.8 * start.passes.mean()


def batch_of(n=40, nonnegative=True):
    dictionary, queries, l1 = problem()
    strength = torch.full((n,), l1)
    rows = torch.from_numpy(np.ascontiguousarray(queries[:, :n].T))
    return prepare(dictionary), Batch(rows, strength, strength / 9, nonnegative)


@pytest.mark.parametrize("max_rounds", [1, 2, 60])
def test_every_query_is_told_of_once_however_it_ended(max_rounds):
    scan, batch = batch_of()
    told = []
    found = solve_working_set(scan, batch, gap=1e-6, max_rounds=max_rounds, on_solved=told.append)
    assert sum(told) == len(batch)
    assert bool(torch.isfinite(found.gap).all())
    assert bool((found.passes >= 1).all())


def test_each_query_keeps_its_own_rounds():
    scan, batch = batch_of()
    together = solve_working_set(scan, batch, gap=1e-6)
    alone = solve_working_set(scan, batch.rows(torch.tensor([7])), gap=1e-6)
    used = together.weights[7] != 0
    assert together.index[7, used].tolist() == alone.index[0, alone.weights[0] != 0].tolist()
    assert torch.equal(together.weights[7, used], alone.weights[0, alone.weights[0] != 0])


@pytest.mark.parametrize("max_iter", [1, 2])
def test_what_an_unfinished_query_gets_does_not_depend_on_its_company(max_iter):
    dictionary, queries, l1 = problem()
    strengths = np.where(np.arange(30) % 3 == 0, 1e-4, 0.5).astype(np.float32) * l1 / SHARE
    options = {"gap": 1e-7, "max_iter": max_iter}
    together = solve(dictionary, queries[:, :30], l1=strengths, l2=0.0, **options)
    alone = solve(dictionary, queries[:, :30], l1=strengths, l2=0.0, chunk=1, **options)
    assert "stalled" in together.status
    np.testing.assert_array_equal(together.status, alone.status)
    np.testing.assert_allclose(together.gap, alone.gap, rtol=1e-2, atol=1e-9)
    np.testing.assert_allclose(together.passes, alone.passes, rtol=0.2)
    np.testing.assert_allclose(together.dense(), alone.dense(), atol=1e-3 * together.weights.max())


def test_a_made_up_problem_takes_few_passes():
    codes = expected(True)
    assert np.isfinite(codes.passes).all()
    assert codes.passes.min() >= 1
    assert codes.passes.mean() < 8


@pytest.mark.real
@SIGNS
@pytest.mark.parametrize(("gap", "most"), [(1e-4, 4.5), (1e-6, 5.5)])
@pytest.mark.parametrize("variant", ["std", "raw", "l2"])
def test_real_problems_take_few_passes(real_problem, variant, gap, most, nonnegative):
    dictionary, queries = real_problem(variant)
    l1 = STRENGTH[variant] * float(np.median((dictionary.T @ queries).max(0)))
    codes = solve(dictionary, queries, l1=l1, l2=l1 / 9, nonnegative=nonnegative, gap=gap)
    assert set(codes.status) == {"solved"}
    assert 15 <= np.median(codes.n_active) <= 60
    assert codes.passes.min() >= 1
    assert codes.passes.mean() <= most
