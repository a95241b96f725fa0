"""Space Ranger's lists of spot positions, and the pitch of the array they show.

The same six columns come as a CSV without a header (before Space Ranger 2), as one with (since), as one with a header
under the old name, and as Parquet (Visium HD). In all of them the pixel row stands before the pixel column. The module
knows no counts.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import CohortError
from genrag_cli.types import Doubles, Ints, Strings

COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
HEXAGONAL = ((0, 2), (1, 1), (1, -1))
"""Half of the neighbours of a Visium spot, as steps of array_row and array_col; the others are opposite."""
SQUARE = ((0, 1), (1, 0))
"""The same for a bin of Visium HD."""
_LARGEST_RESIDUAL = 0.2
_LARGEST_RATIO = 1.2
_ENOUGH_TO_FIT = 100_000


@dataclass(frozen=True, eq=False)
class Positions:
    """The m rows of a list, in tissue or not."""

    barcodes: Strings
    in_tissue: NDArray[np.bool_]
    array_rc: Ints
    xy: Doubles
    """(m, 2) centres in px of the full-resolution image."""


def read_positions(path: Path) -> Positions:
    """Reads a list of positions in any of its forms.

    Raises:
        CohortError: for a file that is damaged, lacks a column, or holds text or gaps where numbers belong.
    """
    import pandas as pd

    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (OSError, EOFError, KeyError, ValueError, pd.errors.ParserError) as error:
        raise CohortError(f"{path}: cannot be read as a list of spot positions ({error})") from error
    if "barcode" not in frame and frame.index.name == "barcode":
        frame = frame.reset_index()
    if missing := [name for name in COLUMNS if name not in frame]:
        raise CohortError(f"{path}: no column {', '.join(missing)}; found {', '.join(map(str, frame.columns))}")
    numbers = {name: _numbers(path, name, frame[name].to_numpy()) for name in COLUMNS[1:]}
    if not np.isin(numbers["in_tissue"], (0, 1)).all():
        raise CohortError(f"{path}: column in_tissue holds values other than 0 and 1")
    return Positions(
        barcodes=frame["barcode"].to_numpy().astype(np.str_),
        in_tissue=numbers["in_tissue"].astype(np.bool_),
        array_rc=np.stack([numbers["array_row"], numbers["array_col"]], axis=1).astype(np.int64),
        xy=np.stack([numbers["pxl_col_in_fullres"], numbers["pxl_row_in_fullres"]], axis=1).astype(np.float64),
    )


def fit_pitch(array_rc: Ints, xy: Doubles, neighbours: Sequence[tuple[int, int]]) -> float | None:
    """The distance of neighbours in px, from a least-squares fit of pixel coordinates on array indices.

    All rows of the array serve, so that a few spots far apart give the right scale, and so does a rotated array.

    Args:
        array_rc: (m, 2) array row, column.
        xy: (m, 2) px.
        neighbours: steps of (array_row, array_col) to neighbours; they must come out equally long.

    Returns:
        the mean length of the steps; None where the rows span no plane, lie off the fit by more than a fifth of the
        pitch (root mean square), or the steps differ by more than a fifth.
    """
    every = -(-len(xy) // _ENOUGH_TO_FIT) or 1
    rc, xy = np.asarray(array_rc[::every], np.float64), xy[::every]
    design = np.column_stack([np.ones(len(rc)), rc])
    fitted, _, rank, _ = np.linalg.lstsq(design, xy, rcond=None)
    if rank < 3:
        return None
    steps = np.linalg.norm(np.asarray(neighbours, np.float64) @ fitted[1:], axis=1)
    pitch = float(steps.mean())
    residual = float(np.sqrt(np.mean(np.sum((xy - design @ fitted) ** 2, axis=1))))
    if not pitch > 0 or residual > _LARGEST_RESIDUAL * pitch or steps.max() > _LARGEST_RATIO * steps.min():
        return None
    return pitch


def _read_csv(path: Path) -> Any:
    import pandas as pd

    packed = path.suffix == ".gz"
    with gzip.open(path, "rt", encoding="utf-8-sig") if packed else path.open(encoding="utf-8-sig") as lines:
        has_header = "in_tissue" in lines.readline()
    first: str | int = "barcode" if has_header else 0
    frame = pd.read_csv(
        path, header=0 if has_header else None, dtype={first: str}, na_filter=False, encoding="utf-8-sig"
    )
    if has_header:
        return frame.rename(columns=str.strip)
    # A seventh column would shift the names unseen.
    if frame.shape[1] != len(COLUMNS):
        raise ValueError(f"no header, and {frame.shape[1]} columns instead of {len(COLUMNS)}")
    return frame.set_axis(COLUMNS, axis=1)


def _numbers(path: Path, name: str, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind not in "iufb" or not np.all(np.isfinite(values)):
        raise CohortError(f"{path}: column {name} holds text or gaps")
    return values
