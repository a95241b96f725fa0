"""Opens HDF5 files and Zarr stores (v2 and v3, folders and zips) made elsewhere, and reads their elements.

AnnData elements are the same in both. No pickle is decoded: Zarr v2 knows a codec that is one, and it is refused.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genrag_cli.errors import FeaturesError, GeneragError
from genrag_cli.stores.foreign.rows import texts
from genrag_cli.stores.seal import check
from genrag_cli.types import Strings

_REMEDY = "Copy it again, or make it again."


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Names the file where something that reads it fails: libraries raise anything for damaged bytes.

    Raises:
        FeaturesError: for whatever is no expected failure.
    """
    try:
        yield
    except GeneragError:
        raise
    except MemoryError as error:
        raise FeaturesError(f"{path}: more memory is needed to read it than there is", _REMEDY) from error
    except Exception as error:
        raise FeaturesError(f"{path} cannot be read: {type(error).__name__}: {error}", _REMEDY) from error


def expect_whole(path: Path) -> None:
    """Refuses a file that is not what its digest says, and an HDF5 file that was cut; others have no digest.

    Raises:
        FeaturesError: with what was found.
    """
    if (found := check(path)).state == "damaged":
        raise FeaturesError(f"{path}: {found.reason}", _REMEDY)


@contextlib.contextmanager
def opened_hdf5(path: Path) -> Iterator[Any]:
    """An HDF5 file for reading.

    Raises:
        FeaturesError: where it is damaged, on opening or later.
    """
    import h5py

    expect_whole(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise FeaturesError(f"{path} cannot be read as HDF5: {error}", _REMEDY) from error


@contextlib.contextmanager
def opened_zarr(path: Path) -> Iterator[Any]:
    """The root group of a Zarr store for reading.

    Raises:
        FeaturesError: where it is damaged, on opening or later.
    """
    import zarr

    expect_whole(path)
    store = zarr.storage.LocalStore(path, read_only=True) if path.is_dir() else zarr.storage.ZipStore(path, mode="r")
    try:
        yield zarr.open_group(store, mode="r")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise FeaturesError(f"{path} cannot be read as a Zarr group: {error}", _REMEDY) from error
    finally:
        store.close()


def read_elem(path: Path, node: Any) -> Any:
    """An AnnData element (array, sparse matrix, data frame, mapping) of either format.

    Raises:
        FeaturesError: where decoding it would run a pickle, or it is none that anndata knows.
    """
    import anndata

    refuse_pickles(path, node)
    try:
        read = anndata.io.read_elem(node)
        if hasattr(read, "check_format"):  # scipy believes indices, and reads and writes wherever they point
            read.check_format(full_check=True)
        return read
    except MemoryError:
        raise
    except Exception as error:  # anndata raises kinds of its own that it does not export
        raise FeaturesError(f"{path}: {node.name} is not as AnnData writes it: {error}", _REMEDY) from error


def refuse_pickles(path: Path, node: Any) -> None:
    """Looks at how the arrays of a node are encoded, before any is decoded.

    Raises:
        FeaturesError: where one is a pickle.
    """
    for array in (node, *(m for _, m in node.members(max_depth=None))) if hasattr(node, "members") else (node,):
        metadata = getattr(array, "metadata", None)
        codecs = (*(getattr(metadata, "filters", None) or ()), getattr(metadata, "compressor", None))
        if any(getattr(codec, "codec_id", "") == "pickle" for codec in codecs):
            raise FeaturesError(
                f"{path}: {array.name} is stored as a pickle, which can run any code when it is read",
                "Write the store again with text as text.",
            )


def read_texts(path: Path, node: Any) -> Strings:
    """(n,) text of an index or a list of names."""
    return texts(read_elem(path, node))
