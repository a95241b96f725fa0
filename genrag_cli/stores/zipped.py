"""Zarr groups in zip files: packing, opening, and reading AnnData pieces without reading the rest.

The only place that knows how zarr and anndata are driven. It does not know what a bank is.
"""

import asyncio
import contextlib
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import BankError, OutputError
from genrag_cli.stores.atomic import beside, explain, pack_folder, remove, sweep
from genrag_cli.types import Ints, Strings

ROWS_PER_CHUNK = 1024
SMALL = 64 << 20
"""Bytes of a group that is put together in memory: zarr hands each of its hundreds of small files from thread to
thread, which takes longer than writing them."""


@contextlib.contextmanager
def packing(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path` to write a Zarr group into; on a clean exit it is zipped to `path`.

    Raises:
        OutputError: where the folder cannot be written or the disk is full.
    """
    folder = beside(path, "packing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        remove(folder)
        folder.mkdir()
    except OSError as error:
        raise explain(error, path) from error
    try:
        with settled():
            yield folder
        pack_folder(folder, path)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        remove(folder)


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Waits, where something fails within, until zarr's own threads have nothing left to write.

    zarr writes many chunks at once; when one fails, or this thread is interrupted, the others go on, and would make a
    folder anew that is being removed.
    """
    try:
        yield
    except BaseException:
        from zarr.core.sync import sync

        async def wait() -> None:
            if others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others, timeout=30)

        sync(wait())
        raise


@contextlib.contextmanager
def _filling(folder: Path, n_bytes: int) -> Iterator[Any]:
    """A store for zarr to write to, whose content is in the folder on a clean exit."""
    import zarr

    if n_bytes > SMALL:
        yield folder
        return
    kept: dict[str, Any] = {}
    yield zarr.storage.MemoryStore(kept)
    for name, content in kept.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.to_bytes())


def write_anndata(folder: Path, adata: Any) -> None:
    """Writes an AnnData as Zarr v3 into an empty folder.

    LZ4 after a byte shuffle makes counts as small as the usual Zstandard does, and is read in 3/5 of the time.
    """
    import anndata
    import zarr

    compressor = zarr.codecs.BloscCodec(cname="lz4", shuffle=zarr.codecs.BloscShuffle.shuffle)
    with (
        anndata.settings.override(zarr_write_format=3),
        warnings.catch_warnings(),
        _filling(folder, adata.__sizeof__()) as store,
    ):
        warnings.simplefilter("ignore")
        group = zarr.open_group(store, mode="w", zarr_format=3)
        anndata.io.write_elem(group, "/", adata, dataset_kwargs={"compressors": [compressor]})
        zarr.consolidate_metadata(store)


def add_rows(folder: Path, path: str, shape: tuple[int, int], blocks: Iterator[NDArray[np.float32]]) -> None:
    """Adds a dense float32 element to an AnnData in a folder, block of rows by block of rows (bounded memory).

    It is not compressed: embeddings lose 7 % by it, and are read two to three times as fast without.
    """
    import zarr

    group = zarr.open_group(folder, mode="r+")
    rows = max(1, min(ROWS_PER_CHUNK, shape[0]))
    array = group.create_array(path, shape=shape, dtype="float32", chunks=(rows, max(1, shape[1])), compressors=None)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    row = 0
    for block in _by_chunks(blocks, rows):
        if row + len(block) <= shape[0]:
            array[row : row + len(block)] = block
        row += len(block)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # zarr says that consolidated metadata is not in the v3 text yet; anndata uses it
        zarr.consolidate_metadata(folder)
    if row != shape[0]:
        raise OutputError(f"{row} rows of {path} were given, {shape[0]} were announced")


def _by_chunks(blocks: Iterator[NDArray[np.float32]], rows: int) -> Iterator[NDArray[np.float32]]:
    """The same rows, as many at a time as a chunk has, so that no chunk is read back to be filled up."""
    waiting: list[NDArray[np.float32]] = []
    n = 0
    for block in blocks:
        waiting.append(block)
        n += len(block)
        while n >= rows:
            joined = np.concatenate(waiting)
            yield joined[:rows]
            waiting, n = [joined[rows:]], n - rows
    if n:
        yield np.concatenate(waiting)


def write_arrays(path: Path, arrays: dict[str, NDArray[Any]], about: dict[str, Any]) -> None:
    """Writes named arrays as one zipped Zarr v3 group, with anything that JSON can say as its attributes."""
    import zarr

    n_bytes = sum(array.nbytes for array in arrays.values())
    with packing(path) as folder, _filling(folder, n_bytes) as store:
        group = zarr.open_group(store, mode="w", zarr_format=3)
        group.attrs.update(about)
        for name, array in arrays.items():
            group.create_array(name, data=np.ascontiguousarray(array))


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of a zipped group, by its path."""
    with opened(path) as group:
        return {name: item[...] for name, item in group.members(max_depth=None) if hasattr(item, "shape")}


def read_about(path: Path) -> dict[str, Any]:
    """The attributes of a zipped group."""
    with opened(path) as group:
        return dict(group.attrs)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Opens a zipped Zarr group for reading.

    Raises:
        BankError: where the file is missing, cut short or not a zipped Zarr group.
    """
    import zarr

    remedy = "The file is damaged or unfinished: take it away and run the command that made it again."
    if not path.exists():
        raise BankError(f"{path} is missing", "Run the command that made it again; it redoes only what is missing.")
    try:
        store = zarr.storage.ZipStore(path, mode="r")
        group = zarr.open_group(store, mode="r")
    except (zipfile.BadZipFile, OSError, ValueError, KeyError) as error:
        raise BankError(f"{path} cannot be read as a zipped Zarr store: {error}", remedy) from error
    try:
        yield group
    except (zipfile.BadZipFile, EOFError) as error:
        raise BankError(f"{path} is cut short or damaged: {error}", remedy) from error
    finally:
        store.close()


def read_index(group: Any, frame: str) -> Strings:
    """Row names of `obs` or `var`."""
    values = group[f"{frame}/{group[frame].attrs['_index']}"][...]
    # Text of any length (numpy's StringDType) becomes fixed-width text only by way of Python's.
    return np.asarray(values.tolist(), dtype=np.str_)


def read_column(group: Any, frame: str, name: str) -> NDArray[Any]:
    """A column of numbers or booleans of `obs` or `var`, without reading the others.

    Raises:
        BankError: where it is not there.
    """
    if f"{frame}/{name}" not in group:
        raise BankError(f"{group.store.path} has no {frame} column {name}", "Build the bank again.")
    values: NDArray[Any] = group[f"{frame}/{name}"][...]
    return values


def read_frame(group: Any, frame: str) -> Any:
    """`obs` or `var` as a pandas DataFrame."""
    import anndata

    return anndata.io.read_elem(group[frame])


def read_csr_rows(group: Any, rows: slice | Ints) -> Any:
    """Some rows of X as scipy CSR, without reading the others."""
    import anndata

    return anndata.io.sparse_dataset(group["X"])[rows]


def read_csr(group: Any) -> Any:
    """All of X as scipy CSR, which takes a sixth less time than asking for all of its rows."""
    from scipy import sparse

    parts = tuple(group[f"X/{name}"][...] for name in ("data", "indices", "indptr"))
    return sparse.csr_matrix(parts, shape=tuple(group["X"].attrs["shape"]))


def read_anndata(path: Path) -> Any:
    """A whole store as an AnnData in memory."""
    import anndata

    with opened(path) as group:
        return anndata.io.read_elem(group)
