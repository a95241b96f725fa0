"""Tells from its first bytes, or from what a folder holds, how a file is packed; extensions do not count.

Opens nothing that could run code: a plain pickle is refused unread.
"""

import gzip
import zipfile
from pathlib import Path
from typing import Literal

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.foreign.rows import few

Container = Literal["hdf5", "zarr", "npz", "npy", "torch", "parquet", "csv"]

READ = (
    "Read are: TRIDENT, CLAM, STAMP and HEST-bench .h5; slide2vec .pt and .npz; wsidata, SpatialData and AnnData Zarr; "
    "AnnData .h5ad; GeneRAG's .pt; .npz, .parquet and .csv; generag's own files."
)
_MAGIC: dict[bytes, Container] = {
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"PAR1": "parquet",
    b"\x93NUMPY": "npy",
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19": "torch",
}
"""How files start. The last is a torch file that is no zip: a pickle of the number in torch/serialization.py."""
_ZARR = (".zgroup", ".zattrs", ".zmetadata", "zarr.json")


def sniff(path: Path) -> Container:
    """How the file or folder is packed.

    Raises:
        FeaturesError: where there is none, or it is packed in no way that is read, with what was found.
    """
    if path.is_dir():
        held = sorted(p.name for p in path.iterdir())
        if not set(held) & set(_ZARR):
            raise FeaturesError(f"{path}: a folder that is no Zarr store, it holds {few(held) or 'nothing'}", READ)
        return "zarr"
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise FeaturesError(f"{path} cannot be read: {error.strerror}", "Give the file of one slide.") from error
    if start.startswith(b"PK"):
        return _sniff_zip(path)
    for magic, container in _MAGIC.items():
        if start.startswith(magic):
            return container
    if start[:1] == b"\x80" and start[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        raise FeaturesError(
            f"{path} is a pickle, which can run any code when it is read", "Save the array as .npz, .csv or .parquet."
        )
    if _is_table(path, start):
        return "csv"
    raise FeaturesError(f"{path}: unknown file, it starts with {start[:16]!r}", READ)


def _sniff_zip(path: Path) -> Container:
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise FeaturesError(f"{path} is a damaged zip file: {error}", "Copy it again, or make it again.") from error
    if set(names) & set(_ZARR):
        return "zarr"
    if any(n == "data.pkl" or n.endswith("/data.pkl") for n in names):
        return "torch"
    if names and all(n.endswith(".npy") for n in names):
        return "npz"
    inner = next((n for n in names if n.rsplit("/", 1)[-1] in _ZARR), "")
    hint = f"The Zarr store lies in a folder of the zip ({inner}): unzip it and give that folder." if inner else READ
    raise FeaturesError(f"{path}: a zip file of {few(names) or 'nothing'}", hint)


def _is_table(path: Path, start: bytes) -> bool:
    if start.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(path, "rb") as file:
                start = file.read(4096)
        except (OSError, EOFError):
            return False
    lines = start.splitlines()
    if not lines or b"\0" in start:
        return False
    head = lines[0] if len(lines) > 1 else start
    try:
        words = head.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return "," in words or "\t" in words
