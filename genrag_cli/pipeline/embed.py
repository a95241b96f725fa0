"""Slide -> grid -> tiles -> embeddings, block by block, each block kept so that a killed run goes on where it was."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.backbones.base import Backbone
from genrag_cli.cohorts import open_section
from genrag_cli.errors import SlideError, UsageError
from genrag_cli.pipeline.feed import encode_blocks
from genrag_cli.pipeline.fit import identity
from genrag_cli.pipeline.geometry import Geometry, tile_um
from genrag_cli.pipeline.options import RunOptions, SlideOptions
from genrag_cli.slides import (
    Slide,
    Tissue,
    find_tissue,
    n_beyond_edge,
    open_slide,
    plan_spots,
    plan_tiles,
    read_spots_csv,
    resolve_pixel_size,
)
from genrag_cli.slides.spots import Spots
from genrag_cli.stores.atomic import Parts, tidy
from genrag_cli.stores.embeddings import read_about, read_embeddings, write_embeddings
from genrag_cli.stores.layout import file_word
from genrag_cli.types import Embeddings, Floats, Ints, Listener, PixelSize, Progress, TileGrid, fingerprint

BLOCK = 256
"""Tiles between two checkpoints; fixed, so that a resumed run computes the very same batches."""
BATCH = 32


def open_with_pixel_size(path: Path, options: SlideOptions, listener: Listener) -> tuple[Slide, PixelSize]:
    """Opens a slide and settles its pixel size, saying what is doubtful."""
    slide = open_slide(path, pictures=options.mpp is not None)
    try:
        pixel_size, warnings = resolve_pixel_size(
            slide.pixel_size_candidates(), given=options.mpp, strict=options.strict_mpp
        )
    except SlideError as error:
        slide.close()
        raise name_source(error, path) from error
    except BaseException:
        slide.close()
        raise
    for text in (*slide.notes, *warnings):
        listener.warn(f"{slide.slide_id}: {text}")
    return slide, pixel_size


def name_source(error: SlideError, source: Path | str) -> SlideError:
    """The same error with the slide or section named, where its message does not name one."""
    if str(source) in error.message:
        return error
    return SlideError(f"{source}: {error.message}", error.hint)


def plan_grid(
    slide: Slide, pixel_size: PixelSize, tissue: Tissue, *, spots: str | None, fov_um: float, pitch_um: float,
    tile_px: int,
) -> TileGrid:  # fmt: skip
    """The spots of a slide: those of a file, or every one on tissue."""
    if spots is not None:
        given, array_rc = read_spots(spots)
        return plan_spots(
            slide, pixel_size, given, fov_um=fov_um, pitch_um=pitch_um, tile_px=tile_px, array_rc=array_rc
        )
    return plan_tiles(slide, pixel_size, fov_um=fov_um, pitch_um=pitch_um, tile_px=tile_px, tissue=tissue)


def read_spots(text: str) -> tuple[Spots, Ints | None]:
    """Spots of a file, or of a measured section given as COHORT:SECTION; with lattice places where they are known."""
    if ":" in text and not Path(text).exists():
        measured = open_section(text).load()
        return (measured.names, measured.centres), measured.array_rc
    return read_spots_csv(text), None


def embed_blocks(
    slide: Slide, grid: TileGrid, backbone: Backbone, parts: Parts, run: RunOptions, listener: Listener, stage: str
) -> Iterator[Floats]:
    """Yields (b, d) embeddings of consecutive rows of the grid; finished parts are read instead of computed.

    All is computed before the first block is given: whoever takes blocks may stop, and nothing is left reading.
    """
    blocks = [np.arange(low, min(low + BLOCK, len(grid))) for low in range(0, len(grid), BLOCK)]
    missing = [number for number in range(len(blocks)) if not parts.has(number)]
    fresh = encode_blocks(
        slide, grid, backbone, [blocks[number] for number in missing],
        batch=BATCH if run.device == "cpu" else BLOCK,  # of which a GPU takes as many at a time as fit
        workers=run.workers,
        bursts=run.device == "cpu",
        told=lambda row: listener.progress(Progress(stage, row + 1, len(grid))),
    )  # fmt: skip
    with closing(fresh):
        for number, values in zip(missing, fresh, strict=True):
            parts.write(number, values=values)
    listener.progress(Progress(stage, len(grid), len(grid)))
    for number in range(len(blocks)):
        yield parts.read(number)["values"]


def ensure_embeddings(
    slide: Slide, grid: TileGrid, backbone: Backbone, path: Path, run: RunOptions, listener: Listener
) -> Embeddings:
    """The embeddings of a grid, from `path` where it holds the very same, else computed and written there.

    Raises:
        OutputError: where `path` is not a file of generag and `--overwrite` was not given.
    """
    key = fingerprint(slide.digest(), grid, identity(backbone.card))
    if path.exists() and not run.overwrite:
        if read_about(path)["key"] == key:
            listener.say(f"{path}: {len(grid)} embeddings, already there")
            tidy(path)
            return read_embeddings(path)
        listener.say(f"{path}: made with other options or from another slide; doing it again")
    parts = Parts(path, key, "parts")
    beyond = n_beyond_edge(slide, grid)
    if beyond:
        listener.say(f"{slide.slide_id}: {beyond} tiles reach past the edge of the slide; white there")
    blocks = embed_blocks(slide, grid, backbone, parts, run, listener, f"embed {slide.slide_id}")
    extra: dict[str, Any] = {
        "slide": slide.path.name, "slide_digest": slide.digest(), "reader": slide.reader, "tiles_beyond_edge": beyond,
    }  # fmt: skip
    write_embeddings(path, grid, backbone.card, blocks, key=key, extra=extra)
    parts.clear()
    return read_embeddings(path)


def embeddings_path(out: Path, slide_id: str, backbone: str, kind: str = "") -> Path:
    """Where a slide's embeddings stand: `SLIDE.BACKBONE.zarr.zip`, with `spots` or `sample` before the ending."""
    return out / f"{slide_id}.{file_word(backbone)}{'.' + kind if kind else ''}.zarr.zip"


def embed_slide(
    path: Path,
    out: Path,
    backbone: Backbone,
    options: SlideOptions,
    geometry: Geometry | None,
    run: RunOptions,
    listener: Listener,
) -> Path:
    """`generag embed` for one slide.

    Args:
        path: the slide.
        out: folder, or the file to write (ends in .zarr.zip).
        backbone: loaded.
        options: of the slide.
        geometry: of the bank, for what the options leave open; None where there is no bank.
        run: device, workers, overwrite, dry run.
        listener: told what happens.

    Returns:
        The file that was written or was there.
    """
    slide, pixel_size = open_with_pixel_size(path, options, listener)
    with slide:
        fov_um, pitch_um = choose_geometry(options, geometry, backbone.card.fov_um, pixel_size.mpp)
        tissue = find_tissue(slide, pixel_size)
        grid = plan_grid(
            slide, pixel_size, tissue, spots=options.spots, fov_um=fov_um, pitch_um=pitch_um,
            tile_px=backbone.card.tile_px,
        )  # fmt: skip
        kind = "spots" if options.spots else ""
        target = (
            out if out.name.endswith(".zarr.zip") else embeddings_path(out, slide.slide_id, backbone.card.name, kind)
        )
        listener.say(describe_grid(slide, grid))
        if run.dry_run:
            listener.say(f"would write {target}")
            return target
        ensure_embeddings(slide, grid, backbone, target, run, listener)
        return target


def describe_grid(slide: Slide, grid: TileGrid) -> str:
    """One line about a slide and its grid."""
    width, height = slide.size
    size = grid.pixel_size
    return (
        f"{slide.slide_id}: {width} x {height} px at {size.mpp:.4g} um/px ({size.source}), {len(grid)} spots every "
        f"{grid.pitch_um:g} um, tiles of {grid.fov_um:g} um"
    )


def choose_geometry(
    options: SlideOptions, geometry: Geometry | None, trained_fov: float | None, mpp: float
) -> tuple[float, float]:
    """Field of view and pitch: as asked, else the bank's, else the backbone's own field of view for both."""
    fov = options.fov_um or (tile_um(geometry, mpp) if geometry else trained_fov)
    pitch = options.pitch_um or (geometry or {}).get("pitch_um") or fov
    if fov is None or pitch is None:
        raise UsageError(
            "no field of view: there is no bank to take it from, and this backbone works at any",
            "Give --fov-um (and --pitch-um), or --bank with a bank that is there.",
        )
    if fov <= 0 or pitch <= 0:
        raise UsageError(f"--fov-um {fov:g} and --pitch-um {pitch:g} must be above 0")
    return float(fov), float(pitch)
