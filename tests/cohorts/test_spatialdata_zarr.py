"""SpatialData stores, written by the spatialdata package and read without it."""

import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from genrag_cli.cohorts.base import Reading
from genrag_cli.cohorts.formats import choose_format
from genrag_cli.cohorts.spatialdata_zarr import looks_like, read_cohort, read_one
from genrag_cli.errors import CohortError
from genrag_cli.testing.section_contract import SectionContract

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from spatialdata.models import Labels2DModel
    from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

    make = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_spatialdata.py"))))

circles, hexagons, image, save, table = make.circles, make.hexagons, make.image, make.save, make.table
write_bins, write_cells, write_visium = make.write_bins, make.write_cells, make.write_visium


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Stores that tests read and do not change."""
    folder = tmp_path_factory.mktemp("spatialdata")
    return SimpleNamespace(visium=write_visium(folder), cells=write_cells(folder), bins=write_bins(folder))


def copied(store, folder):
    if not (folder / store.name).exists():
        shutil.copytree(store, folder / store.name)
    return folder


class TestVisiumStore(SectionContract):
    @pytest.fixture(autouse=True)
    def _written(self, written):
        self.written = written

    def make_section(self, folder):
        return read_cohort(copied(self.written.visium.store, folder), Reading(mpp=0.5)).sections[0]


class TestCellsOfAStore(TestVisiumStore):
    def make_section(self, folder):
        return read_cohort(copied(self.written.cells.store, folder), Reading(mpp=0.5)).sections[0]


class TestBinsOfAStore(TestVisiumStore):
    def make_section(self, folder):
        return read_cohort(copied(self.written.bins, folder), Reading(spot_um=64)).sections[0]


def test_visium_spots_lie_where_the_transformations_say(written):
    section = read_one(written.visium.store, Reading())
    measured = section.load()
    np.testing.assert_allclose(measured.centres, written.visium.xy, atol=1e-6)
    np.testing.assert_array_equal(measured.counts.toarray(), written.visium.counts)
    assert (section.technology, section.spot_pitch_um, section.slide.name) == ("visium", 100, "spots_image")
    assert 100 / measured.pitch_px == pytest.approx(100 / (make.PITCH * 1.6))


@settings(max_examples=5, deadline=None)
@given(drop=st.sets(st.integers(0, 35), max_size=20), ids=st.sampled_from(["number", "text"]))
def test_rows_and_shapes_join_by_instance_key_in_any_order(tmp_path_factory, drop, ids):
    made = write_visium(tmp_path_factory.mktemp("joined"), drop=drop, ids=ids)
    measured = read_one(made.store, Reading()).load()
    kept = [i for i in range(36) if i not in drop]
    np.testing.assert_allclose(measured.centres, made.xy[kept], atol=1e-6)
    np.testing.assert_array_equal(measured.counts.toarray(), made.counts[kept])
    assert any(f"{len(drop)} of 36 rows" in note for note in measured.notes) == bool(drop)


@pytest.mark.parametrize("sdata_formats", [None, make.ZARR_2, make.OLDEST], ids=["zarr 3", "zarr 2", "format 0.1"])
@pytest.mark.parametrize("matrix", [sparse.csr_matrix, sparse.csc_matrix, np.asarray], ids=["csr", "csc", "dense"])
def test_every_version_and_kind_of_matrix_reads_the_same(tmp_path, sdata_formats, matrix):
    made = write_visium(tmp_path, sdata_formats=sdata_formats, matrix=matrix)
    section = read_one(made.store / "tables" / "table", Reading())
    measured = section.load()
    np.testing.assert_allclose(measured.centres, made.xy, atol=1e-6)
    np.testing.assert_array_equal(measured.counts.toarray(), made.counts)
    assert section.slide is not None


def test_the_spatialdata_package_is_not_needed(written):
    code = (
        "import sys, pathlib\n"
        "for name in ('spatialdata', 'geopandas', 'shapely', 'dask', 'xarray'): sys.modules[name] = None\n"
        "from genrag_cli.cohorts import open_cohort\n"
        f"print(len(open_cohort({str(written.visium.store)!r}).sections[0].load()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "36\n"


def test_spots_out_of_tissue_are_left_out(tmp_path):
    in_tissue = (np.arange(36) > 3).astype(int)
    measured = read_one(write_visium(tmp_path, obs={"in_tissue": in_tissue}).store, Reading()).load()
    assert len(measured) == 32
    assert any("4 of 36 rows of table are not in tissue" in note for note in measured.notes)


def test_names_that_do_not_fit_are_refused_with_an_example_of_both(tmp_path):
    made = write_visium(tmp_path)
    names = made.store / "shapes" / "spots" / "shapes.parquet"
    import pandas as pd

    pd.read_parquet(names).set_axis([f"other{i}" for i in range(36)]).to_parquet(names)
    assert "other" in dict(read_cohort(tmp_path, Reading()).skipped)["V"]
    with pytest.raises(CohortError, match="is not one section"):
        read_one(made.store, Reading())


def test_cells_are_pooled_on_a_turned_image_by_where_they_lie(written):
    section = read_one(written.cells.store, Reading(mpp=0.5))
    measured = section.load()
    inside = np.abs(written.cells.px[:, None] - measured.centres[None]).max(axis=2) <= 100 + 1e-6
    assert (inside.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(measured.counts.toarray(), inside.T.astype(int) @ written.cells.counts)
    assert (section.spot_pitch_um, measured.pitch_px) == (100, 200)


def test_polygons_serve_as_circles_do(tmp_path, written):
    made = write_cells(tmp_path, kind="polygons")
    reading = Reading(mpp=0.5, spot_um=50)
    polygons, circled = read_one(made.store, reading).load(), read_one(written.cells.store, reading).load()
    np.testing.assert_allclose(polygons.centres, circled.centres, atol=0.1)
    assert (polygons.counts != circled.counts).nnz == 0


def test_without_a_pixel_size_cells_stay_single_and_that_is_said(written):
    section = read_one(written.cells.store, Reading())
    measured = section.load()
    np.testing.assert_allclose(measured.centres, written.cells.px, atol=1e-6)
    assert section.spot_pitch_um is None
    assert any("give --mpp" in note for note in section.notes)
    with pytest.raises(CohortError, match="--mpp"):
        read_one(written.cells.store, Reading(spot_um=50)).load()


def test_a_system_in_micrometres_gives_the_pixel_size(tmp_path):
    section = read_one(write_cells(tmp_path, unit="micrometer").store, Reading())
    ((source, mpp),) = section.pixel_size_candidates
    assert (source, mpp) == ("spatialdata global unit", pytest.approx(0.5))
    assert section.load().pitch_px == pytest.approx(200)


@pytest.mark.parametrize("bin_um", [None, 8, 16])
def test_bins_of_one_size_are_read_and_pooled_at_their_own_scale(written, bin_um):
    cohort = read_cohort(written.bins, Reading(bin_um=bin_um, spot_um=64))
    (section,) = cohort.sections
    measured = section.load()
    assert (section.name, section.technology, len(measured)) == ("H", "visium-hd", 16)
    assert measured.centres.min() == pytest.approx(64)
    assert measured.pitch_px == pytest.approx(128)
    assert f"{bin_um or 16} um are read" in cohort.skipped[0][1]


def test_several_regions_are_several_sections_each_on_its_image(tmp_path):
    _, xy = hexagons()
    region = np.array(["A"] * 36 + ["B"] * 36)
    pictures = {f"{name}_image": image(transformations={"global": Identity()}) for name in "AB"}
    shapes = {"A": circles(xy, 9.0, range(36)), "B": circles(xy + 50, 9.0, range(36, 72))}
    store = save(tmp_path / "S.zarr", images=pictures, shapes=shapes, tables={"t": table(region, list(range(72)))})
    cohort = read_cohort(tmp_path, Reading())
    assert [(s.name, s.slide.name) for s in cohort.sections] == [("S.A", "A_image"), ("S.B", "B_image")]
    second = read_one(store / "shapes" / "B", Reading())
    assert second == cohort.sections[1]
    np.testing.assert_allclose(second.load().centres, xy + 50)
    with pytest.raises(CohortError, match="shapes/A, shapes/B"):
        read_one(store, Reading())


def test_labels_are_refused_and_named(tmp_path):
    labels = Labels2DModel.parse(np.arange(100).reshape(10, 10) % 5, dims=("y", "x"))
    save(tmp_path / "L.zarr", labels={"cells": labels}, tables={"t": table("cells", [1, 2, 3, 4])})
    cohort = read_cohort(tmp_path, Reading())
    assert not (*cohort.sections, *cohort.without_slide)
    assert "annotates labels" in dict(cohort.skipped)["L.cells"]


def test_tables_of_one_region_or_of_none_are_named(tmp_path):
    _, xy = hexagons()
    loose = table("spots", list(range(36)))
    del loose.uns["spatialdata_attrs"]
    tables = {"a": table("spots", list(range(36))), "b": table("spots", list(range(36))), "loose": loose}
    save(tmp_path / "S.zarr", shapes={"spots": circles(xy, 9.0, range(36))}, tables=tables)
    cohort = read_cohort(tmp_path, Reading())
    assert not (*cohort.sections, *cohort.without_slide)
    reasons = dict(cohort.skipped)
    assert "several tables annotate it (a, b)" in reasons["S.spots"]
    assert "annotates no element" in reasons["S.loose"]


def test_a_slide_beside_the_store_comes_first_where_shapes_count_in_its_px(tmp_path):
    _, xy = hexagons()
    coarse = image(transformations={"small": Identity()})
    shapes = circles(xy, 9.0, range(36), {"global": Identity(), "small": Scale([0.1, 0.1], axes=("x", "y"))})
    save(tmp_path / "S.zarr", images={"hires": coarse}, shapes={"p": shapes}, tables={"t": table("p", list(range(36)))})
    (tmp_path / "S.tif").write_bytes(b"not opened by cohorts")
    (section,) = read_cohort(tmp_path, Reading()).sections
    assert section.slide == tmp_path / "S.tif"
    np.testing.assert_allclose(section.load().centres, xy)
    assert "'global'" in section.notes[0]


def test_a_slide_beside_a_store_whose_shapes_count_otherwise_is_not_taken(tmp_path):
    made = write_visium(tmp_path)
    (tmp_path / "V.tif").write_bytes(b"not opened by cohorts")
    section = read_one(made.store, Reading())
    assert section.slide == made.store / "images" / "spots_image"
    assert "V.tif beside the store cannot be its slide" in section.notes[0]


SHEARED = Affine(np.array([[1.0, 0.4, 0], [0, 1, 0], [0, 0, 1]]), ("x", "y"), ("x", "y"))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ({}, "no RGB image of V.zarr"),
        ({"if": image(channels=2, transformations={"global": Identity()})}, "no RGB image of 8 bits"),
        ({"he": image((900, 900), transformations={"elsewhere": Identity()})}, "no RGB image of V.zarr shares"),
        ({"he": image((900, 900), transformations={"global": SHEARED})}, "shears"),
        ({name: image((900, 900), transformations={"global": Identity()}) for name in ("a", "b")}, "several images"),
        ({"low": image((90, 90), transformations={"global": Scale([8.0, 8.0], axes=("x", "y"))})}, "too coarse"),
    ],
    ids=["none", "fluorescence", "elsewhere", "sheared", "two", "coarse"],
)
def test_a_store_without_one_good_image_is_listed_without_slide(tmp_path, images, said):
    write_visium(tmp_path, images=images)
    cohort = read_cohort(tmp_path, Reading())
    assert said in dict(cohort.skipped)["V"]
    assert cohort.without_slide[0].slide is None
    assert len(cohort.section("V").load()) == 36


def test_the_finest_of_several_images_is_taken(tmp_path):
    images = {
        "a_fine": image((900, 900), transformations={"global": Identity()}),
        "b_low": image((90, 90), transformations={"global": Scale([10.0, 10.0], axes=("x", "y"))}),
    }
    assert read_one(write_visium(tmp_path, images=images).store, Reading()).slide.name == "a_fine"


def test_coordinate_systems_that_contradict_each_other_place_nothing(tmp_path):
    _, xy = hexagons()
    shifted = Sequence([Identity(), Translation([50.0], axes=("x",))])
    picture = image(transformations={"global": Identity(), "other": Identity()})
    shapes = circles(xy, 9.0, range(36), {"global": Scale([2.0, 2.0], axes=("x", "y")), "other": shifted})
    save(tmp_path / "S.zarr", images={"he": picture}, shapes={"p": shapes}, tables={"t": table("p", list(range(36)))})
    assert "place the shapes differently" in read_cohort(tmp_path, Reading()).skipped[0][1]


def test_spots_beside_their_image_are_refused(tmp_path):
    _, xy = hexagons()
    picture = image((100, 80), transformations={"global": Identity()})
    save(
        tmp_path / "S.zarr", images={"he": picture}, shapes={"p": circles(xy + 500, 9.0, range(36))},
        tables={"t": table("p", list(range(36)))},
    )  # fmt: skip
    with pytest.raises(CohortError, match="36 of 36 rows of region 'p' lie beside"):
        read_one(tmp_path / "S.zarr", Reading()).load()


def test_a_region_that_is_gone_falls_back_to_obsm_on_the_slide_beside_it(tmp_path):
    made = write_visium(tmp_path, with_obsm=True)
    shutil.rmtree(made.store / "shapes" / "spots")
    assert "no one slide" in read_cohort(tmp_path, Reading()).skipped[0][1]
    (tmp_path / "V.tif").write_bytes(b"not opened by cohorts")
    (section,) = read_cohort(tmp_path, Reading()).sections
    np.testing.assert_allclose(section.load().centres, made.xy)
    assert "obsm['spatial'] is taken for px" in section.notes[0]


def test_features_of_other_types_are_no_genes(tmp_path):
    made = write_visium(tmp_path, var={"feature_types": ["Gene Expression", "Antibody Capture", "Gene Expression"]})
    section = read_one(made.store, Reading())
    assert section.read_genes().names.tolist() == section.load().genes.tolist() == ["ACTB", "CD4"]


def test_the_layout_is_told_from_other_folders_of_zarr(written, tmp_path):
    assert choose_format(written.visium.store.parent, None)[0] == "spatialdata"
    (tmp_path / "bank.zarr").mkdir()
    (tmp_path / "bank.zarr" / "zarr.json").write_text("{}")
    assert not looks_like(tmp_path)
    assert read_one(tmp_path / "bank.zarr", Reading()) is None
