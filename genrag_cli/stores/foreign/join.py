"""Joins rows made elsewhere to the spots of a slide: by exact name, or by where they are. Never by row order.

Names are compared to the letter: a cut barcode or a missing `-1` is another name, and both sides are shown instead.
"""

import dataclasses

import numpy as np

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.foreign.rows import ForeignRows, few
from genrag_cli.types import Doubles, Ints, Strings


def in_pixels(rows: ForeignRows, mpp: float) -> ForeignRows:
    """The same rows with `centres` in level-0 px where the file gives um only; others as they are.

    Args:
        rows: of one slide.
        mpp: um per level-0 px of that slide.
    """
    if rows.centres is not None or rows.centres_um is None:
        return rows
    return dataclasses.replace(rows, centres=rows.centres_um / mpp, mpp=mpp)


def join_rows(rows: ForeignRows, names: Strings, centres: Doubles | None, *, within_px: float) -> Ints:
    """Finds the row of each wanted spot: one spot one row, none left over on either side.

    By name where both sides have names, else by the nearest centre.

    Args:
        rows: made elsewhere.
        names: (n,) unique names of the wanted spots.
        centres: (n, 2) x, y of their centres in level-0 px; None where unknown.
        within_px: farthest that two centres of the same spot may lie apart, in level-0 px.

    Returns:
        (n,) rows of `rows`, in the order of the wanted spots.

    Raises:
        FeaturesError: where a spot has no row or more than one, a row has no spot, or there is nothing to join by.
    """
    if len(np.unique(names)) != len(names):
        raise FeaturesError(f"the wanted spots have repeated names, so {rows.path} cannot be joined to them")
    if rows.names is not None:
        return _by_name(rows, rows.names, names, centres)
    if rows.centres is not None and centres is not None:
        return _by_place(rows, rows.centres, names, centres, within_px)
    if rows.centres is None and rows.centres_um is not None:
        raise FeaturesError(
            f"{rows.path} gives coordinates in um and no pixel size", "Give um per level-0 px of the slide: --mpp."
        )
    lacking = "the file names no spots and places none" if rows.centres is None else "the wanted spots have no place"
    said = f" ({'; '.join(rows.notes)})" if rows.notes else ""
    raise FeaturesError(
        f"{rows.path} cannot be joined to the spots: {lacking}{said}; rows are never joined by their order",
        "Give the names in row order: --names-from FILE (one a line, a table with a column `name` or `barcode`, "
        "or the h5ad that the rows were made of).",
    )


def _by_name(rows: ForeignRows, found: Strings, names: Strings, centres: Doubles | None) -> Ints:
    order = np.argsort(found)
    at = np.searchsorted(found, names, sorter=order)
    index = order[np.minimum(at, len(found) - 1)]
    here = found[index] == names
    extra = found[~np.isin(found, names)]
    if not here.all() or len(extra):
        looks = f"Names must be equal to the letter. Spots: {few(names, 2)}; file: {few(found, 2)}."
        if not here.any() and rows.centres is not None and centres is not None:
            looks += " None is: take the names out of the file, and it is joined by its coordinates."
        raise _mismatch(rows, names[~here].tolist(), extra.tolist(), len(names), looks)
    return index.astype(np.int64)


def _by_place(rows: ForeignRows, found: Doubles, names: Strings, centres: Doubles, within_px: float) -> Ints:
    from scipy.spatial import cKDTree

    wanted = np.where(np.isfinite(centres), centres, np.finfo(np.float64).max)
    away, index = cKDTree(found).query(wanted, k=[1, 2], distance_upper_bound=np.nextafter(within_px, np.inf))
    here, twice = np.isfinite(away[:, 0]), np.isfinite(away[:, 1])
    if twice.any():
        raise FeaturesError(
            f"{rows.path}: {int(twice.sum())} spots have several rows within {within_px:g} px: "
            f"{few(names[twice].tolist())}",
            "Ask for a smaller distance, or give names.",
        )
    index = np.asarray(index[:, 0], np.int64)
    taken, counts = np.unique(index[here], return_counts=True)
    if (counts > 1).any():
        shared = here & np.isin(index, taken[counts > 1])
        raise FeaturesError(
            f"{rows.path}: {int(shared.sum())} spots share the nearest row within {within_px:g} px: "
            f"{few(names[shared].tolist())}",
            "Ask for a smaller distance, or give names.",
        )
    extra = np.setdiff1d(np.arange(len(found)), taken)
    if not here.all() or len(extra):
        looks = (
            f"Joined by centres within {within_px:g} level-0 px. Spots: {_spots(centres[:2])}; "
            f"file: {_spots(found[:2])}."
        )
        missing = [f"{n} {p}" for n, p in zip(names[~here], map(_spot, centres[~here]), strict=True)]
        raise _mismatch(rows, missing, [f"row {i} {_spot(found[i])}" for i in extra], len(names), looks)
    return index


def _mismatch(rows: ForeignRows, missing: list[str], extra: list[str], n: int, looks: str) -> FeaturesError:
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {n} spots are not in it: {few(missing)}")
    if extra:
        parts.append(f"{len(extra)} of its {len(rows)} rows are no spot: {few(extra)}")
    return FeaturesError(
        f"{rows.path} does not fit the spots: {' and '.join(parts)}",
        f"{looks} Make the file from exactly these spots, or leave out on both sides what only one has.",
    )


def _spot(xy: Doubles) -> str:
    return f"({xy[0]:g}, {xy[1]:g})"


def _spots(xy: Doubles) -> str:
    return ", ".join(map(_spot, xy))
