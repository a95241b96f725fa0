"""Dictionaries that are read when they are needed: the same codes, never more than a few blocks in memory."""

import weakref

import numpy as np
import pytest
import torch

from genrag_cli.errors import SolverError
from genrag_cli.retrieval import StreamedAtoms, prepare, solve
from genrag_cli.retrieval.atoms import HeldAtoms
from genrag_cli.retrieval.scan import Scan
from genrag_cli.synthetic import solver_problem
from genrag_cli.testing.solver_contract import SolverContract

BLOCK = 64
M, N, Q = 60, 1500, 40
DICTIONARY, _ROWS = solver_problem(M, N, Q, seed=5)
QUERIES = np.ascontiguousarray(_ROWS.T)
L1 = 0.1 * float(np.median((DICTIONARY.T @ QUERIES).max(0)))


class Reader:
    """Reads rows of D' from an array, and remembers what it was asked for and how much of it is still in memory."""

    def __init__(self, rows):
        self.rows, self.asked, self.alive, self.most = rows, [], 0, 0

    def __call__(self, low, high):
        part = np.array(self.rows[low:high], np.float32)
        self.asked.append((low, high))
        self.alive += len(part)
        self.most = max(self.most, self.alive)
        weakref.finalize(part, self.freed, len(part))
        return part

    def freed(self, rows):
        self.alive -= rows


def streamed(rows, block=BLOCK):
    reader = Reader(rows)
    return reader, StreamedAtoms(*rows.shape, reader, block=block)


class TestStreamed(SolverContract):
    """The default solver over a dictionary that is read in blocks of 32 columns."""

    def solve(self, dictionary, queries, **options):
        rows = np.asarray(dictionary).T
        atoms = StreamedAtoms(*rows.shape, lambda low, high: rows[low:high].copy(), block=32)
        return solve(prepare(atoms), queries, **options)


def assert_same_bits(found, wanted):
    np.testing.assert_array_equal(found.indptr, wanted.indptr)
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_array_equal(found.weights, wanted.weights)


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("block", [BLOCK, 1000, 4096])
def test_a_streamed_array_gives_the_same_bits(block, precision, nonnegative):
    held = HeldAtoms(torch.from_numpy(np.ascontiguousarray(DICTIONARY.T)))
    _, atoms = streamed(DICTIONARY.T, block)
    found, wanted = (
        solve(Scan(a, precision), QUERIES, l1=L1, l2=L1 / 9, nonnegative=nonnegative, gap=1e-6) for a in (atoms, held)
    )
    assert set(found.status) == {"solved"}
    assert_same_bits(found, wanted)


def test_a_zarr_array_on_disk_gives_the_same_bits(tmp_path):
    import zarr

    stored = zarr.create_array(tmp_path / "bank.zarr", shape=(N, M), chunks=(BLOCK, M), dtype="float32")
    stored[:] = DICTIONARY.T
    disk = zarr.open_array(tmp_path / "bank.zarr", mode="r")
    reader, atoms = streamed(disk, 2 * BLOCK)
    assert_same_bits(
        solve(prepare(atoms), QUERIES, l1=L1, l2=L1 / 9), solve(DICTIONARY, QUERIES, l1=L1, l2=L1 / 9)
    )  # fmt: skip
    assert reader.most < N


def test_a_read_only_file_is_read_without_a_word(tmp_path, every_warning):
    np.save(tmp_path / "bank.npy", np.ascontiguousarray(DICTIONARY.T))
    rows = np.load(tmp_path / "bank.npy", mmap_mode="r")
    atoms = StreamedAtoms(N, M, lambda low, high: rows[low:high], block=BLOCK)
    assert_same_bits(
        solve(prepare(atoms), QUERIES, l1=L1, l2=L1 / 9), solve(DICTIONARY, QUERIES, l1=L1, l2=L1 / 9)
    )  # fmt: skip


def test_no_read_is_larger_than_a_block_and_few_are_in_memory_at_a_time():
    reader, atoms = streamed(DICTIONARY.T)
    solve(prepare(atoms), QUERIES, l1=L1, l2=L1 / 9, nonnegative=False, gap=1e-6)
    assert len(reader.asked) > 3 * N / BLOCK
    assert max(high - low for low, high in reader.asked) == BLOCK
    assert all(0 <= low < high <= N for low, high in reader.asked)
    assert reader.most <= 4 * BLOCK


@pytest.mark.parametrize("rows", [1, 20, BLOCK, 5000])
def test_blocks_are_every_atom_once_and_in_order(rows):
    _, atoms = streamed(DICTIONARY.T)
    blocks = list(atoms.blocks(rows))
    assert [low for low, _ in blocks] == np.cumsum([0] + [len(b) for _, b in blocks])[:-1].tolist()
    assert max(len(block) for _, block in blocks) <= rows
    assert torch.equal(torch.cat([block for _, block in blocks]), torch.from_numpy(DICTIONARY.T))


@pytest.mark.parametrize("block", [1, 7, BLOCK, N, 2 * N])
def test_a_table_holds_the_atoms_asked_for_in_any_order_and_number(block):
    _, atoms = streamed(DICTIONARY.T, block)
    index = torch.tensor([[N - 1, 3, 3, 700], [64, 63, 0, N - 1]])
    table, local = atoms.table(index)
    assert torch.equal(table[local], torch.from_numpy(DICTIONARY.T.copy())[index])
    assert len(table) == 6


def test_a_table_reads_only_blocks_that_hold_what_is_asked_for():
    reader, atoms = streamed(DICTIONARY.T)
    atoms.table(torch.tensor([[5 * BLOCK, 5 * BLOCK + 1, N - 1]]))
    assert reader.asked == [(5 * BLOCK, 6 * BLOCK), (N - N % BLOCK, N)]


def test_a_read_that_fails_is_not_swallowed():
    def read(low, high):
        if low >= 10 * BLOCK:
            raise OSError("the disk went away")
        return DICTIONARY.T[low:high].copy()

    with pytest.raises(OSError, match="went away"):
        prepare(StreamedAtoms(N, M, read, block=BLOCK))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(wrong):
    rows = DICTIONARY.T.copy()
    rows[N - 1, 0] = wrong
    with pytest.raises(SolverError, match="1 values are not finite"):
        prepare(streamed(rows)[1])


def test_the_dense_solver_refuses_what_is_not_in_memory():
    with pytest.raises(SolverError, match="in memory"):
        solve(prepare(streamed(DICTIONARY.T)[1]), QUERIES, l1=L1, l2=L1, method="dense")
