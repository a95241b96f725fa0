import numpy as np
import pytest
from scipy import sparse

from genrag_cli.errors import GeneragError
from genrag_cli.evaluation import leaks
from genrag_cli.evaluation.leaks import CountedSection, find_leaks, identical_spots, judge_panel


def tissue(seed, n=40, genes=60, patient=0):
    """Spots of one section: its own draw of counts from a profile that its patient has."""
    profile = np.random.default_rng(1000 + patient).gamma(1, 2, genes)
    return sparse.csr_matrix(np.random.default_rng(seed).poisson(profile, (n, genes)))


def section(name, patient, counts):
    return CountedSection(name, patient, counts)


def kinds(found):
    return [leak.kind for leak in found]


def test_identical_spots_are_found_wherever_they_stand():
    bank = tissue(0)
    order = np.random.default_rng(1).permutation(40)
    assert identical_spots(bank[order], bank).tolist() == order.tolist()


def test_spots_that_differ_by_one_count_do_not_match():
    a = tissue(0).tolil()
    a[3, 5] += 1
    found = identical_spots(a.tocsr(), tissue(0))
    assert found[3] == -1
    assert np.delete(found, 3).tolist() == [i for i in range(40) if i != 3]


def test_equal_counts_match_however_they_are_stored():
    plain = tissue(0)
    odd = sparse.csr_array(
        (
            np.r_[plain.data, 0, 0].astype(np.float32),
            np.r_[plain.indices, 0, 1],
            np.r_[plain.indptr[:-1], plain.nnz + 2],
        ),
        shape=plain.shape,
    )
    turned = sparse.csr_matrix(plain[:, ::-1])[:, ::-1]
    assert identical_spots(odd, plain).tolist() == list(range(40))
    assert identical_spots(turned.tocsr(), plain).tolist() == list(range(40))


def test_spots_of_few_counts_are_never_matched():
    counts = sparse.csr_matrix(np.array([[19, 0], [0, 20], [0, 0]]))
    assert identical_spots(counts, counts).tolist() == [-1, 1, -1]
    assert identical_spots(counts, counts, min_total=5).tolist() == [0, 1, -1]


def test_the_first_of_equal_spots_is_named():
    counts = sparse.csr_matrix(np.array([[1, 30], [9, 30], [9, 30]]))
    assert identical_spots(counts[2], counts).tolist() == [1]


def test_equal_hashes_of_different_spots_do_not_match(monkeypatch):
    monkeypatch.setattr(leaks, "_hash_rows", lambda counts, least: np.ones(counts.shape[0], np.uint64))
    assert identical_spots(tissue(1), tissue(2)).max() == -1


def test_different_numbers_of_genes_are_refused():
    with pytest.raises(GeneragError, match="over 60 and over 50 genes"):
        identical_spots(tissue(0), tissue(0, genes=50))
    with pytest.raises(GeneragError, match=r"over \[50, 60\] genes"):
        find_leaks([section("A", "1", tissue(0))], [section("B", "2", tissue(0, genes=50))])


def test_a_renamed_and_shuffled_section_of_another_patient_is_found_both_ways():
    own = tissue(0)
    shuffled = own[np.random.default_rng(1).permutation(40)]
    found = find_leaks([section("T", "p1", own)], [section("X", "p7", shuffled), section("Y", "p2", tissue(2))])
    assert kinds(found) == ["section", "patient"]
    assert found[0].text == (
        "The test section T (patient p1) stands in the bank as bank section X (patient p7): "
        "40 of 40 spots have identical counts."
    )
    assert "are said to be of two patients, yet 40 of 40 spots" in found[1].text
    assert (found[0].sections, found[0].patients, found[0].share) == (("T", "X"), ("p1", "p7"), 1.0)


def test_different_sections_of_one_patient_are_named_and_do_not_match():
    found = find_leaks([section("T", "p", tissue(0))], [section("S", "p", tissue(1)), section("R", "p", tissue(2))])
    assert kinds(found) == ["same-patient"]
    assert found[0].text == "Patient p is on both sides: 1 test section (T) and 2 in the bank (S, R)."


def test_clean_splits_have_no_findings():
    bank = [section(f"B{i}", f"b{i}", tissue(i, patient=i)) for i in range(1, 5)]
    assert find_leaks([section("T", "t", tissue(0))], bank) == []
    assert find_leaks([section("T", None, tissue(0))], [*bank, section("U", None, tissue(9))]) == []


@pytest.mark.parametrize(("n", "leaks_out"), [(7, False), (8, True)])
def test_a_fifth_of_the_spots_is_enough(n, leaks_out):
    mixed = sparse.vstack([tissue(0)[:n], tissue(5)[n:]]).tocsr()
    found = find_leaks([section("T", "t", mixed)], [section("B", None, tissue(0))])
    assert kinds(found) == ["section"] * leaks_out


def test_fewer_than_three_spots_are_not_enough():
    few = tissue(0)[:2]
    assert find_leaks([section("T", None, few)], [section("B", None, tissue(0))]) == []


def test_a_crop_of_a_test_section_in_the_bank_is_found():
    found = find_leaks([section("T", None, tissue(0, n=100))], [section("CROP", None, tissue(0, n=100)[50:55])])
    assert "5 of 5 spots" in found[0].text
    assert "(patient unknown)" in found[0].text


def test_spots_that_repeat_do_not_count_twice():
    same = sparse.csr_matrix(np.tile([[30, 1]], (40, 1)))
    one = sparse.vstack([same[:1], sparse.csr_matrix(np.arange(78).reshape(39, 2) + 100)]).tocsr()
    assert find_leaks([section("T", None, same)], [section("B", None, one)]) == []


def test_two_patients_with_the_same_spots_are_found_within_the_bank_and_within_the_test():
    twice = [section("A", "p1", tissue(0)), section("B", "p2", tissue(0))]
    for found in (find_leaks(twice, []), find_leaks([], twice)):
        assert kinds(found) == ["patient"]
        assert found[0].patients == ("p1", "p2")
    assert find_leaks([], [section("A", "p1", tissue(0)), section("B", "p1", tissue(0))]) == []
    assert find_leaks([], [section("A", "p1", tissue(0)), section("B", None, tissue(0))]) == []


def genes(first, last):
    return [f"G{i}" for i in range(first, last)]


def test_a_panel_chosen_with_the_test_sections_is_found_whatever_its_order():
    found = judge_panel(genes(0, 100)[::-1], {"stem": genes(0, 100)}, {"stem": genes(5, 105)})
    assert found.kind == "panel"
    assert found.text == (
        "The panel of 100 genes is what recipe stem chooses with the test sections in sight (100 genes shared, Jaccard "
        "1.000); without them the nearest choice has Jaccard 0.905."
    )


def test_a_panel_nearly_chosen_with_the_test_sections_is_found():
    with_test, without = {"a": genes(50, 150), "b": genes(0, 100)}, {"a": genes(40, 140), "b": genes(5, 105)}
    found = judge_panel(genes(0, 99), with_test, without)
    assert "recipe b" in found.text
    assert found.share == pytest.approx(0.99)


def test_a_panel_chosen_without_the_test_sections_passes():
    assert judge_panel(genes(0, 100), {"stem": genes(2, 102)}, {"stem": genes(0, 100)}) is None


def test_a_panel_chosen_by_another_recipe_without_the_test_sections_passes():
    assert judge_panel(genes(0, 100), {"a": genes(1, 101)}, {"a": genes(4, 104), "b": genes(0, 100)}) is None


def test_a_choice_that_is_the_same_either_way_or_far_from_the_panel_tells_nothing():
    assert judge_panel(genes(0, 100), {"stem": genes(0, 100)}, {"stem": genes(0, 100)}) is None
    assert judge_panel(genes(0, 100), {"stem": genes(10, 110)}, {"stem": genes(50, 150)}) is None
    assert judge_panel(genes(0, 100), {}, {}) is None
    assert judge_panel([], {"stem": []}, {}) is None


@pytest.mark.real
def test_a_section_of_her2st_is_found_under_another_name_and_its_neighbours_are_not(shared_data):
    from genrag_cli.cohorts import read_truth

    truths = {name: read_truth(f"{shared_data / 'her2st'}:{name}") for name in ("C2", "C3", "A1")}
    common = sorted(set.intersection(*(set(t.genes.tolist()) for t in truths.values())))
    counts = {}
    for name, truth in truths.items():
        column = {gene: i for i, gene in enumerate(truth.genes.tolist())}
        counts[name] = sparse.csr_matrix(truth.counts)[:, [column[gene] for gene in common]]
    renamed = section("Z9", "Z", counts["C2"][np.random.default_rng(0).permutation(counts["C2"].shape[0])])
    bank = [section(name, name[0], counts[name]) for name in ("C3", "A1")]
    assert kinds(find_leaks([section("C2", "C", counts["C2"])], bank)) == ["same-patient"]
    assert kinds(find_leaks([section("C2", "C", counts["C2"])], [*bank, renamed])) == [
        "section",
        "patient",
        "same-patient",
    ]
