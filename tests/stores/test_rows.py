"""Rows on disk."""

import numpy as np
import pytest

from genrag_cli.errors import OutputError
from genrag_cli.stores.rows import row_reader, write_rows

ROWS = np.random.default_rng(0).normal(size=(100, 7)).astype(np.float32)


def test_rows_come_back_whatever_blocks_they_came_in(tmp_path):
    write_rows(tmp_path / "r.npy", ROWS.shape, iter(np.split(ROWS, [3, 40, 41, 90])))
    read = row_reader(tmp_path / "r.npy")
    np.testing.assert_array_equal(read(0, 100), ROWS)
    np.testing.assert_array_equal(read(15, 33), ROWS[15:33])


def test_rows_that_are_not_all_there_leave_no_file(tmp_path):
    with pytest.raises(OutputError, match="60 rows were computed, 100 were announced"):
        write_rows(tmp_path / "r.npy", ROWS.shape, iter([ROWS[:60]]))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        write_rows(tmp_path / "file" / "r.npy", (1, 1), iter([np.zeros((1, 1), np.float32)]))
    assert caught.value.hint
