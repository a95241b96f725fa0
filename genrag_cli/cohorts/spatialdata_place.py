"""Which slide a region of a SpatialData store lies on, and the way from its shapes to px of that slide.

A file beside the store that is called as the section is comes first, if the shapes count in px of some coordinate
system as they stand: those are taken for its px, and that is said. Otherwise it is the finest RGB image of the store
that shares a coordinate system with the shapes and belongs to no other region by its name. Nothing chooses between
several, and a map that shears is refused. Reads metadata only.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrag_cli.cohorts import affine
from genrag_cli.cohorts.ngff_systems import Placed, StoreImage, element_systems, is_group, read_image
from genrag_cli.cohorts.slide_beside import SUFFIXES
from genrag_cli.errors import CohortError

_SAME_SCALE = 0.01
_LARGEST_PARTING = 1e-3


@dataclass(frozen=True)
class Place:
    """Where a region lies."""

    slide: Path | None
    to_px: affine.Affine
    """From coordinates of the shapes to level-0 px of the slide; to units of a coordinate system without one."""
    image: StoreImage | None = None
    """The slide, where it is an image of the store."""
    mpp: float | None = None
    """um per px, where a coordinate system states a unit of length."""
    source: str = ""
    """What states it."""
    lacking: str = ""
    """Why there is no slide."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Fit:
    """One image, and how shapes lie on it."""

    image: StoreImage
    to_px: affine.Affine
    scale: float
    """px per unit of the shapes."""
    mpp: float | None
    source: str


def find_place(store: Path, shapes: Path | None, name: str, region: str, regions: list[str]) -> Place:
    """Where a region lies.

    Args:
        store: its folder.
        shapes: the region's element; None where the store lacks it.
        name: of the section.
        region: name of the element.
        regions: names of all sections' elements in the store.

    Raises:
        CohortError: for metadata that cannot be read.
    """
    beside = sorted(p for p in (store.parent / f"{name}{suffix}" for suffix in SUFFIXES) if p.is_file())
    looked = f"looked for {store.parent / name} with {', '.join(SUFFIXES[:4])} and the like"
    if shapes is None:
        taken = f"{store.name} has no shapes {region!r}: obsm['spatial'] is taken for px of the slide beside it"
        if len(beside) == 1:
            return Place(beside[0], affine.IDENTITY, notes=(taken,))
        return Place(
            None, affine.IDENTITY, lacking=f"{store.name} has no shapes {region!r}, and no one slide: {looked}"
        )
    systems = element_systems(shapes)
    as_they_are = [system for system, placed in systems.items() if _is_identity(placed.to_system)]
    notes = []
    if len(beside) == 1 and as_they_are:
        said = f"{beside[0].name} beside the store is its slide; its px are taken for those of {as_they_are[0]!r}"
        return Place(beside[0], affine.IDENTITY, notes=(said,))
    if beside:
        why = "there are several" if len(beside) > 1 else "its shapes are in no coordinate system as they stand"
        notes.append(f"{', '.join(p.name for p in beside)} beside the store cannot be its slide: {why}")
    return _place_on_image(store, systems, region, regions, looked, tuple(notes))


def _place_on_image(
    store: Path, systems: dict[str, Placed], region: str, regions: list[str], looked: str, notes: tuple[str, ...]
) -> Place:
    fits, unfit = _fits(store, systems, region, regions)
    finest = [fit for fit in fits if fit.scale >= (1 - _SAME_SCALE) * max(other.scale for other in fits)]
    if len(finest) == 1:
        one = finest[0]
        return Place(one.image.path, one.to_px, one.image, one.mpp, one.source, notes=notes)
    if finest:
        lacking = f"several images could be its slide: {', '.join(fit.image.path.name for fit in finest)}; {looked}"
    else:
        why = f" ({'; '.join(unfit)})" if unfit else ""
        lacking = f"no RGB image of {store.name} shares a coordinate system with its shapes{why}; {looked}"
    system = "global" if "global" in systems else next(iter(systems), None)
    if system is None:
        return Place(None, affine.IDENTITY, lacking=lacking, notes=notes)
    placed = systems[system]
    source = f"spatialdata {system} unit"
    return Place(None, placed.to_system, None, placed.unit_um, source, lacking, notes)


def _fits(store: Path, systems: dict[str, Placed], region: str, regions: list[str]) -> tuple[list[_Fit], list[str]]:
    """The images that the shapes lie on, and why the others do not serve."""
    fits, unfit = [], []
    folder = store / "images"
    for path in sorted(p for p in folder.iterdir() if is_group(p)) if folder.is_dir() else []:
        # Images of several sections often share one coordinate system; their names then tell whose they are.
        owners = [r for r in regions if path.name.startswith(r)]
        if owners and max(owners, key=len) != region:
            continue
        try:
            image = read_image(path)
            if isinstance(image, StoreImage):
                if (fit := _fit(image, systems)) is not None:
                    fits.append(fit)
            else:
                unfit.append(image)
        except CohortError as error:
            unfit.append(f"{path.name}: {error.message}")
    return fits, unfit


def _fit(image: StoreImage, systems: dict[str, Placed]) -> _Fit | None:
    """How shapes lie on an image; None where they share no coordinate system.

    Raises:
        CohortError: where shared systems contradict each other, or the map shears.
    """
    shared = [system for system in systems if system in image.systems]
    if not shared:
        return None
    maps = [affine.compose([systems[s].to_system, affine.invert(image.systems[s].to_system)]) for s in shared]
    corners = np.array([[0, 0], [image.size[0], 0], [0, image.size[1]]], np.float64)
    places = [affine.apply(one, affine.apply(affine.invert(maps[0]), corners)) for one in maps]
    if max(np.abs(place - corners).max() for place in places) > _LARGEST_PARTING * max(image.size):
        raise CohortError(f"coordinate systems {', '.join(shared)} place the shapes differently")
    mpp, source = None, ""
    for system in shared:
        placed = image.systems[system]
        if placed.unit_um is not None:
            mpp, source = placed.unit_um * affine.length_scale(placed.to_system), f"spatialdata {system} unit"
            break
    return _Fit(image, maps[0], affine.length_scale(maps[0]), mpp, source)


def _is_identity(one: affine.Affine) -> bool:
    return all(abs(a - b) < 1e-9 for a, b in zip(one, affine.IDENTITY, strict=True))
