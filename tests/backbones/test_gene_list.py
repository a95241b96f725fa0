"""Lists of genes beside checkpoints."""

from pathlib import Path

import numpy as np
import pytest

from genrag_cli.backbones.gene_list import pick, read_gene_list
from genrag_cli.errors import BackboneError

GENES = ["ERBB2", "FASN", "HLA-DRA"]


def test_text_is_read_in_its_order_without_white_space_or_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "genes.txt"
    path.write_bytes("\ufeffERBB2\r\n FASN \r\nHLA-DRA\r\n".encode())
    found = read_gene_list(str(path), "backbone x", expected=3)
    assert found.tolist() == GENES
    assert found.dtype.kind == "U"


@pytest.mark.parametrize("dtype", ["U9", "S9"])
def test_npy_of_strings_is_read(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "genes.npy", np.array(GENES, dtype=dtype))
    assert read_gene_list(tmp_path / "genes.npy", "backbone x").tolist() == GENES


def test_npy_of_pickled_objects_is_refused_unread(tmp_path: Path) -> None:
    np.save(tmp_path / "genes.npy", np.array(GENES, dtype=object), allow_pickle=True)
    with pytest.raises(BackboneError, match=r"genes\.npy cannot be read as a list of genes"):
        read_gene_list(tmp_path / "genes.npy", "backbone x")


def test_npy_of_numbers_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "genes.npy", np.arange(3))
    with pytest.raises(BackboneError, match="int64"):
        read_gene_list(tmp_path / "genes.npy", "backbone x")


def test_column_of_a_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("gene\nERBB2\nFASN\nHLA-DRA\n")
    (tmp_path / "two.csv").write_text('id,gene\n1,ERBB2\n2,"FASN"\n3,HLA-DRA\n')
    (tmp_path / "two.tsv").write_text("id\tgene\n1\tERBB2\n2\tFASN\n3\tHLA-DRA\n")
    assert read_gene_list(tmp_path / "one.csv", "backbone x").tolist() == GENES
    assert read_gene_list(tmp_path / "two.csv", "backbone x", column="gene").tolist() == GENES
    assert read_gene_list(tmp_path / "two.tsv", "backbone x", column="gene").tolist() == GENES


@pytest.mark.parametrize(
    ("name", "text", "column", "told"),
    [
        ("g.csv", "id,gene\n1,A\n", None, "which of them holds the genes"),
        ("g.csv", "id,gene\n1,A\n", "genes", "no column 'genes'"),
        ("g.csv", "id,gene\n1\n", "gene", "row 2 has 1 cells"),
        ("g.csv", "gene\nA\n\nB\n", None, "row 3 has 0 cells"),
        ("g.txt", "A\nB\n", "gene", "has no columns"),
        ("g.txt", "A\n\nB\n", None, "gene 2 of .* is empty"),
        ("g.txt", "A\nB\nA\n", None, "has A twice, as gene 1 and gene 3"),
        ("g.txt", "", None, "lists no genes"),
    ],
)
def test_list_that_cannot_be_right_is_refused(
    tmp_path: Path, name: str, text: str, column: str | None, told: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BackboneError, match=told) as caught:
        read_gene_list(tmp_path / name, "backbone x", column=column)
    assert caught.value.hint


def test_another_number_of_genes_is_refused_naming_both(tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("A\nB\n")
    with pytest.raises(BackboneError, match="has 2 genes, the weights have 3"):
        read_gene_list(tmp_path / "g.txt", "backbone x", expected=3)


def test_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="backbone x: no gene list at"):
        read_gene_list(tmp_path / "none.txt", "backbone x")


def test_genes_are_picked_in_the_order_asked() -> None:
    found = pick(np.array(GENES), np.array(["HLA-DRA", "ERBB2"]), "backbone x")
    assert found.tolist() == [2, 0]
    assert found.dtype == np.int64
    assert pick(np.array(GENES), np.array([], dtype=np.str_), "backbone x").shape == (0,)


def test_unknown_genes_are_named() -> None:
    with pytest.raises(BackboneError, match=r"backbone x does not predict FASM, TP53; it predicts 3 genes") as caught:
        pick(np.array(GENES), np.array(["FASM", "ERBB2", "TP53"]), "backbone x")
    assert "FASN" in caught.value.hint
