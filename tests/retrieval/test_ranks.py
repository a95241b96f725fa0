"""Columns spread over processes (gloo): the codes of one process, on every rank, whatever each rank holds."""

import os
import subprocess
import sys

import numpy as np
import pytest

from genrag_cli.retrieval import solve
from genrag_cli.synthetic import solver_problem
from genrag_cli.testing.solver_contract import exact_gap

SECONDS = 90
WORKER = """
import datetime, importlib, os, sys
import numpy as np, torch, torch.distributed as dist
from genrag_cli.errors import SolverError
from genrag_cli.retrieval import StreamedAtoms, prepare, solve
from genrag_cli.retrieval.atoms import HeldAtoms
from genrag_cli.retrieval.ranks import SpreadScan

rank, world, folder, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=15)
)
group = dist.group.WORLD
given = np.load(f"{folder}/problem.npz")
ends = [0, *given["shares"].cumsum()]
rows = np.ascontiguousarray(given["dictionary"].T)[ends[rank] : ends[rank + 1]]
held = HeldAtoms(torch.from_numpy(rows))
streamed = StreamedAtoms(*rows.shape, lambda low, high: rows[low:high].copy(), block=64)
queries, l1 = given["queries"], float(given["l1"])
out = {}

def keep(name, codes):
    for field in ("indptr", "indices", "weights", "gap", "status"):
        out[f"{name} {field}"] = getattr(codes, field)

if what == "codes":
    for nonnegative in (True, False):
        strength = {"l1": l1, "l2": l1 / 9, "nonnegative": nonnegative}
        keep(f"held {nonnegative}", solve(prepare(held, group=group), queries, gap=1e-6, **strength))
    for precision in ("bfloat16", "float32"):
        keep(precision, solve(SpreadScan(streamed, group, precision), queries, l1=l1, l2=l1 / 9, gap=1e-6, chunk=17))
    scan = prepare(held, group=group)
    keep("lasso", solve(scan, queries, l1=l1, l2=0.0, gap=1e-5))
    keep("one", solve(scan, queries[:, :1], l1=l1, l2=l1 / 9, gap=1e-6))
    keep("stalled", solve(scan, queries, l1=l1 / 1000, l2=0.0, gap=1e-7, max_iter=1))
    if rank == 1:
        rows[0, 0] = np.nan
    try:
        prepare(held, group=group)
    except SolverError as error:
        out["refused"] = str(error)
if what == "memory":
    module = importlib.import_module("genrag_cli.retrieval.solve")
    module.chunk_for = lambda atoms: (16, 7)[rank]
    keep("uneven", solve(prepare(held, group=group), queries, l1=l1, l2=l1 / 9, gap=1e-6))
np.savez(f"{folder}/out{rank}.npz", **out)
dist.barrier()
os._exit(0)  # gloo's threads now and then abort an interpreter that goes down around them
"""


def problem():
    dictionary, rows = solver_problem(60, 913, 40, seed=5)
    queries = np.ascontiguousarray(rows.T)
    return dictionary, queries, 0.1 * float(np.median((dictionary.T @ queries).max(0)))


def run_ranks(folder, shares, what):
    """What each rank found, by name."""
    dictionary, queries, l1 = problem()
    np.savez(folder / "problem.npz", dictionary=dictionary, queries=queries, l1=l1, shares=shares)
    (folder / "worker.py").write_text(WORKER)
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, folder / "worker.py", str(rank), str(len(shares)), str(folder), what],
            env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(len(shares))
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=SECONDS)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), "\n".join(said)
    return [dict(np.load(folder / f"out{rank}.npz")) for rank in range(len(ranks))]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """900 columns here, 13 there: fewer than a pass keeps."""
    return run_ranks(tmp_path_factory.mktemp("ranks"), [900, 13], "codes")


def assert_same_codes(found, name, wanted):
    np.testing.assert_array_equal(found[f"{name} indptr"], wanted.indptr)
    np.testing.assert_array_equal(found[f"{name} indices"], wanted.indices)
    np.testing.assert_allclose(found[f"{name} weights"], wanted.weights, rtol=1e-6)
    np.testing.assert_array_equal(found[f"{name} status"], wanted.status)


@pytest.mark.parametrize("nonnegative", [True, False])
def test_two_ranks_find_the_codes_of_one_process(two_ranks, nonnegative):
    dictionary, queries, l1 = problem()
    wanted = solve(dictionary, queries, l1=l1, l2=l1 / 9, nonnegative=nonnegative, gap=1e-6)
    assert set(wanted.status) == {"solved"}
    assert_same_codes(two_ranks[0], f"held {nonnegative}", wanted)


def test_both_ranks_hold_the_same_bits(two_ranks):
    first, second = two_ranks
    assert set(first) == set(second)
    for name in set(first) - {"refused"}:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_ranks_may_stream_their_columns_in_either_precision(two_ranks, precision):
    dictionary, queries, l1 = problem()
    assert_same_codes(two_ranks[0], precision, solve(dictionary, queries, l1=l1, l2=l1 / 9, gap=1e-6))


def test_one_query_may_be_divided_over_two_ranks(two_ranks):
    dictionary, queries, l1 = problem()
    assert_same_codes(two_ranks[0], "one", solve(dictionary, queries[:, :1], l1=l1, l2=l1 / 9, gap=1e-6))


@pytest.mark.parametrize(("name", "share", "gap"), [("lasso", 1.0, 1e-5), ("stalled", 1e-3, 1e-7)])
def test_gaps_over_ranks_are_honest(two_ranks, name, share, gap):
    dictionary, queries, l1 = problem()
    found = two_ranks[0]
    for i in range(queries.shape[1]):
        used = slice(*found[f"{name} indptr"][i : i + 2])
        a = np.zeros(dictionary.shape[1])
        a[found[f"{name} indices"][used]] = found[f"{name} weights"][used]
        exact = exact_gap(dictionary, queries[:, i], a, share * l1, 0.0, True)
        assert found[f"{name} gap"][i] >= exact * (1 - 1e-3) - 1e-9
        assert (found[f"{name} gap"][i] <= gap) == (found[f"{name} status"][i] == "solved")


def test_values_that_are_not_finite_on_one_rank_are_refused_on_all(two_ranks):
    assert all("not finite" in str(found["refused"]) for found in two_ranks)


def test_a_world_of_one_is_one_process(tmp_path):
    dictionary, queries, l1 = problem()
    found = run_ranks(tmp_path, [913], "memory")[0]
    assert_same_codes(found, "uneven", solve(dictionary, queries, l1=l1, l2=l1 / 9, gap=1e-6))


def test_ranks_with_different_free_memory_go_in_step(tmp_path):
    dictionary, queries, l1 = problem()
    found = run_ranks(tmp_path, [500, 413], "memory")
    wanted = solve(dictionary, queries, l1=l1, l2=l1 / 9, gap=1e-6)
    assert_same_codes(found[0], "uneven", wanted)
    assert_same_codes(found[1], "uneven", wanted)
