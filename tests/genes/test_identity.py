import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from genrag_cli.errors import GeneragError
from genrag_cli.genes.identity import match, read_aliases, shared, sum_columns, tidy, united
from genrag_cli.types import GeneNames

ERBB2, ACTB, KRT19, TP53 = (f"ENSG0000000000{i}" for i in range(1, 5))
IDS = {"ERBB2": ERBB2, "ACTB": ACTB, "KRT19": KRT19, "TP53": TP53}
SYMBOLS = st.lists(st.sampled_from([f"G{i}" for i in range(12)]), min_size=1, unique=True)


def genes(names, ids=None):
    return GeneNames(np.array(names, dtype=np.str_), None if ids is None else np.array(ids, dtype=np.str_))


def both(*names):
    return genes(names, [IDS[n] for n in names])


def by_id(*names):
    return tidy(genes([IDS[n] for n in names])).names


def listed(found):
    return found.names.tolist(), None if found.ids is None else found.ids.tolist()


# --- within a section


def test_versions_go_from_ensembl_ids_and_from_nothing_else():
    names = [f"{ERBB2}.12", "ENSMUSG00000000002.3_1", f"{ACTB}.7_PAR_Y", ACTB, "FO538757.1", "ENSA.1"]
    found = tidy(genes(names))
    assert found.names.names.tolist() == [ERBB2, "ENSMUSG00000000002", f"{ACTB}_PAR_Y", ACTB, *names[4:]]
    assert found.notes == (f"3 Ensembl ids without the version (such as {names[0]})",)
    assert tidy(genes(["A"], [f"{ERBB2}.1"])).names.ids.tolist() == [ERBB2]


def test_names_that_are_ensembl_ids_are_the_ids_and_symbols_are_none():
    assert listed(tidy(genes([f"{ERBB2}.1", "ERCC-1"])).names) == ([ERBB2, "ERCC-1"], [ERBB2, ""])
    assert listed(tidy(genes(["ERBB2"], ["ERBB2"])).names) == (["ERBB2"], None)
    assert tidy(genes(["ERBB2"], [""])).names.ids is None


def test_a_gene_without_a_name_goes_by_its_id_or_is_refused():
    found = tidy(genes(["", " B "], [f"{ERBB2}.4", ""]))
    assert listed(found.names) == ([ERBB2, "B"], [ERBB2, ""])
    assert "1 gene without a name, known by the id" in found.notes
    with pytest.raises(GeneragError, match="gene 2 of 2 has neither a name nor an id"):
        tidy(genes(["A", " "], [ERBB2, ""]))


def test_equal_names_are_one_gene_with_the_first_id_and_letter_case_counts():
    found = tidy(genes(["B", "A", " B", "b"], ["", ERBB2, ACTB, ""]))
    assert listed(found.names) == (["B", "A", "b"], [ACTB, ERBB2, ""])
    assert found.into.tolist() == [0, 1, 0, 2]
    assert found.notes == ("1 column summed into another of the same gene (B)",)
    several = tidy(genes(["A", "A"], [ERBB2, ACTB]))
    assert several.names.ids.tolist() == [ERBB2]
    assert "1 gene with several ids, the first is kept (A)" in several.notes


def test_only_the_table_renames_and_ids_may_stand_in_it():
    table = {"FAM132A": "C1QTNF12", ERBB2: "ERBB2"}
    found = tidy(genes(["FAM132A", "C1QTNF12", f"{ERBB2}.9"]), table)
    assert listed(found.names) == (["C1QTNF12", "ERBB2"], ["", ERBB2])
    assert found.into.tolist() == [0, 0, 1]
    assert "2 genes renamed by the table (such as FAM132A, now C1QTNF12)" in found.notes
    assert tidy(genes(["FAM132A", "C1QTNF12"])).into.tolist() == [0, 1]


def test_a_gene_named_by_id_is_the_one_that_has_a_symbol_with_that_id():
    found = tidy(genes(["ERBB2", ERBB2], [ERBB2, ERBB2]))
    assert (found.names.names.tolist(), found.into.tolist()) == (["ERBB2"], [0, 0])


@given(st.lists(st.sampled_from(["A", "B ", " C", f"{ERBB2}.1", f"{ERBB2}.2", ACTB]), min_size=1))
def test_tidying_is_stable_and_every_column_counts_for_a_gene(names):
    once = tidy(genes(names))
    again = tidy(once.names)
    assert listed(again.names) == listed(once.names)
    assert again.into.tolist() == list(range(len(once.names)))
    assert again.notes == ()
    assert set(once.into.tolist()) == set(range(len(once.names)))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.sampled_from([np.int32, np.float32]))
def test_columns_of_one_gene_are_summed_and_keep_their_type(into, dtype):
    into = np.array([*into, 0, 1, 2, 3])
    dense = np.random.default_rng(0).poisson(1, (5, len(into))).astype(dtype)
    counts = sparse.csr_matrix(dense)
    found = sum_columns(counts, into, 4)
    expected = np.stack([dense[:, into == g].sum(axis=1) for g in range(4)], axis=1)
    np.testing.assert_array_equal(found.toarray(), expected)
    assert found.dtype == dtype
    assert found.has_canonical_format
    np.testing.assert_array_equal(counts.toarray(), dense)


def test_columns_stay_as_they_are_where_no_gene_repeats():
    counts = sparse.csr_matrix(np.eye(3, dtype=np.int32))
    assert sum_columns(counts, np.arange(3), 3) is counts
    with pytest.raises(GeneragError, match="3 columns of counts, 2 genes"):
        sum_columns(counts, np.arange(2), 2)


# --- the person's table


@pytest.mark.parametrize(
    "text",
    [
        "previous,symbol\nFAM132A,C1QTNF12\nCPSF3L,INTS11\n",
        "\ufeffsymbol\tprevious\nC1QTNF12\tFAM132A\r\nINTS11\t CPSF3L\r\n\r\n",
        "HGNC ID,Approved symbol,Previous symbol\n1,C1QTNF12,FAM132A\n2,INTS11,CPSF3L\n3,ACTB,\n",
        'Approved symbol,Previous symbols\nC1QTNF12,FAM132A\nINTS11,"CPSF3L, INTS11"\n',
        "symbol\tprev_symbol\tensembl_gene_id\nC1QTNF12\tFAM132A\tx\nINTS11\tCPSF3L|INTS11\ty\n",
    ],
)
def test_tables_are_read_under_each_header(tmp_path, text):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
    assert read_aliases(tmp_path / "t.csv") == {"FAM132A": "C1QTNF12", "CPSF3L": "INTS11"}


def test_a_table_may_lead_from_ids_of_any_version(tmp_path):
    (tmp_path / "t.tsv").write_text(f"id\tsymbol\n{ERBB2}.3\tERBB2\n{ERBB2}.4\tERBB2\n{ACTB}\tACTB\n")
    assert read_aliases(tmp_path / "t.tsv") == {ERBB2: "ERBB2", ACTB: "ACTB"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("previous,symbol\nA,B\nB,C\n", "1 name renamed that are symbols of the table themselves, such as B"),
        ("previous,symbol\nA,B\nB,A\n", "2 names renamed"),
        ("previous,symbol\nA,B\n,A\n", "such as A, which becomes B"),
        ("previous,symbol\nA,B\nA,C\n", "A leads to two symbols, B and C"),
        ("previous,symbol\nA,B\nA\n", "no symbol in line 3"),
        ("old,new\nA,B\n", "no columns previous and symbol"),
        ("", "no columns previous and symbol"),
    ],
)
def test_tables_that_are_not_clear_are_refused_by_name(tmp_path, text, why):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(GeneragError, match=rf"t\.csv: .*{why}"):
        read_aliases(tmp_path / "t.csv")
    with pytest.raises(GeneragError, match=r"absent\.csv: cannot be read"):
        read_aliases(tmp_path / "absent.csv")


# --- a section and a bank


@settings(max_examples=50)
@given(SYMBOLS, SYMBOLS)
def test_a_match_finds_every_gene_by_name_and_never_by_place(bank, section):
    found = match(genes(bank), genes(section))
    assert found.by == "symbol"
    for gene, column in zip(bank, found.columns.tolist(), strict=True):
        assert column == (section.index(gene) if gene in section else -1)


def test_a_symbol_under_another_id_is_no_match_and_is_named():
    found = match(both("ERBB2", "ACTB", "KRT19"), genes(["KRT19", "ACTB", "ERBB2"], [KRT19, ERBB2, ""]))
    assert found.columns.tolist() == [2, -1, 0]
    assert found.conflicting.tolist() == ["ACTB"]


@pytest.mark.parametrize("swap", [False, True])
def test_ids_match_where_one_side_has_no_symbols(swap):
    bank, section = by_id("ACTB", "ERBB2", "TP53"), both("ERBB2", "ACTB", "KRT19")
    found = match(section, bank) if swap else match(bank, section)
    assert found.by == "id"
    assert found.columns.tolist() == [1, 0, -1]
    assert not len(found.conflicting)


def test_a_single_gene_without_a_symbol_is_found_by_its_id():
    found = match(both("ERBB2", "ACTB", "KRT19"), genes([ACTB, "KRT19", "ERBB2"], [ACTB, KRT19, ""]))
    assert (found.by, found.columns.tolist()) == ("symbol", [2, 0, 1])


def test_symbols_that_differ_are_two_genes_whatever_their_ids():
    found = match(both("ERBB2", "ACTB"), genes(["HER2", "ACTB"], [ERBB2, ACTB]))
    assert found.columns.tolist() == [-1, 1]


def test_no_column_serves_two_genes():
    bank = genes(["ERBB2", "HER2"], [ERBB2, ERBB2])
    assert match(bank, by_id("ERBB2", "ACTB")).columns.tolist() == [0, -1]
    twice = match(by_id("ERBB2"), genes(["ERBB2", "HER2"], [ERBB2, ERBB2]))
    assert (twice.columns.tolist(), twice.conflicting.tolist()) == ([-1], [ERBB2])


def test_ids_on_one_side_and_symbols_alone_on_the_other_are_refused_with_the_remedy():
    with pytest.raises(GeneragError, match=rf"the section names .* by id \(such as {ERBB2}\).*such as ACTB") as error:
        match(genes(["ACTB", "ERBB2"]), by_id("ERBB2"))
    assert "--gene-aliases" in error.value.hint
    table = {ERBB2: "ERBB2"}
    assert match(genes(["ACTB", "ERBB2"]), tidy(by_id("ERBB2"), table).names).columns.tolist() == [-1, 0]


def test_names_that_were_not_tidied_are_refused():
    for sides in ((["A", "A"], ["A"]), (["A"], ["A", "A"])):
        with pytest.raises(GeneragError, match="repeated gene names"):
            match(*map(genes, sides))
        with pytest.raises(GeneragError, match=r"section .: repeated gene names"):
            shared([genes(s) for s in sides], ["x", "y"])


# --- all sections of a cohort


def test_shared_genes_keep_the_order_of_the_first_section_and_name_what_is_lost():
    found = shared([genes(["C", "A", "X", "B"]), genes(["A", "B", "C"]), genes(["B", "C", "Y", "A"])], "abc")
    assert listed(found.genes) == (["C", "A", "B"], None)
    assert [d.tolist() for d in found.dropped] == [["X"], [], ["Y"]]


def test_united_genes_come_in_order_of_first_occurrence_and_drop_nothing():
    found = united([genes(["C", "A"]), genes(["B", "A"]), genes(["C"])], "abc")
    assert found.genes.names.tolist() == ["C", "A", "B"]
    assert [len(d) for d in found.dropped] == [0, 0, 0]


def test_symbols_that_stand_for_different_ids_are_left_out_and_named():
    sections = [both("ERBB2", "ACTB"), genes(["ACTB", "ERBB2"], [KRT19, ""]), genes(["ERBB2", "ACTB"])]
    for found in (shared(sections, "abc"), united(sections, "abc")):
        assert listed(found.genes) == (["ERBB2"], [ERBB2])
        assert found.conflicting.tolist() == ["ACTB"]
        assert [d.tolist() for d in found.dropped] == [["ACTB"]] * 3


def test_ids_get_the_symbol_of_the_first_section_that_has_one():
    sections = [by_id("TP53", "ACTB", "ERBB2"), both("ERBB2", "ACTB"), genes(["HER2", "ACTB"], [ERBB2, ACTB])]
    everything = united(sections, "abc")
    assert everything.by == "id"
    assert listed(everything.genes) == ([TP53, "ACTB", "ERBB2", "HER2"], [TP53, ACTB, ERBB2, ERBB2])
    found = shared(sections[:2], "ab")
    assert listed(found.genes) == (["ACTB", "ERBB2"], [ACTB, ERBB2])
    assert [d.tolist() for d in found.dropped] == [[TP53], []]


def test_sections_named_by_id_and_by_symbol_need_one_that_has_both():
    with pytest.raises(GeneragError, match=rf"b names its genes by id \(such as {ERBB2}\), a by symbol without ids"):
        shared([genes(["ERBB2"]), by_id("ERBB2")], "ab")
    found = shared([genes(["ERBB2"]), by_id("ERBB2"), both("ERBB2")], "abc")
    assert listed(found.genes) == (["ERBB2"], [ERBB2])
    with pytest.raises(GeneragError, match="no section"):
        shared([], [])


def test_sections_that_share_nothing_have_no_gene_in_common():
    found = shared([genes(["A"]), genes(["B"])], "ab")
    assert len(found.genes) == 0
    assert [d.tolist() for d in found.dropped] == [["A"], ["B"]]


SECTION = st.tuples(SYMBOLS, st.sampled_from(["symbols", "both", "ids", "renamed"]), st.integers(0, 3))


def make_section(names, kind, shift):
    """Of an annotation that numbers genes its own way from G9 on, and may have other symbols for some of them."""
    ids = [f"ENSG{(i := int(n[1:])) + (shift if i > 8 else 0):011d}" for n in names]
    called = {"ids": ids, "renamed": [n.replace("G", "H") if i % 3 == 0 else n for i, n in enumerate(names)]}
    return genes(names) if kind == "symbols" else genes(called.get(kind, names), ids)


@settings(max_examples=150, deadline=None)
@given(st.lists(SECTION, min_size=1, max_size=4))
def test_sections_match_the_genes_that_were_taken_from_them(drawn):
    sections = [make_section(*d) for d in [*drawn, (["G1"], "both", 0)]]
    labels = [str(i) for i in range(len(sections))]
    every, some = shared(sections, labels), united(sections, labels)
    lost = set(some.conflicting.tolist())
    for section, dropped in zip(sections, some.dropped, strict=True):
        assert (match(every.genes, section).columns >= 0).all()
        found = match(some.genes, section)
        used = found.columns[found.columns >= 0].tolist()
        assert len(set(used)) == len(used) == len(section) - len(dropped)
        assert sorted([*section.names[used].tolist(), *dropped.tolist()]) == sorted(section.names.tolist())
        assert not len(found.conflicting)
    assert lost.isdisjoint(some.genes.names.tolist())


@pytest.mark.real
def test_her2st_sections_share_13972_genes(shared_data):
    from genrag_cli.cohorts import open_cohort

    cohort = open_cohort(shared_data / "her2st").sections
    tidied = [tidy(s.read_genes()) for s in cohort]
    found = shared([t.names for t in tidied], [s.name for s in cohort])
    named = [set(t.names.names.tolist()) for t in tidied]
    assert len(found.genes) == len(set.intersection(*named)) == 13972
    assert [len(n) - len(d) for n, d in zip(named, found.dropped, strict=True)] == [13972] * 5
    assert all(t.notes == () for t in tidied)
    assert set(united([t.names for t in tidied], "abcde").genes.names.tolist()) == set.union(*named)
