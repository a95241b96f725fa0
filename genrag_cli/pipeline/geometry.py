"""How large tiles are and how far apart: one field of view in um for all, or the published crop.

The geometry of a bank stands in its manifest as a flat dict: `crop`, `spot_um`, `pitch_um`, and `fov_um` where crop is
`fov`. Slides that are predicted follow the bank's, whichever it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genrag_cli.cohorts import Section
from genrag_cli.errors import BankError, CohortError, UsageError
from genrag_cli.pipeline.options import Crop

Geometry = Mapping[str, Any]
STEM_PX = 224


def tile_um(geometry: Geometry, mpp: float) -> float:
    """Side of a tile in um on a slide of this pixel size.

    With crop `stem`, the rule of Stem and the published GeneRAG code: 224 px at native resolution, or twice
    int(diameter // 2) px where the spot's diameter is 224 px or more. A tile then covers more tissue the coarser the
    slide is (55 to 212 um over the paper's slides).
    """
    if geometry.get("crop", "fov") == "fov":
        return float(geometry["fov_um"])
    diameter_px = geometry["spot_um"] / mpp
    side_px = STEM_PX if diameter_px < STEM_PX else 2 * int(diameter_px // 2)
    return float(side_px * mpp)


def describe_tiles(geometry: Geometry) -> str:
    """`tiles of 200 um`, or the published rule."""
    if geometry.get("crop", "fov") == "fov":
        return f"tiles of {geometry['fov_um']:g} um"
    return f"tiles of at least {STEM_PX} px at native resolution (crop stem)"


def find_geometry(
    sections: Sequence[Section], *, crop: Crop, fov_um: float | None, pitch_um: float | None
) -> dict[str, Any]:
    """The geometry of a new bank.

    Args:
        sections: whose spot diameters and pitches must agree to 5 % where they are not given.
        crop: which rule.
        fov_um: side of a tile; None: twice the spot diameter.
        pitch_um: distance of neighbouring spots; None: the sections' own.

    Raises:
        CohortError: where the sections do not agree and nothing settles it.
    """
    diameters = {s.name: s.spot_diameter_um for s in sections}
    pitches = {s.name: s.spot_pitch_um for s in sections}
    spot = _agree("spot diameter", diameters, "--fov-um", fov_um and fov_um / 2)
    pitch = _agree("spot pitch", pitches, "--pitch-um", pitch_um)
    geometry: dict[str, Any] = {"crop": crop, "spot_um": spot, "pitch_um": pitch_um or pitch}
    return geometry if crop == "stem" else {**geometry, "fov_um": fov_um or 2 * spot}


def expect_geometry(folder: object, geometry: Geometry, *, crop: str | None, **lengths: float | None) -> None:
    """Refuses what was asked of a bank that was built otherwise.

    Args:
        folder: of the bank, for messages.
        geometry: of the bank.
        crop: as asked; None where nothing was.
        lengths: `fov_um`, `pitch_um` as asked.

    Raises:
        BankError: for another crop or another length (by over 1 %).
    """
    there = geometry.get("crop", "fov")
    if crop is not None and crop != there:
        raise BankError(
            f"--crop {crop} asked; the bank {folder} was built with --crop {there}", "Build another bank (--bank)."
        )
    for name, asked in lengths.items():
        if asked is None:
            continue
        have = geometry.get(name)
        if have is None or abs(asked - have) > 0.01 * have:
            found = describe_tiles(geometry) if have is None else f"{name} {have:g}"
            raise BankError(
                f"--{name.replace('_', '-')} {asked:g} asked; the bank {folder} was built with {found}",
                "Leave the option out, or build another bank (--bank).",
            )


def expect_crop(crop: str, fov_um: float | None) -> None:
    """Refuses an unknown crop, or a field of view beside a crop that has none.

    Raises:
        UsageError: for either.
    """
    if crop not in ("fov", "stem"):
        raise UsageError(f"unknown crop {crop!r}", "Known: fov (one field of view in um), stem (the published rule)")
    if crop == "stem" and fov_um is not None:
        raise UsageError(f"--crop stem and --fov-um {fov_um:g} both say how large a tile is", "Give one of them.")


def _agree(what: str, values: dict[str, float | None], flag: str, given: float | None) -> float:
    known = {name: v for name, v in values.items() if v is not None}
    if known and max(known.values()) <= 1.05 * min(known.values()):
        return float(np.median(list(known.values())))
    if given:
        return given
    found = ", ".join(f"{name} {v:g} um" for name, v in list(known.items())[:6]) or "none"
    raise CohortError(f"the sections' {what} is unknown or differs; found: {found}", f"Settle it with {flag}.")
