"""Rows on disk."""

import numpy as np
import pytest

from genrag_cli.errors import OutputError
from genrag_cli.stores import rows as rows_
from genrag_cli.stores.rows import row_reader, write_rows


def test_rows_come_back_whatever_blocks_they_came_in(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_, "ROWS_PER_CHUNK", 16)
    values = np.random.default_rng(0).normal(size=(100, 7)).astype(np.float32)
    write_rows(tmp_path / "r.zarr", values.shape, iter(np.split(values, [3, 40, 41, 90])))
    read = row_reader(tmp_path / "r.zarr")
    np.testing.assert_array_equal(read(0, 100), values)
    np.testing.assert_array_equal(read(15, 33), values[15:33])


def test_a_folder_that_cannot_be_written_is_refused_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        write_rows(tmp_path / "file" / "r.zarr", (1, 1), iter([np.zeros((1, 1), np.float32)]))
    assert caught.value.hint
