import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrag_cli.errors import GeneragError
from genrag_cli.genes.align import columns, common_genes

NAMES = st.lists(st.sampled_from([f"G{i}" for i in range(30)]), min_size=1, unique=True)


def test_common_genes_keep_the_order_of_the_first_section_and_name_what_is_lost():
    genes, dropped = common_genes([["C", "A", "X", "B"], ["A", "B", "C"], ["B", "C", "Y", "A"]])
    assert genes.tolist() == ["C", "A", "B"]
    assert [d.tolist() for d in dropped] == [["X"], [], ["Y"]]


@given(NAMES, NAMES)
def test_kept_and_dropped_genes_add_up(first, second):
    both = [["shared", *first], [*second, "shared"]]
    genes, dropped = common_genes(both)
    for section, lost in zip(both, dropped, strict=True):
        assert sorted([*genes.tolist(), *lost.tolist()]) == sorted(section)


@given(NAMES.flatmap(lambda genes: st.tuples(st.just(genes), st.permutations(genes))))
def test_columns_find_every_gene_by_name(both):
    genes, wanted = both
    assert np.array(genes)[columns(genes, wanted)].tolist() == list(wanted)


def test_an_absent_gene_is_refused_with_the_nearest_name():
    with pytest.raises(GeneragError) as error:
        columns(["ERBB2", "ACTB", "KRT19"], ["ACTB", "ERBB22"])
    assert "1 of 2 genes asked for" in error.value.message
    assert "Did you mean ERBB2?" in error.value.hint


@pytest.mark.parametrize(("genes", "wanted"), [(["A", "A"], ["A"]), (["A", "B"], ["B", "B"])])
def test_repeated_names_are_refused_on_either_side(genes, wanted):
    with pytest.raises(GeneragError, match="1 genes occur more than once"):
        columns(genes, wanted)
    with pytest.raises(GeneragError, match="more than once"):
        common_genes([genes, wanted])


def test_sections_that_share_nothing_are_refused_with_an_example_of_each():
    with pytest.raises(GeneragError, match="ERBB2, ENSG0001"):
        common_genes([["ERBB2"], ["ENSG0001"]])
    with pytest.raises(GeneragError, match="no section"):
        common_genes([])


@pytest.mark.real
def test_her2st_sections_share_13972_genes(shared_data):
    from genrag_cli.cohorts import open_cohort

    named = [s.read_genes().names for s in open_cohort(shared_data / "her2st").sections]
    genes, dropped = common_genes(named)
    assert len(genes) == len(set.intersection(*(set(n.tolist()) for n in named))) == 13972
    assert [len(n) - len(d) for n, d in zip(named, dropped, strict=True)] == [13972] * 5
