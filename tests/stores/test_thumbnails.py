"""Small pictures of a section's spots, in a bank without slides."""

import numpy as np
import pytest
import scipy.sparse as sp

from genrag_cli.errors import BankError, OutputError
from genrag_cli.stores.bank_check import verify_bank
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.stores.thumbnails import add_thumbnails, copy_thumbnails, has_thumbnails, read_thumbnails

SPOTS = np.array(["3x1", "1x1", "2x1"])


def picture(shade):
    """A slope of colour, which JPEG keeps well."""
    slope = np.linspace(0, 60, 96)[:, None, None] + np.array([shade, 90, 120])
    return np.broadcast_to(slope, (96, 96, 3)).astype(np.uint8)


TILES = [picture(shade) for shade in (20, 90, 160)]


def add_section(writer, name):
    counts = sp.csr_matrix(np.arange(6).reshape(3, 2))
    writer.add_section(
        name, names=SPOTS, counts=counts, totals=np.full(3, 9.0), centres=np.zeros((3, 2)),
        array_rc=np.zeros((3, 2), int), statistics={}, entry={"patient": None},
    )  # fmt: skip


def make(folder, *names):
    writer = BankWriter(folder)
    writer.create(genes=np.array(["A", "B"]), gene_ids=None, geometry={}, train=[])
    for name in names:
        add_section(writer, name)
        add_thumbnails(writer, name, SPOTS, iter(TILES), key=f"key of {name}")
    return writer


@pytest.fixture
def writer(tmp_path):
    return make(tmp_path / "b", "S1", "S2")


def test_pictures_come_back_by_the_names_of_spots(writer):
    found = read_thumbnails(writer.folder, writer.section("S1"), ["2x1", "3x1"])
    for tile, wanted in zip(found, (TILES[2], TILES[0]), strict=True):
        assert (tile.shape, tile.dtype) == ((96, 96, 3), np.uint8)
        assert np.abs(tile.astype(int) - wanted).mean() < 2


def test_they_are_known_by_what_they_show(writer):
    assert has_thumbnails(writer, "S1", "key of S1")
    assert not has_thumbnails(writer, "S1", "another")
    assert not has_thumbnails(writer, "S9", "key of S1")


def test_equal_pictures_make_equal_files(writer, tmp_path):
    other = make(tmp_path / "c", "S1")
    assert writer.section("S1")["thumbnails"] == other.section("S1")["thumbnails"]


def test_adding_again_replaces_them(writer):
    add_thumbnails(writer, "S1", SPOTS, TILES[::-1], key="turned")
    assert has_thumbnails(BankWriter(writer.folder), "S1", "turned")
    assert read_thumbnails(writer.folder, writer.section("S1"), ["3x1"])[0][0, 0, 0] > 140


def test_as_many_pictures_as_spots_are_needed(writer):
    with pytest.raises(OutputError, match="section S1: 2 thumbnails of 3 spots"):
        add_thumbnails(writer, "S1", SPOTS, TILES[:2], key="short")
    assert has_thumbnails(writer, "S1", "key of S1")


def test_verify_sees_a_file_that_was_changed_or_is_gone(writer):
    paths = [writer.folder / writer.section(name)["thumbnails"]["file"] for name in ("S1", "S2")]
    data = bytearray(paths[0].read_bytes())
    data[len(data) // 2] ^= 255
    paths[0].write_bytes(data)
    paths[1].unlink()
    wrong = verify_bank(writer.folder)
    assert any("thumbnails/S1.zarr.zip was changed" in text for text in wrong)
    assert any("thumbnails/S2.zarr.zip is missing" in text for text in wrong)


def test_a_section_that_is_removed_takes_them_along(writer):
    writer.remove_sections(["S1"])
    assert sorted(p.name for p in (writer.folder / "thumbnails").iterdir()) == ["S2.zarr.zip"]


def test_a_section_that_is_added_again_takes_the_old_ones_away(writer):
    add_section(writer, "S1")
    assert "thumbnails" not in writer.section("S1")
    assert not (writer.folder / "thumbnails" / "S1.zarr.zip").exists()


def test_they_are_copied_with_a_section_and_not_promised_without(writer, tmp_path):
    other = make(tmp_path / "c")
    entry = writer.section("S1")
    other.copy_section(writer.folder, entry, None)
    assert "thumbnails" not in other.section("S1")
    assert copy_thumbnails(other, writer.folder, entry)
    assert other.section("S1")["thumbnails"] == entry["thumbnails"]
    assert len(read_thumbnails(other.folder, other.section("S1"), SPOTS)) == 3


def test_a_copy_of_what_is_gone_says_so(writer, tmp_path):
    other = make(tmp_path / "c")
    entry = writer.section("S1")
    other.copy_section(writer.folder, entry, None)
    (writer.folder / entry["thumbnails"]["file"]).unlink()
    assert not copy_thumbnails(other, writer.folder, entry)
    assert "thumbnails" not in other.section("S1")


def test_reading_what_is_not_there_is_refused(writer):
    entry = writer.section("S1")
    with pytest.raises(BankError, match="no picture of spot 9x9"):
        read_thumbnails(writer.folder, entry, ["1x1", "9x9"])
    (writer.folder / entry["thumbnails"]["file"]).unlink()
    with pytest.raises(BankError, match="is missing"):
        read_thumbnails(writer.folder, entry, ["1x1"])
