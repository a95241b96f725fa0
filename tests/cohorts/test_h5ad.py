import h5py
import numpy as np
import pytest

from genrag_cli.cohorts.h5ad import CountsFile
from genrag_cli.errors import CohortError


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


@pytest.mark.real
def test_a_dense_xenium_file_gives_its_counts(shared_data):
    measured = CountsFile(shared_data / "xenium_tiny" / "NCBI858.h5ad", needs_centres=False).load()
    assert measured.counts.shape == (200, 338)
    assert measured.total_counts.sum() == 45623
