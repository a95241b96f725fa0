"""Chunks from free memory, and what happens when it runs out all the same."""

import importlib

import numpy as np
import pytest
import torch

from genrag_cli.errors import SolverError
from genrag_cli.retrieval import StreamedAtoms, memory, solve
from genrag_cli.retrieval.atoms import HeldAtoms
from genrag_cli.retrieval.memory import LARGEST, SMALLEST, chunk_for, free_bytes, ran_out
from genrag_cli.synthetic import solver_problem

DICTIONARY, _ROWS = solver_problem(40, 200, 37, seed=2)
QUERIES = np.ascontiguousarray(_ROWS.T)
front = importlib.import_module("genrag_cli.retrieval.solve")
WORK = {"working-set": "solve_working_set", "dense": "solve_dense"}
ERRORS = {
    "card": torch.OutOfMemoryError("CUDA out of memory"),
    "python": MemoryError(),
    "torch": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
}


@pytest.fixture(params=["working-set", "dense"])
def method(request):
    return request.param


def breaks_above(monkeypatch, method, largest, error, *, says_first=0):
    """From `largest` queries on the work says that `says_first` are done and runs out; returns what it was given."""
    work, sizes = getattr(front, WORK[method]), []

    def broken(*args, on_solved, **options):
        batch = next(a for a in args if isinstance(a, front.Batch))
        sizes.append(len(batch))
        if len(batch) > largest:
            on_solved(says_first)
            raise error
        return work(*args, on_solved=on_solved, **options)

    monkeypatch.setattr(front, WORK[method], broken)
    return sizes


@pytest.mark.parametrize("says_first", [0, 5])
def test_where_memory_runs_out_smaller_chunks_give_the_same_codes(monkeypatch, method, says_first):
    wanted = solve(DICTIONARY, QUERIES, l1=0.5, l2=0.05, method=method)
    sizes = breaks_above(monkeypatch, method, 8, ERRORS["card"], says_first=says_first)
    told = []
    found = solve(DICTIONARY, QUERIES, l1=0.5, l2=0.05, method=method, chunk=32, on_progress=told.append)
    assert sizes == [32, 16, 8, 8, 8, 8, 5]
    assert sum(told) == 37
    assert min(told) > 0
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_allclose(found.weights, wanted.weights, atol=0 if method == "working-set" else 1e-3)


def test_progress_is_told_once_however_often_a_chunk_begins_anew(monkeypatch):
    breaks_above(monkeypatch, "working-set", 1, MemoryError(), says_first=1)
    told = []
    solve(DICTIONARY, QUERIES, l1=0.1, l2=0.01, chunk=37, on_progress=told.append)
    assert told == [1] * 37


def test_a_single_query_that_does_not_fit_is_a_clear_error(monkeypatch, method):
    sizes = breaks_above(monkeypatch, method, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(SolverError, match="memory ran out with one query"):
        solve(DICTIONARY, QUERIES, l1=0.1, l2=0.01, method=method, chunk=16)
    assert sizes == [16, 8, 4, 2, 1]


def test_other_errors_are_not_taken_for_missing_memory(monkeypatch, method):
    sizes = breaks_above(monkeypatch, method, 8, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        solve(DICTIONARY, QUERIES, l1=0.1, l2=0.01, method=method, chunk=16)
    assert sizes == [16]


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_errors_of_missing_memory_are_known(error):
    assert ran_out(error)


@pytest.mark.parametrize("error", [RuntimeError("no"), ValueError("can't allocate memory"), OSError(28, "No space")])
def test_other_errors_are_known_to_be_others(error):
    assert not ran_out(error)


def test_the_chunk_follows_free_memory_between_its_bounds(monkeypatch):
    atoms = HeldAtoms(torch.zeros(1000, 500))
    chunks = []
    for free in (0, 10**6, 10**8, 5 * 10**8, 10**13):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        chunks.append(chunk_for(atoms))
    assert chunks == sorted(chunks)
    assert chunks[0] == chunks[1] == SMALLEST < chunks[2] < chunks[3] < chunks[4] == LARGEST


def test_a_chunk_of_queries_takes_no_more_than_its_share(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda _: 10**9)
    held, m = HeldAtoms(torch.zeros(4, 1324)), 1324
    atoms = StreamedAtoms(4, m, lambda low, high: np.zeros((high - low, m), np.float32))
    assert chunk_for(atoms) <= chunk_for(held)
    assert chunk_for(atoms) * memory.POOL_WIDTH * m * 4 <= max(
        memory.SHARE * 10**9, SMALLEST * memory.POOL_WIDTH * m * 4
    )


def test_codes_do_not_depend_on_free_memory(monkeypatch):
    wanted = solve(DICTIONARY, QUERIES, l1=0.1, l2=0.01)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 0)
    monkeypatch.setattr(memory, "SMALLEST", 5)
    np.testing.assert_array_equal(solve(DICTIONARY, QUERIES, l1=0.1, l2=0.01).weights, wanted.weights)


def test_free_memory_is_some_of_this_machines():
    free = free_bytes(torch.device("cpu"))
    assert 0 < free < 2**50


def test_where_nothing_says_how_much_is_free_a_guess_does(monkeypatch):
    def unreadable(*args, **kwargs):
        raise OSError("not here")

    monkeypatch.setattr("pathlib.Path.read_text", unreadable)
    assert free_bytes(torch.device("cpu")) == 4 << 30
