import runpy
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.cohorts import open_cohort
from genrag_cli.cohorts.base import Reading
from genrag_cli.cohorts.formats import choose_format, describe_counts
from genrag_cli.cohorts.h5ad_folder import looks_like, read_cohort, read_one
from genrag_cli.errors import CohortError
from genrag_cli.testing.section_contract import SectionContract

AS_IS = Reading()
VALUES = np.random.default_rng(5).poisson(2, (6, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def make():
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_anndata.py"))))


@pytest.fixture
def plain(make, tmp_path):
    """Writes S1.h5ad with its picture and gives the section."""

    def write(**options):
        make.write_anndata(tmp_path / "S1.h5ad", VALUES, **options)
        (tmp_path / "S1.jpg").touch()
        return open_cohort(tmp_path).sections[0]

    return write


def write_visium(make, path, *, pitch_px=137.0, shuffle=False, **options):
    """Half a Visium array; array indices may be shuffled against the coordinates."""
    rc, xy = make.visium_array(pitch_px=pitch_px)
    rc = rc[np.random.default_rng(0).permutation(len(rc))] if shuffle else rc
    values = np.ones((len(rc), 3), np.float32)
    names = [make.barcode(i) for i in range(len(rc))]
    obs = {"array_row": rc[:, 0], "array_col": rc[:, 1]} | options.pop("obs", {})
    make.write_anndata(path, values, names=names, obs=obs, spatial=xy, **options)
    path.with_suffix(".tif").touch()
    return path


class TestPlainFiles(SectionContract):
    @pytest.fixture(autouse=True)
    def _writer(self, make):
        self.make = make

    def make_section(self, folder):
        return open_cohort(write_visium(self.make, folder / "S1.h5ad").parent).sections[0]


class TestPlainGroups(SectionContract):
    @pytest.fixture(autouse=True)
    def _writer(self, make):
        self.make = make

    def make_section(self, folder):
        if not (folder / "S1.zarr").exists():
            self.make.write_anndata(folder / "S1.zarr", VALUES)
        return read_cohort(folder, AS_IS).without_slide[0]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_folder_of_files_and_groups_is_found_out(make, tmp_path, zarr_format):
    make.write_anndata(tmp_path / "S2.zarr", VALUES, zarr_format=zarr_format)
    make.write_anndata(tmp_path / "S1.h5ad", VALUES)
    for name in ("S1.jpg", "S2.svs"):
        (tmp_path / name).touch()
    cohort = open_cohort(tmp_path)
    assert (cohort.format, [s.slide.name for s in cohort.sections]) == ("h5ad", ["S1.jpg", "S2.svs"])
    assert [s.load().genes.tolist() for s in cohort.sections] == [["G0", "G1", "G2"]] * 2
    assert read_cohort(tmp_path / "S2.zarr", AS_IS).sections == cohort.sections[1:]
    assert choose_format(tmp_path / "S2.zarr", None)[0] == "h5ad"


def test_what_a_file_does_not_state_is_unknown(plain):
    section = plain(obs={"leiden": ["1", "2"] * 3})
    assert (section.patient, section.species, section.technology) == (None, None, "unknown")
    assert (section.spot_pitch_um, section.notes) == (None, ())


def test_facts_that_hold_for_all_spots_are_taken(plain):
    obs = {"donor_id": ["D1"] * 6, "organism": ["Homo sapiens"] * 6}
    section = plain(obs=obs, uns={"assay": "Visium Spatial Gene Expression"})
    assert (section.patient, section.species, section.technology) == ("D1", "human", "visium")
    assert (section.spot_pitch_um, section.spot_diameter_um) == (100, 55)


def test_facts_that_differ_between_spots_or_columns_are_unknown_and_said(plain):
    section = plain(obs={"patient": ["A", "B"] * 3, "organism": ["Homo sapiens"] * 6}, uns={"species": "mouse"})
    assert (section.patient, section.species) == (None, None)
    assert section.notes == (
        "obs['patient'] has 2 values, such as A and B; it is not used",
        "'species' says mouse and 'organism' says Homo sapiens; neither is used",
    )


@pytest.mark.parametrize("blank", ["", "nan", "unknown", "NA"])
def test_a_blank_patient_is_unknown(plain, blank):
    assert plain(obs={"patient": [blank] * 6}).patient is None


@pytest.mark.parametrize(("genome", "species"), [("GRCh38", "human"), ("mm10-2020-A", "mouse"), ("dm6", None)])
def test_the_genome_of_the_genes_tells_the_species(plain, genome, species):
    assert plain(var={"genome": [genome] * 3}).species == species


def test_features_of_another_type_are_no_genes(plain):
    section = plain(var={"feature_types": ["Gene Expression", "Antibody Capture", "Gene Expression"]})
    assert section.load().genes.tolist() == section.read_genes().names.tolist() == ["G0", "G2"]


def test_visium_is_known_by_barcodes_and_array_and_its_pitch_comes_from_the_fit(make, tmp_path):
    section = open_cohort(write_visium(make, tmp_path / "S1.h5ad").parent).sections[0]
    assert (section.technology, section.spot_pitch_um, section.spot_diameter_um) == ("visium", 100, 55)
    assert "its spots are 100 um apart" in section.notes[0]
    measured = section.load()
    assert measured.lattice_pitch_px == pytest.approx(137, rel=1e-6)
    assert measured.array_rc[1].tolist() == [0, 2]


@pytest.mark.parametrize("change", ["names", "parity", "shuffled"])
def test_what_only_resembles_visium_is_not(make, tmp_path, change):
    rc, xy = make.visium_array()
    path = write_visium(make, tmp_path / "S1.h5ad", shuffle=change == "shuffled")
    if change != "shuffled":
        names = [f"spot{i}" if change == "names" else make.barcode(i) for i in range(len(rc))]
        obs = {"array_row": rc[:, 0] + (change == "parity"), "array_col": rc[:, 1]}
        make.write_anndata(path, np.ones((len(rc), 3), np.float32), names=names, obs=obs, spatial=xy)
    section = open_cohort(tmp_path).sections[0]
    assert (section.technology, section.load().lattice_pitch_px) == ("unknown", None)
    assert ("do not fit obsm['spatial']" in " ".join(section.notes)) == (change == "shuffled")


def test_a_stated_technology_wins_over_the_look_of_the_array(make, tmp_path):
    write_visium(make, tmp_path / "S1.h5ad", uns={"technology": "Visium HD"})
    assert open_cohort(tmp_path).sections[0].technology == "visium-hd"


@pytest.mark.parametrize("place", [".", "images", "wsis", "slides"])
@pytest.mark.parametrize("ending", [".ome.tif", ".svs", ".TIF", ".png"])
def test_the_slide_is_the_image_of_the_same_name(make, tmp_path, place, ending):
    make.write_anndata(tmp_path / "S1.h5ad", VALUES)
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / f"S1{ending}").touch()
    (tmp_path / place / f"S10{ending}").touch()
    assert open_cohort(tmp_path).sections[0].slide == tmp_path / place / f"S1{ending}"


def test_several_images_are_as_good_as_none_and_are_named(make, tmp_path):
    make.write_anndata(tmp_path / "S1.h5ad", VALUES)
    (tmp_path / "wsis").mkdir()
    for name in ("S1.jpg", "wsis/S1.svs"):
        (tmp_path / name).touch()
    cohort = read_cohort(tmp_path, AS_IS)
    assert cohort.without_slide[0].slide is None
    assert "S1.jpg" in dict(cohort.skipped)["S1"]
    assert "S1.svs" in dict(cohort.skipped)["S1"]


def test_one_image_under_two_names_is_one(make, tmp_path):
    make.write_anndata(tmp_path / "S1.h5ad", VALUES)
    (tmp_path / "S1.svs").touch()
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "S1.svs").symlink_to(tmp_path / "S1.svs")
    assert open_cohort(tmp_path).sections[0].slide == tmp_path / "S1.svs"


def test_the_image_that_the_file_names_serves_where_it_exists(make, tmp_path):
    image = tmp_path / "scans" / "a.svs"
    uns = {"spatial": {"lib": {"metadata": {"source_image_path": str(image)}}}}
    make.write_anndata(tmp_path / "S1.h5ad", VALUES, uns=uns)
    assert f"{image} (uns source_image_path) does not exist here" in dict(read_cohort(tmp_path, AS_IS).skipped)["S1"]
    image.parent.mkdir()
    image.touch()
    assert open_cohort(tmp_path).sections[0].slide == image


def test_a_file_of_several_libraries_needs_spots_that_name_one(make, tmp_path):
    uns = {"spatial": {"a": {"x": 1}, "b": {"x": 1}}}
    make.write_anndata(tmp_path / "S1.h5ad", VALUES, uns=uns)
    make.write_anndata(tmp_path / "S2.h5ad", VALUES, uns=uns, obs={"library_id": ["b"] * 6})
    cohort = read_cohort(tmp_path, AS_IS)
    assert [s.name for s in cohort.without_slide] == ["S2"]
    assert "2 libraries (a, b)" in dict(cohort.skipped)["S1"]


def test_files_that_are_no_sections_are_skipped_with_reasons(make, tmp_path):
    make.write_anndata(tmp_path / "S1.h5ad", VALUES)
    make.write_anndata(tmp_path / "bare.h5ad", VALUES, spatial=None)
    make.write_anndata(tmp_path / "made.h5ad", VALUES, uns={"generag": {"version": "1"}})
    (tmp_path / "text.h5ad").write_text("x")
    skipped = dict(read_cohort(tmp_path, AS_IS).skipped)
    assert "no slide" in skipped["S1"]
    assert "no obsm['spatial']" in skipped["bare"]
    assert "a prediction of generag" in skipped["made"]
    assert "cannot be opened as HDF5" in skipped["text"]


def test_a_file_and_a_group_of_one_name_are_refused(make, tmp_path):
    make.write_anndata(tmp_path / "S1.h5ad", VALUES)
    make.write_anndata(tmp_path / "S1.zarr", VALUES)
    with pytest.raises(CohortError, match=r"two files for section S1: .*S1\.h5ad and .*S1\.zarr"):
        read_cohort(tmp_path, AS_IS)


def test_other_layouts_are_left_to_their_readers(make, write_hest, tmp_path):
    make.write_task(tmp_path / "bench")
    make.write_anndata(tmp_path / "bench" / "S9.h5ad", VALUES)
    make.write_anndata(write_hest(tmp_path / "hest") / "all.h5ad", VALUES)
    make.write_anndata(tmp_path / "cells" / "C1.h5ad", VALUES, spatial=None, obs={"x_pixel": [1.0] * 6})
    make.write_anndata(tmp_path / "outs" / "C1.h5ad", VALUES)
    (tmp_path / "outs" / "spatial").mkdir()
    (tmp_path / "outs" / "spatial" / "tissue_positions.csv").touch()
    assert not any(looks_like(tmp_path / name) for name in ("bench", "hest", "cells", "outs"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "store.zarr").mkdir()
    assert not looks_like(tmp_path / "empty")


def test_one_file_is_known_alone_and_others_are_not(make, tmp_path):
    write_visium(make, tmp_path / "S1.h5ad")
    assert describe_counts(tmp_path / "S1.h5ad", AS_IS) == ("h5ad", open_cohort(tmp_path).sections[0])
    make.write_anndata(tmp_path / "S2.h5ad", VALUES)
    assert "no slide: no image is called S2" in read_one(tmp_path / "S2.h5ad", AS_IS).notes[0]
    bare = make.write_anndata(tmp_path / "bare.h5ad", VALUES, spatial=None)
    assert [read_one(p, AS_IS) for p in (bare, tmp_path / "S1.tif", tmp_path / "absent.h5ad")] == [None] * 3


def test_log_values_are_refused_unless_a_layer_holds_the_counts(make, tmp_path):
    make.write_anndata(tmp_path / "S1.h5ad", np.log1p(VALUES))
    make.write_anndata(tmp_path / "S2.h5ad", np.log1p(VALUES), layers={"counts": VALUES})
    one, two = read_cohort(tmp_path, AS_IS).without_slide
    with pytest.raises(CohortError, match="Put raw counts in X, or in layers"):
        one.load()
    np.testing.assert_array_equal(two.load().counts.toarray(), VALUES)


@settings(max_examples=15, deadline=None)
@given(
    pitch=st.floats(20, 400), turn=st.floats(-3, 3), n=st.integers(6, 20), order=st.randoms(use_true_random=False),
    form=st.sampled_from(["dense", "csr", "csc"]),
)  # fmt: skip
def test_the_pitch_is_right_with_missing_and_shuffled_spots(make, pitch, turn, n, order, form):
    rc, xy = make.visium_array(pitch_px=pitch, turn=turn)
    rows = order.sample(range(len(rc)), n)
    obs = {"array_row": rc[rows, 0], "array_col": rc[rows, 1]}
    with tempfile.TemporaryDirectory() as folder:
        path = make.write_anndata(
            Path(folder) / "a.h5ad", np.ones((n, 2), np.float32), form=form, names=[make.barcode(i) for i in rows],
            obs=obs, spatial=xy[rows],
        )  # fmt: skip
        section = read_one(path, AS_IS)
        measured = section.load()
    on_a_plane = np.linalg.matrix_rank(np.column_stack([np.ones(n), rc[rows]])) == 3
    assert (section.technology == "visium") == on_a_plane
    assert not on_a_plane or measured.pitch_px == pytest.approx(pitch, rel=1e-6)
    np.testing.assert_array_equal(measured.centres, xy[rows])
