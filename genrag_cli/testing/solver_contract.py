"""What every solver of Eq. 1 must do: inherit it, give `solve`, and pytest runs the rest.

class TestMine(SolverContract):
    def solve(self, dictionary, queries, **options):
        return my_solver(dictionary, queries, **options)
"""

import functools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from genrag_cli.errors import SolverError
from genrag_cli.retrieval import solve
from genrag_cli.retrieval.reference import coordinate_descent, value
from genrag_cli.synthetic import solver_problem
from genrag_cli.types import Doubles, SparseCodes


def exact_gap(dictionary: Doubles, b: Doubles, a: Doubles, l1: float, l2: float, nonnegative: bool) -> float:
    """The relative duality gap of weights in float64 by the definition: the better of two bounds, never below 0.

    With theta = s r the dual of the problem is s b'r - s^2/2 (|r|^2 + l2 |a|^2) for any s that keeps
    s (D_j'r - l2 a_j) <= l1 for all j (of its size, when signed); every such s gives a valid bound. Where l2 > 0,
    Fenchel-Young gives another, with p_j = D_j'r (its size, when signed):
    sum_j [l1 |a_j| + l2 a_j^2 / 2 + (p_j - l1)_+^2 / (2 l2) - a_j D_j'r].
    """
    wide, b, a = (np.asarray(v, np.float64) for v in (dictionary, b, a))
    r = b - wide @ a
    primal = value(wide, b, a, l1, l2)
    c = wide.T @ r
    slack = c - l2 * a
    top = float(np.max(slack if nonnegative else np.abs(slack)))
    br, q = float(b @ r), float(r @ r) + l2 * float(a @ a)
    if primal <= 0 or q <= 0:
        return 0.0
    s = max(br / q, 0.0)
    if top > 0:
        s = min(s, l1 / top)
    gap = primal - (s * br - 0.5 * s * s * q)
    if l2 > 0:
        excess = np.maximum((c if nonnegative else np.abs(c)) - l1, 0)
        young = l1 * np.abs(a) + l2 * a**2 / 2 + excess**2 / (2 * l2) - a * c
        gap = min(gap, float(young.sum()))
    return max(gap / primal, 0.0)


@functools.lru_cache(maxsize=1024)
def _oracle(key: tuple[bytes, bytes, int], l1: float, l2: float, nonnegative: bool) -> Doubles:
    """Coordinate descent, once for every solver that is held against it."""
    dictionary, b = np.frombuffer(key[0]).reshape(key[2], -1), np.frombuffer(key[1])
    return coordinate_descent(dictionary, b, l1, l2, nonnegative)


def oracle(dictionary: NDArray[Any], b: NDArray[Any], l1: float, l2: float, nonnegative: bool) -> tuple[Doubles, float]:
    """The best weights, and their value."""
    wide, b = dictionary.astype(np.float64), b.astype(np.float64)
    best = _oracle((wide.tobytes(), b.tobytes(), len(wide)), l1, l2, nonnegative)
    return best, value(wide, b, best, l1, l2)


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
            best, least = oracle(dictionary, b, l1, l2, nonnegative)
            assert value(wide, b, a, l1, l2) <= least * (1 + 1e-6)
            assert np.linalg.norm(wide @ (a - best)) <= 1e-3 * np.linalg.norm(wide @ best) + 1e-9

    @pytest.mark.parametrize("gap", [1e-2, 1e-5])
    def test_reported_gap_is_a_float64_gap(self, problem: Any, nonnegative: bool, gap: float) -> None:
        """It is that of the returned weights by the definition, no query is farther from the minimum, and it is met."""
        dictionary, queries, top = problem
        l1, l2 = float(np.float32(0.1 * top)), float(np.float32(0.02 * top))
        codes = self.solve(dictionary, queries, l1=l1, l2=l2, nonnegative=nonnegative, gap=gap)
        wide = dictionary.astype(np.float64)
        for b, a, said in zip(queries.T.astype(np.float64), codes.dense().astype(np.float64), codes.gap, strict=True):
            reached = value(wide, b, a, l1, l2)
            assert said <= gap
            assert (reached - oracle(dictionary, b, l1, l2, nonnegative)[1]) / reached <= said + 1e-12
            assert said <= exact_gap(wide, b, a, l1, l2, nonnegative) * (1 + 1e-3) + 1e-9

    def test_codes_are_well_formed(self, problem: Any, nonnegative: bool) -> None:
        """Rising bank rows within a query, no weight of 0 or of the wrong sign, a status that fits the gap."""
        dictionary, queries, top = problem
        codes = self.solve(dictionary, queries, l1=0.05 * top, l2=0.01 * top, nonnegative=nonnegative, gap=1e-4)
        for low, high in zip(codes.indptr, codes.indptr[1:], strict=False):
            assert (np.diff(codes.indices[low:high]) > 0).all()
        assert codes.n_bank == dictionary.shape[1] > codes.indices.max()
        assert (codes.weights > 0).all() if nonnegative else (codes.weights != 0).all()
        assert ((codes.gap <= 1e-4) == (codes.status == "solved")).all()
        assert np.isfinite(codes.passes).all()

    def test_too_few_rounds_are_said_to_be(self, problem: Any, nonnegative: bool) -> None:
        """A query that did not get there is `stalled`, with the gap that it has."""
        dictionary, queries, top = problem
        l1 = float(np.float32(1e-3 * top))
        codes = self.solve(dictionary, queries, l1=l1, l2=0.0, nonnegative=nonnegative, gap=1e-7, max_iter=1)
        assert ((codes.gap <= 1e-7) == (codes.status == "solved")).all()
        for b, a, said in zip(queries.T.astype(np.float64), codes.dense(), codes.gap, strict=True):
            assert said >= exact_gap(dictionary, b, a, l1, 0.0, nonnegative) * (1 - 1e-3) - 1e-9

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

    def test_spots_that_are_there_twice_and_empty_ones_do_no_harm(self, problem: Any, nonnegative: bool) -> None:
        """Columns that are equal, or zero, leave the fit as it is without a ridge; zero columns get no weight."""
        dictionary, queries, top = problem
        wide = np.concatenate([dictionary, dictionary, np.zeros_like(dictionary[:, :5])], 1)
        options = {"l1": 0.1 * top, "l2": 0.0, "nonnegative": nonnegative, "gap": 1e-5}
        codes = self.solve(wide, queries, **options)
        once = self.solve(dictionary, queries, **options)
        assert set(codes.status) == {"solved"}
        assert codes.indices.max() < wide.shape[1] - 5
        fit = dictionary @ once.dense().T
        np.testing.assert_allclose(wide @ codes.dense().T, fit, atol=1e-2 * np.abs(fit).max())

    @pytest.mark.parametrize("l2", [0.0, 0.5])
    def test_a_bank_of_one_spot_is_solved_by_hand(self, problem: Any, nonnegative: bool, l2: float) -> None:
        """One column: the weight is the proximal step."""
        dictionary, queries, top = problem
        column = dictionary[:, :1]
        codes = self.solve(column, queries, l1=0.05 * top, l2=l2, nonnegative=nonnegative, gap=1e-5)
        pull = (column.T @ queries)[0]
        step = np.maximum(np.abs(pull) - 0.05 * top, 0) * np.sign(pull) / (float((column**2).sum()) + l2)
        expected = np.maximum(step, 0) if nonnegative else step
        np.testing.assert_allclose(codes.dense()[:, 0], expected, atol=1e-5)

    def test_queries_of_very_different_sizes_are_solved_together(self, problem: Any, nonnegative: bool) -> None:
        """A query and its strength times a number give the codes times that number, whatever is solved beside it."""
        dictionary, queries, top = problem
        sizes = (10.0 ** np.linspace(-6, 6, queries.shape[1])).astype(np.float32)
        plain = self.solve(dictionary, queries, l1=0.1 * top, l2=0.1, nonnegative=nonnegative, gap=1e-6).dense()
        l1 = (0.1 * top * sizes).astype(np.float32)
        codes = self.solve(dictionary, queries * sizes, l1=l1, l2=0.1, nonnegative=nonnegative, gap=1e-6)
        assert set(codes.status) == {"solved"}
        np.testing.assert_allclose(codes.dense() / sizes[:, None], plain, atol=1e-3 * np.abs(plain).max())

    @pytest.mark.parametrize("wrong", [np.nan, np.inf])
    def test_values_that_are_not_finite_are_refused(self, problem: Any, wrong: float) -> None:
        """In the dictionary or in a query."""
        for where in (0, 1):
            given = [v.copy() for v in problem[:2]]
            given[where][3, 5] = wrong
            with pytest.raises(SolverError, match="not finite"):
                self.solve(*given, l1=0.1, l2=0.1)
