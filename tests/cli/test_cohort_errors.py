"""Cohorts that no bank can be built from: one message, a remedy, and nothing that looks like a bank."""

import gzip
import json
import shutil

import numpy as np
import pytest
import tifffile

from genrag_cli.synthetic import write_cohort


@pytest.fixture
def copy(cohort, tmp_path):
    """A copy of the cohort to spoil."""
    return shutil.copytree(cohort, tmp_path / "cohort")


@pytest.fixture
def build(generag, tmp_path):
    def run(folder, *options):
        usual = ("--patients", "prefix", "--backbone", "stain", "--workers", "1", "--bank", tmp_path / "b.zarr")
        return generag("build-bank", folder, *usual, "-q", *options)

    return run


def edit_counts(folder, name, change):
    path = folder / "counts" / f"{name}.tsv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("\n".join([*change(lines), ""]).encode()))


def edit_spots(folder, name, change):
    path = folder / "spots" / f"{name}_selection.tsv"
    path.write_text("\n".join([*change(path.read_text().splitlines()), ""]))


def test_a_missing_cohort(build, tmp_path):
    build(tmp_path / "none").expect_refusal(1, "no such folder", "Give the folder")


def test_a_folder_of_no_known_layout(build, tmp_path):
    (tmp_path / "other").mkdir()
    build(tmp_path / "other").expect_refusal(1, "no cohort of a known layout", "counts/*.tsv", "st/*.h5ad")


def test_a_section_without_spots(build, copy):
    edit_counts(copy, "P2_1", lambda lines: lines[:1])
    build(copy).expect_refusal(1, "P2_1.tsv.gz", "no spots", "--exclude")


def test_a_section_without_positions(build, copy):
    edit_spots(copy, "P2_1", lambda lines: lines[:1])
    build(copy).expect_refusal(1, "P2_1_selection.tsv", "0 rows")


def test_an_empty_section_can_be_left_out(build, copy):
    edit_counts(copy, "P2_1", lambda lines: lines[:1])
    assert build(copy, "--exclude", "P2_1").code == 0


def test_spots_outside_the_slide(build, copy):
    edit_spots(copy, "P2_1", lambda lines: [lines[0], *(line.replace("\t1", "\t9999", 1) for line in lines[1:])])
    edit_spots(copy, "P2_1", lambda lines: [lines[0], *(shift(line, 5000) for line in lines[1:])])
    build(copy).expect_refusal(1, "P2_1", "lie outside", "level-0")


def shift(line, by):
    cells = line.split("\t")
    cells[4] = str(float(cells[4]) + by)
    return "\t".join(cells)


@pytest.mark.parametrize("edit", [edit_counts, edit_spots])
def test_spot_names_given_twice(build, copy, edit):
    edit(copy, "P2_1", lambda lines: [*lines, lines[-1]])
    build(copy).expect_refusal(1, "P2_1", "occur more than once", "must be unique")


def test_an_anndata_file_with_spot_names_given_twice_or_without_spots(build, tmp_path):
    import anndata

    write_cohort(tmp_path / "hest", layout="hest", size_px=1200, n_genes=60)
    path = tmp_path / "hest" / "st" / "P2_1.h5ad"
    adata = anndata.read_h5ad(path)
    adata.obs_names = [*adata.obs_names[:-1], adata.obs_names[0]]
    adata.write_h5ad(path)
    build(tmp_path / "hest").expect_refusal(1, "P2_1.h5ad", "occur more than once")
    adata[:0].write_h5ad(path)
    build(tmp_path / "hest").expect_refusal(1, "P2_1.h5ad", "0 spots", "--exclude")


def test_a_section_without_a_pixel_size(build, tmp_path):
    write_cohort(tmp_path / "hest", layout="hest", size_px=1200, n_genes=60)
    (tmp_path / "hest" / "HEST_made_up.csv").unlink()
    image = np.full((1200, 1200, 3), 200, np.uint8)
    tifffile.imwrite(tmp_path / "hest" / "wsis" / "P1_1.tif", image, tile=(256, 256), photometric="rgb")
    done = build(tmp_path / "hest", "--fov-um", "200", "--pitch-um", "200", "--patients", "each")
    assert done.code == 1
    assert "P1_1.tif: no usable pixel size" in done.err.splitlines()[-2]


def test_an_unknown_section_to_leave_out(build, cohort):
    build(cohort, "--exclude", "P2").expect_refusal(2, "--exclude P2: no such section", "Did you mean P2_1")


def test_sections_that_share_no_gene(build, copy):
    edit_counts(copy, "P2_1", lambda lines: [lines[0].replace("\t", "\tENSG"), *lines[1:]])
    build(copy).expect_refusal(1, "share no gene", "Ensembl")


def test_a_later_section_that_lacks_genes_of_the_bank(build, copy):
    assert build(copy, "--exclude", "P3_1").code == 0
    edit_counts(copy, "P3_1", lambda lines: [line.rpartition("\t")[0] for line in lines])
    build(copy).expect_refusal(1, "P3_1 lacks 1 of the bank's 60 genes", "--exclude")


def test_a_slide_that_nobody_can_read(build, copy):
    (copy / "images" / "P2_1.tif").write_bytes(b"II*\0 and no more")
    build(copy).expect_refusal(1, "P2_1.tif", "complete?")


def test_anchors_are_checked_before_the_long_work(build, cohort, tmp_path):
    (tmp_path / "anchors.txt").write_text("TUM001\nFOO\n")
    done = build(cohort, "--anchors", tmp_path / "anchors.txt")
    done.expect_refusal(1, "FOO", "Known")
    assert json.loads((tmp_path / "b.zarr" / "manifest.json").read_text())["sections"] == []
    build(cohort, "--anchors", "0").expect_refusal(2, "--anchors 0")
    build(cohort, "--anchors", "5000").expect_refusal(1, "5000 anchor genes", "--anchors")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mpp", "0"), "pixel size 0 um/px"),
        (("--fov-um", "0"), "--fov-um 0"),
        (("--pitch-um", "-5"), "--pitch-um -5"),
    ],
)
def test_lengths_that_cannot_be(build, cohort, options, said):
    build(cohort, *options).expect_refusal(2, said)
