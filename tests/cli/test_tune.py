"""`generag tune`: settings that later predictions use, and earlier predictions that stay what they were."""

import json
import shutil
from types import SimpleNamespace

import anndata
import numpy as np
import pytest

from genrag_cli.outputs import keys
from genrag_cli.pipeline.tuning.trust import percentile_of
from genrag_cli.pipeline.tuning.tuning import Tuning
from genrag_cli.stores.bank import Bank, read_manifest

STAIN = ("--backbone", "stain", "--workers", "1")
SEARCH = "genrag_cli.pipeline.tuning.search.STAGES"
ONE_STAGE = (("omega", lambda _: [{"omega": 0.05}]),)
"""For tests in which the settings do not matter."""


@pytest.fixture(scope="module")
def predict(generag, cohort):
    """`predict(bank, out, ...)`: what was said, and the held-out slide's prediction of all genes."""

    def run(bank, out, *options):
        slide = cohort / "images" / "P3_1.tif"
        done = generag("retrieve", slide, *STAIN, "--bank", bank, "--out", out, "--genes", "all", *options)
        assert done.code == 0, done.err
        return done.err, anndata.read_h5ad(out)

    return run


@pytest.fixture(scope="module")
def tuned(generag, predict, built_bank, tmp_path_factory):
    """A tuned bank, what was said of it, and predictions made before and after. Not to be changed: take `again`."""
    home = tmp_path_factory.mktemp("tuned")
    bank = shutil.copytree(built_bank, home / "b.zarr")
    before = predict(bank, home / "before.h5ad")
    done = generag("tune", bank, *STAIN, "--json", "--plot", home / "curves.png")
    assert done.code == 0, done.err
    after = predict(bank, home / "after.h5ad")
    return SimpleNamespace(home=home, bank=bank, before=before, said=json.loads(done.out), after=after)


@pytest.fixture
def again(tuned, tmp_path):
    """A copy of the tuned bank to do with as one likes."""
    return shutil.copytree(tuned.bank, tmp_path / "again.zarr")


def tuning_files(bank):
    return sorted(p.name for p in (bank / "derived").glob("*.t*.zarr.zip"))


def export(generag, prediction, out, *options):
    done = generag("export", prediction, "--genes", "all", "--out", out, *options)
    assert done.code == 0, done.err
    return anndata.read_h5ad(out)


def test_settings_are_stored_with_what_was_tried_and_drawn(tuned):
    said = tuned.said
    assert (said["tuning"], said["rule"], said["n_folds"]) == (1, "leave-one-patient-out", 2)
    assert said["folds"] == [["P1_1"], ["P2_1"]]
    assert {t["stage"] for t in said["tried"]} == {"context", "ridge", "omega", "l1_ratio", "preparation"}
    found = Tuning.read(Bank.open(tuned.bank, "stain"))
    assert (found.settings.words(), found.key) == (said["settings"], said["key"])
    assert tuning_files(tuned.bank) == ["stain.v1.t1.zarr.zip"]
    assert (tuned.home / "curves.png").stat().st_size > 5000


def test_the_chosen_setting_scores_best_but_for_the_margin(tuned):
    best = max(t["score"] for t in tuned.said["tried"])
    assert best - 0.004 < tuned.said["score"] <= best
    assert tuned.said["score"] > tuned.said["tried"][0]["score"]


def test_a_prediction_from_a_tuned_bank_uses_its_settings_and_says_so(tuned):
    _, found = tuned.after
    about, settings = found.uns["generag"], tuned.said["settings"]
    assert (about["tuning"], about["tuning_key"], about["settings_by"]) == (1, tuned.said["key"], tuned.said["rule"])
    assert json.loads(about["settings"]) == settings
    assert (about["omega"], about["share"], about["interval_level"]) == (settings["omega"], settings["share"], 0.9)
    assert abs(np.median(found.obs[keys.N_REFS]) - settings["references"]) <= 2
    assert np.abs(found.X - tuned.before[1].X).max() > 0.01


def test_neighbours_are_counted_where_the_settings_mix_them_in(tuned):
    obs = tuned.after[1].obs
    places = obs[["array_row", "array_col"]].to_numpy()
    near = np.abs(places[:, None] - places).max(axis=-1) == 1
    mixed = tuned.said["settings"]["context"] > 0
    assert obs[keys.CONTEXT].tolist() == (near.sum(axis=1) * mixed).tolist()


def test_genes_carry_what_folds_expect_of_them(tuned):
    bank, (_, found) = Bank.open(tuned.bank, "stain"), tuned.after
    arrays, var = Tuning.read(bank).arrays, found.var.loc[bank.genes]
    names = {
        "expected_pcc": "expected_pcc",
        "oof_pcc_q": "q_value",
        "interval_low": "low",
        "interval_high": "high",
    }
    for column, array in names.items():
        np.testing.assert_allclose(var[column], arrays[f"genes/{array}"], err_msg=column)
    predictable = (var["oof_pcc_q"] <= 0.05) & (var["oof_pcc"] > 0)
    assert var["predictable"].tolist() == predictable.tolist()
    assert 0 < var["predictable"].sum() == tuned.said["n_predictable"] < len(var)
    assert (var["interval_low"] < var["interval_high"]).all()


def test_spots_carry_their_place_among_spots_that_were_left_out(tuned):
    arrays, obs = Tuning.read(Bank.open(tuned.bank, "stain")).arrays, tuned.after[1].obs
    pairs = {
        keys.MORPHOLOGY_PERCENTILE: (keys.MORPHOLOGY_RESIDUAL, "spots/morphology"),
        keys.ANCHOR_PERCENTILE: (keys.ANCHOR_RESIDUAL, "spots/anchor"),
    }
    for column, (residual, quantiles) in pairs.items():
        expected = percentile_of(obs[residual].to_numpy(), arrays[quantiles])
        np.testing.assert_allclose(obs[column], expected, err_msg=column)
        assert np.ptp(obs[column]) > 20
    assert obs[keys.OUT_OF_BANK].tolist() == (obs[keys.MORPHOLOGY_PERCENTILE] > 99).tolist()


def test_a_bank_that_was_not_tuned_says_so_and_claims_nothing(tuned):
    said, found = tuned.before
    assert "is not tuned" in said
    assert found.uns["generag"]["tuning"] == 0
    assert not {"expected_pcc", "predictable", "interval_low", "interval_high"} & set(found.var)
    assert not {keys.OUT_OF_BANK, keys.MORPHOLOGY_PERCENTILE, keys.ANCHOR_PERCENTILE, keys.CONTEXT} & set(found.obs)


@pytest.mark.parametrize("options", [("--untuned",), ("--omega", "0.25")])
def test_settings_are_left_aside_on_request_and_it_is_said(tuned, predict, tmp_path, options):
    said, found = predict(tuned.bank, tmp_path / "p.h5ad", *options)
    assert "tuned settings are not used: " + options[0] in said
    assert found.uns["generag"]["tuning"] == 0
    assert "expected_pcc" not in found.var
    np.testing.assert_array_equal(found.X, tuned.before[1].X)


def test_a_bank_is_tuned_once(generag, tuned):
    manifest = (tuned.bank / "manifest.json").read_bytes()
    done = generag("tune", tuned.bank, *STAIN)
    assert (done.code, "tuned already" in done.err) == (0, True)
    assert (tuned.bank / "manifest.json").read_bytes() == manifest


def test_a_dry_run_says_the_folds_and_stores_nothing(generag, bank):
    manifest = (bank / "manifest.json").read_bytes()
    done = generag("tune", bank, *STAIN, "--dry-run")
    assert (done.code, "with 2 folds (leave-one-patient-out)" in done.err) == (0, True)
    assert (bank / "manifest.json").read_bytes() == manifest
    assert tuning_files(bank) == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_predictions_export_to_the_values_that_they_have(generag, tuned, tmp_path, when):
    _, expected = getattr(tuned, when)
    found = export(generag, tuned.home / f"{when}.h5ad", tmp_path / "e.h5ad")
    assert (found.var_names.tolist(), found.obs_names.tolist()) == (
        expected.var_names.tolist(), expected.obs_names.tolist(),
    )  # fmt: skip
    np.testing.assert_allclose(found.X, expected.X, atol=1e-6)
    assert found.var.columns.tolist() == expected.var.columns.tolist()
    assert found.obs.columns.tolist() == expected.obs.columns.tolist()


def test_weights_alone_export_to_the_tuned_values(generag, tuned, predict, tmp_path):
    predict(tuned.bank, tmp_path / "w.h5ad", "--expression", "none")
    found = export(generag, tmp_path / "w.h5ad", tmp_path / "e.h5ad")
    np.testing.assert_allclose(found.X, tuned.after[1].X, atol=1e-6)
    np.testing.assert_allclose(found.var["expected_pcc"], tuned.after[1].var["expected_pcc"])


def test_other_folds_make_another_tuning_and_the_first_still_exports(
    generag, tuned, again, predict, tmp_path, monkeypatch
):
    monkeypatch.setattr(SEARCH, ONE_STAGE)
    done = generag("tune", again, *STAIN, "--folds", "sections", "--json", "--quiet")
    said = json.loads(done.out)
    assert (said["tuning"], said["rule"]) == (2, "leave-one-section-out")
    assert tuning_files(again) == ["stain.v1.t1.zarr.zip", "stain.v1.t2.zarr.zip"]
    found = predict(again, tmp_path / "p.h5ad")[1].uns["generag"]
    assert (found["tuning"], found["tuning_key"]) == (2, said["key"])
    first = export(generag, tuned.home / "after.h5ad", tmp_path / "e.h5ad", "--bank", again)
    np.testing.assert_allclose(first.X, tuned.after[1].X, atol=1e-6)
    assert generag("bank", "verify", "--bank", again).code == 0


def test_a_changed_file_of_settings_is_noticed(generag, again):
    path = again / "derived" / "stain.v1.t1.zarr.zip"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    generag("bank", "verify", "--bank", again).expect_refusal(1, path.name, "was changed")
    path.unlink()
    generag("bank", "verify", "--bank", again).expect_refusal(1, path.name, "is missing")


def test_lost_settings_are_refused_left_aside_and_tuned_again(generag, tuned, again, slide, tmp_path, monkeypatch):
    (again / "derived" / "stain.v1.t1.zarr.zip").write_bytes(b"cut short")
    common = ("retrieve", slide, *STAIN, "--bank", again, "--out", tmp_path / "p.h5ad", "--quiet")
    generag(*common).expect_refusal(1, "stain.v1.t1.zarr.zip", "Tune again", "--overwrite")
    assert generag(*common, "--untuned").code == 0
    monkeypatch.setattr(SEARCH, ONE_STAGE)
    done = generag("tune", again, *STAIN, "--overwrite", "--quiet")
    assert done.code == 0, done.err
    assert tuning_files(again) == ["stain.v1.t1.zarr.zip"]
    assert generag("bank", "verify", "--bank", again).code == 0
    assert generag(*common).code == 0


def test_a_section_that_is_taken_out_takes_the_settings_made_with_it_along(generag, again, predict, tmp_path):
    assert generag("bank", "remove", "P2_1", "--bank", again).code == 0
    assert tuning_files(again) == []
    assert "tunings" not in read_manifest(again)["backbones"]["stain"]["versions"][0]
    assert generag("bank", "verify", "--bank", again).code == 0
    _, found = predict(again, tmp_path / "p.h5ad", "--active", "10")
    assert found.uns["generag"]["tuning"] == 0


def test_a_prediction_made_with_other_settings_is_not_exported(generag, tuned, bank, tmp_path):
    done = generag("export", tuned.home / "after.h5ad", "--bank", bank, "--out", tmp_path / "e.h5ad")
    done.expect_refusal(1, "has 0 tunings, 1 was asked", "--bank")


def test_folds_that_the_bank_does_not_have_are_refused(generag, bank):
    generag("tune", bank, *STAIN, "--folds", "blocks", "--quiet").expect_refusal(
        1, "10 spots or more", "two are needed"
    )
    generag("bank", "remove", "P2_1", "--bank", bank)
    generag("tune", bank, *STAIN, "--folds", "patients", "--quiet").expect_refusal(2, "two patients or more")
    generag("tune", bank, *STAIN, "--folds", "sections", "--quiet").expect_refusal(2, "one section")
