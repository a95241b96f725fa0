import csv
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.cohorts import open_cohort
from genrag_cli.cohorts.base import Reading
from genrag_cli.cohorts.hest import complete, describe, read_cohort, read_one, read_table
from genrag_cli.errors import CohortError
from genrag_cli.testing.section_contract import SectionContract

VISIUM = {
    "dataset_title": "Prostate, two donors",
    "patient": "patient 2",
    "st_technology": "Visium",
    "inter_spot_dist": 100.0,
    "spot_diameter": 55.0,
    "pixel_size_um_estimated": 0.37,
    "pixel_size_um_embedded": float("nan"),
}


def write_table(path, *rows):
    header = list(VISIUM)
    lines = [",".join(["id", *header])]
    lines += [",".join([name, *(f'"{v.get(k, "")}"' for k in header)]) for name, v in rows]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8-sig")


def described(write_hest, tmp_path, **changes):
    return read_cohort(write_hest(tmp_path, metadata=VISIUM | changes), Reading()).sections[0]


def test_metadata_beside_the_section_describes_it(write_hest, tmp_path):
    section = described(write_hest, tmp_path)
    assert section.patient == "Prostate, two donors/patient 2"
    assert (section.technology, section.spot_pitch_um, section.spot_diameter_um) == ("visium", 100, 55)
    assert section.pixel_size_candidates == (("hest pixel_size_um_estimated", 0.37),)
    assert section.metadata["pixel_size_um_embedded"] == ""


def test_the_table_is_read_with_its_byte_order_mark_and_wins_over_the_json(write_hest, tmp_path):
    write_hest(tmp_path, "T1", metadata=VISIUM | {"patient": "patient 9", "organ": "Prostate"})
    write_table(tmp_path / "assets" / "HEST_v1_1_0.csv", ("T1", VISIUM | {"pixel_size_um_embedded": 0.5}))
    section = read_cohort(tmp_path, Reading()).sections[0]
    assert section.patient == "Prostate, two donors/patient 2"
    assert section.metadata["organ"] == "Prostate"
    assert [value for _, value in section.pixel_size_candidates] == [0.37, 0.5]


def test_the_newest_of_several_tables_is_used_and_said(write_hest, tmp_path):
    write_hest(tmp_path, "T1")
    write_table(tmp_path / "HEST_v1_10_0.csv", ("T1", VISIUM | {"patient": "new"}))
    write_table(tmp_path / "HEST_v1_9_0.csv", ("T1", VISIUM | {"patient": "old"}))
    cohort = read_cohort(tmp_path, Reading())
    assert cohort.sections[0].patient == "Prostate, two donors/new"
    assert "HEST_v1_10_0.csv is used" in cohort.warnings[0]


@pytest.mark.parametrize("patient", ["", "   ", None, float("nan")])
def test_a_blank_patient_is_unknown(write_hest, tmp_path, patient):
    assert described(write_hest, tmp_path, patient=patient).patient is None


def test_a_patient_without_a_data_set_is_unknown(write_hest, tmp_path):
    assert described(write_hest, tmp_path, dataset_title="").patient is None


@pytest.mark.parametrize(
    ("technology", "stated", "expected"),
    [
        ("Visium", (None, None), (100, 55)),
        ("Spatial Transcriptomics", (None, None), (200, 100)),
        ("Spatial Transcriptomics", (200.0, 100.0), (200, 100)),
        ("Xenium", (None, None), (100, 100)),
        ("Visium HD", (2.0, 2.0), (128, 128)),
    ],
)
def test_spacing_follows_the_columns_and_the_pooling_of_bins(write_hest, tmp_path, technology, stated, expected):
    section = described(
        write_hest, tmp_path, st_technology=technology, inter_spot_dist=stated[0], spot_diameter=stated[1]
    )
    assert (section.spot_pitch_um, section.spot_diameter_um) == expected


def test_overlapping_spots_are_read_as_swapped_columns_and_said(write_hest, tmp_path):
    lie = {"st_technology": "Spatial Transcriptomics", "inter_spot_dist": 110, "spot_diameter": 150}
    section = described(write_hest, tmp_path, **lie)
    assert (section.spot_pitch_um, section.spot_diameter_um) == (150, 110)
    assert "swapped" in section.notes[0]


def test_visium_has_one_spacing_whatever_is_stated(write_hest, tmp_path):
    section = described(write_hest, tmp_path, inter_spot_dist=50, spot_diameter=55)
    assert (section.spot_pitch_um, section.spot_diameter_um) == (100, 55)
    assert section.notes == ("inter_spot_dist 50 um is stated; Visium's is 100 um, which is used",)


@pytest.mark.parametrize("stated", [None, "", "CosMx"])
def test_an_unknown_technology_has_no_spacing_and_a_note(write_hest, tmp_path, stated):
    section = described(write_hest, tmp_path, st_technology=stated, inter_spot_dist=None, spot_diameter=None)
    assert (section.technology, section.spot_pitch_um) == ("unknown", None)
    assert section.notes[0].startswith("technology 'CosMx'" if stated else "technology not stated")


def test_a_section_whose_slide_was_not_downloaded_is_skipped(write_hest, tmp_path):
    write_hest(tmp_path, "T1", metadata=VISIUM)
    cohort = open_cohort(write_hest(tmp_path, "T2", slide=False, metadata=VISIUM))
    assert [s.name for s in cohort.sections] == ["T1"]
    assert "T2.tif does not exist" in dict(cohort.skipped)["T2"]
    assert cohort.section("T2").load().names[0] == "spot0-1"


def test_rows_of_hd_bins_come_from_coordinates(write_hest, tmp_path):
    measured = described(write_hest, tmp_path, st_technology="Visium HD").load()
    assert measured.array_rc[:5].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0]]
    assert any("made from the coordinates" in note for note in measured.notes)


def test_rows_of_spots_come_from_the_file(write_hest, tmp_path):
    measured = described(write_hest, tmp_path).load()
    assert measured.array_rc[:2].tolist() == [[5, 0], [5, 1]]
    assert measured.pitch_px == pytest.approx(200)
    np.testing.assert_array_equal(measured.centres[1], [250, 30])


@pytest.mark.parametrize(("written", "species"), [("Homo sapiens", "human"), ("Mus musculus", "mouse"), ("", None)])
def test_species_is_what_the_metadata_say(write_hest, tmp_path, written, species):
    assert described(write_hest, tmp_path, species=written).species == species


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".svs"])
def test_slides_come_in_three_formats(write_hest, tmp_path, suffix):
    write_hest(tmp_path, slide=False)
    slide = tmp_path / "wsis" / f"T1{suffix}"
    slide.touch()
    assert read_cohort(tmp_path, Reading()).sections[0].slide == slide


def test_two_slides_of_one_section_are_as_good_as_none(write_hest, tmp_path):
    (write_hest(tmp_path) / "wsis" / "T1.svs").touch()
    cohort = read_cohort(tmp_path, Reading())
    assert cohort.sections == ()
    assert "several slides" in dict(cohort.skipped)["T1"]
    assert "T1.svs" in dict(cohort.skipped)["T1"]


@pytest.mark.parametrize("slide", [True, False])
def test_patches_serve_with_a_slide_and_without(write_hest, tmp_path, slide):
    (write_hest(tmp_path, slide=slide, metadata=VISIUM) / "patches").mkdir()
    (tmp_path / "patches" / "T1.h5").touch()
    section = open_cohort(tmp_path).sections[0]
    assert section.patches == tmp_path / "patches" / "T1.h5"
    assert section.image == (section.slide if slide else section.patches)
    assert section.notes == (
        () if slide else (f"no slide: {tmp_path}/wsis/T1.tif does not exist; its tiles come from T1.h5",)
    )


def test_one_section_is_the_same_alone_and_in_its_cohort(write_hest, tmp_path):
    write_table(write_hest(tmp_path, metadata=VISIUM | {"patient": "p"}) / "HEST_v1_0_0.csv", ("T1", VISIUM))
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "T1.h5").touch()
    assert read_one(tmp_path / "st" / "T1.h5ad", Reading()) == read_cohort(tmp_path, Reading()).sections[0]
    assert read_one(tmp_path / "wsis" / "T1.tif", Reading()) is None
    assert read_one(tmp_path / "T1.h5ad", Reading()) is None


def test_controls_of_a_panel_are_no_genes(write_hest, tmp_path):
    genes = ("ACTB", "BLANK_0001", "KRT19", "NegControlProbe_00002", "ERBB2")
    section = open_cohort(write_hest(tmp_path, genes=genes)).sections[0]
    measured = section.load()
    assert measured.genes.tolist() == section.read_genes().names.tolist() == ["ACTB", "KRT19", "ERBB2"]
    assert measured.gene_ids.tolist() == ["ENSG0", "ENSG2", "ENSG4"]
    assert any("2 features that are no genes" in note for note in measured.notes)


def test_where_table_and_json_disagree_the_table_counts_and_it_is_said(write_hest, tmp_path):
    lies = {"patient": "Patient 9", "st_technology": "Xenium", "pixel_size_um_estimated": 0.25}
    write_table(write_hest(tmp_path, metadata=VISIUM | lies) / "HEST_v1_1_0.csv", ("T1", VISIUM))
    section = read_cohort(tmp_path, Reading()).sections[0]
    assert (section.patient, section.technology) == ("Prostate, two donors/patient 2", "visium")
    assert section.pixel_size_candidates == (("hest pixel_size_um_estimated", 0.37),)
    assert section.notes == (
        "patient is 'patient 2' in HEST_v1_1_0.csv and 'Patient 9' in T1.json; the table counts",
        "st_technology is 'Visium' in HEST_v1_1_0.csv and 'Xenium' in T1.json; the table counts",
        "pixel_size_um_estimated is '0.37' in HEST_v1_1_0.csv and '0.25' in T1.json; the table counts",
    )


def test_the_way_a_value_is_written_is_no_disagreement(write_hest, tmp_path):
    same = {"patient": "PATIENT 2", "pixel_size_um_estimated": "0.370"}
    write_table(write_hest(tmp_path, metadata=VISIUM | same) / "HEST_v1_1_0.csv", ("T1", VISIUM))
    assert read_cohort(tmp_path, Reading()).sections[0].notes == ()


@pytest.mark.parametrize("value", ["0.5 um", "-0.25", "0", "inf"])
def test_pixel_sizes_that_are_no_lengths_are_left_out_and_said(write_hest, tmp_path, value):
    section = described(write_hest, tmp_path, pixel_size_um_estimated=value, pixel_size_um_embedded=0.5)
    assert section.pixel_size_candidates == (("hest pixel_size_um_embedded", 0.5),)
    assert section.notes == (f"pixel_size_um_estimated is {value!r}, which is no length above 0, and is left out",)


def test_a_table_that_lacks_columns_leaves_their_facts_unknown(write_hest, tmp_path):
    (write_hest(tmp_path) / "HEST_v1_1_0.csv").write_text("\ufeffid,organ\nT1,Breast\n", encoding="utf-8")
    section = read_cohort(tmp_path, Reading()).sections[0]
    assert (section.patient, section.species, section.technology) == (None, None, "unknown")
    assert (section.pixel_size_candidates, section.metadata) == ((), {"id": "T1", "organ": "Breast"})


def test_an_id_with_two_different_rows_is_refused_naming_both(write_hest, tmp_path):
    write_hest(tmp_path, metadata=VISIUM)
    table = tmp_path / "HEST_v1_1_0.csv"
    write_table(table, ("T1", VISIUM), ("T2", VISIUM), ("T1", VISIUM))
    assert len(read_cohort(tmp_path, Reading()).sections) == 1
    write_table(table, ("T1", VISIUM), ("T2", VISIUM), ("T1", VISIUM | {"patient": "patient 3"}))
    with pytest.raises(CohortError, match=r"'T1' and differ, lines 2 and 4, .* patient 'patient 2' and 'patient 3'"):
        read_cohort(tmp_path, Reading())


def test_a_section_that_the_table_does_not_have_is_said(write_hest, tmp_path):
    write_table(write_hest(tmp_path, metadata=VISIUM) / "HEST_v1_1_0.csv", ("T9", VISIUM))
    assert read_cohort(tmp_path, Reading()).sections[0].notes == ("HEST_v1_1_0.csv has no row with the id T1",)


def test_the_json_of_another_section_is_refused(write_hest, tmp_path):
    with pytest.raises(CohortError, match=r"T1\.json: describes section 'T2', not 'T1'"):
        described(write_hest, tmp_path, id="T2")


@pytest.mark.parametrize("content", ["[1, 2]", "{", ""])
def test_damaged_metadata_is_refused_by_name(write_hest, tmp_path, content):
    (write_hest(tmp_path, metadata=VISIUM) / "metadata" / "T1.json").write_text(content)
    with pytest.raises(CohortError, match=r"T1\.json"):
        read_cohort(tmp_path, Reading())


def test_a_table_without_ids_is_refused(write_hest, tmp_path):
    (write_hest(tmp_path) / "HEST_x.csv").write_text("sample,patient\nT1,a\n")
    with pytest.raises(CohortError, match="no column id; found sample, patient"):
        read_cohort(tmp_path, Reading())


class TestHestSectionsWithPatches(SectionContract):
    @pytest.fixture(autouse=True)
    def _writer(self, write_hest):
        self.write = write_hest

    def make_section(self, folder):
        (self.write(folder, slide=False, metadata=VISIUM) / "patches").mkdir(exist_ok=True)
        (folder / "patches" / "T1.h5").touch()
        return open_cohort(folder).sections[0]


@settings(max_examples=15, deadline=None)
@given(
    facts=st.fixed_dictionaries({
        "patient": st.sampled_from(["", "1", "Patient, A"]), "dataset_title": st.sampled_from(["", 'A "quoted" set']),
        "st_technology": st.sampled_from(["Visium", "Xenium", "Spatial Transcriptomics", "Visium HD", ""]),
    }),
    columns=st.permutations(["patient", "dataset_title", "st_technology"]), mark=st.booleans(), in_json=st.booleans(),
)  # fmt: skip
def test_facts_come_back_from_a_table_of_any_order_or_a_json(facts, columns, mark, in_json):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "st").mkdir()
        (root / "st" / "T1.h5ad").touch()
        if in_json:
            (root / "metadata").mkdir()
            (root / "metadata" / "T1.json").write_text(json.dumps(facts))
        else:
            with (root / "HEST_v1.csv").open("w", newline="", encoding="utf-8-sig" if mark else "utf-8") as out:
                csv.writer(out).writerows([["id", *columns], ["T1", *(facts[c] for c in columns)]])
        section = read_cohort(root, Reading()).without_slide[0]
    both = facts["patient"] and facts["dataset_title"]
    assert section.patient == (f"{facts['dataset_title']}/{facts['patient']}" if both else None)
    assert {k: section.metadata[k] for k in facts} == facts


@pytest.mark.real
def test_the_published_table_describes_a_breast_section(shared_data, write_hest, tmp_path):
    (tmp_path / "HEST_v1_1_0.csv").symlink_to(shared_data / "genes" / "HEST_v1_1_0.csv")
    section = read_cohort(write_hest(tmp_path, "SPA148"), Reading()).sections[0]
    assert section.patient.endswith("/Patient B")
    assert (section.technology, section.spot_pitch_um) == ("st", 200)
    assert section.metadata["organ"] == "Breast"


@pytest.mark.real
def test_every_row_of_the_published_table_is_understood(shared_data):
    table, said = read_table([shared_data / "genes" / "HEST_v1_1_0.csv"])
    sections = [describe(name, Path(f"{name}.h5ad"), *complete(table, name)) for name in table.rows]
    assert (len(sections), said) == (1229, [])
    assert {s.technology for s in sections} == {"visium", "st", "xenium", "visium-hd"}
    assert sum(s.patient is None for s in sections) == 835 + 114  # empty, and three blanks
    assert all(s.spot_pitch_um >= s.spot_diameter_um for s in sections)
    assert sum("swapped" in note for s in sections for note in s.notes) == 12
    assert {note.split()[0] for s in sections for note in s.notes} == {"inter_spot_dist"}
