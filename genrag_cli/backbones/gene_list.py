"""Lists of genes that checkpoints do not hold: read from a file beside them, and genes picked from such a list.

Knows text, CSV and .npy lists. Knows no model: which order a checkpoint's outputs are in, only its training knew.
"""

import csv
from pathlib import Path

import numpy as np

from genrag_cli.errors import BackboneError, nearest
from genrag_cli.types import Ints, Strings

_SHOWN = 5


def read_gene_list(path: str | Path, what: str, expected: int | None = None, column: str | None = None) -> Strings:
    """Reads the ordered genes of a model.

    Args:
        path: .npy of strings (read without pickle), .csv or .tsv with a header, or text with one symbol a line.
        what: whose genes they are, for messages ("backbone stem").
        expected: how many genes the weights have; None where that is not known.
        column: of a .csv or .tsv; None: its only column.

    Returns:
        (G,) symbols in the order of the file, white space around them removed.

    Raises:
        BackboneError: for a file that cannot be read, holds an empty or a repeated symbol, or another number of genes.
    """
    path = Path(path)
    if not path.is_file():
        raise BackboneError(
            f"{what}: no gene list at {path}",
            "Name the list that the model was trained with, in the order of training.",
        )
    if column is not None and path.suffix.lower() not in _TABLES:
        raise BackboneError(f"{what}: {path} has no columns, asked for {column!r}", "Give a .csv or .tsv.")
    try:
        names = _read_names(path, what, column)
    except (OSError, ValueError, csv.Error) as error:
        reason = str(error).splitlines()[0]
        raise BackboneError(
            f"{what}: {path} cannot be read as a list of genes: {reason}",
            "Give text with one symbol a line, a .csv, or a .npy of strings that loads without pickle.",
        ) from error
    names = [name.strip() for name in names]
    _expect_unique(names, path, what)
    if expected is not None and len(names) != expected:
        raise BackboneError(
            f"{what}: {path} has {len(names)} genes, the weights have {expected}",
            "Give the list that these weights were trained with, in the order of training.",
        )
    return np.array(names, dtype=np.str_)


def pick(genes: Strings, wanted: Strings, what: str) -> Ints:
    """Columns of genes by name.

    Args:
        genes: (G,) what there is.
        wanted: (k,) names.
        what: whose genes they are, for messages.

    Returns:
        (k,) positions in `genes`, in the order of `wanted`.

    Raises:
        BackboneError: naming the genes that are not there.
    """
    at = {str(gene): i for i, gene in enumerate(genes)}
    unknown = [str(gene) for gene in wanted if str(gene) not in at]
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise BackboneError(
            f"{what} does not predict {', '.join(unknown[:_SHOWN])}{more}; it predicts {len(genes)} genes",
            nearest(unknown[0], at),
        )
    return np.array([at[str(gene)] for gene in wanted], dtype=np.int64)


_TABLES = {".csv": ",", ".tsv": "\t"}


def _read_names(path: Path, what: str, column: str | None) -> list[str]:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        held = np.load(path, allow_pickle=False)
        if held.ndim != 1 or held.dtype.kind not in "US":
            raise ValueError(f"it holds {held.dtype} of shape {held.shape}, not a row of strings")
        return [str(name) for name in (np.char.decode(held, "utf-8") if held.dtype.kind == "S" else held)]
    # utf-8-sig: spreadsheets put a byte-order mark before the first symbol, which would then match nothing
    text = path.read_text(encoding="utf-8-sig").rstrip()
    if suffix in _TABLES:
        return _read_column(text, _TABLES[suffix], path, what, column)
    return text.splitlines()


def _read_column(text: str, separator: str, path: Path, what: str, column: str | None) -> list[str]:
    rows = list(csv.reader(text.splitlines(), delimiter=separator))
    header = rows[0] if rows else []
    if column is None and len(header) != 1:
        raise BackboneError(
            f"{what}: {path} has columns {', '.join(header) or '(none)'}; which of them holds the genes is not known",
            "Give text with one symbol a line.",
        )
    if column is not None and column not in header:
        raise BackboneError(f"{what}: {path} has no column {column!r}", nearest(column, header))
    at = 0 if column is None else header.index(column)
    ragged = next((i for i, row in enumerate(rows) if len(row) <= at), None)
    if ragged is not None:
        raise ValueError(f"row {ragged + 1} has {len(rows[ragged])} cells")
    return [row[at] for row in rows[1:]]


def _expect_unique(names: list[str], path: Path, what: str) -> None:
    if not names:
        raise BackboneError(f"{what}: {path} lists no genes", "Give the list that the model was trained with.")
    seen: dict[str, int] = {}
    for line, name in enumerate(names, start=1):
        if not name:
            raise BackboneError(f"{what}: gene {line} of {path} is empty", "Remove the empty line.")
        if name in seen:
            raise BackboneError(
                f"{what}: {path} has {name} twice, as gene {seen[name]} and gene {line}",
                "Give the list that the model was trained with, each gene once.",
            )
        seen[name] = line
