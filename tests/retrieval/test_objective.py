"""The formulas of the objective, each against its definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrag_cli.errors import UsageError
from genrag_cli.retrieval.objective import GapParts, Strength, objective, relative_gap, shrink, strongest_useful_l1


@given(st.floats(1e-6, 1e3), st.floats(0, 1))
def test_the_papers_strength_survives_the_round_trip(lambda_, gamma):
    strength = Strength.from_paper(lambda_, gamma, rows=1586)
    assert strength.lambda_ == pytest.approx(lambda_)
    assert strength.gamma == pytest.approx(gamma, abs=1e-9)


def test_the_published_code_maps_to_the_paper_as_the_definitions_say():
    m, alpha, r = 1586, 0.01, 0.9
    strength = Strength.from_code(alpha, r, m)
    assert strength.lambda_ == pytest.approx(m * alpha * (1 + r))
    assert strength.gamma == pytest.approx((1 - r) / (1 + r))
    assert (strength.alpha, strength.l1_ratio) == pytest.approx((alpha, r))


@pytest.mark.parametrize(("lambda_", "gamma"), [(-1, 0.5), (1, 1.5)])
def test_impossible_strengths_are_refused(lambda_, gamma):
    with pytest.raises(UsageError):
        Strength.from_paper(lambda_, gamma, 10)


@given(st.floats(-5, 5), st.floats(0, 3))
def test_shrink_is_the_proximal_step(value, threshold):
    grid = np.linspace(-6, 6, 24001)
    cost = 0.5 * (grid - value) ** 2 + threshold * np.abs(grid)
    got = shrink(torch.tensor([[value]], dtype=torch.float64), torch.tensor([[threshold]]), nonnegative=False)
    assert float(got) == pytest.approx(grid[np.argmin(cost)], abs=1e-3)


def problem(signed, l2):
    rng = np.random.default_rng(0)
    d, b = rng.normal(size=(8, 12)), rng.normal(size=8)
    a = np.maximum(rng.normal(size=12), 0) * (np.where(rng.random(12) < 0.5, -1, 1) if signed else 1)
    tensors = [torch.from_numpy(x)[None] for x in (b, b - d @ a, a, d.T @ (b - d @ a))]
    return d, b, a, tensors, torch.tensor([0.7], dtype=torch.float64), torch.tensor([l2], dtype=torch.float64)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("l2", [0.3, 0.0])
def test_the_gap_bounds_the_distance_to_the_minimum(signed, l2):
    from genrag_cli.retrieval.reference import coordinate_descent, value

    d, b, a, (tb, tr, ta, tc), l1, ridge = problem(signed, l2)
    parts = GapParts.of(tc, ta, l1, ridge, not signed)
    gap = float(relative_gap(tb, tr, ta, parts, l1, ridge))
    best = coordinate_descent(d, b, 0.7, l2, not signed)
    reached = value(d, b, a, 0.7, l2)
    assert gap >= (reached - value(d, b, best, 0.7, l2)) / reached
    at_best = GapParts.of(
        torch.from_numpy(d.T @ (b - d @ best))[None], torch.from_numpy(best)[None], l1, ridge, not signed
    )
    left = torch.from_numpy(b - d @ best)[None]
    assert float(relative_gap(tb, left, torch.from_numpy(best)[None], at_best, l1, ridge)) < 1e-9


def test_parts_of_blocks_join_to_the_parts_of_the_whole():
    _, _, _, (_, _, ta, tc), l1, l2 = problem(signed=True, l2=0.3)
    whole = GapParts.of(tc, ta, l1, l2, nonnegative=False)
    halves = [GapParts.of(tc[:, s], ta[:, s], l1, l2, nonnegative=False) for s in (slice(5), slice(5, None))]
    joined = halves[0].join(halves[1])
    assert float(joined.excess) == pytest.approx(float(whole.excess))
    assert float(joined.top) == float(whole.top)


def test_the_value_is_the_papers():
    d, b, a, (_, tr, ta, _), l1, l2 = problem(signed=True, l2=0.3)
    by_hand = 0.5 * ((b - d @ a) ** 2).sum() + 0.7 * np.abs(a).sum() + 0.15 * (a**2).sum()
    assert float(objective(tr, ta, l1, l2)) == pytest.approx(by_hand)


def test_the_strongest_useful_l1_is_never_negative():
    correlations = torch.tensor([[-3.0, -1.0], [2.0, -5.0]])
    assert strongest_useful_l1(correlations, nonnegative=True).tolist() == [0.0, 2.0]
    assert strongest_useful_l1(correlations, nonnegative=False).tolist() == [3.0, 5.0]
