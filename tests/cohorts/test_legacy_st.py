import gzip

import numpy as np
import pytest

from genrag_cli.cohorts import open_cohort
from genrag_cli.cohorts.base import Reading
from genrag_cli.cohorts.legacy_st import read_cohort
from genrag_cli.errors import CohortError


@pytest.fixture
def section(tmp_path, write_legacy):
    return read_cohort(write_legacy(tmp_path), Reading()).sections[0]


def rewrite_counts(section, lines):
    with gzip.open(section.counts, "wt") as out:
        out.write("\n".join(lines) + "\n")


def test_spots_are_joined_by_name_in_the_order_of_the_counts(section):
    measured = section.load()
    assert measured.names[:2].tolist() == ["20x10", "21x10"]
    assert measured.centres[1].tolist() == [21 * 290.5, 2900.0]
    assert measured.array_rc[1].tolist() == [10, 21]
    assert measured.counts[1].toarray()[0].tolist() == [2, 3, 0, 1, 2]


def test_positions_without_counts_are_left_out_and_said(section):
    measured = section.load()
    assert len(measured) == 9
    assert measured.notes == ("1 of 10 spots of C2_selection.tsv have no counts",)


def test_the_order_of_the_position_table_does_not_matter(section):
    before = section.load()
    path = section.reader.positions
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *rows[::-1]]))
    np.testing.assert_array_equal(section.load().centres, before.centres)


def test_unselected_spots_and_spots_without_position_are_left_out_and_said(section):
    path = section.reader.positions
    header, first, _, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, first[:-1] + "0", *rows]))
    measured = section.load()
    assert measured.names[0] == "22x10"
    assert any("1 of 9 spots of C2_selection.tsv are not selected" in note for note in measured.notes)
    assert any("1 of 9 spots of C2.tsv.gz have no position" in note for note in measured.notes)


def test_a_header_without_a_corner_cell_is_read_the_same(section):
    before = section.load()
    with gzip.open(section.counts, "rt") as lines:
        text = lines.read()
    rewrite_counts(section, text.lstrip("\t").splitlines())
    assert section.load().genes.tolist() == before.genes.tolist()
    assert (section.load().counts != before.counts).nnz == 0


def test_a_section_without_an_image_is_skipped_and_no_error(tmp_path, write_legacy):
    write_legacy(tmp_path, "C2")
    cohort = open_cohort(write_legacy(tmp_path, "A1", image=False))
    assert [s.name for s in cohort.sections] == ["C2"]
    assert [s.name for s in cohort.without_slide] == ["A1"]
    assert cohort.skipped[0][0] == "A1"
    assert "no image" in cohort.skipped[0][1]


def test_a_section_without_positions_is_skipped(tmp_path, write_legacy):
    write_legacy(tmp_path, "C3")
    (write_legacy(tmp_path, "C2") / "spots" / "C2_selection.tsv").unlink()
    cohort = read_cohort(tmp_path, Reading())
    assert [s.name for s in cohort.sections] == ["C3"]
    assert "no positions" in dict(cohort.skipped)["C2"]


def test_the_array_is_stated_and_the_patient_is_not(section):
    assert (section.spot_pitch_um, section.spot_diameter_um) == (200, 100)
    assert section.patient is None
    assert section.pixel_size_candidates == ()


def test_an_image_without_counts_is_a_warning_and_two_images_an_error(tmp_path, write_legacy):
    (write_legacy(tmp_path) / "images" / "D9.png").touch()
    assert "D9.png" in read_cohort(tmp_path, Reading()).warnings[0]
    (tmp_path / "images" / "C2.tif").touch()
    with pytest.raises(CohortError, match="two images for section C2"):
        read_cohort(tmp_path, Reading())


def test_repeated_genes_are_summed_and_repeated_spots_refused(tmp_path, write_legacy, section):
    twice = read_cohort(write_legacy(tmp_path / "b", genes=("ACTB", "KRT8", "ACTB")), Reading()).sections[0].load()
    apart = read_cohort(write_legacy(tmp_path / "c", genes=("A", "KRT8", "B")), Reading()).sections[0].load()
    assert (twice.genes.tolist(), twice.n_repeated) == (["ACTB", "KRT8"], 1)
    both = apart.counts[:, [0]] + apart.counts[:, [2]]
    assert (twice.counts[:, [0]] != both).nnz == 0
    rewrite_counts(section, ["\tA\tB", "20x10\t1\t2", "20x10\t1\t2"])
    with pytest.raises(CohortError, match="20x10"):
        section.load()


def test_no_common_spot_names_both_files_and_shows_both_sides(section):
    rewrite_counts(section, ["\tA\tB", "1x1\t1\t2", "1x2\t1\t2"])
    with pytest.raises(
        CohortError, match=r"C2\.tsv\.gz is selected in .*C2_selection\.tsv: rows such as '1x1'.*'20x10'"
    ):
        section.load()


@pytest.mark.parametrize(
    "lines",
    [
        ["\tA\tB"],
        [],
        ["\tA\tB", "20x10\t1\tx"],
        ["\tA\tB", "20x10\t1\t"],
        ["\tA\tB", "20x10\t1\t2", "21x10\t1"],
        ["\tA\tB", "20x10\t1\t2", "21x10\t1\t2\t3"],
        ["\tA\tB\tC\tD", "20x10\t1\t2"],
    ],
)
def test_a_damaged_count_table_is_refused_by_name(section, lines):
    rewrite_counts(section, lines)
    with pytest.raises(CohortError, match=r"C2\.tsv\.gz"):
        section.load()


def test_a_truncated_file_is_refused_by_name(section):
    section.counts.write_bytes(section.counts.read_bytes()[:-20])
    with pytest.raises(CohortError, match=r"C2\.tsv\.gz: cannot be read"):
        section.load()


@pytest.mark.parametrize(
    "table", ["x\ty\n1\t2\n", "x\ty\tpixel_x\tpixel_y\n", "x\ty\tpixel_x\tpixel_y\na\t1\t2\t3\n", ""]
)
def test_a_damaged_position_table_is_refused_by_name(section, table):
    section.reader.positions.write_text(table)
    with pytest.raises(CohortError, match=r"C2_selection\.tsv"):
        section.load()


@pytest.mark.real
def test_her2st_lists_its_sections_and_skips_the_one_without_image(shared_data):
    cohort = open_cohort(shared_data / "her2st", patients="letter")
    assert [(s.name, s.patient) for s in cohort.sections] == [("B4", "B"), *[(f"C{i}", "C") for i in range(2, 6)]]
    assert [name for name, _ in cohort.skipped] == ["A1"]


@pytest.mark.real
@pytest.mark.parametrize(("name", "n", "n_bare"), [("C2", 187, 0), ("C4", 184, 3)])
def test_her2st_spots_join_and_lie_290_px_apart(shared_data, name, n, n_bare):
    measured = open_cohort(shared_data / "her2st").section(name).load()
    assert len(measured) == n
    assert measured.pitch_px == pytest.approx(290, rel=0.02)
    assert [note.split()[0] for note in measured.notes] == [str(n_bare)] * (n_bare > 0)
    assert measured.total_counts.min() > 0


@pytest.mark.real
def test_her2st_counts_equal_those_of_the_table_of_all_sections(shared_data):
    from genrag_cli.cohorts import read_truth

    everything = read_truth(shared_data / "solver" / "her2st_counts_top1000.h5ad")
    measured = open_cohort(shared_data / "her2st").section("C3").load()
    row = {name: i for i, name in enumerate(everything.names.tolist())}
    column = {gene: i for i, gene in enumerate(measured.genes.tolist())}
    shared = [gene for gene in everything.genes.tolist() if gene in column]
    other = everything.counts[[row[f"C3_{name}"] for name in measured.names]]
    other = other[:, [g in column for g in everything.genes.tolist()]]
    assert len(shared) > 900
    assert (other != measured.counts[:, [column[gene] for gene in shared]]).nnz == 0
