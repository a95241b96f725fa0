"""SpatialData stores, written by the spatialdata package and read without it."""

import shutil
import subprocess
import sys
import warnings
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
    import spatialdata
    from spatialdata._io import format as formats
    from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

GENES = ("ACTB", "KRT5", "CD4")
PITCH = 40.0
"""px between Visium spots of the stores below: 2.5 um per px without a scale."""
ZARR_2 = [formats.SpatialDataContainerFormatV01(), formats.RasterFormatV02(), formats.ShapesFormatV02(),
          formats.TablesFormatV01()]  # fmt: skip
OLDEST = [formats.SpatialDataContainerFormatV01(), formats.RasterFormatV01(), formats.ShapesFormatV01(),
          formats.TablesFormatV01()]  # fmt: skip


def image(size=(400, 300), channels=3, transformations=None, **options):
    """A picture of noise."""
    pixels = np.random.default_rng(1).integers(0, 255, (channels, size[1], size[0]), dtype=np.uint8)
    return Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=transformations, **options)


def table(region, instances, *, obs=None, matrix=sparse.csr_matrix, genes=GENES, var=None, seed=0, prefix="spot"):
    """A table that annotates one region, or several where `region` is an array."""
    import anndata
    import pandas as pd

    n = len(instances)
    counts = np.random.default_rng(seed).poisson(2, (n, len(genes))).astype(np.float32)
    names = [f"{prefix}{i}-1" for i in range(n)]
    frame = pd.DataFrame(
        {"region": pd.Categorical(np.broadcast_to(region, n)), "id": instances, **(obs or {})}, index=names
    )
    data = anndata.AnnData(matrix(counts), obs=frame, var=pd.DataFrame(var or {}, index=list(genes)))
    regions = sorted(set(np.broadcast_to(region, n).tolist()))
    return TableModel.parse(
        data, region=regions if len(regions) > 1 else regions[0], region_key="region", instance_key="id"
    )


def circles(xy, radius, index, transformations=None):
    shapes = ShapesModel.parse(np.asarray(xy, float), geometry=0, radius=radius, transformations=transformations)
    shapes.index = list(index)
    return shapes


def hexagons(rows=6, columns=6):
    """array_row, array_col and x, y in px of a Visium lattice."""
    rc = np.array([(r, 2 * c + r % 2) for r in range(rows) for c in range(columns)])
    return rc, np.stack([rc[:, 1] * PITCH / 2, rc[:, 0] * PITCH * np.sqrt(3) / 2], axis=1) + 30


def save(path, *, sdata_formats=None, **elements):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spatialdata.SpatialData(**elements).write(path, sdata_formats=sdata_formats)
    return path


def write_visium(
    folder,
    name="V",
    *,
    shuffle=True,
    ids="number",
    images=None,
    drop=(),
    sdata_formats=None,
    with_obsm=False,
    **options,
):
    """Spots as spatialdata-io writes them; returns the store, its positions and counts in the order of the table."""
    rc, xy = hexagons()
    names = [i + 100 if ids == "number" else f"s{i}" for i in range(len(rc))]
    order = np.random.default_rng(3).permutation(len(rc)) if shuffle else np.arange(len(rc))
    order = [i for i in order if i not in drop]
    obs = {"array_row": rc[:, 0], "array_col": rc[:, 1], "in_tissue": np.ones(len(rc), int), **options.pop("obs", {})}
    annotation = table("spots", names, obs=obs, **options)
    if with_obsm:
        annotation.obsm["spatial"] = xy * 1.6
    spots = circles(xy[order], PITCH * 0.275, [names[i] for i in order], {"global": Scale([2.0, 2.0], axes=("x", "y"))})
    pictures = {"spots_image": image((600, 500), transformations={"global": Scale([1.25, 1.25], axes=("x", "y"))})}
    store = save(
        folder / f"{name}.zarr", images=pictures if images is None else images, shapes={"spots": spots},
        tables={"table": annotation}, sdata_formats=sdata_formats,
    )  # fmt: skip
    counts = annotation.X.toarray() if sparse.issparse(annotation.X) else annotation.X
    return SimpleNamespace(store=store, xy=xy * 2 / 1.25, counts=counts, annotation=annotation)


def write_cells(folder, name="C", *, kind="circles", unit=None):
    """Cells in um, on an image that lies turned by a quarter and scaled, as a Xenium store has it."""
    from shapely import Point

    rng = np.random.default_rng(5)
    xy, radii = rng.random((80, 2)) * (500, 300) + 50, rng.random(80) * 4 + 3
    ids = [f"aaaa{i}-1" for i in range(80)]
    # H&E of .5 um/px: px to um, a quarter turn.
    turned = Affine(np.array([[0.0, 0.5, 0.0], [-0.5, 0.0, 600.0], [0, 0, 1]]), ("x", "y"), ("x", "y"))
    pictures = {"he_image": image((1300, 1200), transformations={"global": turned})}
    if kind == "circles":
        shapes = circles(xy, radii, ids, {"global": Identity()})
    else:
        import geopandas

        frame = geopandas.GeoDataFrame(
            {"geometry": [Point(*p).buffer(r) for p, r in zip(xy, radii, strict=True)]}, index=ids
        )
        shapes = ShapesModel.parse(frame, transformations={"global": Identity()})
    annotation = table("cells", ids, prefix="cell")
    store = save(folder / f"{name}.zarr", images=pictures, shapes={"cells": shapes}, tables={"table": annotation})
    if unit:
        metadata = store / "images" / "he_image" / "zarr.json"
        metadata.write_text(metadata.read_text().replace('"unit"', f'"{unit}"').replace(f'"{unit}":', '"unit":'))
    px = np.stack([(600 - xy[:, 1]) / 0.5, xy[:, 0] / 0.5], axis=1)
    return SimpleNamespace(store=store, px=px, counts=annotation.X.toarray())


def write_bins(folder, sizes=(8, 16)):
    """Visium HD: a table and squares for each size of bin over 256 um, .5 um per px."""
    import geopandas
    from shapely import box

    shapes, tables = {}, {}
    for um in sizes:
        n = 256 // um
        rc, side = np.array([(r, c) for r in range(n) for c in range(n)]), um / 0.5
        squares = [box(c * side, r * side, (c + 1) * side, (r + 1) * side) for r, c in rc]
        name = f"H_square_{um:03}um"
        shapes[name] = ShapesModel.parse(
            geopandas.GeoDataFrame({"geometry": squares}), transformations={"global": Identity()}
        )
        obs = {"array_row": rc[:, 0], "array_col": rc[:, 1]}
        tables[f"square_{um:03}um"] = table(name, list(range(len(rc))), obs=obs, prefix=f"s_{um:03}um_")
    pictures = {"H_full_image": image((512, 512), transformations={"global": Identity()})}
    return save(folder / "H.zarr", images=pictures, shapes=shapes, tables=tables)


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
    assert 100 / measured.pitch_px == pytest.approx(100 / (PITCH * 1.6))


@settings(max_examples=5, deadline=None)
@given(drop=st.sets(st.integers(0, 35), max_size=20), ids=st.sampled_from(["number", "text"]))
def test_rows_and_shapes_join_by_instance_key_in_any_order(tmp_path_factory, drop, ids):
    made = write_visium(tmp_path_factory.mktemp("joined"), drop=drop, ids=ids)
    measured = read_one(made.store, Reading()).load()
    kept = [i for i in range(36) if i not in drop]
    np.testing.assert_allclose(measured.centres, made.xy[kept], atol=1e-6)
    np.testing.assert_array_equal(measured.counts.toarray(), made.counts[kept])
    assert any(f"{len(drop)} of 36 rows" in note for note in measured.notes) == bool(drop)


@pytest.mark.parametrize("sdata_formats", [None, ZARR_2, OLDEST], ids=["zarr 3", "zarr 2", "format 0.1"])
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
