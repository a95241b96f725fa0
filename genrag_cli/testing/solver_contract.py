"""What every solver of Eq. 1 must do: inherit it, give `solve`, and pytest runs the rest.

class TestMine(SolverContract):
    def solve(self, dictionary, queries, **options):
        return my_solver(dictionary, queries, **options)
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from genrag_cli.retrieval import solve
from genrag_cli.retrieval.reference import coordinate_descent, value
from genrag_cli.synthetic import solver_problem
from genrag_cli.types import Doubles, SparseCodes


def exact_gap(dictionary: Doubles, b: Doubles, a: Doubles, l1: float, l2: float, nonnegative: bool) -> float:
    """The relative duality gap in float64 by the definition: the dual value of the residual scaled to be feasible.

    With theta = s r the dual of the problem is s b'r - s^2/2 (|r|^2 + l2 |a|^2) for any s that keeps
    s (D_j'r - l2 a_j) <= l1 for all j (of its size, when signed); every such s gives a valid bound.
    """
    r = b - dictionary @ a
    primal = value(dictionary, b, a, l1, l2)
    slack = dictionary.T @ r - l2 * a
    top = float(np.max(slack if nonnegative else np.abs(slack)))
    br, q = float(b @ r), float(r @ r) + l2 * float(a @ a)
    if primal <= 0 or q <= 0:
        return 0.0
    s = max(br / q, 0.0)
    if top > 0:
        s = min(s, l1 / top)
    return (primal - (s * br - 0.5 * s * s * q)) / primal


class SolverContract:
    """Inherit, override `solve`."""

    def solve(self, dictionary: NDArray[Any], queries: NDArray[Any], **options: Any) -> SparseCodes:
        """The solver under test, with the arguments of `genrag_cli.retrieval.solve`."""
        return solve(dictionary, queries, **options)

    @pytest.fixture(params=[True, False], ids=["nonnegative", "signed"])
    def nonnegative(self, request: pytest.FixtureRequest) -> bool:
        """Both problems."""
        return bool(request.param)

    @pytest.fixture
    def problem(self) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
        """A correlated dictionary (40, 120), 12 queries (40, 12), and the largest useful l1 in the median."""
        dictionary, rows = solver_problem(40, 120, 12, seed=3)
        queries = np.ascontiguousarray(rows.T)
        return dictionary, queries, float(np.median((dictionary.T @ queries).max(0)))

    @pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
    def test_weights_agree_with_coordinate_descent(self, problem: Any, nonnegative: bool, share: float) -> None:
        """The minimum is the oracle's: objective to 1e-6, reconstruction to 1e-3."""
        dictionary, queries, top = problem
        l1, l2 = share * top, share * top / 9
        codes = self.solve(dictionary, queries, l1=l1, l2=l2, nonnegative=nonnegative, gap=1e-7).dense()
        wide = dictionary.astype(np.float64)
        for b, a in zip(queries.T.astype(np.float64), codes.astype(np.float64), strict=True):
            best = coordinate_descent(wide, b, l1, l2, nonnegative)
            least = value(wide, b, best, l1, l2)
            assert value(wide, b, a, l1, l2) <= least * (1 + 1e-6)
            assert np.linalg.norm(wide @ (a - best)) <= 1e-3 * np.linalg.norm(wide @ best) + 1e-9

    def test_reported_gap_is_a_float64_gap(self, problem: Any, nonnegative: bool) -> None:
        """A bound recomputed from the returned weights alone is at most as good as the reported one, and both hold."""
        dictionary, queries, top = problem
        codes = self.solve(dictionary, queries, l1=0.1 * top, l2=0.02 * top, nonnegative=nonnegative, gap=1e-5)
        wide = dictionary.astype(np.float64)
        for i, a in enumerate(codes.dense().astype(np.float64)):
            exact = exact_gap(wide, queries[:, i].astype(np.float64), a, 0.1 * top, 0.02 * top, nonnegative)
            best = coordinate_descent(wide, queries[:, i].astype(np.float64), 0.1 * top, 0.02 * top, nonnegative)
            least = value(wide, queries[:, i].astype(np.float64), best, 0.1 * top, 0.02 * top)
            reached = value(wide, queries[:, i].astype(np.float64), a, 0.1 * top, 0.02 * top)
            assert codes.gap[i] <= 1e-5
            assert (reached - least) / reached <= codes.gap[i] + 1e-12
            assert codes.gap[i] <= exact + 1e-9

    @pytest.mark.parametrize("chunk", [1, 5, 256])
    def test_codes_do_not_depend_on_chunk_or_company(self, problem: Any, nonnegative: bool, chunk: int) -> None:
        """Each query stops by itself: any chunk and any order give the same codes."""
        dictionary, queries, top = problem
        options = {"l1": 0.05 * top, "l2": 0.005 * top, "nonnegative": nonnegative, "gap": 1e-6}
        expected = self.solve(dictionary, queries, chunk=32, **options).dense()
        order = np.random.default_rng(0).permutation(queries.shape[1])
        found = self.solve(dictionary, queries[:, order], chunk=chunk, **options).dense()
        np.testing.assert_allclose(found, expected[order], atol=1e-5 * np.abs(expected).max())

    def test_strengths_may_differ_per_query(self, problem: Any) -> None:
        """One l1 and l2 per query give what each alone gives."""
        dictionary, queries, top = problem
        l1 = np.linspace(0.05, 0.5, queries.shape[1]).astype(np.float32) * top
        together = self.solve(dictionary, queries, l1=l1, l2=l1 / 9, gap=1e-6).dense()
        alone = self.solve(dictionary, queries[:, 4:5], l1=float(l1[4]), l2=float(l1[4]) / 9, gap=1e-6).dense()
        np.testing.assert_allclose(together[4], alone[0], atol=1e-5 * alone.max())

    def test_a_strong_enough_penalty_gives_no_weights(self, problem: Any) -> None:
        """At l1 = max_j D_j'b the minimum is 0, with gap 0."""
        dictionary, queries, _ = problem
        top = (dictionary.T @ queries).max(0) * 1.0001
        codes = self.solve(dictionary, queries, l1=top, l2=1.0, gap=1e-4)
        assert len(codes.indices) == 0
        assert codes.gap.max() <= 1e-6

    def test_an_empty_query_is_solved_by_nothing(self, problem: Any) -> None:
        """b = 0: no weights, gap 0, solved."""
        dictionary, queries, top = problem
        codes = self.solve(dictionary, np.zeros_like(queries), l1=0.1 * top, l2=0.1 * top)
        assert len(codes.indices) == 0
        assert set(codes.status) == {"solved"}

    def test_no_ridge_is_solved_too(self, problem: Any, nonnegative: bool) -> None:
        """l2 = 0, the lasso, has the other bound."""
        dictionary, queries, top = problem
        codes = self.solve(dictionary, queries, l1=0.1 * top, l2=0.0, nonnegative=nonnegative, gap=1e-5)
        assert set(codes.status) == {"solved"}
