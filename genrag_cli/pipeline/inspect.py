"""What is known of a slide before anything is made of it: its file, pixels, tissue and spots, and what it will cost.

Composes readers, tissue, grids and the forecast. Writes nothing; what a forecast has to keep is thrown away.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from genrag_cli.errors import SlideError, UsageError
from genrag_cli.pipeline.bank_rows import BYTES_EACH, SHARE
from genrag_cli.pipeline.batch.inputs import Job
from genrag_cli.pipeline.forecast import (
    Forecast,
    Sizes,
    SolveRates,
    children_bytes,
    chunk_of,
    extrapolate,
    measure_queries,
    measure_tiles,
)
from genrag_cli.pipeline.gene_choice import choose_genes
from genrag_cli.pipeline.geometry import Geometry
from genrag_cli.pipeline.lay_out import choose_geometry, name_source, open_with_pixel_size, plan_grid
from genrag_cli.pipeline.loading import Loaded
from genrag_cli.pipeline.options import RunOptions, SlideOptions
from genrag_cli.pipeline.query import THUMBNAIL_PX
from genrag_cli.pipeline.query_space import QuerySpace
from genrag_cli.retrieval.memory import free_bytes
from genrag_cli.slides import RemoteSlide, Slide, Tissue, find_tissue, n_beyond_edge
from genrag_cli.stores.bank import Bank
from genrag_cli.types import Listener, PixelSize, TileGrid


@dataclass(frozen=True)
class LevelFacts:
    """One step of the pyramid."""

    width: int
    height: int
    downsample: float
    tile: tuple[int, int] | None
    """Width and height of the pieces that it is stored in; None where that is not known."""


@dataclass(frozen=True)
class Planned:
    """The spots of a slide."""

    spots: int
    fov_um: float
    pitch_um: float
    tile_px: int
    beyond_edge: int
    """Tiles that reach past the edge of the slide."""


@dataclass(frozen=True)
class Inspected:
    """One slide."""

    path: Path
    reader: str
    vendor: str
    size: tuple[int, int]
    levels: tuple[LevelFacts, ...]
    pixel_size: PixelSize
    tissue_share: float
    """Of the slide's area."""
    planned: Planned | None
    forecast: Forecast | None
    missing: tuple[str, ...]
    """What could not be said, and why."""
    notes: tuple[str, ...]
    """What a person should know of the file."""


@dataclass(frozen=True, eq=False)
class Against:
    """What slides are looked at for: a backbone, a bank, this machine."""

    run: RunOptions
    geometry: Geometry | None = None
    """Of the bank."""
    loaded: Loaded | None = None
    bank: Bank | None = None
    space: QuerySpace | None = None
    genes: str = "5000"
    resident: int = 0
    """`forecast.resident_bytes()` with the backbone loaded and no bank yet."""
    trained_fov: float | None = None
    tile_px: int | None = None
    """As the backbone takes it; None where no backbone is known."""
    forecast: bool = True
    missing: tuple[str, ...] = ()
    """What is not here, and what to do about it."""


@dataclass
class _Kept(Listener):
    """Keeps what a stage warns of."""

    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Kept."""
        self.warnings.append(text)


def expect_room(bank: Bank) -> str:
    """Why a bank is not opened for a forecast: it would have to be written to disk first; empty where it fits."""
    import torch

    needed = BYTES_EACH * bank.n_spots * (bank.card.dim + len(bank.anchors))
    free = free_bytes(torch.device("cpu"))
    if needed <= SHARE * free:
        return ""
    return (
        f"the bank takes {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB that are free, so it would stream from disk: "
        "solving was not measured"
    )


def local_path(job: Job) -> Path:
    """Where a job's slide lies.

    Raises:
        SlideError: for one that has an address instead.
    """
    if job.is_remote:
        raise SlideError(f"{job.slide}: an address; inspect looks at files", "Copy the slide to this machine first.")
    return job.path


def inspect_slide(path: Path, options: SlideOptions, against: Against) -> Inspected:
    """`generag inspect` for one slide.

    Args:
        path: the slide.
        options: pixel size, field of view, pitch, spots.
        against: backbone, bank, machine.

    Returns:
        What is known, and what is missing for the rest.

    Raises:
        SlideError: for a slide that cannot be read or has no pixel size.
        UsageError: for a field of view that is not the bank's.
    """
    kept = _Kept()
    slide, pixel_size = open_with_pixel_size(path, options, kept)
    with slide:
        began = time.perf_counter()
        tissue = slide.call(find_tissue, pixel_size, how=options.tissue)
        tissue_s = time.perf_counter() - began
        grid, missing = _plan(slide, pixel_size, tissue, options, against)
        forecast = None
        missing += against.missing
        if grid is not None and against.forecast:
            try:
                forecast, more = _forecast(slide, grid, tissue, tissue_s, against, kept)
            except SlideError as error:
                raise name_source(error, path) from error
            missing += more
        reader, _, vendor = slide.reader.partition("/")
        return Inspected(
            path=path, reader=reader, vendor=vendor, size=slide.size,
            levels=tuple(
                LevelFacts(w, h, float(d), slide.tile_size(i)) for i, (w, h, d) in enumerate(slide.levels)
            ),
            pixel_size=pixel_size, tissue_share=float(tissue.mask.mean()),
            planned=None if grid is None else _describe(slide, grid), forecast=forecast, missing=missing,
            notes=tuple(dict.fromkeys(text.removeprefix(f"{slide.slide_id}: ") for text in kept.warnings)),
        )  # fmt: skip


def _plan(
    slide: RemoteSlide, pixel_size: PixelSize, tissue: Tissue, options: SlideOptions, against: Against
) -> tuple[TileGrid | None, tuple[str, ...]]:
    """The spots, or why there are none to count."""
    try:
        fov_um, pitch_um = choose_geometry(options, against.geometry, against.trained_fov, pixel_size.mpp)
    except UsageError as error:
        return None, (f"spots: {error.message}. {error.hint}",)
    try:
        grid = plan_grid(
            slide, pixel_size, tissue, options, fov_um=fov_um, pitch_um=pitch_um,
            tile_px=against.tile_px or max(1, round(fov_um / pixel_size.mpp)),
        )  # fmt: skip
    except SlideError as error:  # the slide can be read, and that is what was asked
        return None, (f"spots: {error.message}. {error.hint}",)
    return grid, ()


def _describe(slide: Slide, grid: TileGrid) -> Planned:
    return Planned(
        len(grid), float(grid.fov_um), float(grid.pitch_um), int(grid.tile_px), n_beyond_edge(slide, grid)
    )  # fmt: skip


def _forecast(
    slide: Slide, grid: TileGrid, tissue: Tissue, tissue_s: float, against: Against, listener: Listener
) -> tuple[Forecast | None, tuple[str, ...]]:
    if not len(grid):
        return None, ("forecast: no spot lies on tissue",)
    loaded, bank, space, run = against.loaded, against.bank, against.space, against.run
    backbone = None if loaded is None else loaded.backbone
    tiles = measure_tiles(slide, grid, backbone, run.workers)
    if tiles.n_bad:
        listener.warn(f"{tiles.n_bad} of {tiles.n_read} tiles that were tried cannot be read")
    sizes = Sizes(
        spots=len(grid), dim=0 if backbone is None else backbone.card.dim, tile_px=grid.tile_px,
        overview_px=int(np.prod(tissue.mask.shape)), resident=against.resident + children_bytes(),
    )  # fmt: skip
    solving: SolveRates | None = None
    if bank is not None and space is not None and loaded is not None:
        chosen = choose_genes(bank, against.genes, space.scale)
        solving = measure_queries(slide, grid, tiles, bank, space, loaded, chosen, run, listener)
        shown = max(slide.size)
        sizes = replace(
            sizes, bank_spots=bank.n_spots, anchors=len(space.anchors.genes), genes=len(chosen),
            references=solving.references, sections=len(bank.sections), chunk=chunk_of(space, len(grid)),
            thumbnail_px=round(slide.size[0] * slide.size[1] * min(1.0, THUMBNAIL_PX / shown) ** 2),
        )  # fmt: skip
    left_out = ["start of the program", "time that the disk takes to write", "picture and outlines of the tissue"]
    left_out += [] if backbone is not None else ["encoding"]
    left_out += [] if solving is not None else ["everything after the embeddings"]
    overlap = run.device != "cpu"
    return extrapolate(sizes, tissue_s, tiles, solving, overlap=overlap, left_out=tuple(left_out)), ()
