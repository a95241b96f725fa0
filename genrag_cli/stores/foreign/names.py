"""Names of rows and of genes from files of their own, for arrays that have none.

The published GeneRAG arrays are such: their rows are those of an h5ad, their genes the lines of
`selected_{panel}_list.txt` (HyeongSubKim/GeneRAG, generag/data.py).
"""

from pathlib import Path

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.foreign.annotated import is_annotated, read_obs_names
from genrag_cli.stores.foreign.opened import opened_hdf5, opened_zarr
from genrag_cli.stores.foreign.rows import few, texts
from genrag_cli.stores.foreign.sniff import sniff
from genrag_cli.types import Strings

NAME_COLUMNS = ("name", "barcode", "spot", "index")
"""Columns that hold names of spots, the preferred first."""


def read_row_names(path: Path) -> Strings:
    """(n,) names in the order of the rows: one a line, a table's `name` or `barcode`, or the obs names of an AnnData.

    Raises:
        FeaturesError: for a file that holds no such names.
    """
    if path.is_file() and (lines := _read_lines(path)) is not None:
        if not any("," in line or "\t" in line for line in lines[:1]):
            return texts(lines[1:] if lines[:1] and lines[0] in NAME_COLUMNS else lines)
        return _read_column(path)
    container = sniff(path)
    if container in ("hdf5", "zarr"):
        with (opened_hdf5 if container == "hdf5" else opened_zarr)(path) as group:
            if is_annotated(group):
                return read_obs_names(path, group)
            raise FeaturesError(f"{path}: no AnnData, so it has no obs names; it holds {few(sorted(group))}")
    if container == "csv":
        return _read_column(path)
    raise FeaturesError(
        f"{path} ({container}) holds no names of rows",
        "Give one name a line, a table with a column `name` or `barcode`, or an h5ad.",
    )


def read_gene_names(path: Path) -> Strings:
    """(k,) genes in the order of the columns, one a line.

    Raises:
        FeaturesError: for a file that is no text, or holds more than one word a line.
    """
    lines = _read_lines(path) if path.is_file() else None
    if lines is None or any("," in line or "\t" in line for line in lines):
        raise FeaturesError(f"{path}: not a list of genes", "Give a text file with one gene a line.")
    return texts(lines)


def _read_lines(path: Path) -> list[str] | None:
    """The lines that are not empty, without white space around; None where the file is no text."""
    with path.open("rb") as file:
        start = file.read(4096)
    if b"\0" in start or start[:1] in (b"\x80", b"\x89", b"\x1f") or start.startswith((b"PK", b"PAR1")):
        return None
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return None
    return [line.strip() for line in content.splitlines() if line.strip()]


def _read_column(path: Path) -> Strings:
    import pandas as pd

    table = pd.read_csv(path, sep=None, engine="python", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    if column := next((c for c in NAME_COLUMNS if c in table.columns), ""):
        return texts(table[column])
    raise FeaturesError(
        f"{path}: no column of {', '.join(NAME_COLUMNS)}; found {few(table.columns.tolist())}",
        "Name the column of names `name` or `barcode`.",
    )
