"""Eq. 2 against a matrix product, in any blocks."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp

from genrag_cli import reconstruction
from genrag_cli.reconstruction import MIN_SHARE, Presence, reconstruct
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

    def __init__(self, rows, bank=BANK):
        self.rows, self.bank, self.times = rows, bank, 0

    def __call__(self):
        self.times += 1
        return ((i, self.bank[i : i + self.rows]) for i in range(0, 60, self.rows))


def whole(codes, walks, mean, presence=None):
    values, present = zip(*reconstruct(codes, walks, 17, mean, presence), strict=True)
    if presence is None:
        assert set(present) == {None}
        return np.concatenate(values)
    return np.concatenate(values), np.concatenate(present)


@pytest.mark.parametrize("rows", [7, 60])
@pytest.mark.parametrize("block", [17, 10_000])
def test_blocks_give_the_matrix_product(monkeypatch, rows, block):
    monkeypatch.setattr(reconstruction, "BLOCK_VALUES", block)
    plain = whole(CODES, Walks(rows), None)
    np.testing.assert_allclose(plain, (WEIGHTS @ BANK).toarray(), rtol=1e-5)
    centred = whole(CODES, Walks(rows), MEAN)
    expected = MEAN + WEIGHTS.toarray() @ (BANK.toarray() - MEAN)
    np.testing.assert_allclose(centred, expected, rtol=1e-4, atol=1e-6)


def test_a_bank_that_fits_is_read_once(monkeypatch):
    monkeypatch.setattr(reconstruction, "BLOCK_VALUES", 17)
    walks = Walks(20)
    assert len(list(reconstruct(CODES, walks, 17, None))) == 23
    assert walks.times == 1


def test_a_bank_that_does_not_fit_is_read_again_with_the_same_result(monkeypatch):
    expected = whole(CODES, Walks(20), MEAN)
    monkeypatch.setattr(reconstruction, "BLOCK_VALUES", 17 * 8)
    monkeypatch.setattr(reconstruction, "KEEP_VALUES", 50)
    walks = Walks(20)
    np.testing.assert_array_equal(whole(CODES, walks, MEAN), expected)
    assert walks.times == 3


def test_no_genes_give_empty_rows():
    assert sum(len(b) for b, _ in reconstruct(CODES, lambda: iter([(0, BANK[:, :0])]), 0, None)) == 23


# Four sections of 15 spots; genes 0 to 2 are not measured by all of them, gene 3 by none.
MEASURED = np.ones((4, 17), bool)
MEASURED[0, :2] = MEASURED[1:3, 1] = MEASURED[:3, 2] = MEASURED[:, 3] = False
SECTION_OF = np.repeat(np.arange(4), 15)
GAPPED = sp.csr_matrix(BANK.toarray() * MEASURED[SECTION_OF])
FILLER = np.where(MEASURED.any(axis=0), MEAN, 0.0)
PRESENCE = Presence.of(MEASURED, SECTION_OF, FILLER)


def by_hand(weights, mean):
    """The formula of the module, one value at a time."""
    values, present = np.zeros((len(weights), 17)), np.ones((len(weights), 17), bool)
    for q, a in enumerate(weights.astype(float)):
        for g in range(17):
            here, mu = MEASURED[SECTION_OF, g], 0.0 if mean is None else mean[g]
            total, held = abs(a).sum(), abs(a[here]).sum()
            present[q, g] = here.any() and held >= MIN_SHARE * total
            factor = total / held if held else 1.0
            values[q, g] = mu + factor * sum(a[here] * (GAPPED.toarray()[here, g] - mu))
    return np.where(present, values, FILLER), present


def signed(codes):
    flip = np.where(np.random.default_rng(5).uniform(size=len(codes.weights)) < 0.3, -1, 1).astype(np.float32)
    return dataclasses.replace(codes, weights=codes.weights * flip)


@pytest.mark.parametrize("mean", [None, MEAN])
@pytest.mark.parametrize("codes", [CODES, signed(CODES)])
def test_references_that_measured_a_gene_stand_for_those_that_did_not(codes, mean):
    values, present = whole(codes, Walks(7, GAPPED), mean, PRESENCE)
    expected, expected_present = by_hand(codes.dense(), mean)
    np.testing.assert_array_equal(present, expected_present)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    assert 0 < (~present[:, :3]).sum() < present[:, :3].size
    assert not present[:, 3].any()
    assert present[:, 4:].all()


def test_a_gene_that_no_reference_measured_is_missing_not_zero_and_not_nan():
    codes = one_query([0, 7, 14], [0.2, 0.5, 0.1])  # all in section 0
    for mean in (None, MEAN):
        values, present = whole(codes, Walks(60, GAPPED), mean, PRESENCE)
        assert present[0, :4].tolist() == [False] * 4
        np.testing.assert_array_equal(values[0, :4], FILLER[:4].astype(np.float32))


@pytest.mark.parametrize(("share", "expected"), [(0.09, False), (0.11, True)])
def test_a_gene_is_missing_where_little_of_the_weight_measured_it(share, expected):
    codes = one_query([3, 50], [1 - share, share])
    values, present = whole(codes, Walks(60, GAPPED), None, PRESENCE)
    assert present[0, :3].tolist() == [expected] * 3
    if expected:
        np.testing.assert_allclose(values[0, :3], GAPPED.toarray()[50, :3], rtol=1e-5)


def test_a_spot_without_references_has_the_mean_and_it_is_present():
    codes = one_query([], [])
    for mean, expected in ((None, np.zeros(17)), (MEAN, MEAN)):
        values, present = whole(codes, Walks(60, GAPPED), mean, PRESENCE)
        genes = [g for g in range(17) if g != 3]
        np.testing.assert_array_equal(values[0, genes], expected[genes].astype(np.float32))
        assert present[0].tolist() == [g != 3 for g in range(17)]


@pytest.mark.parametrize("mean", [None, MEAN])
def test_values_whose_references_all_measured_the_gene_keep_every_bit(mean):
    codes = signed(CODES)
    values, _ = whole(codes, Walks(60, GAPPED), mean, PRESENCE)
    plain = whole(codes, Walks(60, GAPPED), mean)
    touched = (codes.dense() != 0).astype(int) @ ~MEASURED[SECTION_OF] > 0
    touched[:, 3] = True
    np.testing.assert_array_equal(values[~touched], plain[~touched])
    assert (values[touched] != plain[touched]).mean() > 0.5


def test_blocks_change_no_bit_of_values_and_presence(monkeypatch):
    expected = whole(signed(CODES), Walks(60, GAPPED), MEAN, PRESENCE)
    monkeypatch.setattr(reconstruction, "BLOCK_VALUES", 17 * 3)
    monkeypatch.setattr(reconstruction, "PRODUCT_VALUES", 17 * 2)
    found = whole(signed(CODES), Walks(60, GAPPED), MEAN, PRESENCE)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_where_every_section_measured_every_gene_there_is_nothing_to_say():
    assert Presence.of(np.ones((4, 17), bool), SECTION_OF, FILLER) is None


def one_query(rows, weights):
    return SparseCodes(
        np.array([0, len(rows)]), np.array(rows, np.int32), np.array(weights, np.float32), 60, np.zeros(1),
        np.zeros(1, np.float32), np.array(["solved"]),
    )  # fmt: skip


def test_blocks_end_where_chunks_of_a_file_do(monkeypatch):
    monkeypatch.setattr(reconstruction, "CHUNK_ROWS", 4)
    monkeypatch.setattr(reconstruction, "BLOCK_VALUES", 17 * 7)
    sizes = [len(values) for values, _ in reconstruct(CODES, Walks(60), 17, MEAN)]
    assert sizes == [4, 4, 4, 4, 4, 3]


@pytest.mark.parametrize("threads", [2, 5, 100])
@pytest.mark.parametrize("mean", [None, MEAN])
def test_threads_change_no_bit(threads, mean):
    alone = np.concatenate([v for v, _ in reconstruct(signed(CODES), Walks(7), 17, mean)])
    together = np.concatenate([v for v, _ in reconstruct(signed(CODES), Walks(7), 17, mean, threads=threads)])
    assert alone.tobytes() == together.tobytes()


def test_references_of_a_block_of_the_bank_are_summed_up_before_they_are_added():
    codes = one_query([0, 1, 2, 9, 10], [0.1, 0.2, 0.3, 0.7, -0.4])
    (values, _), *_ = reconstruct(codes, Walks(7), 17, MEAN)
    weights, bank = codes.weights.astype(np.float64), BANK.toarray().astype(np.float64)
    expected = (1 - weights.sum()) * MEAN
    for rows in ([0, 1, 2], [3, 4]):
        part = np.zeros(17)
        for k in rows:
            part += weights[k] * bank[codes.indices[k]]
        expected += part
    np.testing.assert_array_equal(values[0], expected.astype(np.float32))
