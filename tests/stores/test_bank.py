"""Banks: what is written comes back, lazily, and what is broken says so."""

import itertools
import json
import shutil

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

from genrag_cli.errors import BankError
from genrag_cli.pipeline.anchors import SCALES, STATISTICS, summarise
from genrag_cli.stores import layout
from genrag_cli.stores.bank import Bank, SectionReader, read_manifest
from genrag_cli.stores.bank_check import verify_bank
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.types import BackboneCard

CARD = BackboneCard("stain", "1", 6, 224, "none")
GENES = np.array([f"G{i}" for i in range(40)])
SIZES = {"A": 30, "B": 21}


def counts_of(name):
    numbers = {"data_rvs": lambda n: np.arange(1, n + 1) % 7 + 1}
    return sp.random(SIZES[name], 40, 0.3, "csr", random_state=ord(name), **numbers)


def values_of(name):
    return np.random.default_rng(ord(name)).normal(size=(SIZES[name], 6)).astype(np.float32)


def write(folder, sections="AB"):
    writer = BankWriter(folder)
    writer.create(
        genes=GENES, gene_ids=None, geometry={"fov_um": 200.0, "pitch_um": 200.0, "spot_um": 100.0}, train=["T"]
    )
    for name in sections:
        n = SIZES[name]
        spots = np.array([f"{i}x{i}" for i in range(n)])
        counts, totals = counts_of(name).astype(np.int32), np.arange(n) + 1000.0
        writer.add_section(
            name, names=spots, counts=counts, totals=totals, centres=np.arange(2.0 * n).reshape(n, 2),
            array_rc=np.arange(2 * n).reshape(n, 2), statistics=summarise(counts, totals, None),
            entry={"key": name, "patient": name.lower()},
        )  # fmt: skip
        blocks = iter(np.array_split(values_of(name), 3))
        writer.add_embeddings(CARD, name, spots, blocks, key=name)
    entry = {"key": "1", "sections": list(sections), "anchors": ["G3", "G1"]}
    writer.add_version("stain", {"features/mean": np.zeros(6), "genes/counts/mean": np.ones(40)}, entry)
    return writer


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("bank") / "b.zarr").folder


@pytest.fixture
def folder(written, tmp_path):
    """A bank of A and B to do with as one likes."""
    return shutil.copytree(written, tmp_path / "b.zarr")


def test_what_was_written_is_read(folder):
    bank = Bank.open(folder, "stain")
    assert bank.n_spots == 51
    assert bank.genes.tolist() == GENES.tolist()
    assert bank.anchors.tolist() == ["G3", "G1"]
    assert bank.card == CARD
    assert bank.section_of[[0, 29, 30]].tolist() == ["A", "A", "B"]
    assert bank.patient_of[[0, 50]].tolist() == ["a", "b"]
    assert bank.spot_names[[0, 30]].tolist() == ["A/0x0", "B/0x0"]
    np.testing.assert_array_equal(
        np.concatenate(list(bank.embeddings)), np.concatenate([values_of("A"), values_of("B")])
    )
    np.testing.assert_array_equal(bank.derived["genes/counts/mean"], np.ones(40))


@pytest.mark.parametrize("rows", [7, 1024])
def test_counts_come_in_blocks_that_are_the_whole(folder, rows):
    blocks = list(Bank.open(folder, "stain").count_blocks(rows))
    whole = sp.vstack([b for _, b, _ in blocks]).toarray()
    np.testing.assert_array_equal(whole, sp.vstack([counts_of("A"), counts_of("B")]).toarray())
    assert [first for first, _, _ in blocks] == np.cumsum([0, *(b.shape[0] for _, b, _ in blocks[:-1])]).tolist()
    np.testing.assert_array_equal(np.concatenate([t for *_, t in blocks])[[0, 30]], [1000, 1000])


def test_anndata_opens_every_store_of_a_section(folder):
    for file, key in ((layout.section_file("A"), "spatial"), (layout.embedding_file("stain", "A"), "stain")):
        with zarr.storage.ZipStore(folder / file, mode="r") as store:
            adata = anndata.read_zarr(zarr.open_group(store, mode="r"))
        assert key in adata.obsm
        assert adata.obs_names[3] == "3x3"


def test_stores_hold_what_the_layout_says(folder):
    sizes = {"n": 30, "G": 40, "d": 6, "2": 2}
    for file, elements in (
        (layout.section_file("A"), layout.SECTION),
        (layout.embedding_file("stain", "A"), layout.EMBEDDING),
    ):
        with zarr.storage.ZipStore(folder / file, mode="r") as store:
            group = zarr.open_group(store, mode="r")
            for element, scale, statistic in itertools.product(elements, SCALES, STATISTICS):
                item = group[element.path.format(backbone="stain", scale=scale.name, statistic=statistic)]
                shape = tuple(item.attrs["shape"]) if element.kind == "csr" else item.shape
                assert shape == tuple(sizes[axis] for axis in element.shape), element
                assert element.kind == "csr" or item.dtype.kind in element.kind, element


def test_equal_content_gives_equal_bytes(folder, tmp_path):
    write(tmp_path / "again.zarr")
    assert (tmp_path / "again.zarr" / layout.MANIFEST).read_text() == (folder / layout.MANIFEST).read_text()
    assert Bank.open(folder, "stain").fingerprint == Bank.open(tmp_path / "again.zarr", "stain").fingerprint


def test_an_older_version_can_be_opened(folder):
    writer = BankWriter(folder)
    writer.add_version("stain", {"features/mean": np.ones(6)}, {"key": "2", "sections": ["A"], "anchors": ["G2"]})
    assert Bank.open(folder, "stain").n_spots == 30
    assert Bank.open(folder, "stain", version=1).n_spots == 51
    with pytest.raises(BankError, match="versions 1 to 2"):
        Bank.open(folder, "stain", version=3)


def test_a_section_reader_works_on_an_unfinished_bank(tmp_path):
    writer = write(tmp_path / "b.zarr")
    section = SectionReader.open(tmp_path / "b.zarr", writer.section("B"))
    assert (section.name, section.patient, len(section.names)) == ("B", "b", 21)
    np.testing.assert_array_equal(section.counts().toarray(), counts_of("B").toarray())


def test_a_bank_without_the_backbone_says_the_line_that_adds_it(folder):
    with pytest.raises(BankError) as raised:
        Bank.open(folder, "stian")
    assert "Did you mean stain?" in raised.value.hint
    assert f"generag build-bank T --backbone stian --bank {folder}" in raised.value.hint


def test_an_unfinished_bank_is_no_bank(tmp_path):
    writer = BankWriter(tmp_path / "b.zarr")
    writer.create(genes=GENES, gene_ids=None, geometry={}, train=["T"])
    with pytest.raises(BankError, match="not finished"):
        Bank.open(tmp_path / "b.zarr", "stain")
    assert verify_bank(tmp_path / "b.zarr") == ["the build was not finished: no backbone"]


def test_an_intact_bank_verifies(folder):
    assert verify_bank(folder) == []


@pytest.mark.parametrize(
    "file", [layout.section_file("A"), layout.embedding_file("stain", "B"), layout.derived_file("stain", 1)]
)
def test_a_file_cut_short_is_named(folder, file):
    path = folder / file
    path.write_bytes(path.read_bytes()[:-200])
    assert [w for w in verify_bank(folder) if w.startswith(file)]


def test_a_missing_file_is_named(folder):
    (folder / layout.section_file("A")).unlink()
    assert verify_bank(folder) == [f"{layout.section_file('A')} is missing"]
    with pytest.raises(BankError, match="missing"):
        list(Bank.open(folder, "stain").count_blocks())


@pytest.mark.parametrize(("number", "remedy"), [(99, "Update generag"), (1, "Build the bank again")])
def test_another_format_is_refused(folder, number, remedy):
    manifest = read_manifest(folder)
    (folder / layout.MANIFEST).write_text(json.dumps({**manifest, "format_version": number}))
    with pytest.raises(BankError, match=f"generag-bank {number}") as refused:
        read_manifest(folder)
    assert remedy in refused.value.hint


def test_what_is_rewritten_at_each_step_names_no_gene(folder):
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    assert not {"genes", "gene_ids"} & set(manifest)
    assert read_manifest(folder)["genes"] == GENES.tolist()
    assert not {"sections", "made_from", "anchors"} & set(manifest["backbones"]["stain"]["versions"][0])
    assert sum(line.startswith('{"bytes"') for line in (folder / layout.MANIFEST).read_text().splitlines()) == 3


def test_a_section_is_two_files(folder):
    assert sorted(p.name for p in folder.rglob("A.*")) == ["A.zarr.zip"] * 2
    assert len([p for p in folder.rglob("*") if p.is_file()]) == 2 * len(SIZES) + 3


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_text("{"), lambda p: p.write_text("")])
def test_a_lost_gene_list_is_named(folder, damage):
    damage(folder / layout.GENES)
    for look in (lambda: Bank.open(folder, "stain"), lambda: verify_bank(folder)):
        with pytest.raises(BankError, match=r"genes\.json"):
            look()


def test_a_gene_list_without_a_bank_is_no_obstacle(tmp_path):
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / layout.GENES).write_text("{")
    write(tmp_path / "b.zarr")
    assert verify_bank(tmp_path / "b.zarr") == []


def test_genes_that_a_section_did_not_measure_are_known(tmp_path):
    writer, known = write(tmp_path / "b.zarr"), np.arange(40) % 3 > 0
    writer.add_section(
        "B", names=np.array(["a", "b"]), counts=sp.csr_matrix((2, 40), dtype=np.int32), totals=np.ones(2),
        centres=np.zeros((2, 2)), array_rc=np.zeros((2, 2), int), statistics={}, measured=known,
        entry={"key": "B", "patient": None},
    )  # fmt: skip
    assert [s["n_missing"] for s in writer.manifest["sections"]] == [0, 14]
    np.testing.assert_array_equal(SectionReader.open(writer.folder, writer.section("B")).measured, known)
    assert SectionReader.open(writer.folder, writer.section("A")).measured.all()


def test_a_column_that_is_not_there_is_named(folder):
    section = SectionReader.open(folder, read_manifest(folder)["sections"][0])
    with pytest.raises(BankError, match="no var column other"):
        section.gene_columns("measured", "other")


def test_sections_of_another_bank_are_copied_whole_or_cut(folder, tmp_path):
    for columns in (None, np.array([5, 2, 30])):
        writer = BankWriter(tmp_path / f"copy-{columns is None}")
        genes = GENES if columns is None else GENES[columns]
        writer.create(genes=genes, gene_ids=None, geometry={}, train=[])
        writer.copy_section(folder, read_manifest(folder)["sections"][1], columns)
        section = SectionReader.open(writer.folder, writer.section("B"))
        expected = counts_of("B").toarray() if columns is None else counts_of("B").toarray()[:, columns]
        np.testing.assert_array_equal(section.counts().toarray(), expected)
        assert section.gene_columns("counts_mean")["counts_mean"] == pytest.approx(expected.mean(axis=0))
