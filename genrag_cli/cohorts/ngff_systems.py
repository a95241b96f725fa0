"""Where the elements of a SpatialData store lie: their transformations into named coordinate systems, from metadata.

Knows the transformations of OME-NGFF's proposal 0.5 as SpatialData writes them (identity, scale, translation, affine,
rotation, mapAxis, sequence), in Zarr 2 and 3. Reads JSON only: no pixels, no geometries.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.cohorts import affine
from genrag_cli.cohorts.listing import read_json
from genrag_cli.errors import CohortError

_UM = {"micrometer": 1.0, "micrometre": 1.0, "um": 1.0, "µm": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "meter": 1e6}
# As readers of slides take them; whatever else a channel is called is a stain.
_COLOUR = re.compile(r"(channel|ch|c)?[ _:.-]*[0-3]|r(ed)?|g(reen)?|b(lue)?|a(lpha)?")


@dataclass(frozen=True)
class Placed:
    """How an element lies in one coordinate system."""

    to_system: affine.Affine
    unit_um: float | None
    """um per unit of the system, where its axes state a unit of length."""


@dataclass(frozen=True)
class StoreImage:
    """An image of a store."""

    path: Path
    size: tuple[int, int]
    """Width and height of level 0."""
    systems: dict[str, Placed]
    """From px of level 0."""


def read_attributes(folder: Path) -> dict[str, Any]:
    """User attributes of a Zarr group or array, version 2 or 3; empty where there are none."""
    for name in ("zarr.json", ".zattrs"):
        if (folder / name).is_file():
            stated = read_json(folder / name)
            return dict(stated.get("attributes") or {}) if name == "zarr.json" else stated
    return {}


def is_group(folder: Path) -> bool:
    """Whether the folder is a Zarr group."""
    return any((folder / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))


def element_systems(element: Path) -> dict[str, Placed]:
    """How a shapes element lies in each of its coordinate systems.

    Raises:
        CohortError: for metadata that cannot be read, or a transformation that is not known.
    """
    attributes = read_attributes(element)
    axes = [a if isinstance(a, str) else a["name"] for a in attributes.get("axes", ["x", "y"])]
    try:
        return _systems(attributes.get("coordinateTransformations") or [], axes)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CohortError(f"{element}: its transformations cannot be read ({error!r})") from error


def read_image(element: Path) -> StoreImage | str:
    """An image that can be a slide, or why it cannot be one.

    Raises:
        CohortError: for metadata that cannot be read, or a transformation that is not known.
    """
    attributes = read_attributes(element)
    attributes = attributes.get("ome", attributes)
    try:
        scales = attributes["multiscales"][0]
        axes = [a if isinstance(a, str) else a["name"] for a in scales["axes"]]
        shape, dtype = _array(element / scales["datasets"][0]["path"])
        sides = dict(zip(axes, shape, strict=True))
        labels = {str(c.get("label", "0")).lower() for c in attributes.get("omero", {}).get("channels", [])}
        coloured = all(_COLOUR.fullmatch(label) for label in labels)
        if sides.get("c") not in (3, 4) or dtype not in ("|u1", "uint8") or not coloured:
            found = f"{dtype} {'x'.join(map(str, shape))} ({''.join(axes)}), channels {', '.join(sorted(labels))}"
            return f"{element.name} is no RGB image of 8 bits: {found}"
        if _first_level(scales["datasets"][0], axes) != affine.IDENTITY:  # spatialdata writes none and would ignore it
            return f"{element.name} has a scale of its own at level 0"
        systems = _systems(scales.get("coordinateTransformations") or [], axes)
        return StoreImage(element, (sides["x"], sides["y"]), systems)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CohortError(f"{element}: its metadata cannot be read as an OME-NGFF image ({error!r})") from error


def image_metadata(element: Path) -> tuple[Path, ...]:
    """The files that say how an image lies."""
    return tuple(path for path in (element / "zarr.json", element / ".zattrs") if path.is_file())


def _first_level(dataset: dict[str, Any], axes: list[str]) -> affine.Affine:
    matrix, out = np.eye(len(axes) + 1), axes
    for one in dataset.get("coordinateTransformations") or []:
        more, out = _matrix(one, out)
        matrix = more @ matrix
    return _plane(matrix, axes, out)


def _systems(stated: Sequence[dict[str, Any]], axes: list[str]) -> dict[str, Placed]:
    found = {}
    for one in stated:
        output = one.get("output")
        if not isinstance(output, dict):  # plain OME-NGFF names no systems here
            continue
        matrix, out = _matrix(one, axes)
        units = {a["name"]: a.get("unit") for a in output["axes"] if isinstance(a, dict)}
        unit_um = _UM.get(str(units.get("x"))) if units.get("x") == units.get("y") else None
        found[str(output["name"])] = Placed(_plane(matrix, axes, out), unit_um)
    return found


def _names(system: Any, otherwise: list[str]) -> list[str]:
    return [a["name"] for a in system["axes"]] if isinstance(system, dict) else otherwise


def _matrix(one: dict[str, Any], axes: list[str]) -> tuple[Any, list[str]]:
    """A transformation as (n + 1, n + 1) on the axes given, and the names of its output's axes.

    Each step names its axes in an order of its own.
    """
    kind, own = one["type"], _names(one.get("input"), axes)
    n = len(own)
    order = np.eye(n + 1)[[*(axes.index(name) for name in own), n]]
    out, square, to = own, np.eye(n + 1), _names(one.get("output"), own)
    if kind == "sequence":
        for step in one["transformations"]:
            more, out = _matrix(step, out)
            square = more @ square
    elif kind == "affine":
        square[:n], out = np.asarray(one["affine"], np.float64).reshape(n, n + 1), to
    elif kind == "mapAxis":
        square[:n] = square[[own.index(one["mapAxis"].get(name, name)) for name in to]]
        out = to
    elif kind == "scale":
        square[range(n), range(n)] = one["scale"]
    elif kind == "translation":
        square[:n, n] = one["translation"]
    elif kind == "rotation":
        square[:n, :n] = np.asarray(one["rotation"], np.float64).reshape(n, n)
    elif kind != "identity":
        raise CohortError(f"a transformation of type {kind!r} is not known")
    return square @ order, out


def _plane(matrix: Any, axes: list[str], out: list[str]) -> affine.Affine:
    """The part on x and y, if the other axes stay out of it."""
    rows, columns = [out.index("x"), out.index("y")], [axes.index("x"), axes.index("y")]
    others = [i for i, name in enumerate(axes) if name not in "xy"]
    if np.any(matrix[np.ix_(rows, others)]):
        raise CohortError("a transformation mixes x and y with other axes")
    return affine.from_matrix(matrix[np.ix_(rows, [*columns, len(axes)])])


def _array(folder: Path) -> tuple[list[int], str]:
    """Shape and data type of a Zarr array."""
    if (folder / "zarr.json").is_file():
        stated = read_json(folder / "zarr.json")
        return stated["shape"], str(stated["data_type"])
    stated = read_json(folder / ".zarray")
    return stated["shape"], str(stated["dtype"])
