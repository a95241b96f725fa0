"""`generag explain`: values taken apart, pictures of references, and other omegas."""

import dataclasses
import json
import shlex
import shutil
import sys

import anndata
import numpy as np
import pytest
from PIL import Image

from genrag_cli.outputs import keys
from genrag_cli.outputs.prediction import read_prediction
from genrag_cli.pipeline.truth import read_measured
from genrag_cli.pipeline.tuning.tuning import Tuning
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.stores.tunings import add_tuning
from genrag_cli.types import Listener

SPOT = "3x3"


@pytest.fixture(scope="module")
def predict(generag, cohort, built_bank, tmp_path_factory):
    """`predict(*options, bank=, spots=)`: a prediction of the held-out slide, its command line recorded."""

    def run(*options, bank=built_bank, spots=True):
        out = tmp_path_factory.mktemp("explain")
        slide, where = cohort / "images" / "P3_1.tif", ("--spots", f"{cohort}:P3_1") if spots else ()
        words = ["retrieve", slide, "--backbone", "stain", "--bank", bank, "--out", out, *where, "--workers", "1"]
        words = [str(w) for w in [*words, *options]]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["generag", *words])
            done = generag(*words)
        assert done.code == 0, done.err
        return out / "P3_1.stain.h5ad"

    return run


@pytest.fixture(scope="module")
def pred(predict):
    """Of an untuned bank, with some of its genes."""
    return predict("--genes", "30", "--active", "6")


@pytest.fixture(scope="module")
def tuned(generag, predict, built_bank, tmp_path_factory):
    """A tuned bank, and the prediction from it."""
    bank = shutil.copytree(built_bank, tmp_path_factory.mktemp("tuned") / "b.zarr")
    done = generag("tune", bank, "--backbone", "stain", "--workers", "1")
    assert done.code == 0, done.err
    return bank, predict("--genes", "30", bank=bank)


@pytest.fixture(scope="module")
def mixed(predict, tuned, tmp_path_factory):
    """From settings that mix neighbours into embeddings, whatever `generag tune` chose."""
    folder = shutil.copytree(tuned[0], tmp_path_factory.mktemp("mixed") / "b.zarr")
    bank = Bank.open(folder, "stain")
    found = Tuning.read(bank)
    settings = dataclasses.replace(
        found.settings, context=0.5, omega=0.4, references=6, share=0.5, standardise="section"
    )
    about = {**found.about, "settings": settings.words(), "key": "made up"}
    add_tuning(BankWriter(folder), "stain", bank.number, found.arrays, about)
    return predict("--genes", "30", bank=folder)


@pytest.fixture
def explain(generag, tmp_path):
    """`explain(prediction, *options)`: the JSON document, drawn into tmp_path."""

    def run(path, *options):
        done = generag("explain", path, "--spot", SPOT, "--json", "--out", tmp_path / "x.png", *options)
        assert done.code == 0, done.err
        with Image.open(tmp_path / "x.png") as image:
            assert image.size == (1430, 880)
        return json.loads(done.out)

    return run


def add_up(found, gene):
    terms = [t["adds"] for t in (*found["references"], found["others"])] + list(found["base"].values())
    return sum(term[gene] for term in terms)


def expect_sums(found, path):
    stored = read_prediction(path)
    row, genes = stored.names.tolist().index(SPOT), stored.expression.genes.tolist()
    assert any(found["in_prediction"].values())
    for gene, is_in in found["in_prediction"].items():
        assert add_up(found, gene) == pytest.approx(found["predicted"][gene], rel=1e-5, abs=1e-6)
        if is_in:
            assert found["predicted"][gene] == float(stored.expression.values[row, genes.index(gene)])
    weights = [r["weight"] for r in found["references"]] + [found["others"]["weight"]]
    assert sum(weights) == pytest.approx(float(stored.obs[keys.WEIGHT_SUM].iloc[row]), rel=1e-5)


def expect_sweep(found, omega):
    """Ascending omegas; at the present one the spot solved again gives what the prediction has."""
    omegas = [s["omega"] for s in found["sweep"]]
    assert omegas == sorted({0.05, 0.25, 0.5, 0.75, 0.95, omega})
    present = found["sweep"][omegas.index(omega)]
    assert present["kept"] == pytest.approx(1, abs=0.02)
    for gene, value in present["predicted"].items():
        assert value == pytest.approx(found["predicted"][gene], rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("options", [("--active", "6"), ("--preset", "paper"), ("--alpha", "0.003", "--signed")])
def test_values_of_an_untuned_bank_are_sums_of_their_terms(explain, predict, options):
    path = predict("--genes", "30", *options)
    found = explain(path, "--top", "3")
    assert len(found["references"]) == 3
    assert list(found["base"]) == ([] if "paper" in options else ["bank mean"])
    expect_sums(found, path)
    expect_sweep(found, float(read_prediction(path).about["omega"]))
    assert found["notes"] == []


def test_values_of_a_tuned_bank_are_sums_of_their_terms(explain, tuned):
    _, path = tuned
    found = explain(path)
    assert list(found["base"]) == ["bank mean", "regression"]
    expect_sums(found, path)
    expect_sweep(found, float(read_prediction(path).about["omega"]))


def test_neighbours_count_where_they_were_mixed_in(explain, mixed):
    found = explain(mixed)
    assert any(found["base"]["regression"].values())
    expect_sums(found, mixed)
    expect_sweep(found, 0.4)
    assert found["notes"] == []


def test_a_gene_that_the_prediction_lacks_is_what_export_writes(generag, explain, tuned, tmp_path):
    bank, path = tuned
    there = read_prediction(path).expression.genes
    absent = next(g for g in Bank.open(bank, "stain").genes if g not in there)
    found = explain(path, "--gene", absent, "--no-sweep")
    assert found["in_prediction"] == {absent: False}
    assert found["sweep"] is None
    generag("export", path, "--genes", absent, "--out", tmp_path / "e.h5ad")
    exported = read_prediction(tmp_path / "e.h5ad")
    value = float(exported.expression.values[exported.names.tolist().index(SPOT), 0])
    assert found["predicted"][absent] == pytest.approx(value, rel=1e-6)
    assert add_up(found, absent) == pytest.approx(value, rel=1e-6)


def test_the_table_tells_references_others_and_base_terms(generag, pred, cohort):
    done = generag("explain", pred, "--spot", SPOT, "--top", "2", "--truth", f"{cohort}:P3_1", "--gene", "TUM001")
    assert done.code == 0, done.err
    lines = [line.split("  ")[0].strip() for line in done.out.splitlines()]
    assert lines[1] == "reference"
    assert all(line.split("/")[0] in ("P1_1", "P2_1") for line in lines[2:4])
    assert lines[4].endswith("other references")
    assert lines[5:8] == ["bank mean", "predicted", "measured"]
    assert (pred.parent / f"P3_1.stain.{SPOT}.png").read_bytes().startswith(b"\x89PNG")


def test_references_keep_about_their_number_at_other_omegas(explain, pred):
    found = explain(pred)
    present = next(s["references"] for s in found["sweep"] if s["omega"] == 0.25)
    assert all(abs(s["references"] - present) <= 2 for s in found["sweep"])
    assert len({s["kept"] for s in found["sweep"]}) > 2


def test_a_named_strength_of_the_paper_stays_at_every_omega(explain, predict):
    found = explain(predict("--genes", "30", "--preset", "paper"))
    assert len({s["references"] for s in found["sweep"]}) > 1


def test_spots_on_tissue_and_weights_alone_can_be_explained(generag, predict, tmp_path):
    path = predict("--expression", "none", "--active", "6", spots=False)
    name = read_prediction(path).names[4]
    done = generag("explain", path, "--spot", name, "--json", "--out", tmp_path / "x.svg")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["genes"] == read_prediction(path).y_init.genes[:3].tolist()
    assert not any(found["in_prediction"].values())
    expect_sweep(found, 0.25)


def test_without_embeddings_the_sweep_is_left_out_and_the_note_brings_it_back(generag, explain, pred, tmp_path):
    path = shutil.copy(pred, tmp_path / pred.name)
    found = explain(path)
    assert found["sweep"] is None
    (note,) = found["notes"]
    assert note.startswith("no omega sweep: ")
    for line in note.split("Make them: ")[1].split(" && "):
        assert generag(*shlex.split(line)[1:]).code == 0
    expect_sweep(explain(path), 0.25)


def test_embeddings_of_something_else_do_not_pass(explain, pred, mixed, tmp_path):
    path = shutil.copy(pred, tmp_path / pred.name)
    for file in pred.parent.glob("*.zarr.zip"):
        shutil.copy(file, tmp_path / file.name)
    shutil.copy(tmp_path / "P3_1.stain.spots.zarr.zip", tmp_path / "P3_1.stain.sample.zarr.zip")
    (note,) = explain(path)["notes"]
    assert "the embeddings that standardised the slide (41 tissue tiles of the slide) are not beside" in note


def test_features_of_a_file_have_no_sweep_and_no_tile(generag, built_bank, pred, cohort, explain, tmp_path):
    rows = pred.parent / "P3_1.stain.spots.zarr.zip"
    done = generag(
        "retrieve", "--features", rows, "--backbone", "stain", "--bank", built_bank, "--out", tmp_path, "--active", "6"
    )
    assert done.code == 0, done.err
    path = next(tmp_path.glob("*.h5ad"))
    found = explain(path)
    assert found["sweep"] is None
    assert any("predicted from features without a slide" in note for note in found["notes"])
    assert any("no omega sweep: the prediction was made from features in" in note for note in found["notes"])


def test_a_slide_that_moved_is_given_by_hand(generag, pred, cohort, explain, tmp_path):
    before = (tmp_path / "x.png").read_bytes() if (tmp_path / "x.png").exists() else b""
    other = cohort / "images" / "P1_1.tif"
    (note,) = explain(pred, "--no-sweep", "--slide", other)["notes"]
    assert note == f"no tile of the spot: slide P3_1.tif: {other} is another slide (give it with --slide)"
    without = (tmp_path / "x.png").read_bytes()
    assert explain(pred, "--no-sweep", "--slide", cohort / "images" / "P3_1.tif")["notes"] == []
    assert (tmp_path / "x.png").read_bytes() not in (before, without)


def test_what_was_measured_stands_beside_and_a_spot_that_was_not_is_explained_too(explain, pred, cohort, tmp_path):
    stored = read_prediction(pred)
    measured = read_measured(f"{cohort}:P3_1", stored, Listener())
    found = explain(pred, "--truth", f"{cohort}:P3_1", "--no-sweep")
    row, gene = measured.names.tolist().index(SPOT), found["genes"][0]
    count = float(measured.counts[row, measured.genes.tolist().index(gene)])
    assert found["measured"][gene] == pytest.approx(np.log1p(1e4 * count / measured.total_counts[row]), rel=1e-5)
    others = np.delete(np.arange(len(measured.names)), row)
    rest = anndata.AnnData(measured.counts[others].astype(np.float32))
    rest.obs_names, rest.var_names = measured.names[others].tolist(), measured.genes.tolist()
    rest.write_h5ad(tmp_path / "rest.h5ad")
    found = explain(pred, "--truth", tmp_path / "rest.h5ad", "--no-sweep")
    assert set(found["measured"].values()) == {None}
    assert found["notes"] == [f"the spot was not measured in {tmp_path / 'rest.h5ad'}"]


@pytest.mark.parametrize(
    ("options", "code", "texts"),
    [
        (("--spot", "33x3"), 2, ("no such spot among 34", "Did you mean", "3x3")),
        (("--spot", SPOT, "--gene", "TUM01"), 2, ("no section of the bank", "TUM01", "Did you mean TUM001")),
        (("--spot", SPOT, "--gene", "TUM001,TUM002,TUM003,TUM004,TUM005"), 2, ("5 genes asked", "at most 4")),
        (("--spot", SPOT, "--out", "x.jpg"), 1, ("ends in .jpg", ".png, .pdf or .svg")),
        (("--spot", SPOT, "--bank", "nowhere.zarr"), 1, ("no bank at nowhere.zarr",)),
        (("--spot", SPOT, "--truth", "nowhere"), 1, ("neither an .h5ad file nor COHORT:SECTION",)),
    ],
)  # fmt: skip
def test_what_cannot_be_explained_is_refused_with_a_remedy(generag, pred, options, code, texts):
    done = generag("explain", pred, *options, "-q")
    done.expect_refusal(code, *texts)
