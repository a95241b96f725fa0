"""Protocols and codebases' scorings through the command line, on a made-up cohort."""

import csv
import json

import pytest

from genrag_cli.evaluation.codebases import SCORINGS
from genrag_cli.pipeline.protocols.fold import METHODS

ASKED = (
    "--backbone", "stain", "--patients", "prefix", "--protocol", "fixed:P3_1", "--bootstrap", "20", "--workers", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(generag, cohort, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated")
    done = generag("evaluate", cohort, *ASKED, "--preset", "default", "--preset", "paper", "--out", out, "--json")
    assert done.code == 0, done.err
    return out, json.loads(done.out)["records"]


def test_every_method_is_in_the_table_of_both_presets(evaluated):
    _, records = evaluated
    default, paper = (set(r["summary"]) for r in records)
    # P3 has no other section, so there is nothing of its patient to remove.
    assert default == set(METHODS) - {"same patient removed"}
    assert default - paper == {"untuned", "regression beside it"}


def test_a_fold_says_what_it_was_scored_over_and_who_chose(evaluated):
    _, records = evaluated
    (fold,) = records[0]["folds"]
    assert fold["train"] == ["P1_1", "P2_1"]
    assert fold["patients_both_sides"] == []
    assert fold["settings_by"] == "leave-one-patient-out"
    assert "chosen from the training sections" in fold["panel"]
    assert (records[0]["scale"], records[1]["scale"]) == ("log1p_cp10k", "counts")
    assert records[1]["folds"][0]["settings_by"] == "published values"


def test_what_is_constant_over_spots_has_no_correlation_and_is_not_dropped(evaluated):
    _, records = evaluated
    rows = {r["method"]: r for r in records[0]["folds"][0]["rows"]}
    assert rows["mean profile"]["core 10"] is None
    assert rows["mean profile"]["core undefined"] == records[0]["folds"][0]["core_genes"]
    assert records[1]["summary"]["library size"]["core 10"] > 0


def test_the_permuted_bank_is_worse_than_the_bank(evaluated):
    summary = evaluated[1][0]["summary"]
    assert summary["permuted bank"]["core 10"] < summary["retrieval"]["core 10"]


def test_intervals_hold_their_estimates_and_say_what_was_drawn(evaluated):
    found = evaluated[1][0]["folds"][0]["intervals"]["retrieval"]["core 10"]
    assert found["low"] - 1e-9 <= found["estimate"] <= found["high"] + 1e-9
    assert "blocks" in found["resampled"]


def test_files_are_written_and_a_rerun_takes_up_what_is_done(generag, evaluated):
    out, records = evaluated
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(f["rows"]) for r in records for f in r["folds"])
    assert len(list(out.glob("fixed-*.png"))) == 2
    again = generag("evaluate", out / "bank.zarr", *ASKED, "--preset", "default", "--out", out)
    assert again.code == 0, again.err
    assert "done already" in again.err
    assert "retrieval" in again.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "one of --truth and --protocol"),
        (("--truth", "x", "--protocol", "fixed:P3_1"), "one of --truth and --protocol"),
        (("--protocol", "leave-one-out"), "unknown protocol"),
        (("--protocol", "fixed"), "names no test section"),
        (("--protocol", "fixed:P3_1", "--preset", "papr"), "unknown preset"),
        (("--protocol", "fixed:P3_1", "--scoring", "stem"), "--scoring"),
    ],
)
def test_what_does_not_go_together_is_refused(generag, cohort, options, said):
    generag("evaluate", cohort, *options).expect_refusal(2, said)


def test_a_codebase_scores_a_prediction_in_counts_and_says_what_it_does(generag, retrieve, cohort, tmp_path):
    assert retrieve("--spots", f"{cohort}:P3_1", "--genes", "all", "--preset", "paper").code == 0
    path, truth = tmp_path / "out" / "P3_1.stain.h5ad", f"{cohort}:P3_1"
    for name in SCORINGS:
        done = generag("evaluate", path, "--truth", truth, "--allow-short", "--scoring", name, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["codebase"]["codebase"] == name
    shown = generag("evaluate", path, "--truth", truth, "--allow-short", "--scoring", "generag")
    assert "as generag scores" in shown.out
    assert "MSE, MAE and RVD mix" in shown.out


def test_a_codebase_that_scores_counts_refuses_what_lost_them(generag, retrieve, cohort, tmp_path):
    assert retrieve("--spots", f"{cohort}:P3_1", "--genes", "all").code == 0
    path = tmp_path / "out" / "P3_1.stain.h5ad"
    generag("evaluate", path, "--truth", f"{cohort}:P3_1", "--scoring", "stem").expect_refusal(2, "--preset paper")
    generag("evaluate", path, "--truth", f"{cohort}:P3_1", "--scoring", "stm").expect_refusal(2, "stem")


def test_a_truth_that_stands_in_the_bank_under_another_name_is_said(generag, retrieve, cohort, tmp_path):
    assert retrieve("--spots", f"{cohort}:P1_1", "--genes", "all").code == 0
    done = generag("evaluate", tmp_path / "out" / "P3_1.stain.h5ad", "--truth", f"{cohort}:P1_1", "--allow-short")
    assert "P1_1" in done.err
    assert "spots" in done.err
