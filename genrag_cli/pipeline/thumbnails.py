"""Tiles of a bank's spots to look at: kept small in the bank while slides are at hand, and read back later."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.cohorts import Section
from genrag_cli.errors import BankError, CohortError, SlideError, UsageError
from genrag_cli.pipeline.geometry import Geometry, tile_um
from genrag_cli.pipeline.options import RunOptions
from genrag_cli.pipeline.sections import open_image
from genrag_cli.slides import PatchSlide, RemoteSlide, Slide, expect_whole, open_patches, plan_spots, read_tiles
from genrag_cli.stores.bank import Bank, SectionReader
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.stores.thumbnails import QUALITY, add_thumbnails, has_thumbnails, read_thumbnails
from genrag_cli.types import Ints, Listener, PixelSize, Progress, TileBatch, TileGrid, fingerprint
from genrag_cli.units import Mpp

SIDE_PX = 96
"""Side of what is kept."""
FROM_SLIDE, FROM_BANK, NOT_AT_HAND = "slide", "thumbnail of the bank", "not at hand"
_BATCH = 64
_PATCHES = (".h5", ".hdf5")
Tile = NDArray[np.uint8] | None


def keep_thumbnails(
    writer: BankWriter, sections: Sequence[Section], run: RunOptions, listener: Listener, *, skip_bad: bool = False
) -> dict[str, str]:
    """Gives sections of a bank thumbnails of their spots, where they do not have the very same.

    Args:
        writer: of the bank.
        sections: that the bank has, with their slides or patches.
        run: workers, overwrite.
        listener: told what happens.
        skip_bad: go on without those whose image cannot be read.

    Returns:
        What went wrong, by section; empty unless `skip_bad`.

    Raises:
        CohortError: for a section without an image.
        SlideError: for an image that cannot be read.
    """
    failed: dict[str, str] = {}
    for number, section in enumerate(sections, 1):
        try:
            _keep(writer, section, run, listener)
        except (CohortError, SlideError) as error:
            if not skip_bad:
                raise
            failed[section.name] = error.message
            listener.warn(f"{section.name}: no thumbnails, {error.message}")
        listener.progress(Progress("keep thumbnails", number, len(sections)))
    return failed


def reference_tiles(
    bank: Bank, rows: Ints, side_px: int = SIDE_PX, *, workers: int = 1
) -> tuple[list[Tile], list[str]]:
    """Tiles of some spots of a bank: from the slide where it is reachable, else as kept in the bank, else none.

    A slide is reachable where a file of the recorded size stands at the recorded path and its tile can be read.

    Args:
        bank: opened.
        rows: (m,) rows of the bank.
        side_px: side of the tiles that are given.
        workers: threads that read a slide.

    Returns:
        m pictures (side_px, side_px, 3) RGB of the bank's field of view, or None; and where each is from: `FROM_SLIDE`,
        or `FROM_BANK` or `NOT_AT_HAND` followed by a colon and why.

    Raises:
        UsageError: for rows that the bank does not have.
    """
    rows = np.asarray(rows, np.int64)
    if len(rows) and not (rows.min() >= 0 and rows.max() < bank.n_spots):
        raise UsageError(f"rows {rows.min()} to {rows.max()} of a bank of {bank.n_spots} spots")
    tiles: list[Tile] = [None] * len(rows)
    sources = [NOT_AT_HAND] * len(rows)
    first = 0
    for entry in bank.sections:
        asked = np.flatnonzero((rows >= first) & (rows < first + entry["n_spots"]))
        if len(asked):
            found, source = _read_section(bank, entry, rows[asked] - first, side_px, workers)
            for i, tile in zip(asked.tolist(), found, strict=True):
                tiles[i], sources[i] = tile, source
        first += entry["n_spots"]
    return tiles, sources


def _keep(writer: BankWriter, section: Section, run: RunOptions, listener: Listener) -> None:
    entry = writer.section(section.name)
    assert entry is not None
    stored = SectionReader.open(writer.folder, entry)
    with open_image(section) as slide:
        grid = _plan(slide, stored, writer.manifest["geometry"], SIDE_PX)
        key = fingerprint(slide.digest(), grid.names, grid.centres, grid.side_px, grid.tile_px, QUALITY)
        if has_thumbnails(writer, section.name, key) and not run.overwrite:
            return
        batches = read_tiles(slide, grid, batch=_BATCH, workers=run.workers)
        add_thumbnails(writer, section.name, stored.names, _show(batches, section.name, len(grid), listener), key)
    size = writer.section(section.name) or {}
    listener.say(f"{section.name}: {len(grid)} thumbnails, {size['thumbnails']['bytes'] / 1e6:.1f} MB")


def _show(batches: Iterator[TileBatch], name: str, total: int, listener: Listener) -> Iterator[NDArray[np.uint8]]:
    done = 0
    for batch in batches:
        yield from expect_whole(batch).pixels
        done += len(batch.pixels)
        listener.progress(Progress(f"thumbnails of {name}", done, total))


def _plan(slide: Slide | PatchSlide, stored: SectionReader, geometry: Geometry, tile_px: int) -> TileGrid:
    """The tiles of a bank's section, as backbones saw them but for their px."""
    size = stored.entry["pixel_size"]
    pixel_size = PixelSize(Mpp(size["mpp"]), size["source"])
    return plan_spots(
        slide, pixel_size, (stored.names, stored.centres), fov_um=tile_um(geometry, pixel_size.mpp),
        pitch_um=geometry["pitch_um"], tile_px=tile_px, array_rc=stored.array_rc,
    )  # fmt: skip


def _read_section(bank: Bank, entry: dict[str, Any], rows: Ints, side_px: int, workers: int) -> tuple[list[Tile], str]:
    """Tiles of one section's rows, and where they are from."""
    stored = SectionReader.open(bank.folder, entry)
    try:
        return _from_slide(bank, stored, rows, side_px, workers), FROM_SLIDE
    except SlideError as error:
        why = error.message
    if not entry.get("thumbnails"):
        return [None] * len(rows), f"{NOT_AT_HAND}: {why}; the bank keeps no thumbnails of {entry['name']}"
    try:
        kept = read_thumbnails(bank.folder, entry, stored.names[rows])
    except BankError as error:
        return [None] * len(rows), f"{NOT_AT_HAND}: {why}; {error.message}"
    return [_resize(tile, side_px) for tile in kept], f"{FROM_BANK}: {why}"


def _from_slide(bank: Bank, stored: SectionReader, rows: Ints, side_px: int, workers: int) -> list[Tile]:
    text = stored.entry.get("slide")
    if not text:
        raise SlideError("the bank does not say where the slide was")
    path = Path(text)
    recorded = stored.entry.get("files", {}).get(text)
    try:
        if recorded is not None and path.is_file() and path.stat().st_size != recorded[0]:
            raise SlideError(f"{path} has another size than when the bank was built")
        from_patches = path.suffix.lower() in _PATCHES
        with open_patches(path) if from_patches else RemoteSlide(path, pictures=True, square=False) as slide:
            grid = _plan(slide, stored, bank.geometry, side_px)
            found: list[Tile] = []
            for batch in read_tiles(slide, grid, rows, batch=_BATCH, workers=workers):
                found += list(expect_whole(batch).pixels)
            return found
    except OSError as error:
        raise SlideError(f"{path}: {error.strerror or error}") from error


def _resize(tile: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    from PIL import Image

    if tile.shape[0] == side_px:
        return tile
    return np.array(Image.fromarray(tile).resize((side_px, side_px), Image.Resampling.BICUBIC))
