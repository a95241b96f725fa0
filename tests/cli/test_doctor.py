"""`generag doctor`: every line ok, note or problem with a remedy; nothing hangs, nothing is told that is secret."""

import json
import time
from pathlib import Path

import pytest

from genrag_cli.errors import BankError
from genrag_cli.pipeline.doctor import Finding, within
from genrag_cli.pipeline.self_test import SelfTest, compare_with_reference

HEALTHY = SelfTest("cpu", spots=9, worst_gap=1e-5, references=5.0, finite=True, difference=1e-6)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def doctor(generag, tmp_path, monkeypatch):
    def run(*options: object) -> tuple[int, dict[str, dict[str, str]], str]:
        monkeypatch.chdir(tmp_path)
        done = generag("doctor", "--no-self-test", "--json", *options)
        return done.code, {one["check"]: one for one in json.loads(done.out)["findings"]}, done.out + done.err

    return run


def test_a_healthy_machine_has_no_problem(generag, built_bank, tmp_path):
    done = generag("doctor", "--backbone", "stain", "--bank", built_bank, "--out", tmp_path, "--device", "cpu")
    assert done.code == 0, done.out + done.err
    for text in ("torch", "openslide: library 4", "for this job, by", "GB free", "2 sections", "of a made-up slide"):
        assert text in done.out
    assert "problem" not in done.out


def test_every_finding_has_a_state_and_every_problem_a_remedy(doctor, tmp_path):
    (tmp_path / "file").touch()
    code, found, _ = doctor("--backbone", "uni", "--out", tmp_path / "file" / "below")
    assert code == 1
    assert {one["state"] for one in found.values()} == {"ok", "note", "problem"}
    assert all(one["remedy"] for one in found.values() if one["state"] == "problem")
    assert found["out"]["state"] == "problem"


def test_no_hub_is_a_note_and_a_problem_only_where_weights_are_missing(doctor, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    code, found, _ = doctor("--backbone", "stain")
    assert (code, found["hub"]["state"]) == (0, "note")
    code, found, _ = doctor("--backbone", "uni")
    assert (code, found["hub"]["state"], found["weights"]["state"]) == (1, "problem", "note")
    assert "--weights" in found["hub"]["remedy"]


def test_a_hub_that_does_not_answer_is_told_with_the_reason(doctor, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, found, _ = doctor("--backbone", "stain")
    assert (code, found["hub"]["state"]) == (0, "note")
    assert "does not answer" in found["hub"]["text"]


def test_a_token_is_never_shown(doctor, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    _, found, everything = doctor("--backbone", "stain")
    assert "token present" in found["hub"]["text"]
    assert "hf_secret" not in everything


def test_a_bank_that_does_not_open_is_a_problem(doctor, bank: Path):
    next(bank.rglob("*.zip")).unlink()
    code, found, err = doctor("--backbone", "stain", "--bank", bank)
    assert code == 1
    assert found["bank"]["state"] == "problem"
    assert "Repair it" in found["bank"]["remedy"]
    assert "bank" in err


def test_an_unknown_backbone_does_not_end_the_other_checks(doctor):
    code, found, _ = doctor("--backbone", "nobody")
    assert code == 1
    assert found["weights"]["state"] == "problem"
    assert {"versions", "memory", "temp", "hub"} <= found.keys()


def test_the_place_for_results_is_left_as_it_was(doctor, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    code, found, _ = doctor("--backbone", "stain", "--out", out)
    assert (code, found["out"]["state"]) == (0, "ok")
    assert list(out.iterdir()) == []
    assert doctor("--backbone", "stain", "--out", tmp_path / "not" / "yet")[0] == 0
    assert not (tmp_path / "not").exists()


def test_a_check_that_hangs_is_left_behind():
    (found,) = within("disk", lambda: time.sleep(60) or [], 0.05)
    assert (found.check, found.state) == ("disk", "problem")
    assert "no answer" in found.text


def test_a_check_that_fails_is_a_finding():
    def broken() -> list[Finding]:
        raise ImportError("libsomething.so: cannot open\nmore")

    def refused() -> list[Finding]:
        raise BankError("no bank", "Build one.")

    (found,) = within("versions", broken, 5)
    assert (found.state, found.text) == ("problem", "ImportError: libsomething.so: cannot open")
    assert within("bank", refused, 5) == [Finding("bank", "problem", "no bank", "Build one.")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spots": 0}, "no spot"),
        ({"finite": False}, "not finite"),
        ({"worst_gap": 1e-3}, "gap"),
        ({"references": 0.0}, "no references"),
        ({"difference": 0.1}, "do not agree"),
    ],
)
def test_the_self_test_says_what_is_wrong(change, said):
    assert HEALTHY.wrong == ""
    assert said in SelfTest(**{**vars(HEALTHY), **change}).wrong


def test_the_solver_agrees_with_its_reference_here():
    assert compare_with_reference("cpu") < 1e-4
