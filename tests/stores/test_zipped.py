"""Rows of embeddings in a store."""

import tempfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.errors import OutputError
from genrag_cli.stores import zipped
from genrag_cli.stores.zipped import add_rows, packing, read_about, read_arrays, read_index, write_anndata, write_arrays

ROWS = np.random.default_rng(0).normal(size=(53, 4)).astype(np.float32)


def write(path, blocks, n=53):
    with packing(path) as folder:
        write_anndata(folder, anndata.AnnData(obs=pd.DataFrame(index=[f"é{i}" for i in range(n)])))
        add_rows(folder, "obsm/e", (n, 4), iter(blocks))


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(0, 53), max_size=6))
def test_rows_come_back_whatever_blocks_they_came_in(cuts):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(zipped, "ROWS_PER_CHUNK", 16)
        path = Path(folder) / "e.zarr.zip"
        write(path, np.split(ROWS, sorted(cuts)))
        with zarr.storage.ZipStore(path, mode="r") as store:
            adata = anndata.read_zarr(zarr.open_group(store, mode="r"))
        np.testing.assert_array_equal(adata.obsm["e"], ROWS)


@pytest.mark.parametrize("n", [52, 54])
def test_rows_that_are_too_many_or_too_few_leave_no_file(tmp_path, n):
    with pytest.raises(OutputError, match=f"53 rows of obsm/e were given, {n} were announced"):
        write(tmp_path / "e.zarr.zip", [ROWS], n)
    assert list(tmp_path.iterdir()) == []


def test_names_come_back_in_every_alphabet(tmp_path):
    write(tmp_path / "e.zarr.zip", [ROWS])
    with zipped.opened(tmp_path / "e.zarr.zip") as group:
        assert read_index(group, "obs")[[0, 52]].tolist() == ["é0", "é52"]


def test_arrays_and_what_is_said_of_them_come_back(tmp_path):
    write_arrays(tmp_path / "a.zarr.zip", {"x/y": ROWS}, {"sections": ["é"], "curve": [[1.0, 2.5]]})
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.zarr.zip")["x/y"], ROWS)
    assert read_about(tmp_path / "a.zarr.zip") == {"sections": ["é"], "curve": [[1.0, 2.5]]}


def test_what_is_put_together_in_memory_is_what_would_be_written(tmp_path, monkeypatch):
    frame = pd.DataFrame({"row": range(3), "name": ["x", "y", "z"]}, index=["s1", "s2", "s3"])
    adata = anndata.AnnData(np.eye(3, dtype=np.float32), obs=frame, obsm={"spatial": np.ones((3, 2))})
    for small, name in ((zipped.SMALL, "memory"), (0, "disk")):
        monkeypatch.setattr(zipped, "SMALL", small)
        with packing(tmp_path / f"{name}.zarr.zip") as folder:
            write_anndata(folder, adata)
        write_arrays(tmp_path / f"{name}.arrays.zip", {"a/b": np.arange(5), "c": np.eye(2)}, {"said": [1, "x"]})
    for ending in ("zarr.zip", "arrays.zip"):
        assert (tmp_path / f"memory.{ending}").read_bytes() == (tmp_path / f"disk.{ending}").read_bytes()
