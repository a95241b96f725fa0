import pytest

from genrag_cli.cohorts.controls import find_genes


@pytest.mark.parametrize(
    "name",
    ["NegControlProbe_00042", "NegControlCodeword_0500", "UnassignedCodeword_0001", "DeprecatedCodeword_0007",
     "BLANK_0006", "Blank-1", "antisense_PROKR2", "Intergenic_Region_1"],
)  # fmt: skip
def test_names_of_controls_are_no_genes(name):
    genes, notes = find_genes(["ACTB", name])
    assert genes.tolist() == [True, False]
    assert "1 features" in notes[0]


def test_genes_that_look_a_little_like_controls_stay():
    genes, notes = find_genes(["BLNK", "NEGR1", "ACTB-AS1", "antisense", "HLA-DRA"])
    assert genes.all()
    assert not notes


def test_other_feature_types_are_counted_by_type():
    genes, notes = find_genes(["A", "B", "CD3"], ["Gene Expression", "Unassigned Codeword", "Protein Expression"])
    assert genes.tolist() == [True, False, False]
    assert "1 Protein Expression, 1 Unassigned Codeword" in notes[0]
