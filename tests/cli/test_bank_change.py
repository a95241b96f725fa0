"""`generag bank remove` and `generag bank merge`."""

import json

import pytest

from genrag_cli.stores.bank import Bank


@pytest.fixture
def other(generag, cohort, tmp_path):
    """A bank of the patient that `bank` lacks."""
    options = ("--patients", "prefix", "--exclude", "P1_1", "--exclude", "P2_1", "--backbone", "stain")
    done = generag("build-bank", cohort, *options, "--workers", "1", "--bank", tmp_path / "other.zarr")
    assert done.code == 0, done.err
    return tmp_path / "other.zarr"


def test_a_section_is_taken_out_and_the_bank_predicts_without_it(generag, bank, slide, tmp_path):
    done = generag("bank", "remove", "P2_1", "--bank", bank)
    assert done.code == 0, done.err
    assert (done.out, "P2_1: " in done.err) == ("", True)
    assert generag("bank", "verify", "--bank", bank).code == 0
    shown = generag("bank", "info", "--bank", bank).out
    assert "version 1: history; it used P2_1, taken out since" in shown
    assert "taken out: P2_1" in shown
    common = ("--backbone", "stain", "--bank", bank, "--out", tmp_path / "out", "--alpha", "0.003", "--workers", "1")
    assert generag("retrieve", slide, *common).code == 0


def test_a_section_that_was_taken_out_does_not_come_back_with_the_next_build(generag, bank, build_options):
    assert generag("bank", "remove", "P2_1", "--bank", bank).code == 0
    again = generag(*build_options, "--bank", bank)
    assert again.code == 0, again.err
    assert "warning: P2_1 was taken out of the bank" in again.err
    assert [s["name"] for s in Bank.open(bank, "stain").sections] == ["P1_1"]


def test_a_dry_run_takes_nothing_out(generag, bank):
    before = (bank / "manifest.json").read_text()
    done = generag("bank", "remove", "P2_1", "--bank", bank, "--dry-run")
    assert (done.code, "would be deleted" in done.err) == (0, True)
    assert (bank / "manifest.json").read_text() == before


def test_sections_and_banks_that_are_not_there_are_refused(generag, bank, tmp_path):
    generag("bank", "remove", "P2_2", "--bank", bank).expect_refusal(2, "no section P2_2", "P2_1")
    generag("bank", "remove", "P2_1", "--bank", tmp_path / "none").expect_refusal(1, "no bank at", "build-bank")
    assert not (tmp_path / "none").exists()


def test_two_banks_become_one(generag, bank, other, tmp_path):
    out = tmp_path / "both.zarr"
    assert "would merge 3 sections" in generag("bank", "merge", bank, other, "--bank", out, "--dry-run").err
    assert not out.exists()
    done = generag("bank", "merge", bank, other, "--bank", out)
    assert done.code == 0, done.err
    assert generag("bank", "verify", "--bank", out).code == 0
    said = json.loads(generag("bank", "info", "--json", "--bank", out).out)
    assert [s["name"] for s in said["sections"]] == ["P1_1", "P2_1", "P3_1"]
    assert said["backbones"]["stain"]["versions"][0]["rule"] == "leave-one-patient-out"


def test_banks_that_cannot_be_merged_are_refused(generag, bank, other, built_bank, tmp_path):
    out = tmp_path / "both.zarr"
    generag("bank", "merge", bank, built_bank, "--bank", out, "-q").expect_refusal(
        1, "both have a section P1_1", "rename"
    )
    generag("bank", "merge", bank, other, "--bank", built_bank, "-q").expect_refusal(1, "is another bank", "--bank")
