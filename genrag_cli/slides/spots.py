"""Spots that somebody else has placed: the spots CSV, and the grid made of them.

Knows the columns of the file (name, x, y; level-0 px, centres) and what makes spots unusable.
Does not look for tissue; whoever names a spot wants it.
"""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genrag_cli.errors import SlideError, UsageError
from genrag_cli.slides.base import Slide
from genrag_cli.types import Doubles, Ints, PixelSize, Strings, TileGrid
from genrag_cli.units import Microns, TilePx

Spots = tuple[Sequence[str] | Strings | None, Doubles]
"""Names, or None where there are none, and (n, 2) x, y of the centres in level-0 px."""

_FORMAT = "A spots file has a header and the columns name,x,y (name may be absent); x, y are centres in level-0 px."


def read_spots_csv(path: str | Path) -> tuple[list[str] | None, Doubles]:
    """Reads a spots file, separated by commas or tabs; further columns are ignored.

    Returns:
        names, None where the file has no column `name`; and (n, 2) x, y of the centres in level-0 px.

    Raises:
        UsageError: where the file is missing, is no such table, or a coordinate is no number.
    """
    path = Path(path)
    try:
        lines = path.read_text("utf-8-sig").splitlines()
        table = csv.reader(lines, delimiter="\t" if lines and "\t" in lines[0] else ",")
        rows = [(table.line_num, row) for row in table]
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such spots file", _FORMAT) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read as a spots file: {error}", _FORMAT) from error
    if any("\0" in line for line in lines):
        raise UsageError(f"{path}: cannot be read as a spots file: it holds bytes of zero", _FORMAT)
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    if missing := [column for column in ("x", "y") if column not in header]:
        raise UsageError(f"{path}: no column {' and '.join(missing)}; found {', '.join(header) or 'nothing'}", _FORMAT)
    names, centres = [], []
    for number, row in rows[1:]:
        if not any(cell.strip() for cell in row):
            continue
        cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
        try:
            centre = (float(cells["x"]), float(cells["y"]))
        except (KeyError, ValueError):
            centre = (math.nan, math.nan)
        if not all(map(math.isfinite, centre)) or cells.get("name", "any") == "":
            raise UsageError(f"{path}, line {number}: expected a spot, found {row}", _FORMAT)
        names.append(cells.get("name", ""))
        centres.append(centre)
    if not centres:
        raise UsageError(f"{path}: no spot in the file", _FORMAT)
    return (names if "name" in header else None), np.array(centres, np.float64)


def plan_spots(
    slide: Slide,
    pixel_size: PixelSize,
    spots: Spots,
    *,
    fov_um: float,
    pitch_um: float,
    tile_px: int,
    array_rc: Ints | None = None,
) -> TileGrid:
    """Makes a grid of given spots, in the order given.

    Args:
        slide: that the spots lie on.
        pixel_size: of level 0.
        spots: names (None: made from the places in the lattice, as `plan_tiles` does) and centres.
        fov_um: side of a tile.
        pitch_um: distance of neighbouring spots.
        tile_px: side of a tile as the backbone takes it.
        array_rc: (n, 2) row, column in the array; None: worked out by `lattice_places`.

    Raises:
        SlideError: for spots outside the slide, and for names given twice.
    """
    names, centres = spots[0], np.asarray(spots[1], np.float64).reshape(-1, 2)
    outside = np.flatnonzero((centres < 0).any(axis=1) | (centres >= slide.size).any(axis=1))
    if len(outside):
        x, y = centres[outside[0]]
        label = f"{names[outside[0]]} at " if names is not None else ""
        raise SlideError(
            f"{slide.path}: {len(outside)} of {len(centres)} spots lie outside its {slide.size[0]} x {slide.size[1]} "
            f"px, e.g. {label}x {x:g}, y {y:g}",
            "Coordinates are level-0 px, x to the right and y down; are they in um, of a smaller image, or swapped?",
        )
    places = lattice_places(centres, pitch_um / pixel_size.mpp) if array_rc is None else np.asarray(array_rc, np.int64)
    made = names is None
    labels = [f"{slide.slide_id}:{r}_{c}" for r, c in places] if names is None else [str(name) for name in names]
    if twice := [name for name, n in Counter(labels).items() if n > 1]:
        shown = ", ".join(twice[:3]) + (", ..." if len(twice) > 3 else "")
        raise SlideError(
            f"{slide.path}: {len(twice)} spot names are not unique: {shown}",
            "Two spots lie at the same place; give them names." if made else "Give every spot a name of its own.",
        )
    return TileGrid(
        slide_id=slide.slide_id,
        names=np.array(labels, dtype=np.str_),
        centres=centres,
        array_rc=places,
        tile_px=TilePx(tile_px),
        fov_um=Microns(fov_um),
        pitch_um=Microns(pitch_um),
        pixel_size=pixel_size,
    )


def lattice_places(centres: Doubles, pitch_px: float) -> Ints:
    """Row and column of spots of which only the centres are known.

    Counts from the spot furthest up and furthest left, in steps of the pitch; where two spots would share a place
    (hexagonal arrays, spots set by hand), in steps of a half, a quarter, ... an eighth of it.

    Returns:
        (n, 2) row, column; unique unless two spots are closer than about an eighth of the pitch.
    """
    offsets = centres - centres.min(axis=0, initial=np.inf)
    places = np.zeros((len(centres), 2), np.int64)
    for parts in (1, 2, 4, 8):
        places = np.rint(offsets[:, ::-1] * (parts / pitch_px)).astype(np.int64)
        if len(np.unique(places, axis=0)) == len(places):
            break
    return places
