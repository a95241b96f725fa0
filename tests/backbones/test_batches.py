"""Rows through work in batches: sizes, memory that runs out, and errors that are something else."""

import numpy as np
import pytest
import torch

from genrag_cli.backbones import batches
from genrag_cli.backbones.batches import Batcher, exactly, open_device, to_device
from genrag_cli.errors import BackboneError

CPU = torch.device("cpu")
ROWS = torch.arange(100 * 2, dtype=torch.float32).reshape(100, 2)


@pytest.fixture(autouse=True)
def batch_of_32(monkeypatch):
    monkeypatch.setattr(batches, "CPU_BATCH", 32)


class Work:
    """Doubles rows; fails as a full memory does where more than `fits` are asked for."""

    def __init__(self, fits, error=None):
        self.fits = fits
        self.error = error or RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")
        self.sizes = []

    def __call__(self, rows):
        self.sizes.append(rows.stop - rows.start)
        if self.sizes[-1] > self.fits:
            raise self.error
        return 2 * ROWS[rows]


def test_cpu_batches_have_one_size_so_that_a_rerun_computes_the_same():
    work = Work(1000)
    np.testing.assert_array_equal(Batcher(CPU).run(100, 2, work), 2 * ROWS)
    assert work.sizes == [32, 32, 32, 4]


def test_batches_are_no_larger_than_asked():
    work = Work(1000)
    Batcher(CPU, most=5).run(11, 2, work)
    assert work.sizes == [5, 5, 1]


@pytest.mark.parametrize(
    "error",
    [
        None,
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=["cpu", "python", "cuda", "driver", "cublas", "cudnn"],
)
def test_batches_are_halved_when_memory_runs_out_and_every_row_is_computed(error):
    work, batcher = Work(7, error), Batcher(CPU)
    np.testing.assert_array_equal(batcher.run(50, 2, work), 2 * ROWS[:50])
    assert work.sizes == [32, 16, 8, *[4] * 12, 2]
    work.sizes.clear()
    batcher.run(9, 2, work)
    assert work.sizes == [4, 4, 1], "what was found out is kept"


def test_one_row_that_does_not_fit_is_refused():
    work = Work(0)
    with pytest.raises(BackboneError, match="one tile does not fit into the memory of cpu") as caught:
        Batcher(CPU).run(40, 2, work)
    assert work.sizes == [32, 16, 8, 4, 2, 1]
    assert "more memory" in caught.value.hint


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no")])
def test_other_errors_pass_through_at_once(error):
    work = Work(0, error)
    with pytest.raises(type(error)) as caught:
        Batcher(CPU).run(40, 2, work)
    assert caught.value is error
    assert work.sizes == [32]


@pytest.mark.parametrize("columns", [1, 3])
def test_results_of_another_width_are_refused_and_not_stretched(columns):
    with pytest.raises(BackboneError, match=rf"features of shape \(4, {columns}\) instead of \(4, 2\)"):
        Batcher(CPU).run(4, 2, lambda rows: torch.ones(rows.stop - rows.start, columns))


def test_no_rows_are_no_work():
    work = Work(1000)
    assert Batcher(CPU).run(0, 2, work).shape == (0, 2)
    assert work.sizes == []


def test_results_are_float32_without_gradients_and_cpus_ignore_half_precision():
    seen = []

    def work(rows):
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        product = ROWS[rows] @ torch.eye(2)
        seen.append(product.dtype)
        return product.double()

    found = Batcher(CPU, "float16").run(3, 2, work)
    assert seen == [(False, False), torch.float32]
    assert found.dtype == np.float32


def test_the_settings_of_torch_are_given_back_even_after_an_error():
    def settings():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.is_inference_mode_enabled()

    before = settings()
    seen = []

    def fail():
        with exactly(CPU, "float32"):
            seen.append(settings())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [(False, False, True)]
    assert settings() == before


def test_arrays_are_copied_to_a_device_whatever_their_layout():
    held = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    held.flags.writeable = False
    found = to_device(held[:, ::-1], CPU)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), held[:, ::-1])
    found.zero_()
    assert held.sum() == 276, "it was not written to"


def test_a_device_that_is_not_there_is_refused_and_the_cpu_is_not():
    assert open_device("cpu") == CPU
    for name in ("abacus", "cuda:99"):
        with pytest.raises(BackboneError, match=f"device '{name}' cannot be used"):
            open_device(name)
