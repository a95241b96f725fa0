import json
import runpy
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.cohorts import open_cohort
from genrag_cli.cohorts.base import Reading
from genrag_cli.cohorts.formats import describe_counts
from genrag_cli.cohorts.hest_bench import looks_like, read_cohort, read_one
from genrag_cli.errors import CohortError
from genrag_cli.testing.section_contract import SectionContract

AS_IS = Reading()
TABLE = (
    "\ufeffdataset_title,id,species,patient,st_technology,pixel_size_um_estimated\n"
    "Kidney,S1,Homo sapiens,P7,Visium,0.5\nKidney,S2,Homo sapiens,,Xenium,0.27\n"
)


@pytest.fixture(scope="module")
def make():
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_anndata.py"))))


class TestBenchSections(SectionContract):
    @pytest.fixture(autouse=True)
    def _writer(self, make):
        self.write = make.write_task

    def make_section(self, folder):
        return open_cohort(self.write(folder)).sections[0]


def test_a_task_is_found_out_and_its_sections_come_in_the_order_of_its_splits(make, tmp_path):
    cohort = open_cohort(make.write_task(tmp_path))
    assert (cohort.format, cohort.panel) == ("hest-bench", tmp_path / "var_50genes.json")
    assert [s.name for s in cohort.sections] == ["S3", "S1", "S2"]
    assert cohort.section("S1").metadata == {"split_0": "train", "split_1": "test"}
    assert cohort.section("S3").metadata == {"split_0": "train"}
    assert (cohort.warnings, cohort.skipped) == ((), ())


def test_sections_have_patches_for_an_image_and_centres_from_their_own_file(make, tmp_path):
    section = open_cohort(make.write_task(tmp_path)).section("S2")
    assert (section.slide, section.patches, section.image) == (None, *[tmp_path / "patches" / "S2.h5"] * 2)
    measured = section.load()
    assert measured.centres[1].tolist() == [150, 70]
    assert measured.genes.tolist() == ["G0", "G1", "G2", "G3"]


def test_what_the_task_does_not_state_is_unknown(make, tmp_path):
    section = open_cohort(make.write_task(tmp_path)).section("S1")
    assert (section.patient, section.species, section.technology) == (None, None, "unknown")
    assert section.pixel_size_candidates == ()
    assert "technology not stated" in section.notes[0]


@pytest.mark.parametrize("beside", [False, True])
def test_a_hest_table_in_or_beside_the_task_describes_its_sections(make, tmp_path, beside):
    task = make.write_task(tmp_path / "KIDNEY")
    ((tmp_path if beside else task) / "HEST_v1_1_0.csv").write_text(TABLE, encoding="utf-8")
    cohort = open_cohort(task)
    one, two, three = (cohort.section(name) for name in ("S1", "S2", "S3"))
    assert (one.patient, two.patient, one.species) == ("Kidney/P7", None, "human")
    assert (one.spot_pitch_um, two.spot_pitch_um) == (100, 100)
    assert one.pixel_size_candidates == (("hest pixel_size_um_estimated", 0.5),)
    assert one.metadata["split_1"] == "test"
    assert three.notes[0] == "HEST_v1_1_0.csv has no row with the id S3"


def test_a_folder_of_several_tasks_is_refused_by_their_names_and_one_of_one_is_read(make, tmp_path):
    make.write_task(tmp_path / "IDC")
    assert [s.name for s in open_cohort(tmp_path).sections] == ["S3", "S1", "S2"]
    make.write_task(tmp_path / "PRAD")
    with pytest.raises(CohortError, match=r"2 tasks of HEST-bench: IDC, PRAD\nChoose one, such as .*IDC"):
        open_cohort(tmp_path)


def test_files_that_are_absent_are_reasons(make, tmp_path):
    make.write_task(tmp_path)
    (tmp_path / "adata" / "S2.h5ad").unlink()
    (tmp_path / "patches" / "S3.h5").unlink()
    cohort = open_cohort(tmp_path)
    assert [s.name for s in cohort.sections] == ["S1"]
    reasons = dict(cohort.skipped)
    assert "S2.h5ad does not exist" in reasons["S2"]
    assert "S3.h5 does not exist" in reasons["S3"]
    assert cohort.section("S3").load().names[0] == "s0"


def test_a_section_on_both_sides_of_a_split_is_refused(make, tmp_path):
    make.write_task(tmp_path, splits=[(("S1",), ("S2",)), (("S1", "S3"), ("S3",))])
    with pytest.raises(CohortError, match=r"'S3' is in train_1\.csv and in test_1\.csv"):
        open_cohort(tmp_path)


def test_splits_that_contradict_each_other_or_lack_a_column_are_refused(make, tmp_path):
    make.write_task(tmp_path)
    make.write_split(tmp_path / "splits" / "test_1.csv", [("S1", "patches/S1.h5", "adata/S2.h5ad")])
    with pytest.raises(CohortError, match=r"'S1' has patches/S1.h5 and adata/S2.h5ad, but .*S1.h5ad in another"):
        open_cohort(tmp_path)
    make.write_split(tmp_path / "splits" / "test_1.csv", [("S1", "", "adata/S1.h5ad")])
    with pytest.raises(CohortError, match="line 2: a row needs"):
        open_cohort(tmp_path)
    make.write_split(tmp_path / "splits" / "test_1.csv", [], columns=("sample_id", "path"))
    with pytest.raises(CohortError, match="no column patches_path, expr_path; found sample_id, path"):
        open_cohort(tmp_path)


def test_half_a_split_and_sections_of_no_split_are_said(make, tmp_path):
    make.write_task(tmp_path, splits=[(("S1",), ("S2",))])
    (tmp_path / "splits" / "test_0.csv").unlink()
    warnings = open_cohort(tmp_path).warnings
    assert warnings[0].startswith("split 0 has only one of")
    assert warnings[1] == "no split lists S2.h5ad, S3.h5ad; left out"


def test_genes_of_the_panel_that_no_section_has_are_said(make, tmp_path):
    panel = make.write_task(tmp_path) / "var_50genes.json"
    panel.write_text(json.dumps({"genes": ["G0", "H3F3A", "G2", "CD14"]}))
    assert open_cohort(tmp_path).warnings == ("var_50genes.json: 2 of 4 genes are in no section, such as CD14",)
    panel.write_text('["G0"]')
    with pytest.raises(CohortError, match=r"var_50genes\.json: not a list of genes"):
        open_cohort(tmp_path)


def test_one_file_of_counts_is_known_by_its_task(make, tmp_path):
    task = make.write_task(tmp_path / "T", splits=[(("S1",), ("S2",))])
    known, section = describe_counts(task / "adata" / "S1.h5ad", AS_IS)
    assert (known, section) == ("hest-bench", read_cohort(task, AS_IS).section("S1"))
    apart = read_one(task / "adata" / "S3.h5ad", AS_IS)
    assert (apart.name, apart.patches, apart.metadata) == ("S3", task / "patches" / "S3.h5", {})
    assert read_one(tmp_path / "adata" / "S1.h5ad", AS_IS) is None
    assert read_one(task / "patches" / "S1.h5", AS_IS) is None


def test_a_hest_1k_folder_is_no_task(make, tmp_path):
    make.write_task(tmp_path / "bench")
    assert looks_like(tmp_path)
    (tmp_path / "st").mkdir()
    assert not looks_like(tmp_path)


@settings(max_examples=15, deadline=None)
@given(
    roles=st.lists(
        st.dictionaries(st.sampled_from("ABCD"), st.sampled_from(["train", "test"])), min_size=1, max_size=4
    ),
    absent=st.sets(st.sampled_from("ABCD")), mark=st.booleans(),
)  # fmt: skip
def test_any_splits_come_back_with_what_is_there(make, roles, absent, mark):
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder)
        for part, ending in (("adata", "h5ad"), ("patches", "h5")):
            (task / part).mkdir()
            for name in set("ABCD") - absent:
                (task / part / f"{name}.{ending}").touch()
        for number, split in enumerate(roles):
            for role in ("train", "test"):
                path = task / "splits" / f"{role}_{number}.csv"
                make.write_split(path, make.listed(*(name for name, r in split.items() if r == role)))
                path.write_text(("\ufeff" if mark else "") + path.read_text(), encoding="utf-8")
        cohort = read_cohort(task, AS_IS)
    known = {name for split in roles for name in split}
    assert {s.name for s in cohort.sections} == known - absent
    assert {name for name, _ in cohort.skipped} == known & absent
    for section in cohort.sections:
        stated = {f"split_{i}": split[section.name] for i, split in enumerate(roles) if section.name in split}
        assert section.metadata == stated


@pytest.mark.real
def test_the_published_panel_is_read(make, shared_data, tmp_path):
    task = make.write_task(tmp_path)
    (task / "var_50genes.json").unlink()
    (task / "var_50genes.json").symlink_to(shared_data / "genes" / "CCRCC_var_50genes.json")
    assert "50 of 50 genes are in no section, such as AKAP8" in open_cohort(task).warnings[0]
