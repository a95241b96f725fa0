"""From files of a layout to a bank: sections that have only patches, and bins that are pooled."""

import json
import runpy
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from genrag_cli.stores.bank import Bank
from genrag_cli.synthetic import MPP, PITCH_UM, draw_section

USUAL = ("--backbone", "stain", "--workers", "1")
SPACE_RANGER = runpy.run_path(str(Path(__file__).parent.parent / "cohorts" / "write_space_ranger.py"))
SIDE_PX, PATCH_PX = 160, 96


def write_task(root, *, left_out=3):
    """A HEST-bench task of three made-up sections; the first spots have no patch, and patches are in disorder."""
    for folder in ("adata", "patches", "splits"):
        (root / folder).mkdir(parents=True)
    rows = []
    for patient in (1, 2, 3):
        section = draw_section(patient, 1, size_px=1200, n_genes=60)
        names = np.array([f"{y:03d}x{x:03d}" for x, y in section.array_xy])
        adata = anndata.AnnData(
            section.counts.astype(np.float32), pd.DataFrame(index=names), pd.DataFrame(index=section.genes),
            obsm={"spatial": section.centres},
        )  # fmt: skip
        adata.write_h5ad(root / "adata" / f"{section.name}.h5ad")
        order = np.random.default_rng(patient).permutation(np.arange(left_out, len(names)))
        corners = np.round(section.centres[order] - SIDE_PX / 2).astype(int)
        padded = np.pad(section.image, ((SIDE_PX, SIDE_PX), (SIDE_PX, SIDE_PX), (0, 0)), constant_values=255)
        cut = [padded[y + SIDE_PX : y + 2 * SIDE_PX, x + SIDE_PX : x + 2 * SIDE_PX] for x, y in corners]
        with h5py.File(root / "patches" / f"{section.name}.h5", "w") as file:
            small = [
                np.asarray(Image.fromarray(c).resize((PATCH_PX, PATCH_PX), Image.Resampling.BILINEAR)) for c in cut
            ]
            img = file.create_dataset("img", data=np.stack(small))
            file.create_dataset("coords", data=corners)
            file.create_dataset("barcode", data=names[order].astype("S")[:, None])
            facts = {"patch_size_src": SIDE_PX, "patch_size_target": PATCH_PX, "pixel_size": MPP}
            img.attrs.update({**facts, "downsample": SIDE_PX / PATCH_PX})
        rows.append((section.name, f"patches/{section.name}.h5", f"adata/{section.name}.h5ad"))
    for side, chosen in (("train", rows[:2]), ("test", rows[2:])):
        lines = ["sample_id,patches_path,expr_path", *(",".join(r) for r in chosen)]
        (root / "splits" / f"{side}_0.csv").write_text("\n".join(lines) + "\n")
    (root / "var_50genes.json").write_text(json.dumps({"genes": section.genes[:5].tolist()}))
    table = ["id,dataset_title,patient,species,st_technology,inter_spot_dist,spot_diameter"]
    table += [f"P{p}_1,Made up,P{p},Homo sapiens,Spatial Transcriptomics,{PITCH_UM},100" for p in (1, 2, 3)]
    (root / "HEST_v1_1_0.csv").write_text("\n".join(table) + "\n", encoding="utf-8-sig")
    return root


def test_a_bank_is_made_of_patches_alone(generag, cohort, built_bank, tmp_path):
    task = write_task(tmp_path / "TASK")
    bank = tmp_path / "b"
    done = generag("build-bank", task, *USUAL, "--exclude", "P3_1", "--fov-um", SIDE_PX * MPP, "--bank", bank)
    assert done.code == 0, done.err
    assert "3 of" in done.err
    assert "have no patch" in done.err
    made, whole = Bank.open(bank, "stain"), Bank.open(built_bank, "stain")
    assert made.n_spots == whole.n_spots - 6
    assert [s["patient"] for s in made.sections] == ["Made up/P1", "Made up/P2"]
    assert {s["pixel_size"]["source"] for s in made.sections} == {"spot pitch"}
    # The same tissue gives about the same features, spot for spot, whichever way it was cut.
    ours, theirs = (np.concatenate(list(b.embeddings)) for b in (made, whole))
    kept = [i for i, name in enumerate(whole.section_of) if i >= np.flatnonzero(whole.section_of == name)[0] + 3]
    assert np.corrcoef(ours[:, 0], theirs[kept, 0])[0, 1] > 0.8


def test_a_field_of_view_larger_than_the_patches_is_refused(generag, tmp_path):
    options = (*USUAL, "-q", "--fov-um", 400, "--bank", tmp_path / "b")
    generag("build-bank", write_task(tmp_path / "TASK"), *options).expect_refusal(1, "--fov-um", "400")


@pytest.fixture
def hd(tmp_path):
    """Two sections of Visium HD with images that can be opened."""
    for seed, name in enumerate(("H1", "H2")):
        SPACE_RANGER["write_hd"](tmp_path / "hd", name, gap=not seed)
        noise = np.random.default_rng(seed).integers(90, 250, (2000, 2400, 3), dtype=np.uint8)
        tifffile.imwrite(
            tmp_path / "hd" / name / "outs" / f"{name}_image.tif", noise, tile=(256, 256), photometric="rgb"
        )
    return tmp_path / "hd"


def test_bins_are_pooled_to_the_size_asked(generag, hd, tmp_path):
    for side, count in ((64, 4 * 25), (32, 0)):
        bank = tmp_path / f"b{side}"
        options = ("--spot-um", side, "--patients", "each", *USUAL, "--anchors", "2", "--bank", bank)
        done = generag("build-bank", hd, *options)
        assert done.code == 0, done.err
        opened = Bank.open(bank, "stain")
        assert opened.geometry["spot_um"] == opened.geometry["pitch_um"] == side
        assert opened.sections[0]["pixel_size"]["mpp"] == pytest.approx(0.25)
        assert opened.manifest["species"] == "mouse"
        assert opened.n_spots <= count or not count
    assert Bank.open(tmp_path / "b32", "stain").n_spots > 2 * Bank.open(tmp_path / "b64", "stain").n_spots
    totals = [sum(t.sum() for _, _, t in Bank.open(tmp_path / f"b{s}", "stain").count_blocks()) for s in (32, 64)]
    assert totals[0] == totals[1] > 0


def test_a_table_keeps_how_bins_are_pooled(generag, hd, tmp_path):
    assert generag("cohort", "scan", hd, "--spot-um", "64").code == 0
    options = ("--patients", "each", *USUAL, "--anchors", "2", "--bank", tmp_path / "b")
    assert generag("build-bank", hd, *options).code == 0
    assert Bank.open(tmp_path / "b", "stain").geometry["spot_um"] == 64


def test_the_panel_of_a_task_is_taken_from_the_task(generag, tmp_path):
    task, bank = write_task(tmp_path / "TASK"), tmp_path / "b"
    options = (*USUAL, "--fov-um", 150, "--panel", "hest-bench", "--bank", bank)
    done = generag("build-bank", task, *options)
    assert done.code == 0, done.err
    listed = json.loads((task / "var_50genes.json").read_text())["genes"]
    assert Bank.open(bank, "stain").anchors.tolist() == listed
    assert "test slides too" in done.err
