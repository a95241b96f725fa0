"""A matrix of float32 rows on disk, for dictionaries that are larger than memory: one uncompressed Zarr v3 array."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genrag_cli.stores.atomic import new_folder

ROWS_PER_CHUNK = 8192
Rows = NDArray[np.float32]


def write_rows(path: Path, shape: tuple[int, int], blocks: Iterator[Rows]) -> None:
    """Writes blocks of rows as they come into a folder that appears when it is whole.

    Raises:
        OutputError: where it cannot be written or the disk is full.
    """
    import zarr

    with new_folder(path) as temporary:
        array = zarr.create_array(
            temporary, shape=shape, dtype="float32", chunks=(min(ROWS_PER_CHUNK, shape[0]), shape[1]), compressors=None,
            overwrite=True,
        )  # fmt: skip
        # Whole chunks at a time: a chunk that is written in pieces is read back for each of them.
        waiting, row = np.empty((0, shape[1]), np.float32), 0
        for block in blocks:
            waiting = np.concatenate([waiting, block])
            whole = len(waiting) // ROWS_PER_CHUNK * ROWS_PER_CHUNK
            if whole:
                array[row : row + whole] = waiting[:whole]
                row, waiting = row + whole, waiting[whole:]
        if len(waiting):
            array[row : row + len(waiting)] = waiting


def row_reader(path: Path) -> Callable[[int, int], Rows]:
    """A function that reads rows low..high."""
    import zarr

    array = zarr.open_array(path, mode="r")

    def read(low: int, high: int) -> Rows:
        return np.asarray(array[low:high], np.float32)

    return read
