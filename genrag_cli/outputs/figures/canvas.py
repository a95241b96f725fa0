"""What every figure shares: an empty figure, colours, and writing it whole or not at all by the ending of its path.

The same numbers give the same bytes on one machine: no dates and no versions go into the files.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import OutputError
from genrag_cli.types import Doubles

FORMATS = ("png", "pdf", "svg")
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None},
}
_FIXED = {"svg.hashsalt": "generag", "pdf.fonttype": 42}
"""Names within an SVG that do not change from run to run; text in a PDF that other programs can edit."""
_VECTOR_DPI = 150
"""Of what is kept as pixels within a PDF or SVG."""
SMALL, PLAIN, LARGE = 9, 10, 12
"""Sizes of text in pt; nothing is smaller."""
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
"""Colours of Okabe and Ito, told apart with any kind of colour vision."""
GREY, PALE, INK = "#8C8C8C", "#D9D9D9", "#333333"
_LETTER_IN = 0.078
"""Width of a letter at the smallest size."""
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
STYLES = (
    (BLUE, "-"),
    (VERMILLION, "--"),
    (GREEN, "-."),
    (PURPLE, ":"),
    (ORANGE, (0, (5, 1))),
    (SKY, (0, (3, 1, 1, 1, 1, 1))),
    ("#000000", (0, (1, 3))),
)
"""Colour and dashes of lines, one a method, so that either alone tells them apart."""


def figure_format(path: Path) -> str:
    """Which format a figure's path asks for: `png`, `pdf` or `svg`.

    Raises:
        OutputError: for any other ending.
    """
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        found = f"ends in .{ending}" if ending else "has no ending"
        raise OutputError(f"{path} {found}; figures are written as .png, .pdf or .svg", "Give such a name with --out.")
    return ending


def new_figure(width_in: float, height_in: float, *, dpi: int = 120, constrained: bool = True) -> Any:
    """An empty figure of some inches; `constrained` lets matplotlib make room for texts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=dpi, layout="constrained" if constrained else "none")
    FigureCanvasAgg(figure)
    if constrained:
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure beside its path and renames it, so that it is there whole or not at all; its folder must exist.

    Raises:
        OutputError: for an unknown ending, or a path that cannot be written.
    """
    import matplotlib

    kind = figure_format(path)
    try:
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}", "Give a path in a folder that you may write to.") from error
    try:
        with os.fdopen(handle, "wb") as file, matplotlib.rc_context(_FIXED):
            dpi = figure.dpi if kind == "png" else _VECTOR_DPI
            figure.savefig(file, format=kind, dpi=dpi, metadata=_METADATA[kind])
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    finally:
        Path(beside).unlink(missing_ok=True)


def expect_shapes(what: str, found: Shapes) -> None:
    """Refuses arrays whose shapes do not fit each other.

    Args:
        what: the figure, for the message.
        found: by name of the array, the shape expected and the shape found.

    Raises:
        OutputError: for the first that does not fit.
    """
    for name, (expected, shape) in found.items():
        if tuple(shape) != tuple(expected):
            raise OutputError(f"{what}: {name} should be of shape {expected}, found {shape}")


def calm(axis: Any) -> None:
    """Takes the frame's upper and right side away and sets the size of its texts."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GREY)
    axis.tick_params(labelsize=SMALL, color=GREY, labelcolor=INK)


def fill_rows(n: int, most: int) -> int:
    """How many columns hold n panels in as few rows as `most` columns would, filled as evenly as can be."""
    return -(-n // -(-n // most))


def cut(text: str, width_in: float) -> str:
    """The text, or its beginning and end where a column of this width is too narrow for it at the smallest size."""
    room = max(int((width_in - 0.1) / _LETTER_IN), 5)
    if len(text) <= room:
        return text
    head = (room - 1) // 2
    return f"{text[:head]}\u2026{text[len(text) - (room - 1 - head) :]}"


def spread(places: Sequence[float] | NDArray[Any], gap: float) -> Doubles:
    """Moves places apart until neighbours are at least `gap` from each other, keeping their order and their middle."""
    wanted = np.asarray(places, np.float64)
    order = np.argsort(wanted, kind="stable")
    # Blocks of places that had to be moved together: each is centred on the mean of what its members wanted.
    blocks: list[tuple[float, int]] = []
    for place in wanted[order]:
        middle, n = float(place), 1
        while blocks and blocks[-1][0] + gap * (blocks[-1][1] + n) / 2 > middle:
            before, m = blocks.pop()
            middle, n = (before * m + middle * n) / (m + n), m + n
        blocks.append((middle, n))
    moved = np.concatenate([m + gap * (np.arange(n) - (n - 1) / 2) for m, n in blocks]) if blocks else wanted
    out = np.empty_like(wanted)
    out[order] = moved
    return out
