"""Eq. 2 against a matrix product, in any blocks."""

import numpy as np
import pytest
import scipy.sparse as sp

from genrag_cli import reconstruction
from genrag_cli.reconstruction import reconstruct
from genrag_cli.types import SparseCodes

RNG = np.random.default_rng(0)
WEIGHTS = sp.random(23, 60, 0.1, "csr", random_state=1, dtype=np.float32)
BANK = sp.random(60, 17, 0.4, "csr", random_state=2, dtype=np.float32)
CODES = SparseCodes(
    WEIGHTS.indptr.astype(np.int64), WEIGHTS.indices, WEIGHTS.data, 60, np.zeros(23), np.zeros(23, np.float32),
    np.full(23, "solved"),
)  # fmt: skip
MEAN = RNG.normal(size=17)


class Walks:
    """Counts how often the bank is read."""

    def __init__(self, rows):
        self.rows, self.times = rows, 0

    def __call__(self):
        self.times += 1
        return ((i, BANK[i : i + self.rows]) for i in range(0, 60, self.rows))


@pytest.mark.parametrize("rows", [7, 60])
@pytest.mark.parametrize("block", [17, 10_000])
def test_blocks_give_the_matrix_product(monkeypatch, rows, block):
    monkeypatch.setattr(reconstruction, "BLOCK_VALUES", block)
    plain = np.concatenate(list(reconstruct(CODES, Walks(rows), 17, None)))
    np.testing.assert_allclose(plain, (WEIGHTS @ BANK).toarray(), rtol=1e-5)
    centred = np.concatenate(list(reconstruct(CODES, Walks(rows), 17, MEAN)))
    expected = MEAN + WEIGHTS.toarray() @ (BANK.toarray() - MEAN)
    np.testing.assert_allclose(centred, expected, rtol=1e-4, atol=1e-6)


def test_a_bank_that_fits_is_read_once(monkeypatch):
    monkeypatch.setattr(reconstruction, "BLOCK_VALUES", 17)
    walks = Walks(20)
    assert len(list(reconstruct(CODES, walks, 17, None))) == 23
    assert walks.times == 1


def test_a_bank_that_does_not_fit_is_read_again_with_the_same_result(monkeypatch):
    expected = np.concatenate(list(reconstruct(CODES, Walks(20), 17, MEAN)))
    monkeypatch.setattr(reconstruction, "BLOCK_VALUES", 17 * 8)
    monkeypatch.setattr(reconstruction, "KEEP_VALUES", 50)
    walks = Walks(20)
    np.testing.assert_array_equal(np.concatenate(list(reconstruct(CODES, walks, 17, MEAN))), expected)
    assert walks.times == 3


def test_no_genes_give_empty_rows():
    assert sum(len(b) for b in reconstruct(CODES, lambda: iter([(0, BANK[:, :0])]), 0, None)) == 23
