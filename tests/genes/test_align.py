import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrag_cli.errors import GeneragError
from genrag_cli.genes.align import columns

NAMES = st.lists(st.sampled_from([f"G{i}" for i in range(30)]), min_size=1, unique=True)


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
