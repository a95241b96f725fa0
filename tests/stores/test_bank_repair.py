"""A bank in the middle of a change: entries speak of the files that are there, and versions know what made them."""

import numpy as np
import pytest
import scipy.sparse as sp

from genrag_cli.errors import BankError
from genrag_cli.stores import bank_writer
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.bank_check import verify_bank
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.types import BackboneCard

CARDS = [BackboneCard(name, "1", 3, 224, "none") for name in ("stain", "lite0")]
GENES = np.array(["A", "B"])
GEOMETRY = {"fov_um": 200.0, "pitch_um": 200.0, "spot_um": 100.0}


def add_section(writer, name, n=4):
    spots = np.array([f"{i}x1" for i in range(n)])
    writer.add_section(
        name, names=spots, counts=sp.csr_matrix(np.arange(1, 2 * n + 1).reshape(n, 2)), totals=np.ones(n),
        centres=np.zeros((n, 2)), array_rc=np.zeros((n, 2), np.int64), statistics={},
        entry={"key": f"{name}{n}", "patient": None},
    )  # fmt: skip
    return spots


def add_version(writer, card, key="1"):
    writer.add_version(card.name, {"features/mean": np.zeros(3)}, {"key": key, "sections": ["S", "T"], "anchors": []})


@pytest.fixture
def writer(tmp_path):
    writer = BankWriter(tmp_path / "b")
    writer.create(genes=GENES, gene_ids=None, geometry=GEOMETRY, train=["T"])
    for name in ("S", "T"):
        spots = add_section(writer, name)
        for card in CARDS:
            writer.add_embeddings(card, name, spots, iter([np.ones((4, 3), np.float32)]), key=name)
    for card in CARDS:
        add_version(writer, card)
    return writer


def test_a_version_whose_section_was_replaced_is_refused(writer):
    spots = add_section(writer, "S", n=3)
    for backbone in ("stain", "lite0"):
        with pytest.raises(BankError, match=f"section S changed after version 1 of {backbone}"):
            Bank.open(writer.folder, backbone)
    writer.add_embeddings(CARDS[0], "S", spots, iter([np.ones((3, 3), np.float32)]), key="new")
    add_version(writer, CARDS[0], key="2")
    assert Bank.open(writer.folder, "stain").n_spots == 7
    with pytest.raises(BankError, match="version 1 of lite0") as raised:
        Bank.open(writer.folder, "lite0")
    assert "--backbone lite0" in raised.value.hint
    with pytest.raises(BankError) as raised:
        Bank.open(writer.folder, "stain", version=1)
    assert "history" in raised.value.hint


@pytest.mark.parametrize("what", ["section", "embeddings"])
def test_an_entry_is_gone_before_its_file_is_replaced(writer, monkeypatch, what):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(bank_writer, "write_anndata", stop)
    replace = {
        "section": lambda: add_section(writer, "S", n=3),
        "embeddings": lambda: writer.add_embeddings(CARDS[0], "S", np.array(["a"]), iter([]), key="new"),
    }[what]
    with pytest.raises(KeyboardInterrupt):
        replace()
    again = BankWriter(writer.folder)
    assert (again.section("S") is None) == (what == "section")
    assert again.embedded(CARDS[0], "S", "S") == (what == "section")
    with pytest.raises(BankError, match="S changed"):
        Bank.open(writer.folder, "stain")


def test_a_lost_version_is_written_anew_under_its_number(writer):
    before = (writer.folder / "manifest.json").read_text()
    (writer.folder / writer.current_version("stain")["file"]).unlink()
    assert writer.current_version("stain") is None
    add_version(writer, CARDS[0])
    assert (writer.folder / "manifest.json").read_text() == before
    assert verify_bank(writer.folder) == []


def test_a_file_cut_short_counts_as_unfinished(writer):
    for entry in (writer.section("S"), writer.manifest["backbones"]["stain"]["sections"]["S"]):
        path = writer.folder / entry["file"]
        path.write_bytes(path.read_bytes()[:-1])
    assert writer.section("S") is None
    assert not writer.embedded(CARDS[0], "S", "S")
    assert writer.section("T") is not None


def test_a_bank_is_not_made_among_other_files(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(BankError, match="holds mine"):
        BankWriter(tmp_path).create(genes=GENES, gene_ids=None, geometry=GEOMETRY, train=["T"])
