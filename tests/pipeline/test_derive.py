"""Versions of a bank: made from sections one at a time, the same whatever way the sections came."""

import shutil

import numpy as np
import pytest
import scipy.sparse as sp

from genrag_cli.backbones.probe import fit_head
from genrag_cli.errors import CohortError, UsageError
from genrag_cli.genes.align import columns
from genrag_cli.genes.moments import gene_statistics
from genrag_cli.genes.scales import to_scale
from genrag_cli.pipeline import derive
from genrag_cli.pipeline.anchors import AnchorOptions, choose_anchors, stored_statistics
from genrag_cli.pipeline.derive import add_version, sample_rows, standardise_sections
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.types import COUNTS, LOG1P_CP10K, Listener

HALF = np.arange(60) % 2 == 0


def choose(made_up, sections, options):
    return choose_anchors(made_up.GENES, sections, options, Listener())


def test_a_version_holds_what_all_spots_together_give(made_up, tmp_path):
    bank = made_up.versions(made_up.make(tmp_path / "b", "ABC"))
    counts, features = map(list, zip(*map(made_up.draw, "ABC"), strict=True))
    whole, stacked = sp.vstack(counts, format="csr"), np.concatenate(features).astype(float)
    totals = np.asarray(whole.sum(axis=1), float).ravel() + 3
    np.testing.assert_allclose(bank.derived["features/mean"], stacked.mean(0), rtol=1e-6)
    np.testing.assert_allclose(bank.derived["features/sd"], stacked.std(0), rtol=1e-6)
    groups = np.repeat(list("ABC"), [made_up.SIZES[n] for n in "ABC"])
    for scale in (LOG1P_CP10K, COUNTS):
        found, prefix = gene_statistics([(whole, totals)], scale), f"genes/{scale.name}"
        for name in ("mean", "sd", "detected", "spots"):
            np.testing.assert_allclose(bank.derived[f"{prefix}/{name}"], getattr(found, name), rtol=1e-9)
        targets = to_scale(whole[:, columns(made_up.GENES, bank.anchors)], totals, scale).toarray()
        head = fit_head(np.concatenate(standardise_sections(features)), targets, groups)
        assert bank.version["heads"][scale.name]["strength"] == head.strength
        np.testing.assert_array_equal(bank.derived[f"heads/{scale.name}/coef"], head.coef)


def test_appending_a_section_is_building_with_it(made_up, built, tmp_path):
    writer = BankWriter(shutil.copytree(built("AB"), tmp_path / "grown"))
    for name in "CD":
        made_up.add(writer, name)
        bank = made_up.versions(writer)
    made_up.assert_same(bank, Bank.open(built("ABCD"), "made-up"))


def test_an_equal_version_is_not_made_twice(made_up, tmp_path):
    writer = made_up.make(tmp_path / "b", "AB")
    made_up.versions(writer)
    listener = Listener()
    add_version(writer, made_up.CARD.name, ["A", "B"], made_up.FIVE, listener)
    assert "nothing to do" in listener.messages[-1]
    assert made_up.versions(writer, AnchorOptions(number=4)).number == 2
    writer.update_section("A", patient="B")
    assert made_up.versions(writer, AnchorOptions(number=4)).number == 3


def test_a_large_bank_has_its_head_from_a_share_of_every_section_and_says_so(made_up, tmp_path, monkeypatch):
    monkeypatch.setattr(derive, "HEAD_SPOTS", 120)
    writer, listener = made_up.make(tmp_path / "b", "ABCD"), Listener()
    add_version(writer, made_up.CARD.name, list("ABCD"), made_up.FIVE, listener)
    bank = Bank.open(writer.folder, made_up.CARD.name)
    assert any("on 118 of 230 spots" in text for text in listener.messages)
    assert (bank.version["head_spots"], bank.version["n_spots"]) == (118, 230)
    stacked = np.concatenate([made_up.draw(name)[1] for name in "ABCD"]).astype(float)
    np.testing.assert_allclose(bank.derived["features/mean"], stacked.mean(0), rtol=1e-6)


def test_a_sample_takes_the_same_share_of_every_section():
    sizes = [1000, 10, 2, 3000]
    rows = sample_rows(sizes, 400)
    assert [len(r) for r in rows] == [99, 1, 1, 299]
    assert all((np.diff(r) > 0).all() and r[-1] < n for r, n in zip(rows, sizes, strict=True))
    np.testing.assert_array_equal(rows[0], sample_rows([1000, 3012], 400)[0])
    assert [len(r) for r in sample_rows(sizes, 4012)] == sizes


def test_a_version_of_one_section_leaves_out_blocks_of_it(made_up, tmp_path):
    assert made_up.versions(made_up.make(tmp_path / "b", "A")).version["rule"] == "spatial-blocks"


def test_stored_statistics_are_those_of_the_counts(made_up, tmp_path):
    sections = made_up.readers(made_up.make(tmp_path / "b", "AB"))
    for found, section in zip(stored_statistics(sections, LOG1P_CP10K, [3, 9]), sections, strict=True):
        expected = gene_statistics([(section.counts(), section.totals)], LOG1P_CP10K)
        assert found.n_spots == len(section)
        np.testing.assert_array_equal(found.sd, expected.sd[[3, 9]])


def test_anchors_are_genes_that_every_section_measured(made_up, tmp_path):
    sections = made_up.readers(made_up.make(tmp_path / "b", "ABC", B=HALF))
    for panel in ("corrected", "generag"):
        chosen, source = choose(made_up, sections, AnchorOptions(10, panel=panel))
        assert (len(chosen), source) == (10, panel)
        assert np.isin(chosen, made_up.GENES[HALF]).all()


def test_a_listed_anchor_that_a_section_lacks_is_refused_with_both_names(made_up, tmp_path):
    sections = made_up.readers(made_up.make(tmp_path / "b", "ABC", B=HALF))
    (tmp_path / "panel.txt").write_text("G2\nG4\nG5\n")
    with pytest.raises(CohortError, match=r"G5 \(file panel.txt\) was not measured in section B; 1 of 3"):
        choose(made_up, sections, AnchorOptions(file=tmp_path / "panel.txt"))


def test_sections_without_a_gene_in_common_have_no_anchors(made_up, tmp_path):
    sections = made_up.readers(made_up.make(tmp_path / "b", "AB", A=~HALF, B=HALF))
    with pytest.raises(CohortError, match="no gene was measured in all 2"):
        choose(made_up, sections, made_up.FIVE)


def test_a_version_over_masked_sections_knows_which_spots_measured_a_gene(made_up, tmp_path):
    bank = made_up.versions(made_up.make(tmp_path / "b", "AB", B=HALF))
    np.testing.assert_array_equal(bank.measured, [np.ones(60, bool), HALF])
    np.testing.assert_array_equal(bank.derived["genes/counts/spots"], np.where(HALF, 111, 70))
    own = made_up.draw("A")[0].toarray()[:, 1]
    assert bank.derived["genes/counts/mean"][1] == pytest.approx(own.mean())


@pytest.mark.parametrize("panel", ["stem", "generag", "hest-bench"])
def test_published_panels_can_be_asked_for(made_up, tmp_path, panel):
    bank = made_up.versions(made_up.make(tmp_path / "b", "AB"), AnchorOptions(panel=panel))
    assert bank.version["panel"] == panel
    assert len(bank.anchors) > 0


def test_what_was_asked_is_recalled(made_up, tmp_path):
    (tmp_path / "panel.txt").write_text("G2\nG4\n")
    for options in (AnchorOptions(7), AnchorOptions(file=tmp_path / "panel.txt"), AnchorOptions(panel="stem")):
        again = AnchorOptions.recall(options.recipe)
        assert again.recipe == options.recipe
        assert again.number == options.number


def test_an_unknown_panel_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="unknown panel 'core'") as refused:
        AnchorOptions(panel="core")
    assert "hest-bench" in refused.value.hint
