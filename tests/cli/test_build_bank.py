"""`generag build-bank` and `generag bank`: what is finished stays, what is new is added."""

import json

import numpy as np
import pytest

from genrag_cli.genes.align import columns
from genrag_cli.stores.bank import Bank
from genrag_cli.synthetic import write_cohort
from genrag_cli.types import BackboneCard
from genrag_cli.units import TilePx


def digests(folder, part):
    return {p.name: p.read_bytes() for p in sorted((folder / part).rglob("*.zip"))}


def info(generag, bank):
    return json.loads(generag("bank", "info", "--json", "--bank", bank).out)


def test_the_bank_holds_what_the_cohort_holds(generag, built_bank):
    said = info(generag, built_bank)
    assert [(s["name"], s["patient"]) for s in said["sections"]] == [("P1_1", "P1"), ("P2_1", "P2")]
    assert said["geometry"] == {"crop": "fov", "fov_um": 200.0, "pitch_um": 200.0, "spot_um": 100.0}
    assert said["species"] == "human"
    assert said["sections"][0]["pixel_size"]["mpp"] == pytest.approx(1.2, rel=1e-3)
    assert said["sections"][0]["pixel_size"]["source"] == "spot pitch"
    assert said["backbones"]["stain"]["versions"][0]["rule"] == "leave-one-patient-out"
    shown = generag("bank", "info", "--bank", built_bank).out
    assert "P2_1" in shown
    assert "backbone stain" in shown


def test_a_rerun_skips_everything_and_says_so(generag, bank, build_options):
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in bank.rglob("*.zip")}
    manifest = (bank / "manifest.json").read_text()
    again = generag(*build_options, "--bank", bank)
    assert again.code == 0
    assert again.err.count("already in the bank") == 2
    assert "nothing to do for stain, version 1 is up to date" in again.err
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in bank.rglob("*.zip")} == before
    assert (bank / "manifest.json").read_text() == manifest


class MeanColour:
    """Takes the place of lite0: as good a backbone for what is tested, and quick."""

    def __init__(self, device):
        self.card = BackboneCard("lite0", "mean colour", 3, TilePx(32), "none")

    def encode(self, pixels):
        return pixels.mean(axis=(1, 2)).astype(np.float32)


def test_another_backbone_is_added_and_nothing_else_redone(generag, bank, cohort, monkeypatch):
    monkeypatch.setattr("genrag_cli.backbones.encoders.lite0.Lite0", MeanColour)
    before = {p: p.stat().st_mtime_ns for p in bank.rglob("*.zip")}
    added = generag("build-bank", cohort, "--backbone", "lite0", "--exclude", "P3_1", "--bank", bank)
    assert added.code == 0, added.err
    assert added.err.count("already in the bank") == 2
    assert {p: p.stat().st_mtime_ns for p in bank.rglob("*.zip") if p in before} == before
    said = info(generag, bank)
    assert set(said["backbones"]) == {"stain", "lite0"}
    assert [s["patient"] for s in said["sections"]] == ["P1", "P2"]
    assert generag("bank", "verify", "--bank", bank).code == 0


def test_patients_that_are_named_later_make_a_new_version(generag, bank, build_options):
    renamed = generag(*build_options, "--bank", bank, "--patients", "each")
    assert "patient P1 is now P1_1" in renamed.err
    said = info(generag, bank)
    assert [s["patient"] for s in said["sections"]] == ["P1_1", "P2_1"]
    assert [v["version"] for v in said["backbones"]["stain"]["versions"]] == [1, 2]
    assert Bank.open(bank, "stain").number == 2
    assert Bank.open(bank, "stain", version=1).n_spots == Bank.open(bank, "stain").n_spots


def test_a_section_is_appended_as_a_new_version(generag, bank, cohort):
    before = digests(bank, "sections")
    options = ("--patients", "prefix", "--backbone", "stain", "--bank", bank, "--workers", "1")
    assert generag("build-bank", cohort, *options).code == 0
    assert {name: digests(bank, "sections")[name] for name in before} == before
    assert [s["name"] for s in Bank.open(bank, "stain").sections] == ["P1_1", "P2_1", "P3_1"]
    assert [s["name"] for s in Bank.open(bank, "stain", version=1).sections] == ["P1_1", "P2_1"]


def test_a_dry_run_writes_nothing(generag, build_options, tmp_path):
    done = generag(*build_options, "--bank", tmp_path / "b.zarr", "--dry-run")
    assert done.code == 0
    assert "would build" in done.err
    assert list(tmp_path.iterdir()) == []


def test_sections_without_an_image_are_listed_and_skipped(generag, tmp_path):
    write_cohort(tmp_path / "c", size_px=1200, n_genes=60)
    (tmp_path / "c" / "images" / "P2_1.tif").unlink()
    done = generag("build-bank", tmp_path / "c", "--backbone", "stain", "--bank", tmp_path / "b.zarr")
    assert done.code == 0
    assert "P2_1: skipped, no image" in done.err
    assert [s["name"] for s in info(generag, tmp_path / "b.zarr")["sections"]] == ["P1_1", "P3_1"]


def test_genes_that_a_section_lacks_are_dropped_said_and_stored(generag, tmp_path):
    import anndata

    write_cohort(tmp_path / "c", layout="hest", patients=2, size_px=1200, n_genes=60)
    path = tmp_path / "c" / "st" / "P1_1.h5ad"
    adata = anndata.read_h5ad(path)
    adata[:, adata.var_names != "HK003"].copy().write_h5ad(path)
    done = generag("build-bank", tmp_path / "c", "--backbone", "stain", "--bank", tmp_path / "b.zarr")
    assert "59 genes are in all 2 sections; most dropped: P2_1 1\n" in done.err
    said = info(generag, tmp_path / "b.zarr")
    assert said["dropped_genes"] == {"P1_1": 0, "P2_1": 1}
    assert "HK003" not in said["genes"]


def test_legacy_and_hest_layouts_give_the_same_counts(generag, built_bank, tmp_path):
    write_cohort(tmp_path / "hest", layout="hest", size_px=1200, n_genes=60)
    options = ("--exclude", "P3_1", "--backbone", "stain", "--bank", tmp_path / "b.zarr")
    assert generag("build-bank", tmp_path / "hest", *options).code == 0
    legacy, hest = Bank.open(built_bank, "stain"), Bank.open(tmp_path / "b.zarr", "stain")
    order = columns(hest.genes, legacy.genes)
    for (first, counts, totals), (also, others, sums) in zip(legacy.count_blocks(), hest.count_blocks(), strict=True):
        assert first == also
        np.testing.assert_array_equal(counts.toarray(), others[:, order].toarray())
        np.testing.assert_array_equal(totals, sums)
    assert [s["patient"] for s in hest.sections] == ["Made-up sections/P1", "Made-up sections/P2"]


def test_an_intact_bank_verifies_as_json_too(generag, built_bank):
    done = generag("bank", "verify", "--json", "--bank", built_bank)
    assert json.loads(done.out) == {
        "bank": str(built_bank), "intact": True, "wrong": [], "manifest_has_digest": True,
    }  # fmt: skip
    assert done.err == ""
