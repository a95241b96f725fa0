"""10x Space Ranger outputs, releases 1 to 3: Visium, and Visium HD in bins.

A section is a folder (often called outs) with a matrix and `spatial/`, or with `binned_outputs/square_NNNum/`, each of
which holds both. The module lists what is there, `space_ranger_counts` reads it. The full-resolution image is the
user's own file, and patients are nowhere stated.
"""

import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from genrag_cli.cohorts.base import Cohort, Reading, Section
from genrag_cli.cohorts.listing import Listing, read_json
from genrag_cli.cohorts.slide_beside import describe_preview, find_images
from genrag_cli.cohorts.space_ranger_counts import HdBins, VisiumSpots
from genrag_cli.cohorts.technologies import HD_BIN_UM, POOLED_UM, SPACING_UM, find_species
from genrag_cli.cohorts.tenx import read_genomes
from genrag_cli.errors import CohortError

LAYOUT = "[outs/]*filtered_feature_bc_matrix(.h5) with spatial/tissue_positions*, or [outs/]binned_outputs/square_*um/"
_MATRIX = re.compile(r"^(?:(.+)_)?(filtered|raw)_feature_bc_matrix(\.h5)?$")
_BINS = re.compile(r"^square_(\d{3})um$")
_POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")


def looks_like(root: Path) -> bool:
    """Whether the folder is such a section, or holds such sections."""
    return any(_is_section(folder) for folder in _section_folders(root))


def read_cohort(root: Path, reading: Reading) -> Cohort:
    """Lists the sections of a folder, which may itself be one; opens no counts.

    Sections that cannot be read as asked (no bins of the size, no positions, damaged metadata) are skipped.
    """
    found = Listing()
    for folder in sorted(_section_folders(root)):
        try:
            found.add(*_describe(_choose_bins(folder, reading), reading))
        except CohortError as error:
            found.skip(_name(folder), error)
    return found.cohort(root, "space-ranger")


def read_one(counts: Path, reading: Reading) -> Section | None:
    """The section of one matrix, or of a section's folder.

    Raises:
        CohortError: for a section that cannot be read as asked.
    """
    if _MATRIX.match(counts.name):
        if not (counts.exists() and (counts.parent / "spatial").is_dir()):
            return None
        return _describe(counts.parent, reading, counts)[0]
    if not (counts.is_dir() and _is_section(counts)):
        return None
    return replace(_describe(_choose_bins(counts, reading), reading)[0], counts=counts)


def _section_folders(root: Path) -> list[Path]:
    """The folders of sections: `root`, its outs/, or, whole or not, those of its children."""
    if (own := _outs(root)) and _is_section(own):
        return [own]
    return [outs for child in root.iterdir() if child.is_dir() and (outs := _outs(child))]


def _outs(folder: Path) -> Path | None:
    """The folder or its outs/, whichever is a section; else whichever holds a part of one, for a word about it."""
    places = [place for place in (folder, folder / "outs") if place.is_dir()]
    parts = (place for place in places if _matrices(place) or _positions(place))
    return next((place for place in places if _is_section(place)), None) or next(parts, None)


def _is_section(folder: Path) -> bool:
    return bool(_bins(folder) or (_matrices(folder) and _positions(folder)))


def _bins(folder: Path) -> dict[int, Path]:
    """Folders of bins by the side in um."""
    below = folder / "binned_outputs"
    found = (below if below.is_dir() else folder).glob("square_*um")
    return {int(match[1]): path for path in found if (match := _BINS.match(path.name)) and path.is_dir()}


def _choose_bins(folder: Path, reading: Reading) -> Path:
    """The folder of the bins that are asked for; a Visium section's folder is its own."""
    bins = _bins(folder)
    wanted = reading.bin_um or HD_BIN_UM
    if not bins or wanted in bins:
        return bins.get(wanted, folder)
    raise CohortError(
        f"no bins of {wanted} um: {folder} has bins of {', '.join(f'{um} um' for um in sorted(bins))}",
        "Choose one of them with --bin-um.",
    )


def _matrices(folder: Path) -> dict[Path, tuple[bool, bool, bool]]:
    """Matrices and how they rank: raw, in an MTX folder, with a prefix; False is better."""
    ranked = {}
    for path in folder.glob("*_feature_bc_matrix*"):
        match = _MATRIX.match(path.name)
        if match and (path.is_file() if match[3] else any(path.glob("matrix.mtx*"))):
            ranked[path] = (match[2] == "raw", not match[3], bool(match[1]))
    return ranked


def _choose_matrix(folder: Path) -> Path:
    ranked = _matrices(folder)
    if not ranked:
        raise CohortError(f"no matrix: {folder} has no filtered_feature_bc_matrix.h5 or folder of that name")
    best = sorted(path for path, rank in ranked.items() if rank == min(ranked.values()))
    if len(best) > 1:
        raise CohortError(f"{folder}: several matrices, {', '.join(p.name for p in best)}", "Keep one.")
    return best[0]


def _positions(folder: Path) -> list[Path]:
    """Lists of positions, the one to read first; names may have a prefix and be packed."""
    spatial = folder / "spatial"
    return [path for name in _POSITIONS for end in ("", ".gz") for path in sorted(spatial.glob(f"*{name}{end}"))]


def _name(folder: Path) -> str:
    """Name of a section: its folder's, or that of the folder above those that Space Ranger names."""
    parts = [part for part in _absolute(folder).parts[1:] if part not in ("outs", "binned_outputs")]
    return next((part for part in reversed(parts) if not _BINS.match(part)), folder.name)


def _absolute(folder: Path) -> Path:
    return Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links and lose their names


def _describe(folder: Path, reading: Reading, matrix: Path | None = None) -> tuple[Section, str]:
    """The section whose matrix and spatial/ lie in `folder`, and what it lacks where it has no slide."""
    matrix = matrix or _choose_matrix(folder)
    if not (lists := _positions(folder)):
        raise CohortError(f"no spot positions: {folder / 'spatial'} has no {', '.join(_POSITIONS)}")
    facts = _read_scalefactors(folder)
    is_raw = _MATRIX.sub(r"\2", matrix.name) == "raw"
    notes = [f"{matrix.name} is read, of which the spots in tissue are taken"] if is_raw else []
    if len(lists) > 1:
        notes.append(f"{lists[0].name} is read, {', '.join(p.name for p in lists[1:])} is not")
    bins = _BINS.match(folder.name)
    is_hd = bool(bins or "bin_size_um" in facts)
    outs = folder.parent if bins else folder
    outs = outs.parent if outs.name == "binned_outputs" else outs
    if (outs / "segmented_outputs").is_dir():
        notes.append(f"{outs / 'segmented_outputs'} (segmented cells) is not read")
    slide, lacking, said = _find_slide(outs, _name(folder), folder / "spatial")
    mpp = facts.get("microns_per_pixel")
    common: dict[str, Any] = {
        "name": _name(folder), "patient": None, "slide": slide, "counts": matrix, "species": _species(matrix),
        "notes": (*notes, *said),
        "pixel_size_candidates": (("space ranger microns_per_pixel", mpp),) if mpp else (),
    }  # fmt: skip
    if not is_hd:
        return Section(
            **common, reader=VisiumSpots(matrix, lists[0]), technology="visium",
            spot_diameter_um=SPACING_UM["visium"][1], spot_pitch_um=SPACING_UM["visium"][0],
        ), lacking  # fmt: skip
    reader = _bins_reader(matrix, lists[0], facts, int(bins[1]) if bins else None, reading)
    return Section(
        **common, reader=reader, technology="visium-hd",
        spot_diameter_um=reader.spot_um, spot_pitch_um=reader.spot_um,
    ), lacking  # fmt: skip


def _bins_reader(
    matrix: Path, positions: Path, facts: dict[str, float], named_um: int | None, reading: Reading
) -> HdBins:
    bin_um, spot_um = facts.get("bin_size_um") or float(named_um or 0), reading.spot_um or POOLED_UM["visium-hd"]
    if named_um and bin_um != named_um:
        raise CohortError(f"{matrix.parent}: scalefactors_json.json says bins of {bin_um:g} um")
    if reading.bin_um and reading.bin_um != bin_um:
        raise CohortError(f"bins of {reading.bin_um} um are asked for, {matrix} has bins of {bin_um:g} um")
    ratio = spot_um / bin_um
    if ratio < 1 or not math.isclose(ratio, round(ratio), rel_tol=1e-9):
        raise CohortError(
            f"spots of {spot_um:g} um cannot be made of whole bins of {bin_um:g} um: {matrix}",
            f"Choose a multiple of {bin_um:g} with --spot-um.",
        )
    mpp = reading.mpp or facts.get("microns_per_pixel")
    if not mpp:
        raise CohortError(
            f"{matrix.parent / 'spatial'}: scalefactors_json.json gives no microns_per_pixel, so its bins cannot be "
            "pooled to spots of a size in um",
            "Give the um per px of the full-resolution image with --mpp.",
        )
    return HdBins(matrix, positions, bin_um, spot_um, mpp)


def _read_scalefactors(folder: Path) -> dict[str, float]:
    """The positive numbers of scalefactors_json.json; none where it is absent."""
    path = next(iter(sorted((folder / "spatial").glob("*scalefactors_json.json"))), None)
    if path is None:
        return {}
    return {k: float(v) for k, v in read_json(path).items() if isinstance(v, int | float) and 0 < v < math.inf}


def _find_slide(outs: Path, name: str, spatial: Path) -> tuple[Path | None, str, tuple[str, ...]]:
    """The slide; why there is none; and notes for the section."""
    outs = _absolute(outs)
    home = outs.parent if outs.name == "outs" else outs
    found = find_images(dict.fromkeys((outs, home)), home, name)
    if len(found) == 1:
        return found[0], "", ()
    previews = [path for place in (spatial, outs / "spatial") for path in sorted(place.glob("*tissue_hires_image.png"))]
    preview = describe_preview(previews[0] if previews else spatial / "tissue_hires_image.png")
    if found:
        several = f"several images could be its slide and none is taken: {', '.join(map(str, found))}"
        return None, f"{several} (name the right one in a manifest); {preview}", (several,)
    looked = f"no full-resolution image: looked in {home}, its outs/, image/ and images/, and for {name}.tif beside it"
    return None, f"{looked}; {preview}", ()


def _species(matrix: Path) -> str | None:
    try:
        return find_species(read_genomes(matrix))
    except CohortError:
        return None  # a damaged file is named when its counts are read
