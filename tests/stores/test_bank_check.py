"""A bank's files against their digests: what opening it compares, and what reading it whole does."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.errors import BankError
from genrag_cli.stores import layout
from genrag_cli.stores.bank import Bank, read_manifest
from genrag_cli.stores.bank_check import verify_bank, verify_sections
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.stores.tunings import add_tuning, read_tuning
from genrag_cli.types import Listener

SECTION, EMBEDDED = layout.section_file("A"), layout.embedding_file("stain", "B")
DERIVED = layout.derived_file("stain", 1)


def flip(path, at=None):
    """Changes one bit and not the length."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 4
    path.write_bytes(content)


class Steps(Listener):
    def __init__(self):
        super().__init__()
        self.steps = []

    def progress(self, step):
        self.steps.append((step.done, step.total))


def test_an_intact_bank_is_read_once_and_shown(small_bank):
    listener = Steps()
    verify_sections(Bank.open(small_bank, "stain"), listener)
    assert len(listener.steps) == 4
    assert listener.steps[-1][0] == listener.steps[-1][1]


@pytest.mark.parametrize("file", [SECTION, EMBEDDED])
@pytest.mark.parametrize("threads", [0, 1, 4])
def test_a_changed_bit_of_what_a_prediction_reads_is_named(own_bank, file, threads):
    bank = Bank.open(own_bank, "stain")
    flip(own_bank / file)
    with pytest.raises(BankError, match=f"{file} was changed") as raised:
        verify_sections(bank, Listener(), threads=threads)
    assert "generag build-bank T --backbone stain" in raised.value.hint
    assert verify_bank(own_bank) == [f"{file} was changed: its digest is not the manifest's"]


@pytest.mark.parametrize("file", [DERIVED, layout.GENES])
def test_a_changed_bit_of_heads_or_genes_is_noticed_when_the_bank_is_opened(own_bank, file):
    flip(own_bank / file)
    with pytest.raises(BankError, match=f"{file} was changed"):
        Bank.open(own_bank, "stain")


def test_a_changed_version_is_no_current_one(own_bank):
    flip(own_bank / DERIVED)
    assert BankWriter(own_bank).current_version("stain") is None


def test_a_changed_tuning_is_noticed(own_bank):
    add_tuning(BankWriter(own_bank), "stain", 1, {}, {"key": "k"})
    assert read_tuning(Bank.open(own_bank, "stain"))[0] == 1
    flip(own_bank / layout.tuning_file("stain", 1, 1))
    with pytest.raises(BankError, match="was changed") as raised:
        read_tuning(Bank.open(own_bank, "stain"))
    assert "generag tune" in raised.value.hint


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mangled_manifest_is_refused_or_says_what_it_said(small_bank, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("mangled")
    (folder / layout.GENES).write_bytes((small_bank / layout.GENES).read_bytes())
    content = bytearray((small_bank / layout.MANIFEST).read_bytes())
    at, how = data.draw(st.integers(0, len(content) - 1)), data.draw(st.sampled_from(["flip", "cut", "double", "zero"]))
    if how == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "double":
        content[at:at] = content[: data.draw(st.integers(1, 200))]
    else:
        content[at : len(content) if how == "cut" else at + 20] = b"" if how == "cut" else bytes(20)
    (folder / layout.MANIFEST).write_bytes(content)
    with contextlib.suppress(BankError):
        assert read_manifest(folder) == read_manifest(small_bank)


def test_a_manifest_changed_by_hand_is_refused_with_the_way_out(own_bank):
    path = own_bank / layout.MANIFEST
    path.write_text(path.read_text().replace('"pitch_um": 200.0', '"pitch_um": 100.0'))
    with pytest.raises(BankError, match="its digest is not that of its content") as raised:
        read_manifest(own_bank)
    assert "delete the line" in raised.value.hint
    lines = [line for line in path.read_text().splitlines() if not line.startswith('"manifest_sha256"')]
    path.write_text("\n".join(lines).replace(",\n}", "\n}"))
    assert read_manifest(own_bank)["geometry"]["pitch_um"] == 100.0


def test_a_manifest_of_an_earlier_version_is_read_and_gets_its_digest_when_it_is_written(own_bank):
    path = own_bank / layout.MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["manifest_sha256"]
    path.write_text(json.dumps(manifest))
    assert verify_bank(own_bank) == []
    writer = BankWriter(own_bank)
    writer.note(skipped=[["C", "lost"]])
    assert json.loads(path.read_text())["manifest_sha256"] == layout.digest_manifest(json.loads(path.read_text()))
    assert verify_bank(own_bank) == []


@pytest.mark.parametrize("name", ["manifest_sha-1", "manifest_shq256", "manifest_shamanifest_sha256", ""])
def test_a_manifest_whose_digest_has_lost_its_name_is_damaged(own_bank, name):
    path = own_bank / layout.MANIFEST
    path.write_text(path.read_text().replace("manifest_sha256", name))
    with pytest.raises(BankError, match="damaged: it has no digest, but"):
        read_manifest(own_bank)


@pytest.mark.parametrize("text", ["[" * 100_000, "3", '{"format_version": "2"}', "{}", "\udcff"])
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / layout.MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BankError):
        read_manifest(tmp_path)
