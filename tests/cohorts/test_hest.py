import numpy as np
import pytest

from genrag_cli.cohorts import open_cohort
from genrag_cli.cohorts.base import Reading
from genrag_cli.cohorts.hest import read_cohort
from genrag_cli.errors import CohortError

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
    write_hest(tmp_path, metadata=VISIUM | {"inter_spot_dist": 110, "spot_diameter": 150})
    cohort = read_cohort(tmp_path, Reading())
    assert (cohort.sections[0].spot_pitch_um, cohort.sections[0].spot_diameter_um) == (150, 110)
    assert "swapped" in cohort.warnings[0]


def test_a_section_without_metadata_has_no_spacing_and_a_warning(write_hest, tmp_path):
    cohort = open_cohort(write_hest(tmp_path))
    assert (cohort.sections[0].technology, cohort.sections[0].spot_pitch_um) == ("unknown", None)
    assert "not stated" in cohort.warnings[0]


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


@pytest.mark.parametrize("content", ["[1, 2]", "{", ""])
def test_damaged_metadata_is_refused_by_name(write_hest, tmp_path, content):
    (write_hest(tmp_path, metadata=VISIUM) / "metadata" / "T1.json").write_text(content)
    with pytest.raises(CohortError, match=r"T1\.json"):
        read_cohort(tmp_path, Reading())


def test_a_table_without_ids_is_refused(write_hest, tmp_path):
    (write_hest(tmp_path) / "HEST_x.csv").write_text("sample,patient\nT1,a\n")
    with pytest.raises(CohortError, match="no column id; found sample, patient"):
        read_cohort(tmp_path, Reading())


@pytest.mark.real
def test_the_published_table_describes_a_breast_section(shared_data, write_hest, tmp_path):
    (tmp_path / "HEST_v1_1_0.csv").symlink_to(shared_data / "genes" / "HEST_v1_1_0.csv")
    section = read_cohort(write_hest(tmp_path, "SPA148"), Reading()).sections[0]
    assert section.patient.endswith("/Patient B")
    assert (section.technology, section.spot_pitch_um) == ("st", 200)
    assert section.metadata["organ"] == "Breast"
