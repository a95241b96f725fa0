"""Mixed-up files, names and patients: refused, or said, and never let through in silence."""

import json
import shutil

import anndata
import numpy as np
import pytest

from genrag_cli.synthetic import write_cohort

ROWS = [f"P{i}_1,counts/P{i}_1.tsv.gz,images/P{i}_1.tif,P{i}" for i in (1, 2, 3)]
HEADER = "section,counts,slide,patient"


@pytest.fixture
def copy(cohort, tmp_path):
    return shutil.copytree(cohort, tmp_path / "cohort")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hest")
    write_cohort(folder, layout="hest", size_px=1200, n_genes=60)
    return folder


@pytest.fixture
def hest(written, tmp_path):
    return shutil.copytree(written, tmp_path / "hest")


@pytest.fixture
def build(generag, tmp_path):
    def run(folder, *options):
        return generag(
            "build-bank", folder, "--backbone", "stain", "--workers", "1", "--bank", tmp_path / "b.zarr", "-q", *options
        )

    return run


def write_table(folder, *rows, header=HEADER):
    (folder / "cohort.csv").write_text("\n".join([header, *rows]) + "\n")


def change(folder, name, act):
    path = folder / "st" / f"{name}.h5ad"
    adata = anndata.read_h5ad(path)
    (act(adata) or adata).write_h5ad(path)


def test_the_name_of_a_section_leads_nowhere_out_of_the_bank(build, copy, tmp_path):
    write_table(copy, ROWS[0].replace("P1_1", "../../evil", 1), *ROWS[1:])
    build(copy).expect_refusal(1, "line 2", "'../../evil' cannot be called so", "it holds '/'")
    assert not list(tmp_path.rglob("evil*"))
    assert not (tmp_path / "b.zarr").exists()


def test_a_file_name_that_no_bank_can_keep_is_said_and_refused(build, generag, hest, tmp_path):
    (hest / "st" / "P1_1.h5ad").rename(hest / "st" / "a:b.h5ad")
    (hest / "wsis" / "P1_1.tif").rename(hest / "wsis" / "a:b.tif")
    assert "! a:b: cannot be called so in a bank" in generag("cohort", "info", hest).out
    build(hest, "--fov-um", "200", "--pitch-um", "200", "--mpp", "1.2").expect_refusal(1, "'a:b'", "cohort scan")
    assert not (tmp_path / "b.zarr" / "manifest.json").exists()


def test_sections_whose_names_differ_in_letter_case_alone(build, copy):
    write_table(copy, ROWS[0].replace("P1_1", "S", 1), ROWS[1].replace("P2_1", "s", 1), ROWS[2])
    build(copy).expect_refusal(1, "'S' and 's'", "Rename")


def test_a_later_section_whose_name_differs_in_letter_case_from_one_in_the_bank(build, copy):
    write_table(copy, *ROWS[1:])
    assert build(copy).code == 0
    write_table(copy, ROWS[0].replace("P1_1", "p2_1", 1))
    build(copy).expect_refusal(1, "'P2_1' and 'p2_1'")


def test_one_section_under_two_names(build, generag, copy):
    for folder, end in (("counts", ".tsv.gz"), ("spots", "_selection.tsv"), ("images", ".tif")):
        shutil.copy(copy / folder / f"P1_1{end}", copy / folder / f"P9_1{end}")
    build(copy, "--patients", "prefix").expect_refusal(1, "P9_1", "very counts of section P1_1", "--exclude P9_1")
    assert "! P9_1: has the very counts of P1_1" in generag("cohort", "info", copy).out
    assert build(copy, "--patients", "prefix", "--exclude", "P9_1").code == 0


def test_two_sections_in_the_same_place_of_one_slide_are_said(generag, copy):
    write_table(copy, ROWS[0], ROWS[1].replace("images/P2", "images/P1"), ROWS[2])
    assert "! P2_1: its spots lie in the same place of P1_1.tif as those of P1_1" in generag("cohort", "info", copy).out


def test_a_table_that_has_not_all_sections_of_its_folder_says_so(build, generag, copy):
    write_table(copy, *ROWS[:2])
    said = "cohort.csv has no row for 1 of the sections in its folder, which are left out: P3_1"
    assert f"! {said}" in generag("cohort", "info", copy).out
    assert f"warning: {said}" in build(copy).err


def test_patients_that_may_be_one_are_said(build, generag, copy):
    write_table(copy, ROWS[0], ROWS[1].replace(",P2", ",p1"), ROWS[2])
    assert "! patients 'P1' and 'p1'" in generag("cohort", "info", copy).out
    assert "warning: patients 'P1' and 'p1'" in build(copy).err


def test_one_spot_says_why_there_is_no_pixel_size(build, hest):
    change(hest, "P1_1", lambda adata: adata[:1].copy())
    build(hest).expect_refusal(1, "section P1_1: the distance between spots needs two or more", "--exclude")


def test_a_small_panel_that_leaves_few_genes_is_said(build, hest):
    change(hest, "P2_1", lambda adata: adata[:, :20].copy())
    done = build(hest, "--exclude", "P3_1")
    assert "only 20 of up to 60 genes are in all sections (P2_1 measured 20); --missing-genes mask" in done.err


def test_spots_without_counts_are_said(generag, hest):
    def empty(adata):
        counts = adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X.copy()
        counts[:5] = 0
        adata.X = counts

    change(hest, "P1_1", empty)
    assert "P1_1: 5 of 35 spots of P1_1.h5ad hold no counts" in generag("cohort", "info", hest).out


def test_a_slide_of_another_size_than_the_metadata_say(build, generag, hest):
    table = next(hest.glob("HEST_*.csv"))
    table.write_text(table.read_text(encoding="utf-8-sig").replace("1200,1200", "4800,4800", 1), encoding="utf-8-sig")
    said = "metadata say that the slide has 4800 x 4800 px, P1_1.tif has 1200 x 1200"
    assert f"! P1_1: {said}" in generag("cohort", "info", hest).out
    assert f"warning: P1_1: {said}" in build(hest).err


def test_a_species_that_is_not_the_banks(build, hest):
    assert build(hest, "--species", "Homo sapiens").code == 0
    build(hest, "--species", "mouse").expect_refusal(1, "--species mouse asked", "is human")


def test_a_species_that_is_corrected_later_is_looked_at_again(build, copy):
    write_table(copy, *ROWS)
    assert build(copy).code == 0
    write_table(copy, ROWS[0] + ",mouse", *(row + "," for row in ROWS[1:]), header=HEADER + ",species")
    build(copy).expect_refusal(1, "P1_1", "the metadata say mouse, the genes say human")


def test_truth_without_a_gene_of_the_prediction_is_refused(generag, retrieve, cohort, tmp_path):
    assert retrieve("--spots", f"{cohort}:P3_1", "--genes", "all").code == 0
    prediction = tmp_path / "out" / "P3_1.stain.h5ad"
    read = anndata.read_h5ad(prediction)
    mouse = [name.capitalize() for name in read.var_names]
    truth = anndata.AnnData(np.ones(read.shape, np.float32), read.obs[[]], read.var[[]].set_axis(mouse))
    truth.write_h5ad(tmp_path / "mouse.h5ad")
    done = generag("evaluate", prediction, "--truth", tmp_path / "mouse.h5ad")
    done.expect_refusal(1, "none of the 60 predicted genes", "mouse.h5ad", "--gene-aliases")


def test_spots_and_truth_of_another_section_are_said(generag, retrieve, cohort, tmp_path):
    assert "warning" not in retrieve("--spots", f"{cohort}:P3_1", "--genes", "all").err.replace("warning: 45", "")
    prediction = tmp_path / "out" / "P3_1.stain.h5ad"
    assert "warning" not in generag("evaluate", prediction, "--truth", f"{cohort}:P3_1").err
    err = generag("evaluate", prediction, "--truth", f"{cohort}:P1_1").err
    assert "the prediction is of P3_1.tif, the truth of P1_1 lies on" in err
    assert "the bank of the prediction has a section P1_1" in err
    assert "the spots are those of section P2_1, whose slide is" in retrieve("--spots", f"{cohort}:P2_1").err


def test_spots_of_one_name_in_two_places_are_said(generag, retrieve, cohort, tmp_path):
    assert retrieve("--spots", f"{cohort}:P3_1", "--genes", "all").code == 0
    prediction = tmp_path / "out" / "P3_1.stain.h5ad"
    read = anndata.read_h5ad(prediction)
    truth = anndata.AnnData(np.ones(read.shape, np.float32), read.obs[[]], read.var[[]])
    truth.obsm["spatial"] = read.obsm["spatial"] + [[0, 400]]
    truth.write_h5ad(tmp_path / "moved.h5ad")
    done = generag("evaluate", prediction, "--truth", tmp_path / "moved.h5ad", "--json")
    assert json.loads(done.out)["scores"]
    assert f"{len(read)} of {len(read)} spots lie elsewhere in the truth than in the prediction" in done.err


@pytest.mark.parametrize("change", [{"leaving": ["../../victim"]}, {"sections": [{"file": "/etc/passwd"}]}])
def test_a_manifest_that_names_files_outside_the_bank_is_refused(generag, bank, change):
    path = bank / "manifest.json"
    victim = bank.parent.parent / "victim"
    victim.write_text("mine")
    path.write_text(json.dumps(json.loads(path.read_text()) | change | {"manifest_sha256": None}))
    for command in (("info",), ("verify",), ("remove", "P1_1")):
        generag("bank", *command, "--bank", bank).expect_refusal(1, "lies outside the bank")
    assert victim.read_text() == "mine"
