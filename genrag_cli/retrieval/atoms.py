"""Where the columns of a dictionary live: in memory, or read block by block from wherever a bank is kept.

Solvers ask for two things: every atom once, in blocks (a pass), and a few atoms by number. Atoms are rows here: D' is
(N, m). This module knows no penalties, no files and no gaps.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STREAM_ROWS = 8192
"""Bank rows in memory at a time when they are streamed (43 MB at m = 1,324)."""


class Atoms(Protocol):
    """The columns of a dictionary."""

    @property
    def n(self) -> int:
        """N, how many there are."""
        ...

    @property
    def m(self) -> int:
        """Rows of the dictionary."""
        ...

    @property
    def device(self) -> torch.device:
        """Where blocks arrive."""
        ...

    def blocks(self, rows: int) -> Iterator[tuple[int, Tensor]]:
        """Every atom once: number of the first, and (k, m) float32, k <= rows."""
        ...

    def table(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """A table (M, m) float32 that holds the atoms asked for, and where: `index` (q, k) renumbered into it."""
        ...


class HeldAtoms:
    """Atoms in memory, on any device.

    Args:
        rows: D' (N, m) float32, contiguous.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    @property
    def n(self) -> int:
        """N."""
        return len(self.rows)

    @property
    def m(self) -> int:
        """Rows of the dictionary."""
        return self.rows.shape[1]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.rows.device

    def blocks(self, rows: int) -> Iterator[tuple[int, Tensor]]:
        """Views of the rows."""
        for first in range(0, self.n, rows):
            yield first, self.rows[first : first + rows]

    def table(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The rows themselves: nothing is copied."""
        return self.rows, index


class StreamedAtoms:
    """Atoms that are read when they are needed, so that a bank may be larger than memory.

    Args:
        n: N.
        m: rows of the dictionary.
        read: (low, high) -> (high - low, m) float32, the same at every call.
        block: rows per read; a multiple of the store's chunk reads fastest.
        device: where blocks are sent.
    """

    def __init__(
        self, n: int, m: int, read: Callable[[int, int], NDArray[Any]], *, block: int = STREAM_ROWS,
        device: str | torch.device = "cpu",
    ) -> None:  # fmt: skip
        self._n, self._m, self._read, self._block, self._device = n, m, read, block, torch.device(device)

    @property
    def n(self) -> int:
        """N."""
        return self._n

    @property
    def m(self) -> int:
        """Rows of the dictionary."""
        return self._m

    @property
    def device(self) -> torch.device:
        """Where blocks are sent."""
        return self._device

    def blocks(self, rows: int) -> Iterator[tuple[int, Tensor]]:
        """Read one by one; the next is read while the last is being worked on."""
        from concurrent.futures import ThreadPoolExecutor

        bounds = [(low, min(low + self._block, self._n)) for low in range(0, self._n, self._block)]
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._load, *bounds[0])
            for at, (low, _) in enumerate(bounds):
                block = ahead.result()
                if at + 1 < len(bounds):
                    ahead = reader.submit(self._load, *bounds[at + 1])
                for first in range(0, len(block), rows):
                    yield low + first, block[first : first + rows]

    def table(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """One sweep over the blocks that hold any of them."""
        wanted, local = torch.unique(index, return_inverse=True)
        out = torch.empty(len(wanted), self._m, device=self._device)
        edges = torch.arange(0, self._n + self._block, self._block, device=wanted.device)
        where = torch.searchsorted(wanted, edges).tolist()
        for number, (a, b) in enumerate(pairwise(where)):
            if a < b:
                low = number * self._block
                out[a:b] = self._load(low, min(low + self._block, self._n))[wanted[a:b] - low]
        return out, local

    def _load(self, low: int, high: int) -> Tensor:
        rows = writable(np.asarray(self._read(low, high), np.float32))
        return torch.from_numpy(rows).to(self._device)


def writable(array: NDArray[Any]) -> NDArray[Any]:
    """The array, or a copy where it may not be written to: torch has no read-only tensors."""
    return array if array.flags.writeable else array.copy()
