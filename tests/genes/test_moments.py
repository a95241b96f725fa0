import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from genrag_cli.errors import GeneragError
from genrag_cli.genes.moments import gene_statistics, pool_statistics
from genrag_cli.genes.scales import to_scale
from genrag_cli.types import COUNTS, LOG1P_CP10K


def section(counts):
    return sparse.csr_matrix(counts), counts.sum(axis=1) * 1.5


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=4)
    .filter(any)
    .flatmap(lambda sizes: st.tuples(*(arrays(np.int32, (n, 3), elements=st.integers(0, 50)) for n in sizes))),
    st.sampled_from([COUNTS, LOG1P_CP10K]),
)
def test_streaming_over_sections_equals_all_spots_at_once(tables, scale):
    stats = gene_statistics((section(t) for t in tables), scale)
    everything = np.vstack([to_scale(t, t.sum(axis=1) * 1.5, scale) for t in tables]).astype(np.float64)
    np.testing.assert_allclose(stats.mean, everything.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(stats.sd, everything.std(axis=0), atol=1e-9)
    np.testing.assert_allclose(stats.detected, (everything > 0).mean(axis=0), atol=1e-12)
    assert stats.n_spots == len(everything)
    assert stats.spots.tolist() == [len(everything)] * 3


@given(
    st.lists(st.tuples(arrays(np.int32, (4, 3), elements=st.integers(0, 50)), arrays(bool, 3)), min_size=1, max_size=4),
    st.sampled_from([COUNTS, LOG1P_CP10K]),
)
def test_each_gene_is_taken_over_the_spots_that_measured_it(parts, scale):
    parts = [(table * here, here) for table, here in parts]
    stats = gene_statistics(((*section(t), here) for t, here in parts), scale)
    for gene in range(3):
        scaled = [to_scale(t, t.sum(axis=1) * 1.5, scale)[:, gene] for t, here in parts if here[gene]]
        values = np.concatenate(scaled).astype(np.float64) if scaled else np.zeros(1)
        assert stats.spots[gene] == 4 * len(scaled)
        assert stats.mean[gene] == pytest.approx(values.mean(), abs=1e-12)
        assert stats.sd[gene] == pytest.approx(values.std(), abs=1e-9)
        assert stats.detected[gene] == pytest.approx((values > 0).mean(), abs=1e-12)
    assert stats.n_spots == 4 * len(parts)


def test_saying_that_everything_was_measured_changes_no_bit():
    tables = [np.random.default_rng(i).poisson(1, (7 + i, 5)) for i in range(3)]
    said = gene_statistics([(*section(t), np.ones(5, bool)) for t in tables], LOG1P_CP10K)
    plain = gene_statistics([section(t) for t in tables], LOG1P_CP10K)
    for name in ("mean", "sd", "detected", "spots"):
        np.testing.assert_array_equal(getattr(said, name), getattr(plain, name))


def test_what_was_measured_must_name_every_gene():
    with pytest.raises(GeneragError, match=r"3 genes were counted, and \(2,\)"):
        gene_statistics([(*section(np.ones((2, 3), int)), np.ones(2, bool))], COUNTS)


def test_a_small_spread_on_a_large_mean_does_not_cancel():
    counts = 10**8 + np.array([[0], [8], [16], [8]])
    assert gene_statistics([section(counts), section(counts)], COUNTS).sd[0] == pytest.approx(counts.std(), rel=1e-9)


def test_dense_and_sparse_counts_give_the_same():
    counts = np.random.default_rng(0).poisson(1, (20, 4))
    dense = gene_statistics([(counts, counts.sum(axis=1) * 1.0)], LOG1P_CP10K)
    csr = gene_statistics([(sparse.csr_matrix(counts), counts.sum(axis=1) * 1.0)], LOG1P_CP10K)
    np.testing.assert_array_equal(dense.sd, csr.sd)


def test_nothing_and_different_widths_are_refused():
    with pytest.raises(GeneragError, match="no spots"):
        gene_statistics([], COUNTS)
    parts = [gene_statistics([section(np.ones((2, n), int))], COUNTS) for n in (2, 3)]
    with pytest.raises(GeneragError, match=r"\[2, 3\]"):
        pool_statistics(parts)
