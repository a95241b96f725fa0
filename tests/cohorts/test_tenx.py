import gzip
import runpy
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genrag_cli.cohorts.technologies import find_species
from genrag_cli.cohorts.tenx import (
    choose_genes,
    join_barcodes,
    matrix_files,
    read_features,
    read_genomes,
    read_matrix,
)
from genrag_cli.errors import CohortError

COUNTS = np.array([[1, 0, 2, 0, 5], [0, 0, 0, 0, 0], [3, 1, 0, 7, 1]])
BARCODES = ["AAA-1", "CCC-1", "GGG-1"]
WORDS = st.text("ABCdef-._ é", min_size=1, max_size=6).map(lambda t: f"x{t.strip()}")


@pytest.fixture(scope="module")
def write():
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_space_ranger.py"))))


def write_as(write, layout, folder, counts, barcodes, features):
    if layout.startswith("h5"):
        dtype = np.float64 if layout == "h5 floats" else np.int32
        return write.write_h5(
            folder / "m.h5", counts, barcodes, features, per_genome=layout == "h5 per genome", data_dtype=dtype
        )
    return write.write_mtx(folder / "m", counts, barcodes, features, packed=layout == "mtx", genes=layout == "genes")


@pytest.mark.parametrize("layout", ["h5", "h5 floats", "h5 per genome", "mtx", "mtx plain", "genes"])
@given(st.lists(st.tuples(WORDS, WORDS, st.just("Gene Expression")), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_layout_gives_back_what_was_written(tmp_path_factory, write, layout, features, seed):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.8, (int(rng.integers(1, 6)), len(features)))
    barcodes = [f"B{i}-1" for i in range(len(counts))]
    path = write_as(write, layout, tmp_path_factory.mktemp("m"), counts, barcodes, features)
    matrix = read_matrix(path)
    assert matrix.barcodes.tolist() == barcodes
    np.testing.assert_array_equal(matrix.counts.toarray(), counts)
    assert [*zip(matrix.features.ids.tolist(), matrix.features.names.tolist(), strict=True)] == [
        f[:2] for f in features
    ]
    assert (matrix.features.types is None) == (layout in ("h5 per genome", "genes"))


def test_other_features_are_told_from_genes_and_named(write, tmp_path):
    features = read_features(write.write_h5(tmp_path / "m.h5", COUNTS, BARCODES))
    kept, notes = choose_genes(features, tmp_path / "m.h5")
    assert features.names[kept].tolist() == ["ACTB", "ERBB2", "ACTB", "KRT19"]
    assert notes == ("features of m.h5 other than genes are left out: 1 Antibody Capture",)


def test_a_matrix_without_genes_is_refused(write, tmp_path):
    path = write.write_h5(tmp_path / "m.h5", COUNTS[:, :1], BARCODES, [("a", "b", "Peaks")])
    with pytest.raises(CohortError, match=r"m\.h5: no feature of type 'Gene Expression', only 1 Peaks"):
        choose_genes(read_features(path), path)


def test_a_feature_without_symbol_goes_by_its_id(write, tmp_path):
    path = write.write_h5(tmp_path / "m.h5", COUNTS[:, :2], BARCODES, [("E1", "", "x"), ("E2", "B", "x")])
    assert read_features(path).names.tolist() == ["E1", "B"]


def test_features_are_read_without_the_counts(write, tmp_path):
    path = write.write_h5(tmp_path / "m.h5", COUNTS, BARCODES)
    with h5py.File(path, "a") as file:
        del file["matrix/data"]
    assert read_features(path).ids.tolist()[0] == "ENSG01"
    with pytest.raises(CohortError, match=r"m\.h5: the matrix cannot be read"):
        read_matrix(path)


@pytest.mark.parametrize(
    ("genomes", "species"),
    [
        (["GRCh38"], "human"),
        (["hg19"], "human"),
        (["refdata-gex-GRCh38-2020-A"], "human"),
        (["mm10-2020-A"], "mouse"),
        (["GRCm39"], "mouse"),
        (["mRatBN7-2"], "rat"),
        (["GRCh38", "SARS-CoV-2"], "human"),
        (["GRCh38_and_mm10"], None),
        (["GRCh38", "mm10"], None),
        (["danRer11"], None),
        ([], None),
    ],
)
def test_species_come_from_genomes_that_leave_no_doubt(genomes, species):
    assert find_species(genomes) == species


def test_genomes_are_read_where_a_file_names_them(write, tmp_path):
    assert read_genomes(write.write_h5(tmp_path / "a.h5", COUNTS, BARCODES)) == ("GRCh38",)
    assert read_genomes(write.write_h5(tmp_path / "b.h5", COUNTS, BARCODES, genome="mm10", per_genome=True)) == (
        "mm10",
    )
    assert read_genomes(write.write_mtx(tmp_path / "c", COUNTS, BARCODES)) == ()


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("indices", [0, 2, 4, 0, 1, 3, 9]),
        ("indices", [0, 2, 4, 0, 1, 3, -1]),
        ("indices", [0, 2, 4, 0, 1, 3, 2**40]),
        ("indptr", [0, 3, 3, 6]),
        ("indptr", [0, 5, 3, 7]),
        ("indptr", [0, 3, 7]),
        ("data", [1, 2]),
        ("data", [b"1"] * 7),
        ("shape", [9, 3]),
        ("barcodes", [b"AAA-1"]),
        ("features/id", [b"AAA-1"]),
    ],
)
def test_a_matrix_whose_parts_do_not_fit_is_refused(write, tmp_path, key, values):
    path = write.write_h5(tmp_path / "m.h5", COUNTS, BARCODES)
    with h5py.File(path, "a") as file:
        del file[f"matrix/{key}"]
        file[f"matrix/{key}"] = np.array(values)
    with pytest.raises(CohortError, match=r"m\.h5"):
        read_matrix(path)


def test_files_that_are_no_matrix_are_refused_by_name(write, tmp_path):
    path = write.write_h5(tmp_path / "m.h5", COUNTS, BARCODES)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(CohortError, match=r"m\.h5: cannot be opened as HDF5"):
        read_matrix(path)
    with h5py.File(tmp_path / "n.h5", "w") as file:
        file["x"] = [1]
    with pytest.raises(CohortError, match="not a 10x matrix"):
        read_matrix(tmp_path / "n.h5")
    with pytest.raises(CohortError, match="no such file"):
        read_matrix(tmp_path / "absent.h5")


def test_a_matrix_per_genome_of_two_is_refused(write, tmp_path):
    path = write.write_h5(tmp_path / "m.h5", COUNTS, BARCODES, genome="hg19", per_genome=True)
    with h5py.File(path, "a") as file:
        file.copy("hg19", "mm10")
    with pytest.raises(CohortError, match="one matrix for each of hg19, mm10"):
        read_features(path)


def test_an_mtx_folder_must_hold_three_files_once(write, tmp_path):
    folder = write.write_mtx(tmp_path / "m", COUNTS, BARCODES)
    assert [f.name for f in matrix_files(folder)] == ["matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"]
    (folder / "barcodes.tsv").write_text("AAA-1\n")
    with pytest.raises(CohortError, match=r"both barcodes\.tsv\.gz and barcodes\.tsv"):
        read_matrix(folder)
    (folder / "barcodes.tsv").unlink()
    (folder / "barcodes.tsv.gz").unlink()
    with pytest.raises(CohortError, match=r"no barcodes\.tsv\.gz or barcodes\.tsv"):
        read_matrix(folder)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("matrix.mtx", "%%MatrixMarket matrix coordinate integer general\n5 3 2\n1 1 4\n", r"matrix\.mtx"),
        ("matrix.mtx", "%%MatrixMarket matrix coordinate integer general\n3 5 1\n1 1 4\n", "3 features x 5 barcodes"),
        ("matrix.mtx", "barcodes\n", r"matrix\.mtx"),
        ("barcodes.tsv", "AAA-1\n", "1 barcodes"),
        ("features.tsv", "E1\tA\tx\nE2\n", "a line has no tab"),
        ("features.tsv", "", "0 features"),
    ],
)
def test_a_damaged_mtx_folder_is_refused(write, tmp_path, name, text, said):
    folder = write.write_mtx(tmp_path / "m", COUNTS, BARCODES, packed=False)
    (folder / name).write_text(text)
    with pytest.raises(CohortError, match=said):
        read_matrix(folder)


@pytest.mark.parametrize("name", ["matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"])
def test_truncated_packed_files_are_refused_by_name(write, tmp_path, name):
    folder = write.write_mtx(tmp_path / "m", COUNTS, BARCODES)
    whole = gzip.compress(gzip.decompress((folder / name).read_bytes()) * 50)
    (folder / name).write_bytes(whole[:-12])
    with pytest.raises(CohortError, match=name.replace(".", r"\.")):
        read_matrix(folder)


def join(left, right):
    rows, notes = join_barcodes(np.array(left), np.array(right), source=Path("m.h5"), other=Path("p.csv"))
    return rows.tolist(), notes


def test_barcodes_are_found_by_name_and_never_cut_where_some_are_found():
    assert join(["B-1", "A-1", "C-1"], ["A-1", "B-1", "D-1"]) == ([1, 0, -1], ())
    assert join(["A-1", "B-2"], ["A-1", "B-1"]) == ([0, -1], ())


@pytest.mark.parametrize(("left", "right"), [(["B", "A"], ["A-1", "B-1"]), (["B-2", "A-2"], ["A-1", "B-1"])])
def test_barcodes_that_agree_up_to_the_suffix_are_joined_and_said(left, right):
    rows, (note,) = join(left, right)
    assert rows == [1, 0]
    assert f"{left[0]!r} in m.h5, 'A-1' in p.csv" in note


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (["A-1", "A-2"], ["A", "B"], "several are the same: 'A-1' in m.h5, 'A' in p.csv"),
        (["A"], ["A-1", "A-2"], "several are the same"),
        (["A-1"], ["T-1"], "no barcode in common: 'A-1' in m.h5, 'T-1' in p.csv"),
        (["A-1", "A-1"], ["A-1"], r"m\.h5: 1 barcode"),
        (["A-1"], ["A-1", "A-1"], r"p\.csv: 1 barcode"),
    ],
)
def test_barcodes_that_leave_a_doubt_are_refused(left, right, said):
    with pytest.raises(CohortError, match=said):
        join(left, right)
