import subprocess
import sys

import pytest

from genrag_cli.cohorts import open_cohort, open_section, read_truth
from genrag_cli.errors import CohortError, UsageError


def test_the_layout_is_found_out(write_legacy, write_hest, tmp_path):
    assert open_cohort(write_legacy(tmp_path / "a")).format == "legacy-st"
    assert open_cohort(str(write_hest(tmp_path / "b"))).format == "hest"


def test_an_unknown_layout_says_what_was_looked_for(tmp_path):
    with pytest.raises(CohortError) as error:
        open_cohort(tmp_path)
    assert "st/*.h5ad" in error.value.hint
    assert "counts/*.tsv" in error.value.hint


def test_a_missing_folder_and_a_file_are_refused(tmp_path):
    (tmp_path / "f").touch()
    for name, why in (("absent", "no such folder or table"), ("f", "neither a folder nor a table")):
        with pytest.raises(CohortError, match=why):
            open_cohort(tmp_path / name)


def test_two_layouts_in_one_folder_need_a_format(write_legacy, write_hest, tmp_path):
    write_hest(write_legacy(tmp_path))
    with pytest.raises(CohortError, match="legacy-st, hest"):
        open_cohort(tmp_path)
    assert open_cohort(tmp_path, format="hest").sections[0].name == "T1"


def test_a_format_that_is_unknown_or_does_not_fit_is_refused(write_legacy, tmp_path):
    write_legacy(tmp_path)
    with pytest.raises(UsageError, match="Did you mean hest"):
        open_cohort(tmp_path, format="hset")
    with pytest.raises(CohortError, match="no hest cohort: looked for"):
        open_cohort(tmp_path, format="hest")


def test_a_cohort_without_any_usable_section_is_refused_with_reasons(write_legacy, tmp_path):
    with pytest.raises(CohortError, match=r"C2: no image"):
        open_cohort(write_legacy(tmp_path, image=False))


def test_patients_reach_sections_with_and_without_slide(write_legacy, tmp_path):
    write_legacy(tmp_path, "C2")
    cohort = open_cohort(write_legacy(tmp_path, "A1", image=False), patients="letter")
    assert cohort.sections[0].patient == "C"
    assert cohort.section("A1").patient == "A"


def test_a_section_is_opened_by_cohort_and_name_even_without_slide(write_legacy, tmp_path):
    write_legacy(tmp_path, image=False)
    section = open_section(f"{tmp_path}:C2")
    assert section.slide is None
    assert read_truth(f"{tmp_path}:C2").names.tolist() == section.load().names.tolist()


@pytest.mark.parametrize("text", ["C2", ":C2", "folder:"])
def test_a_section_needs_cohort_and_name(text):
    with pytest.raises(UsageError, match="COHORT:SECTION"):
        open_section(text)


def test_truth_is_read_from_counts_without_coordinates(write_hest, tmp_path):
    measured = read_truth(write_hest(tmp_path, spatial=False) / "st" / "T1.h5ad")
    assert measured.counts.shape == (12, 5)


def test_truth_that_is_neither_file_nor_section_is_refused():
    with pytest.raises(CohortError, match=r"neither an \.h5ad file nor COHORT:SECTION"):
        read_truth("nowhere")


def test_importing_cohorts_loads_no_table_library():
    code = "import sys, genrag_cli.cohorts; print([m for m in ('pandas','anndata','h5py','scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
