"""Two banks that become one without embedding anything again."""

import dataclasses
import json
import shutil
from hashlib import sha256

import numpy as np
import pytest

from genrag_cli.errors import BankError, UsageError
from genrag_cli.pipeline.anchors import AnchorOptions
from genrag_cli.pipeline.merge_banks import merge_banks
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.bank_check import verify_bank
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.types import Listener


@pytest.fixture
def pair(built, tmp_path):
    """Banks of A, B and of C, D, and a place for a third."""
    return *(shutil.copytree(built(names), tmp_path / names) for names in ("AB", "CD")), tmp_path / "out"


def change(folder, **entries):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries, "manifest_sha256": None}))


def shuffle_genes(made_up, folder, names, kept):
    """A bank with some of the genes, in another order."""
    order = np.random.default_rng(0).permutation(60)
    order = order[np.isin(order, kept)]
    source, writer = BankWriter(folder), BankWriter(folder.with_name("shuffled"))
    writer.create(genes=made_up.GENES[order], gene_ids=None, geometry=source.manifest["geometry"], train=["T"])
    for entry in source.manifest["sections"]:
        writer.copy_section(folder, entry, order)
        known = source.manifest["backbones"]["made-up"]
        writer.copy_embeddings(folder, known["card"], entry["name"], known["sections"][entry["name"]])
    made_up.versions(writer)
    return writer.folder


def test_a_merged_bank_is_one_built_of_all_sections(made_up, pair, built):
    merge_banks(*pair, Listener())
    made_up.assert_same(Bank.open(pair[2], "made-up"), Bank.open(built("ABCD"), "made-up"))
    assert verify_bank(pair[2]) == []
    for name, source in (("A", pair[0]), ("D", pair[1])):
        for file in (f"sections/{name}.zarr.zip", f"embeddings/made-up/{name}.zarr.zip"):
            assert (pair[2] / file).read_bytes() == (source / file).read_bytes()


def test_genes_that_both_have_are_matched_by_name(made_up, pair):
    kept = np.arange(10, 60)
    other = shuffle_genes(made_up, pair[1], "CD", kept)
    merge_banks(pair[0], other, pair[2], Listener())
    bank = Bank.open(pair[2], "made-up")
    assert bank.genes.tolist() == made_up.GENES[kept].tolist()
    rows = np.concatenate([c.toarray() for _, c, _ in bank.count_blocks()])
    expected = np.concatenate([made_up.draw(name)[0].toarray()[:, kept] for name in "ABCD"])
    np.testing.assert_array_equal(rows, expected)
    counted = expected.mean(axis=0)
    np.testing.assert_allclose(bank.derived["genes/counts/mean"], counted, rtol=1e-9)


def test_gene_lists_that_must_be_equal_are_refused_where_they_are_not(made_up, pair):
    other = shuffle_genes(made_up, pair[1], "CD", np.arange(1, 60))
    with pytest.raises(BankError, match=r"gene lists of .*AB \(60\) and .*shuffled \(59\) differ in G0"):
        merge_banks(pair[0], other, pair[2], Listener(), genes="equal")


def test_a_merge_that_was_cut_off_goes_on(made_up, pair, monkeypatch):
    copied = []
    copy = BankWriter.copy_section

    def copy_two(self, source, entry, columns):
        if len(copied) == 2:
            raise KeyboardInterrupt
        copied.append(entry["name"])
        copy(self, source, entry, columns)

    monkeypatch.setattr(BankWriter, "copy_section", copy_two)
    with pytest.raises(KeyboardInterrupt):
        merge_banks(*pair, Listener())
    monkeypatch.setattr(BankWriter, "copy_section", lambda self, *a: (copied.append(a[1]["name"]), copy(self, *a))[1])
    merge_banks(*pair, Listener())
    assert copied == list("ABCD")
    assert Bank.open(pair[2], "made-up").n_spots == 230


def test_a_dry_run_says_it_only(pair):
    listener = Listener()
    merge_banks(*pair, listener, dry_run=True)
    assert listener.messages[-1] == f"would merge 4 sections into {pair[2]}, with made-up"
    assert not pair[2].exists()


def test_a_backbone_that_one_bank_has_alone_is_left_out_and_said(made_up, pair):
    writer, card = BankWriter(pair[0]), dataclasses.replace(made_up.CARD, name="other")
    for name in "AB":
        spots = np.array([f"s{i}" for i in range(made_up.SIZES[name])])
        writer.add_embeddings(card, name, spots, iter([made_up.draw(name)[1]]), key=name)
    made_up.add_version(writer, "other", ["A", "B"], made_up.FIVE, Listener())
    listener = Listener()
    merge_banks(*pair, listener)
    assert f"warning: other is in {pair[0]} only, and is left out" in listener.messages
    with pytest.raises(BankError, match="no embeddings of backbone 'other'"):
        Bank.open(pair[2], "other")


def test_sections_of_one_name_are_refused(made_up, pair, tmp_path):
    made_up.make(tmp_path / "BC", "BC")
    with pytest.raises(BankError, match=r"both have a section B \(1 in all\)"):
        merge_banks(pair[0], tmp_path / "BC", pair[2], Listener())


@pytest.mark.parametrize(
    ("entries", "said"),
    [({"geometry": {"fov_um": 120.0}}, "fov_um 200.0"), ({"geometry": {"crop": "stem"}}, "built with crop None"),
     ({"species": "mouse"}, "is human, .* is mouse")],
)  # fmt: skip
def test_banks_that_do_not_fit_are_refused(pair, entries, said):
    change(pair[0], species="human")
    change(pair[1], **entries)
    with pytest.raises(BankError, match=said):
        merge_banks(*pair, Listener())


def test_one_section_under_two_names_is_refused(pair):
    BankWriter(pair[0]).update_section("B", content="digest")
    BankWriter(pair[1]).update_section("D", content="digest")
    with pytest.raises(BankError, match=r"section D of .*CD has the very counts of B"):
        merge_banks(*pair, Listener())


def test_another_revision_of_a_backbone_is_refused(pair):
    manifest = json.loads((pair[1] / "manifest.json").read_text())
    manifest["backbones"]["made-up"]["card"]["revision"] = "2"
    change(pair[1], **manifest)
    with pytest.raises(BankError, match=r"backbone made-up has revision 1 in .*AB, 2 in .*CD"):
        merge_banks(*pair, Listener())


def test_ids_that_contradict_each_other_are_refused(made_up, pair):
    for folder, first in ((pair[0], "ENSG1"), (pair[1], "ENSG2")):
        path = folder / "genes.json"
        text = json.dumps({"genes": made_up.GENES.tolist(), "gene_ids": [first, *[""] * 59]})
        path.write_text(text)
        manifest = json.loads((folder / "manifest.json").read_text())
        facts = {"bytes": len(text), "sha256": sha256(text.encode()).hexdigest()}
        change(folder, genes_file=manifest["genes_file"] | facts)
    with pytest.raises(BankError, match="such as G0: ENSG1 and ENSG2"):
        merge_banks(*pair, Listener())


def test_another_bank_is_not_merged_into(made_up, pair):
    made_up.make(pair[2], "")
    with pytest.raises(BankError, match="is another bank"):
        merge_banks(*pair, Listener())


def test_a_bank_is_not_merged_with_itself(pair):
    with pytest.raises(UsageError, match="not three banks"):
        merge_banks(pair[0], pair[0], pair[2], Listener())


def test_other_recipes_and_common_patients_are_said(made_up, pair):
    made_up.versions(BankWriter(pair[1]), AnchorOptions(number=6))
    BankWriter(pair[1]).update_section("C", patient="A")
    made_up.versions(BankWriter(pair[1]), AnchorOptions(number=6))
    listener = Listener()
    merge_banks(*pair, listener)
    assert any("patients A are in both banks" in text for text in listener.messages)
    assert any("chose anchors in different ways" in text for text in listener.messages)
    assert len(Bank.open(pair[2], "made-up").anchors) == 5
