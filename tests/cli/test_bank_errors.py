"""Banks that cannot be used: one message with a remedy that works."""

import json
import shutil

import pytest

from genrag_cli.errors import BankError
from genrag_cli.stores import layout
from genrag_cli.stores.atomic import writer_lock

FILES = (
    layout.section_file("P1_1"),
    layout.embedding_file("stain", "P2_1"),
    layout.derived_file("stain", 1),
    layout.MANIFEST,
)


@pytest.fixture
def query(generag, bank, slide, tmp_path):
    def run(*options):
        return generag("retrieve", slide, "--bank", bank, "--out", tmp_path / "out", "-q", *options)

    return run


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("file", FILES)
def test_a_truncated_bank_is_named_by_retrieve_and_verify(query, generag, bank, file, share):
    cut(bank / file, share)
    query("--backbone", "stain").expect_refusal(1, file)
    generag("bank", "verify", "--bank", bank).expect_refusal(1, file)


@pytest.mark.parametrize("file", FILES[:3])
def test_building_again_repairs_a_truncated_bank(generag, bank, built_bank, build_options, file):
    cut(bank / file, 0.7)
    assert generag(*build_options, "--bank", bank).code == 0
    assert generag("bank", "verify", "--bank", bank).code == 0
    assert (bank / file).read_bytes() == (built_bank / file).read_bytes()


def test_the_remedy_for_a_damaged_bank_is_the_line_that_repairs_it(query, generag, bank):
    (bank / FILES[1]).unlink()
    refused = query("--backbone", "stain")
    refused.expect_refusal(1, "is missing", "Repair it: generag build-bank")
    line = refused.err.split("Repair it: generag ")[1].split()
    assert generag(*line).code == 0
    assert generag("bank", "verify", "--bank", bank).code == 0
    assert generag("bank", "info", "--json", "--bank", bank).out.count('"name": "P3_1"') == 0


def test_a_changed_byte_is_found_by_verify(generag, bank):
    path = bank / FILES[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    generag("bank", "verify", "--bank", bank).expect_refusal(1, FILES[0], "digest", "Take the named files away")


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "generag-bank", "format_version": 1}', "\x00"])
def test_a_manifest_that_is_none(query, bank, text):
    (bank / layout.MANIFEST).write_text(text)
    query("--backbone", "stain").expect_refusal(1, layout.MANIFEST)


def test_a_bank_in_use_by_a_writer(generag, bank, build_options):
    with writer_lock(bank, BankError):
        generag(*build_options, "--bank", bank, "-q").expect_refusal(1, "is being written by process", "--bank")
        assert generag("bank", "info", "--bank", bank).code == 0
    assert generag(*build_options, "--bank", bank).code == 0


def test_a_bank_that_is_not_there(generag, slide, tmp_path):
    done = generag("retrieve", slide, "--bank", tmp_path / "none", "--backbone", "stain", "-q")
    done.expect_refusal(1, "no bank at", "generag build-bank TRAIN")


def test_an_unfinished_bank(query, bank):
    manifest = json.loads((bank / layout.MANIFEST).read_text())
    manifest["backbones"]["stain"]["versions"] = []
    del manifest["manifest_sha256"]
    (bank / layout.MANIFEST).write_text(json.dumps(manifest))
    query("--backbone", "stain").expect_refusal(1, "not finished", "Finish it: generag build-bank")


def test_a_field_of_view_that_is_not_the_banks(query, generag, bank, build_options):
    query("--backbone", "stain", "--fov-um", "120").expect_refusal(
        1, "--fov-um 120 asked", "fov_um 200", "Leave the option out"
    )
    done = generag(*build_options, "--bank", bank, "--fov-um", "120", "-q")
    done.expect_refusal(1, "--fov-um 120 asked", "was built with fov_um 200", "another bank")


def test_a_backbone_that_the_bank_lacks_comes_with_the_line_that_adds_it(query, bank, cohort):
    done = query("--backbone", "lite0")
    line = f"generag build-bank {cohort} --backbone lite0 --exclude P3_1 --patients prefix --bank {bank}"
    done.expect_refusal(1, "no embeddings of backbone 'lite0'; it has stain", line)


@pytest.mark.parametrize("command", ["embed", "retrieve", "build-bank"])
def test_an_unknown_backbone_comes_with_the_nearest(generag, bank, slide, cohort, command):
    source = cohort if command == "build-bank" else slide
    done = generag(command, source, "--bank", bank, "--backbone", "stian", "--workers", "1")
    assert done.code == 1
    assert "error: unknown backbone 'stian'\n       Did you mean stain?\n" in done.err


def test_an_unknown_gene_comes_with_the_nearest(query):
    query("--backbone", "stain", "--genes", "TUM01,IMM001").expect_refusal(1, "TUM01", "Did you mean TUM001")
    query("--backbone", "stain", "--genes", "FOO").expect_refusal(1, "FOO", "Known: ADI001")


@pytest.mark.parametrize(
    ("text", "said"), [("", "names no gene"), ("0", "--genes 0"), ("panel.txt", "panel.txt: no such file")]
)
def test_genes_that_cannot_be_meant(query, text, said):
    query("--backbone", "stain", "--genes", text).expect_refusal(2, said)


def test_a_long_list_of_genes_is_no_file_name(query):
    names = ",".join(f"GENE{i}" for i in range(300))
    query("--backbone", "stain", "--genes", names).expect_refusal(1, "300 of 300 genes", "Known")


def test_a_folder_that_holds_something_else_is_no_place_for_a_bank(generag, build_options, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    done = generag(*build_options, "--bank", tmp_path, "-q")
    done.expect_refusal(1, "is no bank and is not empty", "thesis.txt", "--bank")
    generag(*build_options, "--bank", tmp_path / "thesis.txt", "-q").expect_refusal(1, "a file stands where a folder")


def test_a_section_that_changed_for_one_backbone_keeps_the_other_from_use(query, generag, bank):
    manifest = json.loads((bank / layout.MANIFEST).read_text())
    other = layout.section_file("P2_1")
    shutil.copy(bank / other, bank / FILES[0])
    del manifest["manifest_sha256"]
    entries = {s["name"]: s for s in manifest["sections"]}
    entries["P1_1"] |= {k: entries["P2_1"][k] for k in ("sha256", "bytes", "n_spots")}
    (bank / layout.MANIFEST).write_text(json.dumps(manifest))
    query("--backbone", "stain").expect_refusal(1, "section P1_1 changed after version 1 of stain was made")
    generag("bank", "verify", "--bank", bank).expect_refusal(1, "section P1_1 changed")
