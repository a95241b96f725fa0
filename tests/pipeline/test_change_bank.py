"""Sections that leave a bank: gone with everything made of them, and at no moment spoken of and absent."""

import json
import shutil

import numpy as np
import pytest

from genrag_cli.errors import BankError, GeneragError, UsageError
from genrag_cli.pipeline import change_bank
from genrag_cli.pipeline.anchors import AnchorOptions
from genrag_cli.pipeline.change_bank import remove_sections
from genrag_cli.stores import bank_writer
from genrag_cli.stores.atomic import Parts
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.bank_check import verify_bank
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.types import Listener


@pytest.fixture(scope="module")
def grown(made_up, tmp_path_factory):
    """A bank of A, B, C; version 1 has A and B, version 2 all."""
    folder = tmp_path_factory.mktemp("grown") / "b"
    writer = made_up.make(folder, "AB")
    made_up.versions(writer)
    made_up.add(writer, "C")
    made_up.versions(writer)
    return folder


@pytest.fixture
def folder(grown, tmp_path):
    return shutil.copytree(grown, tmp_path / "b")


@pytest.fixture
def never(built):
    """The bank that never had B."""
    return Bank.open(built("AC"), "made-up")


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != ".writer.lock")


def test_a_bank_without_a_section_is_one_that_never_had_it(made_up, folder, never):
    remove_sections(folder, ["B"], Listener())
    bank = Bank.open(folder, "made-up")
    assert bank.number == 3
    made_up.assert_same(bank, never)
    assert verify_bank(folder) == []
    for (_, counts, _), (_, others, _) in zip(bank.count_blocks(), never.count_blocks(), strict=True):
        np.testing.assert_array_equal(counts.toarray(), others.toarray())


def test_nothing_of_a_section_is_left(folder):
    remove_sections(folder, ["B"], Listener())
    assert [f for f in files(folder) if "B." in f or "v1." in f or "v2." in f] == []
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [s["name"] for s in manifest["sections"]] == ["A", "C"]
    assert list(manifest["backbones"]["made-up"]["sections"]) == ["A", "C"]


def test_parts_of_unfinished_embeddings_go_too(folder):
    Parts(folder / "embeddings" / "other" / "B.zarr.zip", "key", "parts").write(0, values=np.ones(3))
    remove_sections(folder, ["B"], Listener())
    assert [f for f in files(folder) if "B." in f] == []


def test_versions_with_the_section_are_history_and_those_without_stay(folder):
    remove_sections(folder, ["C"], Listener())
    assert Bank.open(folder, "made-up", version=1).n_spots == 111
    with pytest.raises(BankError, match="version 2 of made-up used C") as refused:
        Bank.open(folder, "made-up", version=2)
    assert "predict again" in refused.value.hint


def test_anchors_are_chosen_as_before(made_up, folder):
    (folder.parent / "panel.txt").write_text("G7\nG2\n")
    made_up.versions(BankWriter(folder), AnchorOptions(file=folder.parent / "panel.txt"))
    (folder.parent / "panel.txt").unlink()
    remove_sections(folder, ["A"], Listener())
    bank = Bank.open(folder, "made-up")
    assert (bank.anchors.tolist(), bank.version["panel"]) == (["G7", "G2"], "file panel.txt")


def stop(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "name"), [(bank_writer, "remove"), (bank_writer, "tidy"), (change_bank, "add_version")]
)
def test_a_removal_that_was_cut_off_is_finished_by_a_rerun(made_up, folder, never, monkeypatch, where, name):
    with monkeypatch.context() as patched:
        patched.setattr(where, name, stop)
        with pytest.raises(KeyboardInterrupt):
            remove_sections(folder, ["B"], Listener())
    assert any("not finished" in text for text in verify_bank(folder))
    with pytest.raises(BankError) as refused:
        Bank.open(folder, "made-up")
    assert f"generag bank remove B --bank {folder}" in refused.value.hint
    remove_sections(folder, ["B"], Listener())
    made_up.assert_same(Bank.open(folder, "made-up"), never)
    assert [f for f in files(folder) if "B." in f] == []
    assert verify_bank(folder) == []


def test_whoever_writes_next_deletes_what_a_cut_off_removal_left(made_up, folder, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(bank_writer, "remove", stop)
        with pytest.raises(KeyboardInterrupt):
            remove_sections(folder, ["B"], Listener())
    assert any("waits to be deleted" in text for text in verify_bank(folder))
    writer = BankWriter(folder)
    assert [f for f in files(folder) if "B." in f] == []
    made_up.add(writer, "B")
    assert BankWriter(folder).section("B") is not None


def test_removing_again_does_nothing(folder):
    remove_sections(folder, ["B"], Listener())
    before, listener = (folder / "manifest.json").read_text(), Listener()
    remove_sections(folder, ["B"], listener)
    assert (folder / "manifest.json").read_text() == before
    assert listener.messages[0] == "B: is out already"


def test_a_dry_run_says_it_only(folder):
    before, listener = files(folder), Listener()
    remove_sections(folder, ["B"], listener, dry_run=True)
    assert listener.messages == ["B: 41 spots would be deleted"]
    assert files(folder) == before


def test_a_section_that_is_not_there_comes_with_the_nearest(folder):
    with pytest.raises(UsageError, match="no section a in the bank"):
        remove_sections(folder, ["a"], Listener())


def test_the_last_section_stays(folder):
    with pytest.raises(BankError, match="no section with embeddings of made-up would be left"):
        remove_sections(folder, ["A", "B", "C"], Listener())


def test_a_lost_version_is_no_obstacle(made_up, folder, never):
    (folder / "derived" / "made-up.v2.zarr.zip").unlink()
    remove_sections(folder, ["B"], Listener())
    made_up.assert_same(Bank.open(folder, "made-up"), never)


def test_anchors_that_cannot_be_had_any_more_are_said_with_what_to_do(folder, monkeypatch):
    def refuse(*args):
        raise GeneragError("60 anchor genes asked for; 41 pass")

    monkeypatch.setattr(change_bank, "add_version", refuse)
    with pytest.raises(BankError, match="the 1 sections that are left: 60 anchor genes asked for") as refused:
        remove_sections(folder, ["A", "B"], Listener())
    assert "--anchors" in refused.value.hint
