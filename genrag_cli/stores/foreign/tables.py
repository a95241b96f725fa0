"""Tables made elsewhere, .parquet and .csv (or tabs, or gzipped): a row per spot, a column per number.

The layout is generag's own convention: a column of names (`name`, `barcode`, `spot` or `index`, or the unnamed first
column that pandas writes for an index), maybe `x` and `y` of the centres in level-0 px, and the rest are numbers:
values of an embedding in the order of the columns, or genes by name. Numbers in text are read to the last bit.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.foreign.names import NAME_COLUMNS
from genrag_cli.stores.foreign.rows import ForeignRows, as_xy, few, real_names, texts

_PLACES = ["x", "y"]
_INDEX = ("", "Unnamed: 0", "__index_level_0__")
"""What pandas calls an index without a name, in text and in Parquet."""


def read_table(path: Path, key: str | None, *, kind: str, predictions: bool) -> ForeignRows:
    """The rows of a table.

    Args:
        path: of the file.
        key: must be None: a table is one array.
        kind: `csv` or `parquet`.
        predictions: whether the columns are genes.

    Raises:
        FeaturesError: for tables that cannot be read, several columns of names, or columns that are no numbers.
    """
    if key is not None:
        raise FeaturesError(f"{path} is one table, so nothing in it is called {key!r}", "Leave the key out.")
    table = _read_parquet(path) if kind == "parquet" else _read_csv(path)
    columns = [str(c) for c in table.columns]
    table.columns = columns
    known = [c for c in columns if c in NAME_COLUMNS]
    known = known or [c for c in columns[:1] + columns[-1:] if c in _INDEX][:1]
    if len(known) > 1:
        raise FeaturesError(f"{path}: several columns could be names: {', '.join(known)}", "Keep one of them.")
    placed = set(_PLACES) <= set(columns)
    rest = [c for c in columns if c not in known and not (placed and c in _PLACES)]
    if odd := [c for c in rest if table[c].dtype.kind not in "fiu"]:
        raise FeaturesError(
            f"{path}: columns that are neither names, x, y nor numbers: {few(odd)}",
            f"Names of spots go into one of {', '.join(NAME_COLUMNS)}; take the others out.",
        )
    said = rest if kind == "parquet" else [c for c in _read_header(path) if c not in known]
    if twice := sorted({c for c in said if said.count(c) > 1}):
        raise FeaturesError(f"{path}: columns of the same name: {few(twice)}", "Keep one column per gene or value.")
    centres = as_xy(path, "x, y", table[_PLACES].to_numpy(np.float64), len(table)) if placed else None
    names, notes = real_names(texts(table[known[0]]), placed) if known else (None, ())
    with np.errstate(over="ignore"):  # refused as not finite
        values = table[rest].to_numpy(np.float32)
    return ForeignRows(
        values=values,
        names=names,
        centres=centres,
        path=path,
        kind=kind,
        columns=np.array(rest, np.str_) if predictions else None,
        notes=notes,
    )


def _read_parquet(path: Path) -> Any:
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except (ValueError, OSError) as error:  # pyarrow's own errors are of these
        raise FeaturesError(f"{path} cannot be read as Parquet: {error}", "Copy it again, or make it again.") from error
    if isinstance(table.index, pd.RangeIndex) and table.index.name is None:
        return table
    return table.reset_index(names=[table.index.name or _INDEX[0]])


def _open_text(path: Path) -> Any:
    import gzip

    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rt", encoding="utf-8-sig") if packed else path.open(encoding="utf-8-sig")


def _read_header(path: Path) -> list[str]:
    """The columns as the file has them: pandas calls the second of two `X` `X.1`."""
    with _open_text(path) as lines:
        line = lines.readline()
    return next(csv.reader([line], delimiter="\t" if "\t" in line else ","), [])


def _read_csv(path: Path) -> Any:
    import pandas as pd

    try:
        with _open_text(path) as lines:
            separator = "\t" if "\t" in lines.readline() else ","
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return pd.read_csv(
            path,
            sep=separator,
            float_precision="round_trip",
            encoding="utf-8-sig",
            compression="gzip" if packed else None,
            converters=dict.fromkeys((*NAME_COLUMNS, *_INDEX), str),  # as they stand: 007 and NA are names
        )
    except (OSError, ValueError, EOFError) as error:
        raise FeaturesError(
            f"{path} cannot be read as a table: {error}", "Expected a header and one row per spot."
        ) from error
