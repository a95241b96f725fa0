"""Where a bank's rows go: memory, or a scratch file that is gone afterwards."""

import numpy as np
import pytest

from genrag_cli.pipeline.bank_rows import place_rows
from genrag_cli.pipeline.options import RunOptions
from genrag_cli.types import Listener

ROWS = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)


def place(tmp_path, share=slice(0, 50), memory=None):
    blocks = iter(np.split(ROWS, [7, 30]))
    return place_rows(blocks, 6, share, RunOptions(bank_memory_gb=memory), tmp_path, Listener())


@pytest.mark.parametrize("share", [slice(0, 50), slice(0, 25), slice(20, 50), slice(8, 9)])
@pytest.mark.parametrize("memory", [None, 0.0])
def test_a_share_of_the_rows_is_the_same_in_memory_and_on_disk(tmp_path, share, memory):
    with place(tmp_path, share, memory) as (atoms, streamed):
        assert streamed == (memory is not None)
        found = np.concatenate([block.numpy() for _, block in atoms.blocks(4)])
        np.testing.assert_array_equal(found, ROWS[share])
    assert list(tmp_path.iterdir()) == []


def test_the_scratch_file_goes_also_after_a_failure(tmp_path):
    placed = place(tmp_path, memory=0.0)
    placed.__enter__()
    assert [p.suffix for p in tmp_path.iterdir()] == [".npy"]
    placed.__exit__(RuntimeError, RuntimeError("stop"), None)
    assert list(tmp_path.iterdir()) == []
