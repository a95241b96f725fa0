import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from genrag_cli.errors import GeneragError
from genrag_cli.genes.scales import convert, to_scale
from genrag_cli.types import COUNTS, LOG1P_CP10K, Expression, Scale

LOG2 = Scale(log="log2")
CP10K = Scale(library="all", size_factor=1e4)
PANEL = Scale(library="panel", size_factor=100.0, log="ln")
CPM_LOG2 = Scale(library="all", size_factor=1e6, log="log2")
COUNT_TABLES = arrays(np.int32, (4, 3), elements=st.integers(0, 10_000))


def expression(values, scale):
    values = np.asarray(values, dtype=np.float32)
    names, genes = ([f"{letter}{i}" for i in range(n)] for letter, n in zip("sg", values.shape, strict=True))
    return Expression(values, np.array(names), np.array(genes), scale)


def test_log1p_cp10k_by_hand():
    out = to_scale(np.array([[1, 3], [0, 5]]), np.array([10.0, 50.0]), LOG1P_CP10K)
    np.testing.assert_allclose(out, np.log1p([[1000, 3000], [0, 1000]]), rtol=1e-6)
    assert out.dtype == np.float32


def test_other_scales_by_hand():
    counts = np.array([[1, 3]])
    np.testing.assert_array_equal(to_scale(counts, None, COUNTS), [[1, 3]])
    np.testing.assert_allclose(to_scale(counts, None, LOG2), [[1, 2]])
    np.testing.assert_allclose(to_scale(counts, None, PANEL), np.log1p([[25, 75]]), rtol=1e-6)


@given(COUNT_TABLES, st.sampled_from([COUNTS, LOG1P_CP10K, LOG2, PANEL]))
def test_csr_and_dense_agree_and_csr_keeps_its_pattern(counts, scale):
    totals = counts.sum(axis=1) * 2.0
    csr = sparse.csr_matrix(counts)
    out = to_scale(csr, totals, scale)
    assert (out.format, out.dtype, out.nnz) == ("csr", np.float32, csr.nnz)
    np.testing.assert_array_equal(out.toarray(), to_scale(counts, totals, scale))


def test_the_counts_given_are_not_changed():
    csr = sparse.csr_array(np.array([[1, 3], [0, 5]], dtype=np.int32))
    out = to_scale(csr, np.array([4.0, 5.0]), LOG1P_CP10K)
    assert isinstance(out, sparse.csr_array)
    assert csr.data.tolist() == [1, 3, 5]


@pytest.mark.parametrize("scale", [COUNTS, LOG1P_CP10K])
def test_columns_taken_out_of_order_keep_their_values(scale):
    counts = np.random.default_rng(0).poisson(1, (20, 9))
    picked, totals = [7, 0, 3, 8, 1], counts.sum(axis=1).astype(float)
    out = to_scale(sparse.csr_matrix(counts)[:, picked], totals, scale)
    np.testing.assert_array_equal(out.toarray(), to_scale(counts[:, picked], totals, scale))


@pytest.mark.parametrize("scale", [LOG1P_CP10K, PANEL])
def test_a_spot_without_counts_stays_zero(scale):
    assert not to_scale(np.zeros((2, 3)), np.zeros(2), scale).any()


def test_the_library_is_all_genes_even_where_columns_were_dropped():
    counts, totals = np.array([[1, 3, 6]]), np.array([10.0])
    np.testing.assert_array_equal(
        to_scale(counts[:, :2], totals, LOG1P_CP10K), to_scale(counts, totals, LOG1P_CP10K)[:, :2]
    )


@pytest.mark.parametrize(
    ("counts", "totals", "why"),
    [
        (np.array([[1, 2]]), None, "found none"),
        (np.array([[1, 2]]), np.array([3.0, 4.0]), r"found shape \(2,\)"),
        (np.array([[1, 2]]), np.array([2.0]), "library size of spot 0 is 2, below the sum 3"),
        (np.array([[-1.0, 2]]), np.array([5.0]), "negative"),
        (sparse.csc_matrix([[1, 2]]), np.array([5.0]), "layout csc"),
    ],
)
def test_what_cannot_be_scaled_is_refused(counts, totals, why):
    with pytest.raises(GeneragError, match=why):
        to_scale(counts, totals, LOG1P_CP10K)


@given(
    arrays(np.int32, (4, 3), elements=st.integers(0, 200)),
    st.sampled_from([COUNTS, LOG1P_CP10K, LOG2, CP10K, CPM_LOG2]),
    st.sampled_from([COUNTS, LOG1P_CP10K, LOG2, CP10K, CPM_LOG2]),
)
def test_converting_gives_what_counts_give_directly(counts, source, target):
    totals = counts.sum(axis=1) * 2.0
    start = expression(to_scale(counts, totals, source), source)
    end = convert(start, target, total_counts=totals)
    assert end.scale == target
    np.testing.assert_allclose(end.values, to_scale(counts, totals, target), rtol=2e-5, atol=1e-5)


def test_bases_convert_without_library_sizes():
    out = convert(expression([[1.0, 2.0]], LOG2), Scale(log="ln"))
    np.testing.assert_allclose(out.values, np.log([[2, 4]]), rtol=1e-6)


def test_the_same_scale_is_returned_as_it_is_even_below_zero():
    same = expression([[-1.0]], LOG1P_CP10K)
    assert convert(same, LOG1P_CP10K) is same


@pytest.mark.parametrize(
    ("value", "source", "target", "why"),
    [
        (1.0, COUNTS, LOG1P_CP10K, "without the library size"),
        (1.0, PANEL, COUNTS, "panel's library"),
        (1.0, LOG1P_CP10K, PANEL, "panel's library"),
        (-0.5, LOG1P_CP10K, CP10K, "below 0"),
    ],
)
def test_steps_that_are_not_defined_are_refused_with_both_scales(value, source, target, why):
    with pytest.raises(GeneragError, match=rf"{source.name} to {target.name}.*{why}"):
        convert(expression([[value]], source), target)
