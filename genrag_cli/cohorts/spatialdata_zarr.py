"""SpatialData stores (Zarr 2 and 3), read without the spatialdata package.

A table annotates one or several shapes elements (regions): each is a section, called STORE, or STORE.REGION where there
are several. Counts and shapes are joined by instance key, never by row. The section's slide is a file beside the store
that is called as the section is, else the finest RGB image of the store that shares a coordinate system with the
shapes; a map between the two that shears is refused.

What a region is follows from what it holds: array indices on a hexagonal lattice are Visium (pitch 100 um); a table or
region called square_NNNum holds bins of Visium HD, which are pooled; circles of one size are spots of an array that is
not known; all else are cells, pooled to squares where um per px is known. Patients and species are nowhere stated.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genrag_cli.cohorts import affine
from genrag_cli.cohorts.base import Cohort, Reading, Section
from genrag_cli.cohorts.ngff_systems import StoreImage, element_systems, is_group, read_attributes, read_image
from genrag_cli.cohorts.slide_beside import SUFFIXES
from genrag_cli.cohorts.spatialdata_table import (
    SpatialTable,
    find_lattice,
    has_array_indices,
    read_annotation,
)
from genrag_cli.cohorts.shapes import read_shapes
from genrag_cli.cohorts.spot_positions import HEXAGONAL, SQUARE
from genrag_cli.errors import CohortError

LAYOUT = "*.zarr (or such a folder itself) with tables/ and shapes/"
VISIUM_PITCH_UM, VISIUM_DIAMETER_UM = 100.0, 55.0
CELL_SPOT_UM = 100.0
"""Side of the squares that cells are pooled to by default, as HEST-1k pools Xenium."""
HD_BIN_UM, HD_SPOT_UM = 16, 128.0
COARSEST_UM = 2.0
"""An image of larger pixels shows no cells; previews that Space Ranger makes have 3 to 6 um."""
_BINS = re.compile(r"square_(\d{3})um")
_SAME = 0.01


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
    def shapes(self) -> Path:
        return self.store / "shapes" / self.name

    @property
    def bin_um(self) -> int | None:
        found = _BINS.search(self.table.name) or _BINS.search(self.name)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class _Place:
    """Where a region lies on its slide."""

    slide: Path | None
    to_px: affine.Affine
    image: StoreImage | None = None
    """The image whose px are counted in, which may be unfit as a slide."""
    mpp: float | None = None
    source: str = ""
    lacking: str = ""
    notes: tuple[str, ...] = ()


def looks_like(root: Path) -> bool:
    """Whether the folder is a store, or holds some."""
    return bool(_stores(root))


def read_cohort(root: Path, reading: Reading) -> Cohort:
    """Lists the sections of a store, or of the stores in a folder; reads positions where they settle what a region is,
    and no counts.
    """  # fmt: skip
    ready, bare, skipped = [], [], []
    for store in _stores(root):
        found, left_out = _list_sections(store, reading)
        skipped += left_out
        for section, lacking in found:
            if lacking:
                skipped.append((section.name, lacking))
                bare.append(section)
            else:
                ready.append(section)
    return Cohort(root, "spatialdata", tuple(ready), tuple(skipped), (), tuple(bare))


def read_one(counts: Path, reading: Reading) -> Section | None:
    """The section of a table (`STORE/tables/TABLE`), a region (`STORE/shapes/REGION`), or a store that holds one.

    Raises:
        CohortError: for a store that holds several, and a section that cannot be read.
    """
    store = next((p for p in (counts, counts.parent.parent) if _is_store(p)), None)
    if store is None:
        return None
    found, left_out = _list_sections(store, reading)
    sections = [section for section, _ in found]
    if counts == store:
        if len(sections) > 1:
            names = ", ".join(str(s.counts.relative_to(store)) for s in sections)
            raise CohortError(f"{store} holds several sections", f"Name one of them: {names}")
    else:
        sections = [s for s in sections if s.counts == counts]
        left_out = [(name, why) for name, why in left_out if name.endswith(counts.name)]
    if not sections and left_out:
        raise CohortError(f"{counts}: " + "; ".join(f"{name}: {why}" for name, why in left_out))
    return replace(sections[0], counts=counts) if sections else None


def _stores(root: Path) -> list[Path]:
    return [root] if _is_store(root) else sorted(p for p in root.iterdir() if p.is_dir() and _is_store(p))


def _is_store(folder: Path) -> bool:
    return is_group(folder) and any((folder / name).is_dir() for name in ("tables", "table"))


def _stem(store: Path) -> str:
    return store.name.removesuffix(".zarr")


def _list_sections(store: Path, reading: Reading) -> tuple[list[tuple[Section, str]], list[tuple[str, str]]]:
    """Sections, each with what it lacks to have a slide; and names of what is no section, with reasons."""
    regions, left_out = _choose_regions(store, reading)
    found = []
    for region in regions:
        name = _stem(store) if len(regions) == 1 else f"{_stem(store)}.{region.name}"
        try:
            found.append(_describe(region, name, [r.name for r in regions], reading))
        except CohortError as error:
            left_out.append((name, " ".join(filter(None, (error.message, error.hint)))))
    return found, left_out


def _choose_regions(store: Path, reading: Reading) -> tuple[list[_Region], list[tuple[str, str]]]:
    """The regions that are sections; and (name, reason) of the others."""
    chosen: dict[str, _Region] = {}
    left_out: list[tuple[str, str]] = []
    twice: set[str] = set()
    bins = sorted({r.bin_um for r in _regions(store, left_out) if r.bin_um})
    wanted = reading.bin_um or HD_BIN_UM
    left_out.clear()
    for region in _regions(store, left_out):
        name = f"{_stem(store)}.{region.name}"
        if region.bin_um not in (None, wanted):
            shown = ", ".join(f"{um} um" for um in bins)
            left_out.append((name, f"bins of {region.bin_um} um; {wanted} um are read (--bin-um; there are {shown})"))
        elif region.name in chosen:
            twice.add(region.name)
        elif not region.shapes.is_dir() and (kind := _other_kind(region)):
            left_out.append((name, f"table {region.table.name} annotates {kind}, which have no place that is read; "
                                   "let it annotate shapes (circles or polygons)"))  # fmt: skip
        else:
            chosen[region.name] = region
    for name in sorted(twice):
        table = chosen.pop(name).table
        left_out.append(
            (f"{_stem(store)}.{name}", f"several tables annotate it, {table.name} and others; keep the raw counts only")
        )
    return list(chosen.values()), left_out


def _other_kind(region: _Region) -> str | None:
    return next((kind for kind in ("labels", "points") if (region.store / kind / region.name).is_dir()), None)


def _regions(store: Path, left_out: list[tuple[str, str]]) -> Iterator[_Region]:
    """Every region of every table; tables that annotate nothing go into `left_out`."""
    folder = next(p for p in (store / "tables", store / "table") if p.is_dir())
    for table in sorted(p for p in folder.iterdir() if p.is_dir() and is_group(p)):
        stated = read_attributes(table)
        regions, keys = stated.get("region"), [stated.get(k) for k in ("region_key", "instance_key")]
        if not regions or not all(isinstance(key, str) for key in keys):
            left_out.append((f"{_stem(store)}.{table.name}", f"table {table.name} annotates no element"))
            continue
        names = [regions] if isinstance(regions, str) else list(regions)
        for name in names:
            yield _Region(store, table, str(name), str(keys[0]), str(keys[1]), len(names) > 1)


def _describe(region: _Region, name: str, regions: list[str], reading: Reading) -> tuple[Section, str]:
    has_shapes = region.shapes.is_dir()
    place = _find_place(region, name, regions, reading)
    annotation = read_annotation(region.table, region.name, region.region_key, region.instance_key)
    shapes = read_shapes(region.shapes) if has_shapes else None
    notes = list(place.notes)
    if not has_shapes:
        notes.append(f"{region.store.name} has no shapes {region.name}: obsm['spatial'] is taken for px of the slide")
    pitch = None
    if shapes is not None and has_array_indices(region.table):
        pitch = find_lattice(annotation, shapes, place.to_px, HEXAGONAL if region.bin_um is None else SQUARE)
    spot_um: float | None = None
    bin_um, pooled_um, mpp, technology, spacing = 0.0, None, reading.mpp or place.mpp, "unknown", None
    if region.bin_um is not None:
        bin_um, technology = float(region.bin_um), "visium-hd"
        mpp = reading.mpp or (bin_um / pitch if pitch else None) or mpp
        pooled_um = spot_um = spacing = reading.spot_um or HD_SPOT_UM
    elif pitch is not None:
        technology, spot_um, spacing = "visium", VISIUM_DIAMETER_UM, VISIUM_PITCH_UM
    elif shapes is not None and not shapes.equal_circles:
        pooled_um = spot_um = spacing = reading.spot_um or CELL_SPOT_UM
    else:
        notes.append("the array that its spots are from is not known, so neither is the distance between them")
    if pooled_um is not None and mpp is None:
        notes.append("pixel size unknown: give --mpp or the manifest's mpp; its cells cannot be pooled without it")
        spot_um = spacing = None
    lacking = place.lacking
    shown_mpp = VISIUM_PITCH_UM / pitch if technology == "visium" and pitch else mpp
    if place.slide is not None and place.image is not None and shown_mpp is not None and shown_mpp > COARSEST_UM:
        lacking = (
            f"no image fine enough: {place.slide.relative_to(region.store)} has {shown_mpp:.3g} um per px, too coarse "
            f"to embed; looked for {_beside(region.store, name)} too"
        )
    section = Section(
        name=name,
        patient=None,
        slide=None if lacking else place.slide,
        counts=region.shapes if region.several and has_shapes else region.table,
        reader=SpatialTable(
            region.table, region.name, region.region_key, region.instance_key,
            region.shapes if has_shapes else None, None if place.image is None else place.image.path, place.to_px,
            None if place.image is None else place.image.size, technology,
            pooled_um if mpp is not None else None, reading.spot_um if mpp is None else None, mpp, bin_um,
        ),
        technology=technology,
        spot_diameter_um=spot_um,
        spot_pitch_um=spacing,
        mpp_given=reading.mpp,
        pixel_size_candidates=((place.source, place.mpp),) if place.mpp is not None and not lacking else (),
        metadata={"store": region.store.name, "table": region.table.name, "region": region.name},
        notes=(*notes, *([lacking] if lacking else [])),
    )  # fmt: skip
    return section, lacking


def _beside(store: Path, name: str) -> str:
    return f"{store.parent / name}{{.tif,.svs,.jpg,...}}"


def _find_place(region: _Region, name: str, regions: list[str], reading: Reading) -> _Place:  # noqa: ARG001
    """The slide of a region and the way to its px."""
    systems = element_systems(region.shapes) if region.shapes.is_dir() else {}
    beside = [p for s in SUFFIXES for p in (region.store.parent / f"{name}{s}",) if p.is_file()]
    if not region.shapes.is_dir():
        if len(beside) == 1:
            return _Place(beside[0], affine.IDENTITY)
        return _Place(None, affine.IDENTITY, lacking=f"no shapes {region.name} in {region.store.name}, and no slide "
                      f"beside it: looked for {_beside(region.store, name)}")  # fmt: skip
    as_they_are = [system for system, placed in systems.items() if _is_identity(placed.to_system)]
    notes: list[str] = []
    if len(beside) == 1 and as_they_are:
        said = f"{beside[0].name} beside the store: its px are taken for coordinate system {as_they_are[0]!r}"
        return _Place(beside[0], affine.IDENTITY, notes=(said,))
    if beside:
        why = (
            "several files"
            if len(beside) > 1
            else "the shapes are in no coordinate system of px without a transformation"
        )
        notes.append(f"{', '.join(p.name for p in beside)} beside the store cannot be its slide: {why}")
    return _place_on_image(region, regions, systems, notes)


def _place_on_image(region: _Region, regions: list[str], systems: dict[str, Any], notes: list[str]) -> _Place:
    images, unfit = _images(region.store)
    fitting: list[tuple[float, StoreImage, affine.Affine, float | None, str]] = []
    for image in images:
        owners = [r for r in regions if image.path.name.startswith(r)]
        if owners and max(owners, key=len) != region.name:
            continue
        shared = [s for s in systems if s in image.systems]
        maps = {s: affine.compose([systems[s].to_system, affine.invert(image.systems[s].to_system)]) for s in shared}
        if not maps:
            continue
        if any(_differ(m, maps[shared[0]], image.size) for m in maps.values()):
            unfit.append(f"{image.path.name}: coordinate systems {', '.join(shared)} place the shapes differently")
            continue
        try:
            scale = affine.length_scale(maps[shared[0]])
        except CohortError as error:
            unfit.append(f"{image.path.name}: {error.message}")
            continue
        mpp, source = _unit(image, shared)
        fitting.append((scale, image, maps[shared[0]], mpp, source))
    finest = [f for f in fitting if f[0] >= (1 - _SAME) * max(g[0] for g in fitting)]
    if len(finest) == 1:
        _, image, to_px, mpp, source = finest[0]
        return _Place(image.path, to_px, image, mpp, source, notes=tuple(notes))
    if finest:
        lacking = f"several images could be its slide: {', '.join(f[1].path.name for f in finest)}"
    else:
        lacking = "no RGB image that shares a coordinate system with its shapes"
        lacking += f" ({'; '.join(unfit)})" if unfit else ""
    system = "global" if "global" in systems else next(iter(systems), None)
    if system is None:
        return _Place(None, affine.IDENTITY, lacking=lacking, notes=tuple(notes))
    placed = systems[system]
    mpp = placed.unit_um
    return _Place(None, placed.to_system, None, mpp, f"spatialdata {system} unit", lacking, tuple(notes))


def _images(store: Path) -> tuple[list[StoreImage], list[str]]:
    """Images that can be a slide, and why the others cannot."""
    found, unfit = [], []
    folder = store / "images"
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and is_group(p)) if folder.is_dir() else []:
        try:
            image = read_image(path)
        except CohortError as error:
            image = error.message
        if isinstance(image, StoreImage):
            found.append(image)
        else:
            unfit.append(image)
    return found, unfit


def _unit(image: StoreImage, shared: list[str]) -> tuple[float | None, str]:
    """um per px of an image, where a system that it shares counts in a unit of length."""
    for system in shared:
        placed = image.systems[system]
        if placed.unit_um is not None:
            return placed.unit_um * affine.length_scale(placed.to_system), f"spatialdata {system} unit"
    return None, ""


def _is_identity(one: affine.Affine) -> bool:
    return all(abs(a - b) < 1e-9 for a, b in zip(one, affine.IDENTITY, strict=True))


def _differ(one: affine.Affine, other: affine.Affine, size: tuple[int, int]) -> bool:
    """Whether two maps into an image part by more than a thousandth of its size somewhere on it."""
    import numpy as np

    corners = affine.apply(affine.invert(one), np.array([[0, 0], [size[0], 0], [0, size[1]]], np.float64))
    return bool(np.abs(affine.apply(one, corners) - affine.apply(other, corners)).max() > 1e-3 * max(size))
