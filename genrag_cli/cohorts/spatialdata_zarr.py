"""SpatialData stores (Zarr 2 and 3), read without the spatialdata package.

A table annotates one or several shapes elements (regions): each is a section, called STORE, or STORE.REGION where there
are several. Counts and shapes are joined by instance key, never by row.

What a region is follows from what it holds: array indices on a hexagonal lattice are Visium (pitch 100 um); a table or
region called square_NNNum holds bins of Visium HD, which are pooled; circles of one size are spots of an array that is
not known; all else are cells, pooled to squares where um per px is known. Patients and species are nowhere stated.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from genrag_cli.cohorts.base import Cohort, Reading, Section
from genrag_cli.cohorts.listing import Listing
from genrag_cli.cohorts.ngff_systems import is_group, read_attributes
from genrag_cli.cohorts.shapes import read_radii
from genrag_cli.cohorts.spatialdata_place import Place, find_place
from genrag_cli.cohorts.spatialdata_table import SpatialTable, has_array_indices
from genrag_cli.cohorts.spot_positions import HEXAGONAL, SQUARE, fit_pitch
from genrag_cli.cohorts.technologies import HD_BIN_UM, POOLED_UM, SPACING_UM
from genrag_cli.errors import CohortError

LAYOUT = "*.zarr (or such a folder itself) with tables/ and shapes/"
VISIUM_PITCH_UM, VISIUM_DIAMETER_UM = SPACING_UM["visium"]
CELL_SPOT_UM = 100.0
"""Side of the squares that cells are pooled to by default, as HEST-1k pools Xenium."""
COARSEST_UM = 2.0
"""An image of larger pixels shows no cells; the previews that Space Ranger makes have 3 to 6 um."""
_BINS = re.compile(r"square_(\d{3})um")
_NO_PIXEL_SIZE = "pixel size unknown: give --mpp or the manifest's mpp; its cells cannot be pooled to spots without it"


@dataclass(frozen=True)
class _Region:
    """One region of one table, before its place is known."""

    store: Path
    table: Path
    name: str
    region_key: str
    instance_key: str
    several: bool
    """Whether the table annotates other regions too."""

    @property
    def shapes(self) -> Path | None:
        folder = self.store / "shapes" / self.name
        return folder if folder.is_dir() else None

    @property
    def bin_um(self) -> int | None:
        found = _BINS.search(self.table.name) or _BINS.search(self.name)
        return int(found[1]) if found else None

    @property
    def other_kind(self) -> str | None:
        """What the region is, where it is known and no shapes."""
        kinds = (kind for kind in ("labels", "points") if (self.store / kind / self.name).is_dir())
        return None if self.shapes else next(kinds, None)


def looks_like(root: Path) -> bool:
    """Whether the folder is a store, or holds some."""
    return bool(_stores(root))


def read_cohort(root: Path, reading: Reading) -> Cohort:
    """Lists the sections of a store, or of the stores in a folder.

    Reads metadata, and positions of spots where they settle what a region is; no counts.
    """
    listing = Listing()
    for store in _stores(root):
        found, left_out = _list_sections(store, reading)
        for name, why in left_out:
            listing.skip(name, why)
        for section, lacking in found:
            listing.add(section, lacking)
    return listing.cohort(root, "spatialdata")


def read_one(counts: Path, reading: Reading) -> Section | None:
    """The section of a table (`STORE/tables/TABLE`), a region (`STORE/shapes/REGION`), or a store that holds one.

    Raises:
        CohortError: for a store that holds several, and a section that cannot be read.
    """
    store = next((p for p in (counts, counts.parent.parent) if _is_store(p)), None)
    if store is None:
        return None
    found, left_out = _list_sections(store, reading)
    known = {section.counts: section for section, _ in found}
    if counts == store and len(known) == 1:
        return replace(*known.values(), counts=counts)
    if counts in known:
        return known[counts]
    holds = ", ".join(str(path.relative_to(store)) for path in known) or "nothing that can be read"
    why = "; ".join(f"{name}: {reason}" for name, reason in left_out)
    raise CohortError(f"{counts} is not one section; {store.name} holds {holds}. {why}".strip(), "Name one of them.")


def _stores(root: Path) -> list[Path]:
    return [root] if _is_store(root) else sorted(p for p in root.iterdir() if _is_store(p))


def _is_store(folder: Path) -> bool:
    return is_group(folder) and any((folder / name).is_dir() for name in ("tables", "table"))


def _stem(store: Path) -> str:
    return store.resolve().name.removesuffix(".zarr")


def _list_sections(store: Path, reading: Reading) -> tuple[list[tuple[Section, str]], list[tuple[str, str]]]:
    """Sections, each with what it lacks to have a slide; and names of what is no section, with reasons."""
    regions, left_out = _choose_regions(store, reading)
    found = []
    for region in regions:
        name = _stem(store) if len(regions) == 1 else f"{_stem(store)}.{region.name}"
        try:
            place = find_place(store, region.shapes, name, region.name, [r.name for r in regions])
            found.append(_describe(region, name, place, reading))
        except CohortError as error:
            left_out.append((name, " ".join(filter(None, (error.message, error.hint)))))
    return found, left_out


def _choose_regions(store: Path, reading: Reading) -> tuple[list[_Region], list[tuple[str, str]]]:
    """The regions that are sections; and (name, reason) of the others."""
    regions, left_out = _list_regions(store)
    bins = ", ".join(f"{um} um" for um in sorted({r.bin_um for r in regions if r.bin_um}))
    wanted = reading.bin_um or HD_BIN_UM
    chosen = []
    for region in regions:
        tables = [r.table.name for r in regions if r.name == region.name]
        if region.bin_um not in (None, wanted):
            # The same tissue in other bins would be a second copy of the section.
            reason = f"bins of {region.bin_um} um; {wanted} um are read, there are {bins} (--bin-um)"
        elif len(tables) > 1:
            reason = f"several tables annotate it ({', '.join(tables)}); keep the one of raw counts"
        elif region.other_kind:
            reason = (
                f"table {region.table.name} annotates {region.other_kind}, whose places are not read; let it annotate "
                "shapes (circles or polygons)"
            )
        else:
            chosen.append(region)
            continue
        left_out.append((f"{_stem(store)}.{region.name}", reason))
    return chosen, list(dict.fromkeys(left_out))


def _list_regions(store: Path) -> tuple[list[_Region], list[tuple[str, str]]]:
    """Every region of every table; and (name, reason) of tables that annotate nothing."""
    folder = next(p for p in (store / "tables", store / "table") if p.is_dir())
    regions, left_out = [], []
    for table in sorted(p for p in folder.iterdir() if is_group(p)):
        stated = read_attributes(table)
        names, keys = stated.get("region"), [stated.get(k) for k in ("region_key", "instance_key")]
        if not names or not all(isinstance(key, str) for key in keys):
            left_out.append((f"{_stem(store)}.{table.name}", f"table {table.name} annotates no element"))
            continue
        names = [names] if isinstance(names, str) else list(names)
        regions += [_Region(store, table, str(n), str(keys[0]), str(keys[1]), len(names) > 1) for n in names]
    return regions, left_out


def _describe(region: _Region, name: str, place: Place, reading: Reading) -> tuple[Section, str]:
    reader = SpatialTable(
        table=region.table,
        region=region.name,
        region_key=region.region_key,
        instance_key=region.instance_key,
        shapes=region.shapes,
        image=place.image.path if place.image else None,
        to_px=place.to_px,
        size=place.image.size if place.image else None,
        bin_um=float(region.bin_um or 0),
        mpp=reading.mpp or place.mpp,
    )
    pitch, notes = None, list(place.notes)
    if has_array_indices(region.table):
        spots = reader.read_positions()
        if spots.array_rc is not None:
            pitch = fit_pitch(spots.array_rc, spots.centres, SQUARE if region.bin_um else HEXAGONAL)
    technology, diameter, spacing = "unknown", None, None
    if region.bin_um:
        technology = "visium-hd"
        side = reading.spot_um or POOLED_UM["visium-hd"]
        found = region.bin_um / pitch if pitch else place.mpp
        reader = replace(reader, pooled_um=side, asked=True, mpp=reading.mpp or found)
    elif pitch is not None:
        technology, diameter, spacing = "visium", VISIUM_DIAMETER_UM, VISIUM_PITCH_UM
        reader = replace(reader, hexagonal=True, mpp=reading.mpp or VISIUM_PITCH_UM / pitch)
    elif region.shapes is not None and not _are_spots(region.shapes):
        reader = replace(reader, pooled_um=reading.spot_um or CELL_SPOT_UM, asked=reading.spot_um is not None)
    else:
        notes.append("the array that its spots are from is not known, so neither is the distance between them")
    if reader.pooled_um is not None:
        diameter = spacing = reader.pooled_um if reader.mpp is not None else None
        notes += [_NO_PIXEL_SIZE] if reader.mpp is None else []
    lacking = place.lacking
    if place.image is not None and reading.mpp is None and reader.mpp is not None and reader.mpp > COARSEST_UM:
        shown = place.image.path.relative_to(region.store)
        lacking = f"no image fine enough: {shown} has {reader.mpp:.3g} um per px, too coarse to embed"
    stated = ((place.source, place.mpp),) if place.mpp is not None and not lacking else ()
    section = Section(
        name=name,
        patient=None,
        slide=None if lacking else place.slide,
        counts=region.shapes if region.several and region.shapes else region.table,
        reader=reader,
        technology=technology,
        spot_diameter_um=diameter,
        spot_pitch_um=spacing,
        mpp_given=reading.mpp,
        pixel_size_candidates=stated,
        metadata={"store": region.store.name, "table": region.table.name, "region": region.name},
        notes=(*notes, lacking) if lacking else tuple(notes),
    )
    return section, lacking


def _are_spots(shapes: Path) -> bool:
    """Whether the shapes are circles of one size, which cells are not."""
    radii = read_radii(shapes)
    return radii is not None and len(radii) > 0 and bool(np.ptp(radii) <= 1e-6 * radii.max())
