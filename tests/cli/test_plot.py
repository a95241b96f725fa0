"""`generag plot`: genes over the slide, and correlations by rank."""

from typing import get_args

import anndata
import numpy as np
import pytest
from PIL import Image

from genrag_cli.cli.plot import Kind
from genrag_cli.evaluation.metrics import pcc_k
from genrag_cli.outputs.prediction import read_prediction
from genrag_cli.pipeline.evaluate import evaluate_prediction
from genrag_cli.pipeline.plot import KINDS, pick_genes, shuffled_ranks
from genrag_cli.pipeline.truth import lay_beside, read_measured
from genrag_cli.types import Listener


@pytest.fixture(scope="module")
def truth(cohort):
    return f"{cohort}:P3_1"


@pytest.fixture(scope="module", params=["default", "paper"])
def scored(request, predict):
    """A prediction in log1p, and one in raw counts."""
    return predict("--genes", "all", "--preset", request.param)


@pytest.fixture(scope="module")
def predict(generag, cohort, built_bank, truth, tmp_path_factory):
    def run(*options):
        out = tmp_path_factory.mktemp("plot")
        slide = cohort / "images" / "P3_1.tif"
        common = ("--backbone", "stain", "--bank", built_bank, "--out", out, "--spots", truth, "--alpha", "0.003")
        assert generag("retrieve", slide, *common, *options).code == 0
        return out / "P3_1.stain.h5ad"

    return run


@pytest.fixture(scope="module")
def pred(predict):
    """At the measured spots, all genes."""
    return predict("--genes", "all")


def test_the_command_knows_the_kinds_that_there_are():
    assert get_args(Kind) == tuple(KINDS)


def test_genes_are_drawn_beside_what_was_measured(generag, pred, truth, tmp_path):
    done = generag("plot", pred, "--genes", "TUM003,IMM001", "--truth", truth, "--out", tmp_path / "new" / "p.png")
    assert done.code == 0, done.err
    assert "TUM003, IMM001, predicted and measured" in done.err
    alone = generag("plot", pred, "--genes", "TUM003, IMM001", "--out", tmp_path / "q.png")
    assert "TUM003, IMM001, predicted\n" in alone.err
    with Image.open(tmp_path / "new" / "p.png") as both, Image.open(tmp_path / "q.png") as one:
        assert both.size[1] > 1.5 * one.size[1]


def test_the_picture_stands_beside_the_prediction_by_default(generag, pred):
    for kind in ("maps", "maps"):  # a second one replaces the first
        done = generag("plot", pred, "--kind", kind)
        assert done.code == 0, done.err
    assert (pred.parent / "P3_1.stain.maps.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("ending", ["pdf", "svg"])
def test_ranks_are_drawn_for_paper(generag, pred, truth, tmp_path, ending):
    done = generag("plot", pred, "--kind", "ranks", "--truth", truth, "--out", tmp_path / f"r.{ending}")
    assert done.code == 0, done.err
    assert "60 genes at 34 measured spots" in done.err
    assert (tmp_path / f"r.{ending}").stat().st_size > 2000


def test_correlations_are_those_that_evaluate_reports(scored, truth):
    prediction = read_prediction(scored)
    both = lay_beside(prediction.expression, read_measured(truth, prediction, Listener()), prediction.expression.genes)
    scores = evaluate_prediction(scored, truth, allow_short=False, seed=3, listener=Listener()).scores
    told = {(s.method, s.metric): s.value for s in scores if s.panel == "global"}
    panel = np.isin(both.genes, prediction.var.index[prediction.var["bank_variance_rank"] >= 0])
    assert panel.all()
    assert pcc_k(both.correlate(), 10).value == pytest.approx(told["retrieval", "PCC-10"])
    assert pcc_k(shuffled_ranks(both, 3), 10).value == pytest.approx(told["shuffled", "PCC-10"])


def test_genes_are_picked_that_differ(pred):
    prediction = read_prediction(pred)
    picked = pick_genes(prediction)
    assert len(picked) == 3
    values = prediction.expression.values[:, [prediction.expression.genes.tolist().index(g) for g in picked]]
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.5
    assert set(pick_genes(prediction, 2, among=np.array(["HK001", "HK002", "else"]))) == {"HK001", "HK002"}
    assert len(pick_genes(prediction, 99)) == 60


def test_a_prediction_without_anchors_in_it_has_genes_to_pick(predict):
    prediction = read_prediction(predict("--genes", "HK001,HK002"))
    assert sorted(pick_genes(prediction)) == ["HK001", "HK002"]


def test_spots_that_were_not_measured_stay_grey(generag, pred, truth, cohort, tmp_path):
    prediction = read_prediction(pred)
    measured = read_measured(truth, prediction, Listener())
    part = anndata.AnnData(measured.counts[:20].astype(np.float32))
    part.obs_names, part.var_names = measured.names[:20].tolist(), measured.genes.tolist()
    part.write_h5ad(tmp_path / "part.h5ad")
    done = generag("plot", pred, "--genes", "TUM001", "--truth", tmp_path / "part.h5ad", "--out", tmp_path / "p.png")
    assert done.code == 0, done.err
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)
    assert (np.abs(pixels - 184).max(axis=2) < 3).sum() > 1000


@pytest.mark.parametrize(
    ("options", "code", "texts"),
    [
        (("--genes", "TUM03"), 2, ("holds no expression of TUM03", "Did you mean TUM003", "generag export")),
        (("--genes", ","), 2, ("names no gene",)),
        (("--genes", ",".join(f"TUM{i:03d}" for i in range(1, 14))), 2, ("13 genes asked", "at most 12")),
        (("--kind", "ranks"), 2, ("--truth",)),
        (("--kind", "ranks", "--truth", "x:y", "--genes", "TUM001"), 2, ("draws all genes",)),
        (("--kind", "pie"), 2, ("maps", "ranks")),
        (("--out", "p.jpg"), 1, ("ends in .jpg", ".png, .pdf or .svg")),
        (("--truth", "nowhere"), 1, ("neither an .h5ad file nor COHORT:SECTION",)),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_with_a_remedy(generag, pred, options, code, texts):
    done = generag("plot", pred, *options)
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert all(text in done.err for text in texts), done.err


def test_a_gene_that_was_not_measured_is_refused(generag, pred, truth, tmp_path):
    prediction = read_prediction(pred)
    measured = read_measured(truth, prediction, Listener())
    few = anndata.AnnData(measured.counts[:, :5].astype(np.float32))
    few.obs_names, few.var_names = measured.names.tolist(), measured.genes[:5].tolist()
    few.write_h5ad(tmp_path / "few.h5ad")
    absent = measured.genes[9]
    refused = generag("plot", pred, "--genes", absent, "--truth", tmp_path / "few.h5ad", "-q")
    refused.expect_refusal(1, f"{absent} was not measured in {tmp_path / 'few.h5ad'}")
    picked = generag("plot", pred, "--truth", tmp_path / "few.h5ad", "--out", tmp_path / "p.png")
    assert picked.code == 0, picked.err
    assert all(
        gene in measured.genes[:5] for gene in picked.err.split("p.png: ")[1].split(", predicted")[0].split(", ")
    )


def test_weights_alone_cannot_be_drawn(generag, predict):
    path = predict("--expression", "none")
    generag("plot", path, "-q").expect_refusal(1, "holds weights but no expression", f"generag export {path}")
