"""Folders of single cells as DeepSpot takes them, with x_pixel as row or as column."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import sparse

from genrag_cli.cohorts.base import Reading
from genrag_cli.cohorts.cells_h5ad import looks_like, read_cohort, read_one
from genrag_cli.cohorts.formats import choose_format
from genrag_cli.errors import CohortError
from genrag_cli.testing.section_contract import SectionContract

WIDE = (300, 200)
"""Width and height of a picture in which only one reading of most cells fits."""
GENES = ("ACTB", "KRT5", "NegControlProbe_00042", "BLANK_0006")


def write_cells(folder, name="S1", *, size=WIDE, row_first=True, n=40, image=True, matrix=sparse.csr_matrix, xy=None):
    """Cells all over a picture of `size`; returns their x, y and counts."""
    import anndata
    import pandas as pd

    rng = np.random.default_rng(n)
    xy = rng.random((n, 2)) * (np.array(size) - 1) if xy is None else np.asarray(xy, float)
    xy[0] = (size[0] - 2, 3) if len(xy) == n else xy[0]
    counts = rng.poisson(1.5, (len(xy), len(GENES))).astype(np.int64)
    pair = xy[:, ::-1] if row_first else xy
    obs = pd.DataFrame({"x_pixel": pair[:, 0], "y_pixel": pair[:, 1]}, index=[f"cell{i}-1" for i in range(len(xy))])
    data = anndata.AnnData(matrix(counts), obs=obs, var=pd.DataFrame(index=list(GENES)))
    folder.mkdir(parents=True, exist_ok=True)
    data.write_h5ad(folder / f"{name}.h5ad")
    (folder / f"{name}.json").write_text(json.dumps({"sample": name, "cell_diameter": 20}))
    if image:
        Image.new("RGB", size, "white").save(folder / f"{name}.jpg")
    return xy, counts


class TestCellsOfUnknownPixelSize(SectionContract):
    def make_section(self, folder):
        write_cells(folder)
        return read_cohort(folder, Reading()).sections[0]


class TestPooledCells(SectionContract):
    def make_section(self, folder):
        write_cells(folder, matrix=np.asarray)
        return read_cohort(folder, Reading(mpp=2.0)).sections[0]


@pytest.mark.parametrize("row_first", [True, False])
def test_the_reading_that_lies_inside_the_image_is_taken(tmp_path, row_first):
    xy, _ = write_cells(tmp_path, row_first=row_first)
    section = read_cohort(tmp_path, Reading()).sections[0]
    np.testing.assert_allclose(section.load().centres, xy)
    assert ("row" if row_first else "column") in section.notes[0]


def test_a_square_image_decides_nothing(tmp_path):
    write_cells(tmp_path, size=(250, 250))
    cohort = read_cohort(tmp_path, Reading())
    assert not cohort.sections
    assert "obsm['spatial']" in dict(cohort.skipped)["S1"]
    assert np.isnan(cohort.without_slide[0].load().centres).all()


def test_another_section_of_the_folder_decides_for_a_square_image(tmp_path):
    xy, _ = write_cells(tmp_path, size=(250, 250), row_first=False)
    write_cells(tmp_path, "S2", row_first=False)
    first, _ = read_cohort(tmp_path, Reading()).sections
    np.testing.assert_allclose(first.load().centres, xy)
    assert "as in S2.h5ad" in first.notes[0]


def test_sections_that_contradict_each_other_decide_for_no_third(tmp_path):
    write_cells(tmp_path, size=(250, 250))
    write_cells(tmp_path, "S2", row_first=False)
    write_cells(tmp_path, "S3", row_first=True)
    assert [s.name for s in read_cohort(tmp_path, Reading()).sections] == ["S2", "S3"]


def test_cells_outside_the_image_in_both_readings_have_no_slide(tmp_path):
    write_cells(tmp_path, xy=np.random.default_rng(0).random((40, 2)) * 900)
    cohort = read_cohort(tmp_path, Reading())
    assert "do not lie inside S1.jpg" in dict(cohort.skipped)["S1"]
    assert cohort.without_slide[0].load().counts.shape[0] == 40


def test_a_section_without_an_image_is_listed_and_still_truth(tmp_path):
    write_cells(tmp_path, image=False)
    write_cells(tmp_path, "S2")
    cohort = read_cohort(tmp_path, Reading())
    assert [s.name for s in cohort.without_slide] == ["S1"]
    assert "S1.jpg" in dict(cohort.skipped)["S1"]
    assert len(cohort.section("S1").load()) == 40


def test_without_a_pixel_size_every_cell_is_a_spot_and_that_is_said(tmp_path):
    _, counts = write_cells(tmp_path)
    section = read_cohort(tmp_path, Reading()).sections[0]
    assert section.spot_pitch_um is None
    assert any("give --mpp" in note for note in section.notes)
    np.testing.assert_array_equal(section.load().counts.toarray(), counts[:, :2])


def test_a_spot_size_without_a_pixel_size_is_refused_with_the_way_to_give_one(tmp_path):
    write_cells(tmp_path)
    section = read_cohort(tmp_path, Reading(spot_um=50)).sections[0]
    with pytest.raises(CohortError, match="--mpp"):
        section.load()


@settings(max_examples=8, deadline=None)
@given(n=st.integers(2, 60), mpp=st.sampled_from([0.5, 2.125]), side=st.sampled_from([20.0, 100.0]))
def test_pooling_keeps_every_count_and_puts_it_into_the_right_square(tmp_path_factory, n, mpp, side):
    folder = tmp_path_factory.mktemp("pooled")
    xy, counts = write_cells(folder, n=n)
    measured = read_one(folder / "S1.h5ad", Reading(mpp=mpp, spot_um=side)).load()
    assert measured.pitch_px == pytest.approx(side / mpp)
    inside = np.abs(xy[:, None] - measured.centres[None]).max(axis=2) <= side / mpp / 2 + 1e-6
    np.testing.assert_array_equal(measured.counts.toarray(), inside.T.astype(int) @ counts[:, :2])


def test_controls_are_no_genes(tmp_path):
    write_cells(tmp_path)
    section = read_cohort(tmp_path, Reading()).sections[0]
    assert section.read_genes().names.tolist() == ["ACTB", "KRT5"]
    assert any("2 control names" in note for note in section.load().notes)


def test_spots_placed_by_obsm_are_of_another_layout(tmp_path):
    import anndata

    write_cells(tmp_path)
    data = anndata.read_h5ad(tmp_path / "S1.h5ad")
    data.obsm["spatial"] = data.obs[["y_pixel", "x_pixel"]].to_numpy()
    data.write_h5ad(tmp_path / "S1.h5ad")
    assert not looks_like(tmp_path)
    assert read_one(tmp_path / "S1.h5ad", Reading()) is None


def test_a_damaged_file_stops_no_listing(tmp_path):
    write_cells(tmp_path)
    (tmp_path / "S0.h5ad").write_bytes(b"not HDF5")
    (tmp_path / "S1.json").write_text("{")
    cohort = read_cohort(tmp_path, Reading())
    assert [s.name for s in cohort.sections] == ["S1"]
    assert [name for name, _ in cohort.skipped] == ["S0"]


@pytest.mark.real
def test_real_cells_lie_on_tissue(shared_data):
    name, layout = choose_format(shared_data / "xenium_tiny", None)
    section = layout.read_cohort(shared_data / "xenium_tiny", Reading()).sections[0]
    assert (name, section.name) == ("cells-h5ad", "NCBI858")
    light = np.asarray(Image.open(section.slide).convert("L"), float)

    def under(xy):
        places = np.round(xy).astype(int)
        places = places[(places[:, 0] < light.shape[1]) & (places[:, 1] < light.shape[0])]
        return np.mean([light[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4].mean() for x, y in places])

    centres = section.load().centres
    assert under(centres) < 0.85 * light.mean()
    assert under(centres[:, ::-1]) > 0.95 * light.mean()


@pytest.mark.real
def test_real_cells_are_pooled_at_the_pixel_size_that_hest_states(shared_data):
    # Full resolution is .2125 um/px and 14306 px wide; the picture is ten times smaller.
    reading = Reading(mpp=2.125)
    section = read_one(shared_data / "xenium_tiny" / "NCBI858.h5ad", reading)
    measured = section.load()
    assert section.spot_pitch_um / measured.pitch_px == pytest.approx(2.125, rel=1e-6)
    assert measured.counts.sum() == read_one(section.counts, Reading()).load().counts.sum()
