"""`generag embed`, `retrieve`, `export` and `evaluate`, one after the other."""

import json

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from genrag_cli import __version__
from genrag_cli.stores.bank import Bank


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def spots(cohort):
    return ("--spots", f"{cohort}:P3_1")


def read(out):
    return anndata.read_h5ad(out / "P3_1.stain.h5ad")


def test_a_prediction_has_the_slots_that_scanpy_and_squidpy_look_for(retrieve, out, built_bank):
    assert retrieve("--genes", "all").code == 0
    adata, bank = read(out), Bank.open(built_bank, "stain")
    n = adata.n_obs
    assert adata.obs_names.is_unique
    assert {"array_row", "array_col", "in_tissue", "library_id"} <= set(adata.obs)
    assert list(adata.obs["library_id"].cat.categories) == ["P3_1"]
    assert adata.obsm["spatial"].shape == (n, 2)
    scale = adata.uns["spatial"]["P3_1"]["scalefactors"]
    assert scale["spot_diameter_fullres"] == pytest.approx(100 / 1.2, rel=1e-3)
    assert max(adata.uns["spatial"]["P3_1"]["images"]["hires"].shape) == pytest.approx(
        1200 * scale["tissue_hires_scalef"], abs=1
    )
    assert adata.X.shape == (n, len(bank.genes))
    assert sorted(adata.var_names) == sorted(bank.genes)


def test_weights_point_at_the_spots_of_the_bank(retrieve, out, built_bank):
    assert retrieve().code == 0
    adata, bank = read(out), Bank.open(built_bank, "stain")
    weights = sp.csr_matrix(adata.obsm["generag_weights"])
    assert weights.shape == (adata.n_obs, bank.n_spots)
    assert (weights.data > 0).all()
    np.testing.assert_array_equal(np.diff(weights.indptr), adata.obs["generag_n_refs"])
    assert adata.obs["generag_n_refs"].median() >= 1
    assert list(adata.uns["generag_bank_obs"]) == bank.spot_names.tolist()
    assert (adata.obs["generag_gap"] <= 1e-4).all()
    assert set(adata.obs["generag_status"]) == {"solved"}
    assert adata.obs[["generag_morphology_residual", "generag_anchor_residual"]].notna().all().all()


def test_provenance_names_everything_that_made_the_file(retrieve, out, built_bank):
    assert retrieve("--alpha", "0.004").code == 0
    about = read(out).uns["generag"]
    bank = Bank.open(built_bank, "stain")
    assert about["generag_version"] == __version__
    assert (about["bank"], about["bank_fingerprint"]) == (str(built_bank.resolve()), bank.fingerprint)
    assert json.loads(about["backbone"])["name"] == "stain"
    assert about["alpha"] == pytest.approx(0.004)
    assert about["mpp"] == pytest.approx(1.2, rel=1e-3)
    expected = """argv slide slide_digest slide_size slide_reader mpp_source fov_um pitch_um unit preset omega signed
    lambda gamma l1 l2 l1_ratio gap_asked gap_worst device seed packages python slide_statistics bank_version"""
    assert set(expected.split()) <= set(about)
    assert {"torch", "numpy", "anndata", "zarr"} <= set(json.loads(about["packages"]))


def test_a_rerun_is_already_done_and_changed_options_are_not(retrieve, out):
    assert retrieve().code == 0
    path = out / "P3_1.stain.h5ad"
    made = path.stat().st_mtime_ns
    again = retrieve()
    assert "already done" in again.err
    assert path.stat().st_mtime_ns == made
    changed = retrieve("--omega", "0.5")
    assert "made with other options, slide or bank; doing it again" in changed.err
    assert "embeddings, already there" in changed.err
    assert path.stat().st_mtime_ns > made
    assert read(out).uns["generag"]["omega"] == 0.5
    assert "already done" not in retrieve("--omega", "0.5", "--overwrite").err


def test_a_rerun_reports_what_the_file_says(retrieve, tmp_path):
    first, again = (json.loads(retrieve("--json").out)["slides"][0] for _ in range(2))
    assert (first.pop("skipped"), first.pop("state")) == (False, "done")
    assert (again.pop("skipped"), again.pop("state")) == (True, "skipped")
    assert first == again


def test_embeddings_made_before_are_used(generag, retrieve, out, built_bank, slide):
    assert generag("embed", slide, "--backbone", "stain", "--bank", built_bank, "--out", out).code == 0
    made = (out / "P3_1.stain.zarr.zip").stat().st_mtime_ns
    done = retrieve()
    assert "embeddings, already there" in done.err
    assert (out / "P3_1.stain.zarr.zip").stat().st_mtime_ns == made


@pytest.mark.parametrize("options", [(), ("--preset", "paper")])
def test_values_exported_later_are_those_of_a_direct_retrieval(retrieve, generag, out, tmp_path, options):
    assert retrieve("--expression", "none", *options).code == 0
    weights = read(out)
    assert weights.n_vars == 0
    done = generag("export", out / "P3_1.stain.h5ad", "--genes", "TUM003,IMM001,HK002")
    assert done.code == 0, done.err
    assert retrieve("--genes", "TUM003,IMM001,HK002", *options).code == 0
    exported, direct = anndata.read_h5ad(out / "P3_1.stain.expression.h5ad"), read(out)
    assert list(exported.var_names) == list(direct.var_names) == ["TUM003", "IMM001", "HK002"]
    np.testing.assert_array_equal(exported.X, direct.X)
    assert list(exported.obs_names) == list(direct.obs_names)


def test_an_export_is_done_once_and_never_replaces_another(retrieve, generag, out):
    assert retrieve("--expression", "none").code == 0
    path = out / "P3_1.stain.h5ad"
    assert generag("export", path, "--genes", "TUM003").code == 0
    assert "already done" in generag("export", path, "--genes", "TUM003").err
    generag("export", path, "--genes", "IMM001", "-q").expect_refusal(1, "is there already", "--overwrite")
    generag("export", path, "--genes", "IMM001", "--out", path, "-q").expect_refusal(1, "is the prediction itself")
    assert generag("export", path, "--genes", "IMM001", "--overwrite").code == 0


def test_zarr_holds_what_h5ad_holds(retrieve, out, tmp_path):
    assert retrieve("--genes", "20").code == 0
    assert retrieve("--genes", "20", "--out", out / "p.zarr").code == 0
    one, other = read(out), anndata.read_zarr(out / "p.zarr")
    np.testing.assert_array_equal(one.X, other.X)
    assert (one.obsm["generag_weights"] != other.obsm["generag_weights"]).nnz == 0


def test_a_dry_run_writes_nothing(retrieve, generag, slide, built_bank, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert "would write" in retrieve("--dry-run").err
    embed = generag("embed", slide, "--backbone", "stain", "--bank", built_bank, "--out", tmp_path / "o", "--dry-run")
    assert "would write" in embed.err
    assert sorted(tmp_path.rglob("*")) == before


def test_evaluate_prints_one_json_document_with_the_baselines(retrieve, generag, out, spots):
    assert retrieve("--genes", "all", *spots).code == 0
    done = generag("evaluate", out / "P3_1.stain.h5ad", "--truth", spots[1], "--allow-short", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    methods = {s["method"] for s in report["scores"]}
    assert {"retrieval", "y_init"} <= methods
    assert len(methods) >= 5
    assert {"PCC-10", "PCC-all", "MSE", "MAE", "RVD"} <= {s["metric"] for s in report["scores"]}
    assert report["about"]["unit"] == "log1p_cp10k"


def test_evaluate_prints_a_table(retrieve, generag, out, spots):
    assert retrieve("--genes", "all", *spots).code == 0
    done = generag("evaluate", out / "P3_1.stain.h5ad", "--truth", spots[1], "--allow-short")
    assert done.code == 0
    assert any(line.startswith("retrieval") for line in done.out.splitlines())


def test_evaluate_needs_values_and_shared_spots(retrieve, generag, out, spots):
    assert retrieve("--expression", "none", *spots).code == 0
    path = out / "P3_1.stain.h5ad"
    done = generag("evaluate", path, "--truth", spots[1])
    done.expect_refusal(1, "holds weights but no expression", f"generag export {path}")
    assert retrieve().code == 0
    generag("evaluate", path, "--truth", spots[1]).expect_refusal(1, "share a name", "--spots")
    generag("evaluate", out / "none.h5ad", "--truth", spots[1]).expect_refusal(1, "none.h5ad: no such file")


def test_a_file_that_is_not_ours_is_never_replaced(retrieve, out):
    out.mkdir()
    anndata.AnnData(np.zeros((2, 2), np.float32)).write_h5ad(out / "P3_1.stain.h5ad")
    refused = retrieve("-q")
    refused.expect_refusal(1, "is not a prediction of generag", "--overwrite")
    (out / "P3_1.stain.h5ad").write_text("half a file")
    retrieve("-q").expect_refusal(1, "neither an HDF5 nor a zip file", "--overwrite")
    assert retrieve("--overwrite").code == 0
