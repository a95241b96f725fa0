"""How `generag retrieve` solves: strengths, certificates, banks that stream or are spread over ranks."""

import os
import socket
import subprocess
import sys

import anndata
import numpy as np
import pytest

ACTIVE = ("--alpha", "0.003")


def read(folder):
    return anndata.read_h5ad(folder / "P3_1.stain.h5ad")


@pytest.fixture
def run(generag, built_bank, slide):
    """`run(folder, *options)` of the held-out slide."""

    def go(out, *options):
        done = generag("retrieve", slide, "--backbone", "stain", "--bank", built_bank, "--out", out, *options)
        assert done.code == 0, done.err
        return done

    return go


def assert_same_weights(one, other):
    assert (one.obsm["generag_weights"] != other.obsm["generag_weights"]).nnz == 0


def test_the_certificate_stands_in_the_file_and_in_the_summary(run, tmp_path):
    done = run(tmp_path, "--active", "10", "--gap", "1e-6")
    adata = read(tmp_path)
    assert (adata.obs["generag_gap"] <= 1e-6).all()
    assert (adata.obs["generag_passes"] > 0).all()
    assert adata.uns["generag"]["gap_asked"] == 1e-6
    assert adata.uns["generag"]["solver_engine"] in ("compiled", "torch")
    assert f"{adata.n_obs} spots solved in" in done.err
    assert "relative gap at most" in done.err


def test_the_strength_stands_in_the_file_for_every_spot(run, tmp_path):
    run(tmp_path, "--active", "10")
    adata = read(tmp_path)
    about = adata.uns["generag"]
    assert about["l1_power"] == 0.5
    assert about["l1"] == pytest.approx(adata.obs["generag_l1"].median())
    np.testing.assert_allclose(adata.obs["generag_l2"] * 9, adata.obs["generag_l1"], rtol=1e-4)
    assert about["search_passes"] > 0
    assert abs(adata.obs["generag_n_refs"].median() - 10) <= 2


def test_the_strength_of_one_prediction_serves_another(run, tmp_path):
    run(tmp_path / "a", "--active", "10")
    run(tmp_path / "b", "--strength-from", tmp_path / "a" / "P3_1.stain.h5ad")
    one, other = read(tmp_path / "a"), read(tmp_path / "b")
    assert_same_weights(one, other)
    assert other.uns["generag"]["search_passes"] == 0


@pytest.mark.parametrize("options", [("--omega", "0.5"), ("--preset", "paper"), ("--signed",)])
def test_a_strength_from_another_space_is_refused(run, generag, slide, built_bank, tmp_path, options):
    run(tmp_path / "a", *ACTIVE)
    made = tmp_path / "a" / "P3_1.stain.h5ad"
    common = ("--backbone", "stain", "--bank", built_bank, "--out", tmp_path / "b", "--strength-from", made)
    generag("retrieve", slide, *common, *options).expect_refusal(2, "another space")


def test_a_bank_that_may_take_no_memory_gives_the_same_weights(run, tmp_path):
    run(tmp_path / "a", *ACTIVE)
    done = run(tmp_path / "b", *ACTIVE, "--bank-memory", "0")
    assert "streams from" in done.err
    assert_same_weights(read(tmp_path / "a"), read(tmp_path / "b"))
    assert [p.name for p in (tmp_path / "b").iterdir() if "rows" in p.name] == []
    assert read(tmp_path / "b").uns["generag"]["bank_streamed"] == 1


def test_the_dense_solver_reaches_the_same_prediction(run, tmp_path):
    run(tmp_path / "a", *ACTIVE, "--gap", "1e-6")
    run(tmp_path / "b", *ACTIVE, "--gap", "1e-6", "--solver", "dense")
    one, other = read(tmp_path / "a"), read(tmp_path / "b")
    assert other.uns["generag"]["solver"] == "dense"
    assert np.linalg.norm(one.X - other.X) <= 2e-3 * np.linalg.norm(one.X)


def test_two_ranks_of_torchrun_write_what_one_process_writes(run, slide, built_bank, tmp_path):
    run(tmp_path / "a", *ACTIVE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
        "--master-port", str(port), "-m", "genrag_cli", "retrieve", slide, "--backbone", "stain", "--bank", built_bank,
        "--out", tmp_path / "b", *ACTIVE, "--device", "cpu",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=300, check=False, env=environment
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("spots solved in") == 1
    one, other = read(tmp_path / "a"), read(tmp_path / "b")
    assert_same_weights(one, other)
    assert other.uns["generag"]["ranks"] == 2
