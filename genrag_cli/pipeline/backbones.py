"""Backbones before and beside their use: which there are, whether their weights are here, whether one works.

Knows sheets, the places of weights and the protocol; knows no particular backbone. Nothing but `fetch_backbone` touches
the network, and `check_backbone` where weights are nowhere else.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.base import Backbone, BackboneSheet, ExpressionModel, Loading, WeightsFile
from genrag_cli.backbones.registry import FAMILY, load_backbone, names, package_of, read_sheet
from genrag_cli.backbones.weights import digest_weights, fetch_file, find_file
from genrag_cli.errors import BackboneError, GeneragError
from genrag_cli.types import Floats

Here = Literal["yes", "no", "part", "none needed", "unknown"]
_BLAME = "See whose it is with: generag backbones info {}"


@dataclass(frozen=True)
class PlacedFile:
    """A file that a backbone needs, and where it is on this machine; `path` is None where it is not."""

    file: WeightsFile
    path: Path | None


@dataclass(frozen=True)
class BackboneFacts:
    """What can be said of a backbone without loading it."""

    name: str
    package: str = ""
    """That claims the name, with its version."""
    sheet: BackboneSheet | None = None
    """None for a plug-in that says nothing, a family of backbones, and a broken one."""
    files: tuple[PlacedFile, ...] = ()
    broken: str = ""
    """Why it cannot be used; empty where nothing is known against it."""

    @property
    def family(self) -> bool:
        """Whether it is a name before a colon, behind which many backbones stand."""
        return self.name == FAMILY

    @property
    def here(self) -> Here:
        """Whether all of its weights are on this machine."""
        if self.sheet is None or self.family:
            return "unknown"
        found = [placed.path is not None for placed in self.files]
        if not found:
            return "none needed"
        return "yes" if all(found) else "part" if any(found) else "no"


@dataclass(frozen=True)
class Checked:
    """What a backbone did with made-up tiles."""

    name: str
    device: str
    dim: int
    tile_px: int
    weights_sha256: str
    kind: Literal["encoder", "model"]
    genes: int | None
    """That a model predicts; None for an encoder, and for a model that predicts whatever the bank has."""
    scale: str
    load_s: float
    tile_s: float
    """Seconds a tile, the first batch left out."""
    repeats: bool
    """The same tiles gave the very same numbers twice."""
    deterministic: bool
    """Its card says so."""
    batch_difference: float
    """Largest difference of a tile alone and in a batch, of the largest number."""
    batches: bool
    """That difference is float rounding."""

    @property
    def wrong(self) -> tuple[str, ...]:
        """What must not be so."""
        told = []
        if self.deterministic and not self.repeats:
            told.append("the same tiles gave other embeddings the second time, and its card says deterministic")
        if not self.batches:
            told.append(f"a tile alone and in a batch differ by {self.batch_difference:.1e} of the largest number")
        return tuple(told)


@dataclass(frozen=True)
class Fetched:
    """A file of a backbone after fetching."""

    part: str
    path: Path | None
    """None where it cannot be fetched; `note` says why."""
    sha256: str
    note: str


def list_backbones() -> tuple[BackboneFacts, ...]:
    """Every installed backbone; a broken one is among them and says why."""
    found = []
    for name in names():
        try:
            found.append(describe_backbone(name))
        except GeneragError as error:
            found.append(BackboneFacts(name, _package(name), broken=error.message))
    return tuple(found)


def describe_backbone(name: str) -> BackboneFacts:
    """What is known of one backbone, or one member of a family.

    Raises:
        BackboneError: for an unknown name, or a plug-in that cannot be imported.
    """
    sheet = read_sheet(name)
    files = () if sheet is None else tuple(PlacedFile(file, find_file(file)) for file in sheet.weights)
    return BackboneFacts(name, package_of(name), sheet, files)


def check_backbone(name: str, loading: Loading, device: str) -> Checked:
    """Loads a backbone and embeds a few made-up tiles: twice together, and one by one.

    Raises:
        BackboneError: for one that cannot be loaded, or embeddings of another shape or type, or not finite.
        UsageError: for something that it does not take.
    """
    began = time.perf_counter()
    backbone = load_backbone(name, device, loading)
    loaded = time.perf_counter()
    tiles = make_tiles(backbone.card.tile_px)
    first = _encode(backbone, tiles)
    again = time.perf_counter()
    second = _encode(backbone, tiles)
    tile_s = (time.perf_counter() - again) / len(tiles)
    alone = np.concatenate([_encode(backbone, tile[None]) for tile in tiles])
    size = float(np.abs(first).max()) or 1.0
    difference = float(np.abs(alone - first).max()) / size
    sheet = read_sheet(name)
    rounds_in_half = device.startswith("cuda") and sheet is not None and sheet.precision != "float32"
    card, model = backbone.card, isinstance(backbone, ExpressionModel)
    genes = len(backbone.genes) if isinstance(backbone, ExpressionModel) else 0
    return Checked(
        name=name,
        device=device,
        dim=card.dim,
        tile_px=card.tile_px,
        weights_sha256=card.weights_sha256,
        kind="model" if model else "encoder",
        genes=genes or None,
        scale=card.scale,
        load_s=loaded - began,
        tile_s=tile_s,
        repeats=bool(np.array_equal(first, second)),
        deterministic=card.deterministic,
        batch_difference=difference,
        batches=difference <= (2e-2 if rounds_in_half else 1e-3),
    )


def fetch_backbone(name: str) -> tuple[Fetched, ...]:
    """Downloads all files of a backbone that a hub has and this machine has not.

    A file that is here already is left as it is: a bank knows the weights that it was built with by their digest.

    Raises:
        BackboneError: for a plug-in without a sheet, and for a file that cannot be had.
    """
    sheet, files = _known_files(name)
    return tuple(_fetch(sheet, placed) for placed in files)


def _known_files(name: str) -> tuple[BackboneSheet, tuple[PlacedFile, ...]]:
    facts = describe_backbone(name)
    if facts.sheet is None or facts.family:
        what = f"{name} is a family" if facts.family else f"backbone {name} ({facts.package}) has no sheet"
        remedy = f"Name one: generag backbones fetch {name}:NAME" if facts.family else "Its own manual may know."
        raise BackboneError(f"{what}, so nobody knows what to fetch for it", remedy)
    return facts.sheet, facts.files


def plan_fetch(name: str) -> tuple[str, ...]:
    """What `fetch_backbone` would do, a line for each file; touches neither network nor disk.

    Raises:
        BackboneError: as `fetch_backbone`, for a plug-in without a sheet.
    """
    return tuple(_plan(placed) for placed in _known_files(name)[1])


def make_tiles(side: int) -> NDArray[np.uint8]:
    """Made-up tiles (4, side, side, 3): noise, the colour of glass, a dark block on a ramp, stripes."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    glass = np.full((side, side, 3), (238, 231, 240), np.uint8)
    ramp = np.broadcast_to(np.linspace(120, 250, side).astype(np.uint8)[:, None, None], (side, side, 3)).copy()
    ramp[: side // 3, : side // 2] = (90, 60, 140)
    stripes = np.where((np.arange(side) // 8 % 2 == 0)[None, :, None], (200, 120, 170), (120, 80, 160))
    return np.stack([noise, glass, ramp, np.broadcast_to(stripes, (side, side, 3)).astype(np.uint8)])


def _encode(backbone: Backbone, tiles: NDArray[np.uint8]) -> Floats:
    name = backbone.card.name
    try:
        values = backbone.encode(tiles)
    except GeneragError:
        raise
    except Exception as error:  # a plug-in may fail in any way
        raise BackboneError(
            f"backbone {name} cannot embed made-up tiles: {type(error).__name__}: {error}", _BLAME.format(name)
        ) from error
    expected = (len(tiles), backbone.card.dim)
    shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", type(values).__name__)
    if shape != expected or dtype != np.float32:
        raise BackboneError(
            f"backbone {name}: embeddings are {dtype} of shape {shape} instead of float32 of shape {expected}",
            _BLAME.format(name),
        )
    if not np.isfinite(values).all():
        raise BackboneError(f"backbone {name}: embeddings of made-up tiles are not finite", _BLAME.format(name))
    return values


def _plan(placed: PlacedFile) -> str:
    file = placed.file
    if placed.path is not None:
        return f"is here: {placed.path}"
    if file.package:
        return f"comes with the package {file.package}, which is not installed"
    if not file.repo:
        return f"nowhere on a hub. {file.where}".strip()
    return f"would fetch {' or '.join(file.filenames)} of {file.repo} at {file.revision or 'no pinned revision'}"


def _fetch(sheet: BackboneSheet, placed: PlacedFile) -> Fetched:
    file = placed.file
    if placed.path is not None:
        note = f"comes with the package {file.package}" if file.package else "was here"
        return Fetched(file.part, placed.path, digest_weights(placed.path), note)
    if not file.package and not file.repo:
        return Fetched(file.part, None, "", f"nowhere on a hub. {file.where}".strip())
    path = fetch_file(sheet, file)
    return Fetched(file.part, path, digest_weights(path), "fetched")


def _package(name: str) -> str:
    try:
        return package_of(name)
    except GeneragError:  # claimed by several
        return ""
