"""Tiles through a network in batches that fit: one size on CPUs, from free memory on GPUs, halved when it was too much.

Knows torch's devices and precisions. Knows no network and no preprocessing.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genrag_cli.backbones.base import Precision
from genrag_cli.errors import BackboneError
from genrag_cli.types import Floats

CPU_BATCH = 4
"""Fixed, so that a rerun computes the very same batches. Small, because the C library hands activations of 32 MiB and
more back to the system, which clears them anew each time: lite0 takes half the time of batches of 32, a ViT-L the same.
"""
_GPU_FIRST, _GPU_MOST = 8, 512
_SHARE = 0.6
"""Of a GPU's free memory that a batch may take."""


def open_device(name: str) -> torch.device:
    """The device of that name, tried out.

    Raises:
        BackboneError: where this machine does not have it.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without CUDA
        reason = str(error).splitlines()[0]
        raise BackboneError(f"device {name!r} cannot be used: {reason}", "Use --device cpu.") from error
    return device


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy of an array on a device; for a GPU by way of page-locked memory, from where copying waits for nothing."""
    held = torch.from_numpy(np.array(array, order="C"))  # a copy: it may be read-only, or turned
    if device.type != "cuda":
        return held.to(device)
    return held.pin_memory().to(device, non_blocking=True)


@contextlib.contextmanager
def exactly(device: torch.device, precision: Precision) -> Iterator[None]:
    """No gradients and no TF32, which would move embeddings by 1e-3 between machines; autocast where a GPU is asked to.

    CPUs compute in float32 whatever is recommended.
    """
    half = device.type == "cuda" and precision != "float32"
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
            torch.autocast(device.type, getattr(torch, precision), enabled=half),
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


@dataclass
class Batcher:
    """Runs work over rows, as many at a time as fit."""

    device: torch.device
    precision: Precision = "float32"
    most: int = _GPU_MOST
    _size: int = field(default=0, init=False)
    """Rows at a time; 0: not measured yet."""

    def run(self, n: int, dim: int, work: Callable[[slice], torch.Tensor]) -> Floats:
        """Runs `work` over all rows.

        Args:
            n: rows.
            dim: columns of the result.
            work: rows to (b, dim) on the device.

        Returns:
            (n, dim) float32.

        Raises:
            BackboneError: where not even one row fits into memory, or `work` returns another shape.
        """
        out = np.empty((n, dim), np.float32)
        low = 0
        with exactly(self.device, self.precision):
            while low < n:
                rows = slice(low, min(n, low + self._wanted()))
                found = None
                try:
                    found = self._measured(rows, work).float().cpu().numpy()
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    self._halve(rows.stop - rows.start, error)
                if found is None:
                    if self.device.type == "cuda":  # only now: the error held on to what had been computed
                        torch.cuda.empty_cache()
                    continue
                if found.shape != out[rows].shape:  # numpy would stretch a single column
                    raise BackboneError(f"features of shape {found.shape} instead of {out[rows].shape}")
                out[rows] = found
                low = rows.stop
        return out

    def _wanted(self) -> int:
        if self._size:
            return self._size
        return min(self.most, CPU_BATCH if self.device.type != "cuda" else _GPU_FIRST)

    def _measured(self, rows: slice, work: Callable[[slice], torch.Tensor]) -> torch.Tensor:
        """The result, and on a GPU the first time what a row takes."""
        if self.device.type != "cuda" or self._size:
            return work(rows)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        result = work(rows)
        each = max(1, (torch.cuda.max_memory_allocated(self.device) - before) // (rows.stop - rows.start))
        free, _ = torch.cuda.mem_get_info(self.device)
        if rows.stop - rows.start == _GPU_FIRST:  # fewer say too little
            self._size = int(min(self.most, max(1, _SHARE * free // each)))
        return result

    def _halve(self, tried: int, error: BaseException) -> None:
        if not _is_out_of_memory(error):
            raise error
        if tried <= 1:
            raise BackboneError(
                f"one tile does not fit into the memory of {self.device}", "Use a device with more memory."
            ) from error
        self._size = tried // 2


def _is_out_of_memory(error: BaseException) -> bool:
    said = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # CPUs; CUDA's driver; cuBLAS and cuDNN
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in said)
