"""A matrix of float32 rows on disk, for dictionaries that are larger than memory: one plain .npy file, mapped.

Not Zarr, although banks are: a dictionary is read whole several times per slide, and a mapped file reads ten times as
fast as chunks that are fetched one by one. The file lives as long as a command.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import OutputError
from genrag_cli.stores.atomic import new_file

Rows = NDArray[np.float32]


def write_rows(path: Path, shape: tuple[int, int], blocks: Iterator[Rows]) -> None:
    """Writes blocks of rows as they come into a file that appears when it is whole.

    Raises:
        OutputError: where it cannot be written, the disk is full, or the blocks are not of that shape together.
    """
    with new_file(path) as temporary:
        row = 0
        with temporary.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                file.write(np.ascontiguousarray(block, "<f4").data)
                row += len(block)
        if row != shape[0]:
            raise OutputError(f"{row} rows were computed, {shape[0]} were announced")


def row_reader(path: Path) -> Callable[[int, int], Rows]:
    """A function that reads rows low..high."""
    mapped = np.load(path, mmap_mode="c")  # nobody writes; torch wants arrays that could be

    def read(low: int, high: int) -> Rows:
        rows: Rows = mapped[low:high]
        return rows

    return read
