"""Real sections from tuning to explanation: what a tuned bank promises, checks, draws and explains."""

import json

import anndata
import numpy as np
import pytest
from typer.testing import CliRunner

from genrag_cli.cli.app import app

pytestmark = pytest.mark.real
GENES = "ERBB2,IGKC,COL1A1"


def generag(*words):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def her2st(shared_data):
    return shared_data / "her2st"


@pytest.fixture(scope="module")
def bank(her2st, tmp_path_factory):
    """B4, C2 and C4, tuned by sections, so that the patient of C3 is known."""
    folder = tmp_path_factory.mktemp("trust") / "bank.zarr"
    without = [w for name in ("C3", "C5") for w in ("--exclude", name)]
    generag("build-bank", her2st, "--patients", "letter", "--backbone", "stain", "--bank", folder, *without)
    generag("tune", folder, "--backbone", "stain", "--folds", "sections")
    return folder


@pytest.fixture(scope="module")
def predicted(her2st, bank):
    options = ("--spots", f"{her2st}:C3", "--mpp", "0.69", "--bank", bank, "--backbone", "stain", "--genes", "5000")
    generag("retrieve", her2st / "images" / "C3.jpg", *options, "--out", bank.parent)
    return bank.parent / "C3.stain.h5ad"


def test_promises_are_checked_against_a_section_that_the_bank_does_not_hold(predicted, her2st):
    words = ("evaluate", predicted, "--truth", f"{her2st}:C3", "--allow-short", "--json")
    found = json.loads(generag(*words).stdout)
    assert found["leaks"] == []
    assert found["claims"]["spearman_all"] > 0.3
    assert abs(found["claims"]["coverage_all"] - 0.9) < 0.06
    assert found["claims"]["pcc_predictable"] > found["claims"]["pcc_others"]


def test_a_section_of_the_bank_is_named_when_it_comes_as_truth(predicted, her2st, tmp_path):
    measured = anndata.read_h5ad(her2st.parent / "solver" / "her2st_counts_top1000.h5ad")
    known = measured[(measured.obs["section"] == "C2").to_numpy()].copy()
    known.obs_names = [name.split("_")[-1] for name in known.obs_names]
    known.write_h5ad(tmp_path / "new_patient.h5ad")
    words = ("evaluate", predicted, "--truth", tmp_path / "new_patient.h5ad", "--allow-short", "--json")
    leaks = json.loads(generag(*words).stdout)["leaks"]
    assert [(leak["kind"], "C2" in leak["text"]) for leak in leaks] == [("section", True)]


def test_the_terms_of_real_values_add_up_and_are_drawn(predicted, tmp_path):
    adata = anndata.read_h5ad(predicted)
    spot = adata.obs_names[90]
    out = ("--gene", GENES, "--out", tmp_path / "x.png", "--json")
    found = json.loads(generag("explain", predicted, "--spot", spot, *out).stdout)
    for gene in GENES.split(","):
        terms = [t["adds"][gene] for t in (*found["references"], found["others"])]
        terms += [t[gene] for t in found["base"].values()]
        assert sum(terms) == pytest.approx(float(adata[spot, gene].X[0, 0]), abs=1e-5)
    assert (tmp_path / "x.png").stat().st_size > 50_000


@pytest.mark.parametrize("kind", ["maps", "ranks", "tuning"])
def test_every_kind_of_picture_is_drawn(predicted, her2st, tmp_path, kind):
    more = {"maps": ("--genes", GENES, "--truth", f"{her2st}:C3"), "ranks": ("--truth", f"{her2st}:C3"), "tuning": ()}
    generag("plot", predicted, "--kind", kind, *more[kind], "--out", tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")


def test_a_protocol_holds_a_real_patient_out(bank, tmp_path):
    words = ("--protocol", "fixed:B4", "--bootstrap", "0", "--allow-short", "--out", tmp_path, "--json")
    (record,) = json.loads(generag("evaluate", bank, "--backbone", "stain", *words).stdout)["records"]
    (fold,) = record["folds"]
    assert (fold["train"], fold["patients_both_sides"], fold["leaks"]) == (["C2", "C4"], [], [])
    summary = record["summary"]
    assert np.isfinite([summary["retrieval"][f"global {k}"] for k in (10, 50, 300, 1000, 5000)]).all()
    assert summary["retrieval"]["core 50"] > summary["shuffled"]["core 50"] + 0.1
