import runpy
import tempfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.cohorts.h5ad import CountsFile
from genrag_cli.errors import CohortError

ENSEMBL = ["ENSG00000141736", "ENSG00000075624.5", "ENSG00000171345", "ENSMUSG00000000001"]
RNG = np.random.default_rng(3)
VALUES = RNG.poisson(2, (5, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def make():
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_anndata.py"))))


def stored(write_hest, tmp_path, **changes):
    return write_hest(tmp_path, **changes) / "st" / "T1.h5ad"


def test_dense_and_sparse_counts_are_read_the_same(write_hest, tmp_path):
    dense = CountsFile(stored(write_hest, tmp_path / "a", dense=True)).load()
    csr = CountsFile(stored(write_hest, tmp_path / "b")).load()
    assert (dense.counts != csr.counts).nnz == 0
    assert dense.counts.dtype == csr.counts.dtype == np.int32
    assert dense.gene_ids.tolist() == [f"ENSG{i}" for i in range(5)]


def test_dense_counts_do_not_depend_on_block_size(write_hest, tmp_path, monkeypatch):
    file = CountsFile(stored(write_hest, tmp_path, dense=True))
    whole = file.load().counts
    monkeypatch.setattr("genrag_cli.cohorts.h5ad._DENSE_ROWS", 5)
    assert (file.load().counts != whole).nnz == 0


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_columns_of_one_gene_are_summed_and_said(write_hest, tmp_path):
    repeated = CountsFile(stored(write_hest, tmp_path / "a", genes=("B", "A", "B", "C", "B")))
    apart = CountsFile(stored(write_hest, tmp_path / "b", genes=("B", "A", "B2", "C", "B3"))).load()
    measured = repeated.load()
    assert measured.genes.tolist() == repeated.read_genes().names.tolist() == ["B", "A", "C"]
    assert measured.gene_ids.tolist() == ["ENSG0", "ENSG1", "ENSG3"]
    assert "2 columns of T1.h5ad repeat a gene" in measured.notes[0]
    np.testing.assert_array_equal(measured.counts[:, 0].toarray(), apart.counts[:, [0, 2, 4]].sum(axis=1))
    np.testing.assert_array_equal(measured.total_counts, apart.total_counts)


def test_missing_coordinates_are_refused_or_said(write_hest, tmp_path):
    path = stored(write_hest, tmp_path, spatial=False)
    with pytest.raises(CohortError, match="no obsm"):
        CountsFile(path).load()
    measured = CountsFile(path, needs_centres=False).load()
    assert np.all(np.isnan(measured.centres))
    assert "positions of its spots are unknown" in measured.notes[0]
    with pytest.raises(CohortError):
        _ = measured.pitch_px


def test_missing_indices_are_made_from_coordinates_and_said(write_hest, tmp_path):
    measured = CountsFile(stored(write_hest, tmp_path, indices=False)).load()
    assert measured.array_rc[-1].tolist() == [2, 3]
    assert "has no array_row and array_col: indices are made from the coordinates" in measured.notes[0]


def test_log_transformed_values_are_refused(write_hest, tmp_path):
    path = stored(write_hest, tmp_path, factor=0.3)
    assert "whole numbers" in CountsFile(path).load().notes[0]
    with h5py.File(path, "a") as file:
        file["uns"].create_group("log1p")
    with pytest.raises(CohortError, match="log-transformed"):
        CountsFile(path).load()


def test_what_is_no_anndata_file_is_refused_by_name(tmp_path):
    text, other = tmp_path / "a.h5ad", tmp_path / "b.h5ad"
    text.write_text("x")
    with h5py.File(other, "w") as file:
        file["matrix"] = [1]
    for path, why in ((text, "cannot be opened"), (other, "no X, obs, var"), (tmp_path / "c.h5ad", "no such file")):
        with pytest.raises(CohortError, match=f"{path.name}: .*{why}"):
            CountsFile(path).load()


def test_old_files_are_refused_with_a_remedy(tmp_path):
    rows = [(b"a", 1.0), (b"b", 2.0)]
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["X"] = np.ones((2, 2), np.float32)
        file["obs"] = file["var"] = np.array(rows, dtype=[("index", "S5"), ("n", "f4")])
    with pytest.raises(CohortError, match=r"obs has no index; the file is older than anndata 0\.7\nWrite it anew"):
        CountsFile(tmp_path / "old.h5ad").load()


def test_symbols_beside_an_index_of_ids_are_the_names(make, tmp_path):
    for column in ("gene_symbols", "gene_name", "feature_name", "symbol"):
        path = make.write_anndata(
            tmp_path / f"{column}.h5ad", VALUES, genes=ENSEMBL, var={column: ["ERBB2", "ACTB", "", "Gnai3"]}
        )
        measured = CountsFile(path).load()
        assert measured.genes.tolist() == ["ERBB2", "ACTB", ENSEMBL[2], "Gnai3"]
        assert measured.gene_ids.tolist() == ENSEMBL
        assert CountsFile(path).read_genes().ids.tolist() == ENSEMBL


def test_an_index_of_ids_without_symbols_names_by_id(make, tmp_path):
    measured = CountsFile(make.write_anndata(tmp_path / "a.h5ad", VALUES, genes=ENSEMBL)).load()
    assert measured.genes.tolist() == measured.gene_ids.tolist() == ENSEMBL


def test_ids_that_are_absent_or_symbols_again_are_empty(make, tmp_path):
    ids = [ENSEMBL[0], "G1", "nan", None]
    measured = CountsFile(make.write_anndata(tmp_path / "a.h5ad", VALUES, var={"gene_ids": ids})).load()
    assert measured.genes.tolist() == ["G0", "G1", "G2", "G3"]
    assert measured.gene_ids.tolist() == [ENSEMBL[0], "", "", ""]


def test_raw_is_read_with_its_own_genes_where_it_is_asked_for(make, tmp_path):
    raw = np.pad(VALUES, ((0, 0), (0, 2)), constant_values=3)
    for form in ("dense", "csr", "csc"):
        path = make.write_anndata(tmp_path / f"{form}.h5ad", np.log1p(VALUES), raw=raw, form=form)
        measured = CountsFile(path, element="raw/X").load()
        np.testing.assert_array_equal(measured.counts.toarray(), raw)
        assert measured.genes.tolist() == CountsFile(path, element="raw/X").read_genes().names.tolist()
        assert measured.genes[-1] == "R5"


def test_a_layer_stands_in_for_x_only_where_that_was_asked_and_says_so(make, tmp_path):
    path = make.write_anndata(tmp_path / "a.h5ad", np.log1p(VALUES), layers={"counts": VALUES})
    assert "not all counts are whole" in CountsFile(path).load().notes[-1]
    measured = CountsFile(path, whole_only=True).load()
    np.testing.assert_array_equal(measured.counts.toarray(), VALUES)
    assert "X holds values that are no counts; the counts are those of layers['counts']" in measured.notes[0]


def test_whole_counts_in_x_win_over_a_layer(make, tmp_path):
    path = make.write_anndata(tmp_path / "a.h5ad", VALUES, layers={"counts": VALUES + 1})
    np.testing.assert_array_equal(CountsFile(path, whole_only=True).load().counts.toarray(), VALUES)


def test_a_file_without_x_has_its_counts_in_the_layer_or_nowhere(make, tmp_path):
    path = make.write_anndata(tmp_path / "a.h5ad", VALUES, layers={"counts": VALUES})
    with h5py.File(path, "a") as file:
        del file["X"]
    assert "X is absent" in CountsFile(path, whole_only=True).load().notes[0]
    with pytest.raises(CohortError, match="it has no X"):
        CountsFile(path).load()


@pytest.mark.parametrize(("x", "layer"), [(0.5, 0.5), (-1, None), (np.nan, None), (0.3, -2)])
def test_values_that_are_no_counts_are_refused_with_the_remedy(make, tmp_path, x, layer):
    layers = None if layer is None else {"counts": VALUES + np.float32(layer)}
    path = make.write_anndata(tmp_path / "a.h5ad", VALUES + np.float32(x), layers=layers, raw=VALUES)
    with pytest.raises(CohortError, match=r"a\.h5ad: X holds values that are no counts .*; raw.X holds whole numbers"):
        CountsFile(path, whole_only=True).load()
    if x in (-1, np.nan):
        with pytest.raises(CohortError, match="negative or non-finite"):
            CountsFile(path).load()


def test_spots_without_coordinates_are_left_out_and_said(make, tmp_path):
    xy = np.array([[0.0, 0], [np.nan, 3], [200, 0], [300, 0], [400, np.inf]])
    path = make.write_anndata(
        tmp_path / "a.h5ad", VALUES, spatial=xy, obs={"array_row": range(5), "array_col": [0] * 5}
    )
    measured = CountsFile(path).load()
    assert (measured.names.tolist(), measured.array_rc[:, 0].tolist()) == (["s0", "s2", "s3"], [0, 2, 3])
    np.testing.assert_array_equal(measured.counts.toarray(), VALUES[[0, 2, 3]])
    assert measured.notes == ("2 of 5 spots of a.h5ad have no coordinates and are left out",)
    with pytest.raises(CohortError, match="no row of obsm"):
        CountsFile(make.write_anndata(tmp_path / "b.h5ad", VALUES, spatial=np.full((5, 2), np.nan))).load()


@pytest.mark.parametrize("rows", [[0.5, 1, 2, 3, 4], [np.nan, 1, 2, 3, 4], ["a", "b", "c", "d", "e"]])
def test_array_indices_that_are_no_whole_numbers_are_not_used(make, tmp_path, rows):
    path = make.write_anndata(tmp_path / "a.h5ad", VALUES, obs={"array_row": rows, "array_col": range(5)})
    measured = CountsFile(path).load()
    assert measured.array_rc[:, 1].tolist() == [0, 1, 2, 3, 4]
    assert "made from the coordinates" in measured.notes[0]


def test_a_truncated_file_is_refused_by_name(make, tmp_path):
    path = make.write_anndata(tmp_path / "a.h5ad", VALUES)
    with h5py.File(path, "a") as file:
        del file["var"][file["var"].attrs["_index"]]
    with pytest.raises(CohortError, match=r"a\.h5ad: damaged"):
        CountsFile(path).load()


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1), min_size=2, max_size=6,
                   unique=True),
    genes=st.lists(st.sampled_from(["ACTB", "MT-CO1", "Ä b", "H3F3A", "NA", "ENSG0001"]), min_size=1, unique=True),
    form=st.sampled_from(["dense", "csr", "csc"]), kind=st.sampled_from([np.int64, np.float32, np.float64]),
    how=st.sampled_from(["memory", "backed", "zarr2", "zarr3"]),
    index_name=st.sampled_from([None, "cell_id"]), data=st.data(),
)  # fmt: skip
def test_counts_names_and_places_come_back_however_they_are_stored(
    make, names, genes, form, kind, how, index_name, data
):
    n, n_genes = len(names), len(genes)
    cells = data.draw(st.lists(st.integers(0, 9), min_size=n * n_genes, max_size=n * n_genes))
    values = np.array(cells).reshape(n, n_genes).astype(kind)
    with tempfile.TemporaryDirectory() as folder:
        path = make.write_anndata(
            Path(folder) / ("a.zarr" if how.startswith("zarr") else "a.h5ad"), values, form=form, names=names,
            genes=genes, backed=how == "backed", zarr_format=2 if how == "zarr2" else 3, index_name=index_name,
        )  # fmt: skip
        file = CountsFile(path)
        measured, cheap = file.load(), file.read_genes()
    assert measured.names.tolist() == names
    assert measured.genes.tolist() == cheap.names.tolist() == genes
    np.testing.assert_array_equal(measured.counts.toarray(), values)
    np.testing.assert_array_equal(measured.centres[:, 0], np.arange(n) * 100.0 + 50)


@pytest.mark.real
def test_a_dense_xenium_file_gives_its_counts(shared_data):
    measured = CountsFile(shared_data / "xenium_tiny" / "NCBI858.h5ad", needs_centres=False).load()
    assert measured.counts.shape == (200, 338)
    assert measured.total_counts.sum() == 45623


@pytest.mark.parametrize("index", [10**6, -1])
def test_indices_that_point_out_of_the_matrix_are_damage(write_hest, tmp_path, index):
    path = stored(write_hest, tmp_path)
    with h5py.File(path, "r+") as file:
        file["X/indices"][0] = index
    with pytest.raises(CohortError, match=r"damaged, or not as AnnData writes it"):
        CountsFile(path).load()
