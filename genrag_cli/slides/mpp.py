"""Where the pixel size of a slide comes from, and the record of it.

Knows the order of the sources, the plausible range and what counts as disagreement.
Does not read files: readers offer candidates, callers say what a person or a manifest gave.
"""

import math
from collections.abc import Sequence

from genrag_cli.errors import SlideError, UsageError
from genrag_cli.types import PixelSize
from genrag_cli.units import Mpp

SMALLEST_MPP, LARGEST_MPP = 0.05, 5.0
DISAGREEMENT = 0.05

_REMEDY = "Give the um per level-0 px with --mpp, or in the column mpp of a manifest."


def resolve_pixel_size(
    candidates: Sequence[tuple[str, float]],
    *,
    given: float | None = None,
    pitch: float | None = None,
    strict: bool = False,
) -> tuple[PixelSize, list[str]]:
    """Chooses the pixel size: given by a person or manifest, spot pitch, vendor property, TIFF or OME resolution.

    Args:
        candidates: (source, um/px) of the file itself, in the order in which they count.
        given: um/px from `--mpp` or a manifest.
        pitch: um/px from the known distance of neighbouring spots of an array.
        strict: make disagreement an error.

    Returns:
        the pixel size with its source and the other plausible sources, and warnings for a person to read.

    Raises:
        UsageError: where `given` itself is implausible.
        SlideError: where no source is left, or, with `strict`, where two differ by more than 5 %.
    """
    if given is not None and not is_plausible(given):
        raise UsageError(
            f"pixel size {given:g} um/px was given; plausible are {SMALLEST_MPP:g} to {LARGEST_MPP:g}",
            "Give um per pixel of level 0: about 0.25 for a 40x scan, 0.5 for 20x.",
        )
    ordered = [("--mpp or manifest", given), ("spot pitch", pitch), *candidates]
    known = [(source, float(value)) for source, value in ordered if value is not None]
    usable = [(source, value) for source, value in known if is_plausible(value)]
    warnings = [
        f"pixel size {value:g} um/px ({source}) is implausible and left out"
        for source, value in known
        if not is_plausible(value)
    ]
    if not usable:
        found = "; ".join(f"{value:g} ({source})" for source, value in known) or "nothing"
        raise SlideError(
            f"no usable pixel size: found {found}, plausible are {SMALLEST_MPP:g} to {LARGEST_MPP:g} um/px", _REMEDY
        )
    (source, mpp), others = usable[0], tuple(usable[1:])
    for other, value in others:
        if abs(value / mpp - 1) > DISAGREEMENT:
            text = f"pixel size {mpp:g} um/px ({source}) and {value:g} um/px ({other}) differ by more than 5 %"
            if strict:
                raise SlideError(text, f"{_REMEDY} Without --strict-mpp the first one is used.")
            warnings.append(f"{text}; the first one is used")
    return PixelSize(Mpp(mpp), source, others), warnings


def is_plausible(value: float) -> bool:
    """Whether a scanner may have pixels of so many um."""
    return math.isfinite(value) and SMALLEST_MPP <= value <= LARGEST_MPP
