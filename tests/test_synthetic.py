import csv
import hashlib
from pathlib import Path

import anndata
import numpy as np
import openslide
import pandas as pd
import pytest
import tifffile
from scipy.optimize import nnls

from genrag_cli.backbones.encoders.stain import measure_stains
from genrag_cli.backbones.probe import fit_head
from genrag_cli.errors import UsageError
from genrag_cli.synthetic import MPP, PITCH_UM, MadeUpSection, draw_section, solver_problem, write_cohort

SMALL = {"size_px": 800, "n_genes": 60}


@pytest.fixture(scope="module")
def sections() -> list[MadeUpSection]:
    return [draw_section(patient, 1, size_px=1600, n_genes=80) for patient in (1, 2, 3)]


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("legacy")
    write_cohort(folder, patients=2, sections_per_patient=2, seed=3, **SMALL)
    return folder


@pytest.fixture(scope="module")
def hest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hest")
    write_cohort(folder, patients=2, layout="hest", seed=3, **SMALL)
    return folder


def read_counts(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", index_col=0)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def cut_tiles(section: MadeUpSection, side: int = 160) -> np.ndarray:
    corners = np.round(section.centres - side / 2).astype(int)
    return np.stack([section.image[y : y + side, x : x + side] for x, y in corners])


def test_openslide_opens_a_pyramid_with_its_pixel_size(legacy: Path) -> None:
    with openslide.OpenSlide(legacy / "images" / "P1_1.tif") as slide:
        assert slide.level_dimensions == ((800, 800), (400, 400))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(MPP)
        corner = np.asarray(slide.read_region((0, 0), 0, (30, 30)))[..., :3]
    assert corner.mean() > 230


def test_slide_is_tiled_and_no_bigtiff(legacy: Path) -> None:
    with tifffile.TiffFile(legacy / "images" / "P1_1.tif") as file:
        assert not file.is_bigtiff
        assert all(page.is_tiled for page in file.pages)
        assert [page.subfiletype for page in file.pages] == [0, 1]


def test_slide_holds_what_was_drawn(legacy: Path) -> None:
    drawn = draw_section(1, 1, seed=3, **SMALL).image
    stored = tifffile.imread(legacy / "images" / "P1_1.tif", key=0)
    assert np.abs(stored.astype(int) - drawn).mean() < 8


def test_legacy_tables_hold_the_planted_counts_by_name(legacy: Path) -> None:
    section = draw_section(2, 1, seed=3, **SMALL)
    counts = read_counts(legacy / "counts" / "P2_1.tsv.gz")
    assert list(counts.columns) != list(section.genes)
    np.testing.assert_array_equal(counts[section.genes], section.counts)
    spots = pd.read_csv(legacy / "spots" / "P2_1_selection.tsv", sep="\t")
    assert [f"{x}x{y}" for x, y in zip(spots.x, spots.y, strict=True)] == list(counts.index)
    np.testing.assert_allclose(spots[["pixel_x", "pixel_y"]], section.centres, atol=0.01)


def test_spots_are_one_pitch_apart_and_within_the_slide(sections: list[MadeUpSection]) -> None:
    section = sections[0]
    steps = np.diff(section.centres, axis=0)
    along = (np.diff(section.array_xy, axis=0) == [1, 0]).all(axis=1)
    np.testing.assert_allclose(steps[along], np.tile([PITCH_UM / MPP, 0], (along.sum(), 1)), atol=0.011)
    assert (section.centres > 0).all()
    assert (section.centres < 1600).all()


def test_spots_lie_in_tissue(sections: list[MadeUpSection]) -> None:
    stained = measure_stains(cut_tiles(sections[0], 80))[:, 2]
    glass = measure_stains(sections[0].image[None, :80, :80])[0, 2]
    assert stained.min() > 1.5 * glass


def test_section_of_the_default_size_has_enough_spots() -> None:
    assert 180 <= len(draw_section(1, 2).centres) <= 260


def test_same_arguments_give_the_same_bytes(legacy: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path, patients=2, sections_per_patient=2, seed=3, **SMALL)
    assert digest(tmp_path) == digest(legacy)


def test_seed_changes_image_and_counts() -> None:
    one, other = (draw_section(1, 1, seed=seed, **SMALL) for seed in (0, 1))
    assert (one.image != other.image).mean() > 0.3
    assert not np.array_equal(one.loadings, other.loadings)


def test_hest_counts_open_in_anndata(hest: Path) -> None:
    section = draw_section(2, 1, seed=3, **SMALL)
    adata = anndata.read_h5ad(hest / "st" / "P2_1.h5ad")
    np.testing.assert_array_equal(adata[:, section.genes].X.toarray(), section.counts)
    np.testing.assert_allclose(adata.obsm["spatial"], section.centres)
    np.testing.assert_array_equal(adata.obs[["array_col", "array_row"]], section.array_xy)
    adata.write_h5ad(hest / "again.h5ad")


def test_hest_table_names_slides_and_patients(hest: Path) -> None:
    text = (hest / "HEST_made_up.csv").read_bytes()
    assert text.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(text.decode("utf-8-sig").splitlines()))
    assert [row["patient"] for row in rows] == ["P1", "P2"]
    assert float(rows[0]["pixel_size_um_estimated"]) == MPP
    assert all((hest / "wsis" / row["image_filename"]).is_file() for row in rows)


def test_genes_carry_their_program_and_nothing_else(sections: list[MadeUpSection]) -> None:
    section = sections[0]
    program = np.array([name[:3] for name in section.genes])
    for k, name in enumerate(("TUM", "STR", "IMM", "ADI")):
        np.testing.assert_array_equal(section.loadings[k] > 0, program == name)
    assert {"MT-", "RPS", "RPL", "HK0"} <= set(program)


def test_counts_follow_the_planted_programs(sections: list[MadeUpSection]) -> None:
    counts = np.concatenate([s.counts for s in sections])
    logged = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    activity = np.concatenate([s.activity for s in sections])
    for k, program in enumerate(("TUM", "STR", "IMM", "ADI")):
        mean = logged[:, np.char.startswith(sections[0].genes, program)].mean(axis=1)
        r = [np.corrcoef(mean, activity[:, j])[0, 1] for j in range(4)]
        assert r[k] > 0.6
        assert np.argmax(r) == k


def test_patients_are_stained_differently(sections: list[MadeUpSection]) -> None:
    tints = np.array([measure_stains(cut_tiles(s))[:, :2].mean(axis=0) for s in sections])
    assert np.ptp(tints, axis=0).max() > 0.02


def test_held_out_patients_programs_can_be_predicted_from_the_image(sections: list[MadeUpSection]) -> None:
    stains = [measure_stains(cut_tiles(s)) for s in sections]
    x = np.concatenate([(v - v.mean(axis=0)) / v.std(axis=0) for v in stains])
    counts = np.concatenate([s.counts for s in sections])
    y = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    patient = np.repeat([s.patient for s in sections], [len(s.centres) for s in sections])
    held = patient == "P3"
    y = y[:, sections[0].loadings.any(axis=0)]
    predicted = fit_head(x[~held], y[~held], patient[~held]).predict(x[held])
    assert np.median([np.corrcoef(p, t)[0, 1] for p, t in zip(predicted.T, y[held].T, strict=True)]) > 0.3


@pytest.mark.parametrize("wrong", [{"size_px": 100}, {"n_genes": 10}, {"layout": "visium"}])
def test_cohort_that_cannot_be_made_is_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(UsageError):
        write_cohort(tmp_path, **(SMALL | wrong))
    assert not list(tmp_path.iterdir())


def test_solver_problem_has_correlated_columns_and_a_mixture_behind_each_query() -> None:
    dictionary, queries = solver_problem(60, 200, 4, seed=1, n_active=3, noise=0.0, correlation=0.8)
    assert dictionary.shape == (60, 200)
    assert queries.shape == (4, 60)
    assert dictionary.dtype == queries.dtype == np.float32
    overlap = np.corrcoef(dictionary.T)[np.triu_indices(200, 1)]
    assert overlap.std() > 0.25
    assert all(nnls(dictionary.astype(float), q.astype(float))[1] < 1e-5 for q in queries)


def test_solver_problem_is_its_seeds() -> None:
    first, again, other = (solver_problem(20, 30, 2, seed) for seed in (1, 1, 0))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
