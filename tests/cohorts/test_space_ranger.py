import json
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from genrag_cli.cohorts import open_cohort
from genrag_cli.cohorts.base import Reading
from genrag_cli.cohorts.formats import describe_counts
from genrag_cli.cohorts.space_ranger import looks_like, read_cohort, read_one
from genrag_cli.errors import CohortError
from genrag_cli.testing.section_contract import SectionContract

AS_IS = Reading()
VISIUM = Path("P1/outs")
BINS = Path("H1/outs/binned_outputs/square_016um")
H5 = "filtered_feature_bc_matrix.h5"


def load_writers():
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_space_ranger.py"))))


@pytest.fixture(scope="module")
def write():
    return load_writers()


class TestVisiumSections(SectionContract):
    def make_section(self, folder):
        return open_cohort(load_writers().write_visium(folder, style="1")).sections[0]


class TestVisiumSectionsAsMtx(SectionContract):
    def make_section(self, folder):
        root = load_writers().write_visium(folder, outs=False, matrix="mtx", kind="raw", image=False)
        return read_cohort(root, AS_IS).without_slide[0]


class TestHdSections(SectionContract):
    def make_section(self, folder):
        return open_cohort(load_writers().write_hd(folder)).sections[0]


@pytest.mark.parametrize("style", ["1", "2", "header in list", "packed"])
@pytest.mark.parametrize("outs", [True, False])
@pytest.mark.parametrize("matrix", ["h5", "mtx"])
def test_a_folder_of_sections_and_one_section_are_both_read(write, tmp_path, style, outs, matrix):
    root = write.write_visium(tmp_path, "P2", style=style, outs=outs, matrix=matrix)
    write.write_visium(tmp_path, "P1", style=style, outs=outs, matrix=matrix)
    cohort = open_cohort(root)
    assert (cohort.format, [s.name for s in cohort.sections]) == ("space-ranger", ["P1", "P2"])
    for folder in (root / "P1", *([root / "P1" / "outs"] if outs else [])):
        alone = open_cohort(folder).sections
        assert [s.name for s in alone] == ["P1"]
        assert alone[0].slide == root / "P1" / "P1.tif"


def test_visium_states_its_array_and_no_pixel_size(write, tmp_path):
    section = open_cohort(write.write_visium(tmp_path)).sections[0]
    assert (section.technology, section.spot_pitch_um, section.spot_diameter_um) == ("visium", 100, 55)
    assert (section.pixel_size_candidates, section.patient, section.species) == ((), None, "human")


def test_hd_states_its_spots_and_the_pixel_size(write, tmp_path):
    section = read_cohort(write.write_hd(tmp_path, bins=(8, 16)), Reading(spot_um=64, bin_um=8)).sections[0]
    assert (section.name, section.technology, section.species) == ("H1", "visium-hd", "mouse")
    assert (section.spot_pitch_um, section.spot_diameter_um) == (64, 64)
    assert section.pixel_size_candidates == (("space ranger microns_per_pixel", 0.25),)
    assert "square_008um" in str(section.counts)


@pytest.mark.parametrize("inside", ["", "H1", "H1/outs", "H1/outs/binned_outputs", str(BINS)])
def test_hd_is_one_section_from_wherever_it_is_pointed_at(write, tmp_path, inside):
    root = write.write_hd(tmp_path, bins=(8, 16))
    (section,) = open_cohort(root / inside).sections
    assert (section.name, section.counts) == ("H1", root / BINS / H5)
    assert section.slide == root / "H1" / "outs" / "H1_image.tif"


def test_bins_that_are_not_there_are_refused_with_those_that_are(write, tmp_path):
    root = write.write_hd(tmp_path, bins=(4, 8))
    with pytest.raises(CohortError, match=r"no bins of 16 um: .* has bins of 4 um, 8 um.*--bin-um"):
        open_cohort(root)
    with pytest.raises(CohortError, match="bins of 2 um are asked for"):
        read_one(root / "H1/outs/binned_outputs/square_008um" / H5, Reading(bin_um=2))


@pytest.mark.parametrize("spot_um", [100.0, 8.0, 24.0, 130.5])
def test_spots_that_are_no_whole_bins_are_refused(write, tmp_path, spot_um):
    with pytest.raises(CohortError, match=r"cannot be made of whole bins of 16 um.*multiple of 16"):
        open_cohort(write.write_hd(tmp_path), reading=Reading(spot_um=spot_um))


def test_bins_without_a_pixel_size_need_one_given(write, tmp_path):
    root = write.write_hd(tmp_path, stated=False)
    with pytest.raises(CohortError, match=r"no microns_per_pixel.*--mpp"):
        open_cohort(root)
    section = open_cohort(root, reading=Reading(mpp=0.25)).sections[0]
    assert section.load().pitch_px == pytest.approx(512)


def test_scalefactors_that_contradict_the_folder_or_are_damaged_skip_the_section(write, tmp_path):
    root = write.write_visium(write.write_hd(tmp_path))
    path = root / BINS / "spatial" / "scalefactors_json.json"
    for text, said in (('{"bin_size_um": 8}', "says bins of 8 um"), ("{", "as JSON"), ("[1]", "a JSON object")):
        path.write_text(text)
        cohort = read_cohort(root, AS_IS)
        assert [s.name for s in cohort.sections] == ["P1"]
        assert said in dict(cohort.skipped)["H1"]


def test_a_section_without_image_goes_without_slide_and_says_what_was_looked_for(write, tmp_path):
    write.write_visium(tmp_path, "P1", image=False, preview="blank")
    root = write.write_visium(tmp_path, "P2", image=False, preview="picture")
    cohort = read_cohort(root, AS_IS)
    assert [s.name for s in cohort.without_slide] == ["P1", "P2"]
    reasons = dict(cohort.skipped)
    assert f"looked in {root / 'P1'}" in reasons["P1"]
    assert "spatial/tissue_hires_image.png is blank (one colour) and unusable even for a look" in reasons["P1"]
    assert "spatial/tissue_hires_image.png is too coarse to embed" in reasons["P2"]


def test_several_images_are_named_and_none_is_taken(write, tmp_path):
    root = write.write_visium(tmp_path)
    (root / "P1" / "other.svs").touch()
    cohort = read_cohort(root, AS_IS)
    assert cohort.sections == ()
    for text in (cohort.skipped[0][1], cohort.without_slide[0].notes[0]):
        assert "P1.tif" in text
        assert "other.svs" in text


def test_the_filtered_matrix_comes_before_the_raw_and_h5_before_mtx(write, tmp_path):
    for kind, matrix in (("raw", "mtx"), ("raw", "h5"), ("filtered", "mtx"), ("filtered", "h5")):
        root = write.write_visium(tmp_path, kind=kind, matrix=matrix)
        section = open_cohort(root).sections[0]
        assert section.counts == root / VISIUM / f"{kind}_feature_bc_matrix{'.h5' * (matrix == 'h5')}"
        assert any("of which the spots in tissue are taken" in n for n in section.notes) == (kind == "raw")


def test_a_prefixed_matrix_is_found_and_two_of_them_are_refused(write, tmp_path):
    root = write.write_visium(tmp_path, library="V1_Lymph_Node_")
    section = open_cohort(root).sections[0]
    assert (section.name, section.counts.name) == ("P1", f"V1_Lymph_Node_{H5}")
    write.write_visium(tmp_path, library="other_")
    assert "several matrices" in dict(read_cohort(root, AS_IS).skipped)["P1"]
    write.write_visium(tmp_path)
    assert open_cohort(root).sections[0].counts.name == H5


def test_parts_of_sections_are_skipped_with_a_word_and_other_folders_without(write, tmp_path):
    for name in ("P1", "P2", "P3"):
        root = write.write_visium(tmp_path, name)
    (root / "P2" / "outs" / H5).unlink()
    (root / "P3" / "outs" / "spatial" / "tissue_positions.csv").unlink()
    (root / "notes").mkdir()
    cohort = open_cohort(root)
    assert [s.name for s in cohort.sections] == ["P1"]
    assert {name: reason.split(":")[0] for name, reason in cohort.skipped} == {
        "P2": "no matrix",
        "P3": "no spot positions",
    }


def test_two_lists_of_positions_are_said(write, tmp_path):
    write.write_visium(tmp_path, style="1")
    section = open_cohort(write.write_visium(tmp_path, style="2")).sections[0]
    assert section.reader.positions.name == "tissue_positions.csv"
    assert section.notes == ("tissue_positions.csv is read, tissue_positions_list.csv is not",)


def test_segmented_cells_are_named_as_not_read(write, tmp_path):
    root = write.write_hd(tmp_path)
    (root / "H1" / "outs" / "segmented_outputs").mkdir()
    assert "segmented_outputs (segmented cells) is not read" in open_cohort(root).sections[0].notes[0]


def test_one_section_is_found_by_its_matrix_or_its_folder(write, tmp_path):
    root = write.write_hd(write.write_visium(tmp_path))
    for section in open_cohort(root).sections:
        assert describe_counts(section.counts, AS_IS) == ("space-ranger", section)
    for folder in (root / VISIUM, root / "H1" / "outs"):
        section = read_one(folder, AS_IS)
        assert section.counts == folder
        assert len(section.load()) > 4


def test_files_of_other_layouts_are_left_to_others(write, tmp_path, write_legacy, write_hest):
    legacy, hest = write_legacy(tmp_path / "a"), write_hest(tmp_path / "b")
    lone = write.write_h5(tmp_path / "c" / H5, [[1] * 5], ["A-1"])
    for path in (legacy / "counts" / "C2.tsv.gz", hest / "st" / "T1.h5ad", lone, legacy, tmp_path / "absent"):
        assert read_one(path, AS_IS) is None
    assert not any(looks_like(root) for root in (legacy, hest, lone.parent, tmp_path))


def test_a_damaged_matrix_is_listed_and_refused_on_load(write, tmp_path):
    root = write.write_visium(tmp_path)
    (root / VISIUM / H5).write_bytes(b"nothing")
    section = open_cohort(root).sections[0]
    assert section.species is None
    with pytest.raises(CohortError, match=r"matrix\.h5: cannot be opened as HDF5"):
        section.load()


def test_a_section_in_the_working_folder_has_its_name_and_image(write, tmp_path, monkeypatch):
    monkeypatch.chdir(write.write_visium(tmp_path, outs=False) / "P1")
    (section,) = open_cohort(os.curdir).sections
    assert section.name == "P1"
    assert section.slide.samefile(tmp_path / "P1" / "P1.tif")


@pytest.mark.real
def test_visium_small_is_one_cohort_of_two_sections_without_slide(shared_data):
    cohort = read_cohort(shared_data / "visium_small", AS_IS)
    assert looks_like(cohort.root)
    assert [s.name for s in cohort.without_slide] == ["scanpy_1.0.0", "squidpy_100spots"]
    assert cohort.sections == ()
    for _, reason in cohort.skipped:
        assert "spatial/tissue_hires_image.png is blank (one colour) and unusable" in reason


@pytest.mark.real
@pytest.mark.parametrize("name", ["scanpy_1.0.0", "squidpy_100spots"])
def test_visium_small_has_its_pixel_size_from_100_spots(shared_data, name):
    section = read_cohort(shared_data / "visium_small", AS_IS).section(name)
    measured = section.load()
    assert (len(measured), section.species, section.technology) == (100, "human", "visium")
    assert section.spot_pitch_um / measured.pitch_px == pytest.approx(0.7246, rel=0.005)


def darkness(spatial):
    import numpy as np
    from PIL import Image

    image = 255 - np.asarray(Image.open(spatial / "tissue_lowres_image.png").convert("L"), np.float64)
    scale = json.loads((spatial / "scalefactors_json.json").read_text())["tissue_lowres_scalef"]

    def at(xy):
        x, y = np.round(xy * scale).astype(int).T
        return image[y, x].mean()

    return image.mean(), at


@pytest.mark.real
@pytest.mark.parametrize("name", ["scanpy_1.0.0", "squidpy_100spots"])
def test_visium_small_spots_lie_on_tissue(shared_data, name):
    section = read_cohort(shared_data / "visium_small", AS_IS).section(name)
    of_image, at = darkness(section.counts.parent / "spatial")
    assert at(section.load().centres) > of_image + 10


@pytest.mark.real
def test_visium_small_x_and_y_are_not_swapped(shared_data):
    from genrag_cli.cohorts.spot_positions import read_positions

    section = read_cohort(shared_data / "visium_small", AS_IS).section("scanpy_1.0.0")
    _, at = darkness(section.counts.parent / "spatial")
    positions = read_positions(section.reader.positions)
    on, off = positions.xy[positions.in_tissue], positions.xy[~positions.in_tissue]
    assert at(on) - at(off) > 25
    assert at(on) - at(off) > 5 + at(on[:, ::-1]) - at(off[:, ::-1])
