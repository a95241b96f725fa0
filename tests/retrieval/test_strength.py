"""Strengths: by size, found for a number of references, and along a path."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.errors import SolverError, UsageError
from genrag_cli.retrieval import prepare, solve
from genrag_cli.retrieval.strength import StrengthRule, find_strength, solve_path
from genrag_cli.synthetic import solver_problem


def made_up(n_bank=400, n_queries=24):
    dictionary, rows = solver_problem(80, n_bank, n_queries, seed=1)
    return prepare(dictionary), rows.T


@given(l1=st.floats(1e-3, 1e3), power=st.floats(0, 1), factor=st.floats(0.1, 10))
@settings(deadline=None, max_examples=30)
def test_penalties_follow_the_size_of_the_query(l1, power, factor):
    queries = np.array([[3.0, 0.3], [4.0, 0.4]], np.float32)
    strong, ridge = StrengthRule(l1, l1 / 9, power).scaled(factor).of(queries)
    np.testing.assert_allclose(strong, l1 * factor * np.array([5.0, 0.5]) ** power, rtol=1e-5)
    np.testing.assert_allclose(ridge, strong / 9, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"l1": -1.0}, {"l2": float("nan")}, {"l1": float("inf")}, {"power": 2.0}])
def test_impossible_rules_are_refused(wrong):
    with pytest.raises(UsageError, match="are possible"):
        StrengthRule(**{"l1": 1.0, "l2": 1.0, "power": 0.0, **wrong})


@pytest.mark.parametrize("active", [3, 10])
@pytest.mark.parametrize("n_bank", [400, 4000])
def test_the_strength_found_gives_the_asked_number_of_references(active, n_bank):
    scan, queries = made_up(n_bank, 60)
    found = find_strength(scan, queries, active=active)
    l1, l2 = found.rule.of(queries)
    codes = solve(scan, queries, l1=l1, l2=l2, gap=1e-5)
    assert found.reached
    assert abs(np.median(codes.n_active) - active) <= 1
    np.testing.assert_allclose(l2 / l1, 1 / 9, rtol=1e-5)


def test_more_references_than_the_bank_has_are_said_not_to_be_reached():
    dictionary, rows = solver_problem(30, 12, 6, seed=1)
    found = find_strength(prepare(dictionary), rows.T, active=40)
    assert not found.reached
    assert found.median_active < 40


@pytest.mark.parametrize("asked", [{"active": 0}, {"active": 5, "l1_ratio": 0.0}])
def test_what_cannot_be_searched_for_is_refused(asked):
    scan, queries = made_up()
    with pytest.raises(UsageError, match="possible"):
        find_strength(scan, queries, **asked)


def test_empty_queries_find_no_strength():
    scan, queries = made_up()
    found = find_strength(scan, np.zeros_like(queries), active=5)
    assert not found.reached
    assert found.median_active == 0


@pytest.fixture(scope="module", params=["std", "raw", "l2"])
def real_problem(request, shared_data):
    path = shared_data.parent / "tools" / "solver_problems.py"
    spec = importlib.util.spec_from_file_location("solver_problems", path)
    tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    data = shared_data / "solver" / "her2st_counts_top1000.h5ad"
    dictionary, queries = tools.problem(13_000, request.param, data=data)
    return prepare(dictionary), queries[:, :256]


@pytest.mark.real
@pytest.mark.parametrize("nonnegative", [True, False])
def test_fifty_references_are_even_and_cheap_on_real_anchors(real_problem, nonnegative):
    scan, slide = real_problem
    found = find_strength(scan, slide[:, :160], active=50, nonnegative=nonnegative)
    l1, l2 = found.rule.of(slide)
    n_active = solve(scan, slide, l1=l1, l2=l2, nonnegative=nonnegative).n_active
    assert abs(np.median(n_active) - 50) <= 2
    assert ((n_active >= 35) & (n_active <= 65)).mean() >= 0.9
    assert found.passes / 256 <= 3.25


def test_a_path_is_what_each_strength_alone_gives_in_fewer_passes():
    scan, queries = made_up(4000, 40)
    top = float(np.median((scan.atoms.rows.numpy() @ queries).max(0)))
    rules = [StrengthRule(top * share, top * share / 9) for share in (0.05, 0.4, 0.2, 0.1)]
    warm = cold = 0.0
    shares = []
    for rule, codes in solve_path(scan, queries, rules):
        l1, l2 = rule.of(queries)
        alone = solve(scan, queries, l1=l1, l2=l2)
        np.testing.assert_array_equal(codes.indices, alone.indices)
        np.testing.assert_array_equal(codes.weights, alone.weights)
        warm, cold = warm + codes.passes.sum(), cold + alone.passes.sum()
        shares.append(rule.l1 / top)
    assert shares == pytest.approx([0.4, 0.2, 0.1, 0.05])
    assert warm < cold


def test_a_path_over_unlike_rules_is_refused():
    scan, queries = made_up()
    with pytest.raises(SolverError, match="one power"):
        list(solve_path(scan, queries, [StrengthRule(1, 1, 0.0), StrengthRule(1, 1, 0.5)]))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_strength_is_found_for_hardly_any_queries(n):
    scan, queries = made_up(500, 4)
    found = find_strength(scan, queries[:, :n], active=5)
    assert found.n_queries == n
    assert found.rule.l1 > 0
