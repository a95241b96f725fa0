"""Cohorts of every kind into one bank: layouts that say the same, sections that come and go, what must not mix."""

import csv
import json
import shutil
import warnings

import anndata
import numpy as np
import pytest

from genrag_cli.stores import zipped
from genrag_cli.stores.bank import Bank
from genrag_cli.synthetic import write_cohort

USUAL = ("--backbone", "stain", "--workers", "1")


@pytest.fixture(scope="module")
def hest(tmp_path_factory):
    """The cohort of the session, written as HEST-1k. Not to be changed: take `hest_copy`."""
    folder = tmp_path_factory.mktemp("hest") / "train"
    write_cohort(folder, layout="hest", size_px=1200, n_genes=60)
    return folder


@pytest.fixture
def hest_copy(hest, tmp_path):
    return shutil.copytree(hest, tmp_path / "hest")


def edit(folder, name, change):
    path = folder / "st" / f"{name}.h5ad"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # repeated gene names are what some tests are about
        change(anndata.read_h5ad(path)).copy().write_h5ad(path)


def info(generag, bank):
    return json.loads(generag("bank", "info", "--json", "--bank", bank).out)


def content(path):
    """Everything of a bank that a prediction depends on, by section and spot, whatever the spots are called."""
    bank = Bank.open(path, "stain")
    blocks = [(c.toarray(), t) for _, c, t in bank.count_blocks()]
    return {
        "genes": bank.genes.tolist(), "anchors": bank.anchors.tolist(), "sections": bank.section_of.tolist(),
        "counts": np.concatenate([c for c, _ in blocks]), "totals": np.concatenate([t for _, t in blocks]),
        "embeddings": np.concatenate(list(bank.embeddings)), **bank.derived,
    }  # fmt: skip


def assert_same(first, second):
    one, other = content(first), content(second)
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, list):
            assert value == other[key], key
        else:
            np.testing.assert_allclose(value, other[key], rtol=1e-5, atol=1e-6, err_msg=key)


def test_one_cohort_in_three_layouts_is_one_bank(generag, cohort, hest, tmp_path):
    table = tmp_path / "cohort.csv"
    assert generag("cohort", "scan", cohort, "--out", table, "--patients", "prefix").code == 0
    for name, source in (("legacy", cohort), ("hest", hest), ("table", table)):
        options = ("--patients", "prefix", *USUAL, "--bank", tmp_path / name)
        assert generag("build-bank", source, *options).code == 0
    assert_same(tmp_path / "legacy", tmp_path / "hest")
    assert_same(tmp_path / "legacy", tmp_path / "table")
    names = [Bank.open(tmp_path / n, "stain").spot_names.tolist() for n in ("legacy", "table")]
    assert names[0] == names[1]


def test_appending_from_another_folder_equals_building_with_it(generag, cohort, built_bank, bank, tmp_path):
    for part in ("counts", "spots", "images"):
        (tmp_path / "more" / part).mkdir(parents=True)
    for part, name in (("counts", "P3_1.tsv.gz"), ("spots", "P3_1_selection.tsv"), ("images", "P3_1.tif")):
        shutil.copy(cohort / part / name, tmp_path / "more" / part / name)
    appended = generag("build-bank", tmp_path / "more", "--patients", "prefix", *USUAL, "--bank", bank)
    assert appended.code == 0, appended.err
    assert "2 more sections were in the bank and stay: P1_1, P2_1" in appended.err
    assert generag("build-bank", cohort, "--patients", "prefix", *USUAL, "--bank", tmp_path / "whole").code == 0
    assert_same(bank, tmp_path / "whole")
    assert Bank.open(bank, "stain", version=1).n_spots == Bank.open(built_bank, "stain").n_spots


def test_several_cohorts_make_one_bank(generag, cohort, hest_copy, tmp_path):
    for folder, gone in ((hest_copy / "st", "P1_1.h5ad"), (hest_copy / "st", "P2_1.h5ad")):
        (folder / gone).unlink()
    done = generag(
        "build-bank", cohort, hest_copy, *USUAL, "--exclude", "P3_1", "--patients", "prefix", "--bank", tmp_path / "b"
    )
    assert done.code == 0, done.err
    assert info(generag, tmp_path / "b")["train"] == [str(cohort), str(hest_copy)]


def test_two_sections_of_one_name_are_refused(generag, cohort, hest, bank, tmp_path):
    both = generag("build-bank", cohort, hest, *USUAL, "-q", "--bank", tmp_path / "b.zarr")
    both.expect_refusal(1, "P1_1 is in several of the cohorts", "cohort scan")
    other = generag("build-bank", hest, *USUAL, "-q", "--patients", "prefix", "--bank", bank)
    other.expect_refusal(1, "P1_1 is in the bank already", "bank remove")


def test_a_gene_that_a_section_lacks_is_refused_later_or_masked(generag, bank, hest_copy):
    for name in ("P1_1", "P2_1"):
        (hest_copy / "st" / f"{name}.h5ad").unlink()
    edit(hest_copy, "P3_1", lambda a: a[:, a.var_names != "HK003"])
    options = ("--patients", "prefix", *USUAL, "-q", "--bank", bank)
    generag("build-bank", hest_copy, *options).expect_refusal(1, "lacks 1 of the bank's 60 genes", "HK003", "mask")
    assert generag("build-bank", hest_copy, *options, "--missing-genes", "mask").code == 0
    opened = Bank.open(bank, "stain")
    column = opened.genes.tolist().index("HK003")
    assert opened.measured[:, column].tolist() == [True, True, False]
    assert opened.measured.sum() == opened.measured.size - 1
    assert "HK003" not in opened.anchors
    rows = opened.section_of != "P3_1"
    mean = opened.derived["genes/counts/mean"][column]
    assert mean == pytest.approx(
        np.concatenate([c.toarray() for _, c, _ in opened.count_blocks()])[rows, column].mean()
    )


def test_a_masked_bank_takes_every_gene_that_any_section_has(generag, hest_copy, tmp_path):
    edit(hest_copy, "P1_1", lambda a: a[:, a.var_names != "HK003"])
    edit(hest_copy, "P2_1", lambda a: a[:, a.var_names != "HK004"])
    for name, n, flags in (("all", 58, ()), ("any", 60, ("--missing-genes", "mask"))):
        done = generag("build-bank", hest_copy, *USUAL, *flags, "--bank", tmp_path / name)
        assert done.code == 0, done.err
        assert len(info(generag, tmp_path / name)["genes"]) == n


def test_a_mouse_section_does_not_enter_a_human_bank(generag, hest_copy, bank, tmp_path):
    table = next(hest_copy.glob("HEST_*.csv"))
    rows = list(csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines()))
    rows[2]["species"] = "Mus musculus"
    lines = [",".join(rows[0]), *(",".join(r.values()) for r in rows)]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    edit(hest_copy, "P3_1", lambda a: rename(a, str.capitalize))
    mixed = generag("build-bank", hest_copy, *USUAL, "-q", "--bank", tmp_path / "new")
    mixed.expect_refusal(1, "2 species", "mouse: P3_1", "human: P1_1, P2_1")
    for name in ("P1_1", "P2_1"):
        (hest_copy / "st" / f"{name}.h5ad").unlink()
    late = generag("build-bank", hest_copy, *USUAL, "-q", "--bank", bank)
    late.expect_refusal(1, "P3_1 is mouse (stated), the bank is human")


def rename(adata, how):
    adata.var_names = [how(n) for n in adata.var_names]
    return adata


def test_previous_symbols_are_renamed_only_by_a_table(generag, hest_copy, tmp_path):
    edit(hest_copy, "P1_1", lambda a: rename(a, lambda n: "OLD3" if n == "HK003" else n))
    without = tmp_path / "without"
    assert generag("build-bank", hest_copy, *USUAL, "--bank", without).code == 0
    assert not {"HK003", "OLD3"} & set(info(generag, without)["genes"])
    (tmp_path / "names.csv").write_text("previous,symbol\nOLD3,HK003\n")
    named = ("--gene-aliases", tmp_path / "names.csv", "--bank", tmp_path / "with")
    assert generag("build-bank", hest_copy, *USUAL, *named).code == 0
    assert len(info(generag, tmp_path / "with")["genes"]) == 60


def test_repeated_genes_are_summed_or_refused(generag, hest_copy, tmp_path):
    edit(hest_copy, "P1_1", lambda a: rename(a, lambda n: "HK003" if n == "HK004" else n))
    done = generag("build-bank", hest_copy, *USUAL, "--bank", tmp_path / "b")
    assert "P1_1: 1 columns of P1_1.h5ad repeat a gene's name and are summed" in done.err
    refused = generag("build-bank", hest_copy, *USUAL, "-q", "--duplicate-genes", "refuse", "--bank", tmp_path / "c")
    refused.expect_refusal(1, "P1_1: 1 columns repeat a gene")


def test_a_patient_is_left_out_whole_and_not_beside_unknown_ones(generag, cohort, tmp_path):
    leave = ("--leave-out-patient", "P2")
    known = ("--patients", "prefix", "--bank", tmp_path / "a")
    assert generag("build-bank", cohort, *USUAL, *leave, *known).code == 0
    assert [s["name"] for s in info(generag, tmp_path / "a")["sections"]] == ["P1_1", "P3_1"]
    some = ("--patients", "^(P[12])_", "-q", "--bank", tmp_path / "b")
    generag("build-bank", cohort, *USUAL, *leave, *some).expect_refusal(
        1, "P2 cannot be left out", "P3_1", "--unknown-patient"
    )
    assert generag("build-bank", cohort, *USUAL, *leave, *some, "--unknown-patient", "section").code == 0
    assert [s["patient"] for s in info(generag, tmp_path / "b")["sections"]] == ["P1", "unknown:P3_1"]


def test_nothing_of_a_patient_who_is_left_out_shapes_the_bank(generag, hest_copy, tmp_path):
    edit(hest_copy, "P3_1", lambda a: a[:, a.var_names != "HK003"])
    leave = ("--patients", "prefix", "--leave-out-patient", "P3")
    assert generag("build-bank", hest_copy, *USUAL, *leave, "--bank", tmp_path / "a").code == 0
    assert "HK003" in info(generag, tmp_path / "a")["genes"]
    everyone = [v for name in ("P1", "P2", "P3") for v in ("--leave-out-patient", name)]
    none_left = generag(
        "build-bank", hest_copy, *USUAL, "-q", "--patients", "prefix", *everyone, "--bank", tmp_path / "b"
    )
    none_left.expect_refusal(1, "no section is left")
    assert not (tmp_path / "b" / "manifest.json").exists()


def test_a_patient_is_not_left_out_beside_unknown_ones_in_the_bank(generag, cohort, hest_copy, tmp_path):
    bank = ("--bank", tmp_path / "b")
    assert generag("build-bank", cohort, *USUAL, "--exclude", "P3_1", "--exclude", "P2_1", *bank).code == 0
    (hest_copy / "st" / "P1_1.h5ad").unlink()
    leave = ("--patients", "prefix", "--leave-out-patient", "P3", "-q", *bank)
    generag("build-bank", hest_copy, *USUAL, *leave).expect_refusal(1, "P3 cannot be left out", "P1_1")


def test_a_bad_section_stops_the_build_or_is_left_out_and_said(generag, hest_copy, tmp_path):
    edit(hest_copy, "P2_1", negate)
    options = (*USUAL, "-q", "--patients", "prefix", "--bank", tmp_path / "b")
    generag("build-bank", hest_copy, *options).expect_refusal(1, "P2_1.h5ad", "negative", "--skip-bad")
    done = generag("build-bank", hest_copy, *options, "--skip-bad")
    assert done.code == 3
    assert "1 of 3 sections are not in the bank" in done.err
    assert Bank.open(tmp_path / "b", "stain").section_of[[0, -1]].tolist() == ["P1_1", "P3_1"]


def negate(adata):
    adata.X.data[0] = -1
    return adata


def test_the_published_crop_is_recorded_and_followed(generag, cohort, slide, tmp_path):
    bank = tmp_path / "b"
    options = ("--patients", "prefix", "--exclude", "P3_1", "--bank", bank)
    assert generag("build-bank", cohort, *USUAL, "--crop", "stem", *options).code == 0
    assert info(generag, bank)["geometry"] == {"crop": "stem", "pitch_um": 200.0, "spot_um": 100.0}
    predicted = generag("retrieve", slide, *USUAL, "--bank", bank, "--alpha", ".003", "--out", tmp_path / "p.h5ad")
    assert predicted.code == 0, predicted.err
    about = anndata.read_h5ad(tmp_path / "p.h5ad").uns["generag"]
    assert about["fov_um"] == pytest.approx(224 * 1.2, rel=1e-3)
    assert about["crop"] == "stem"
    refused = generag("retrieve", slide, *USUAL, "--bank", bank, "--fov-um", "150", "-q", "--out", tmp_path / "q.h5ad")
    refused.expect_refusal(1, "crop stem", "150")
    generag("build-bank", cohort, *USUAL, *options, "--crop", "fov", "-q").expect_refusal(
        1, "--crop fov asked", "built with --crop stem"
    )


@pytest.mark.parametrize("panel", ["stem", "generag", "hest-bench"])
def test_published_panels_choose_anchors_from_the_banks_sections(generag, cohort, panel, tmp_path):
    options = ("--patients", "prefix", "--exclude", "P3_1", "--panel", panel, *USUAL, "--bank", tmp_path / "b")
    done = generag("build-bank", cohort, *options)
    assert done.code == 0, done.err
    version = Bank.open(tmp_path / "b", "stain").version
    assert version["panel"] == panel
    assert 0 < len(version["anchors"]) <= 60


def test_a_list_of_genes_that_cannot_be_read_does_not_stop_the_others(generag, hest_copy, tmp_path):
    (hest_copy / "st" / "P1_1.h5ad").write_bytes(b"no HDF5")
    options = (*USUAL, "-q", "--patients", "prefix", "--bank", tmp_path / "b")
    done = generag("build-bank", hest_copy, *options, "--skip-bad")
    assert done.code == 3
    assert Bank.open(tmp_path / "b", "stain").section_of[[0, -1]].tolist() == ["P2_1", "P3_1"]


def test_further_columns_of_a_table_stand_in_the_obs_of_its_sections(generag, cohort, tmp_path):
    rows = [f"{cohort}/counts/{name}.tsv.gz,{organ}" for name, organ in (("P1_1", "skin"), ("P2_1", "liver"))]
    (tmp_path / "t.csv").write_text("\n".join(["counts,organ", *rows]) + "\n")
    options = ("--patients", "prefix", *USUAL, "--bank", tmp_path / "b")
    assert generag("build-bank", tmp_path / "t.csv", *options).code == 0
    opened = Bank.open(tmp_path / "b", "stain")
    with zipped.opened(opened.folder / opened.sections[1]["file"]) as group:
        assert set(zipped.read_frame(group, "obs")["organ"]) == {"liver"}
