"""What is to be predicted: spots of one slide with embeddings, from its pixels or from files made elsewhere."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import FeaturesError, SlideError
from genrag_cli.pipeline.embedding import BATCH, SlideEmbeddings, embeddings_path
from genrag_cli.pipeline.fit import expect_fov, fov_of
from genrag_cli.pipeline.geometry import tile_um
from genrag_cli.pipeline.lay_out import LaidOut, lay_out, open_with_pixel_size, read_spots
from genrag_cli.pipeline.loading import Loaded, record
from genrag_cli.pipeline.mix_ups import doubt_spots
from genrag_cli.pipeline.options import RunOptions, SlideOptions
from genrag_cli.slides import (
    RemoteSlide,
    expect_whole,
    overview,
    plan_tiles,
    read_tiles,
    resolve_pixel_size,
    sample_rows,
)
from genrag_cli.slides.spots import lattice_places
from genrag_cli.slides.square import from_level0, unstretch
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.foreign import ForeignRows, in_pixels, join_rows
from genrag_cli.types import (
    BackboneCard,
    Doubles,
    Floats,
    Ints,
    Listener,
    PixelSize,
    Strings,
    TileBatch,
    TileGrid,
    fingerprint,
)
from genrag_cli.units import Microns, TilePx

THUMBNAIL_PX = 1500
JOIN_SHARE = 0.1
"""Of the pitch: how far a row of a file may lie from the spot that it is joined with."""

Tiles = Callable[[TileGrid], Iterator[TileBatch]]
"""Of a grid, of any field of view."""
Thumbnail = tuple[NDArray[np.uint8], float]


class Embedded(NamedTuple):
    """Embeddings of the spots of a query."""

    values: Floats
    """(n, d)"""
    sample: Floats
    """(s, d) of those that stand for the slide."""
    grid: TileGrid
    """Their n spots: those of the query, but for spots whose tiles cannot be read."""
    bad: Mapping[str, str]
    """Names of these, and why."""


@dataclass(frozen=True, eq=False)
class Query:
    """The spots of one slide."""

    slide_id: str
    grid: TileGrid
    card: BackboneCard
    digest: str
    """Identity of what it was made of."""
    about: dict[str, Any]
    """Where slide and embeddings come from, for provenance."""
    embed: Callable[[], Embedded]
    tiles: Tiles | None = None
    """Tiles of any size around spots; None where there are no pixels."""
    thumbnail: Callable[[], Thumbnail | None] = lambda: None
    options: Mapping[str, str] = field(default_factory=dict)
    """What the backbone was told beside its files; it may decide over a model's prediction."""
    own_sample: bool = False
    """Whether those that stand for the slide are tissue tiles, not the spots asked for."""
    laid: LaidOut | None = None
    """None where there are no pixels."""
    close: Callable[[], None] = lambda: None
    advance: Callable[[], None] = lambda: None
    """Embeds, so that `embed` has little left to do."""

    @property
    def pixels(self) -> bool:
        """Whether there is a slide to read tiles from."""
        return self.tiles is not None


def query_slide(
    path: Path, bank: Bank, loaded: Loaded, options: SlideOptions, run: RunOptions, folder: Path, listener: Listener
) -> Query:
    """Opens a slide, plans its spots and begins to read them; close it.

    Args:
        path: the slide.
        bank: opened with the backbone's name.
        loaded: the backbone.
        options: of the slide.
        run: workers, seed, dry run.
        folder: where embeddings are kept.
        listener: told what happens.

    Raises:
        SlideError: for a slide that cannot be read.
    """
    card = loaded.backbone.card
    laid = lay_out(path, options, bank.geometry, card.fov_um, card.tile_px, listener)
    try:
        return _query_of(laid, loaded, options, run, folder, listener)
    except BaseException:
        laid.close()
        raise


def _query_of(
    laid: LaidOut, loaded: Loaded, options: SlideOptions, run: RunOptions, folder: Path, listener: Listener
) -> Query:
    slide, grid, backbone, card = laid.slide, laid.grid, loaded.backbone, loaded.backbone.card
    if text := doubt_spots(options.spots, slide):
        listener.warn(text)

    def make(grid: TileGrid, kind: str, n_bad: int) -> SlideEmbeddings:
        place = embeddings_path(folder, slide.slide_id, card.name, kind)
        return SlideEmbeddings(slide, laid.digest, grid, backbone, place, run, n_bad, listener)

    making = None
    if not run.dry_run and len(grid):
        making = make(grid, "" if options.spots is None else "spots", options.bad_allowed(len(grid)))
        making.begin()

    def embed() -> Embedded:
        if making is None:
            nothing = np.zeros((0, card.dim), np.float32)
            return Embedded(nothing, nothing, grid, {})
        made = making.finish(laid.expect_unchanged)
        if options.spots is None:
            sample = made.values[sample_rows(made.grid, seed=run.seed)]
        else:
            found = _embed_sample(laid, card.tile_px, options, make, run, listener)
            sample = made.values[:0] if found is None else found
        return Embedded(made.values, sample, made.grid, making.bad)

    def tiles(other: TileGrid) -> Iterator[TileBatch]:
        for batch in read_tiles(slide, other, batch=BATCH, workers=run.workers):
            yield expect_whole(batch)

    def close() -> None:
        if making is not None:
            making.end()
        laid.close()

    loading = record(loaded.loading)
    about = {
        "slide": slide.path.name, "slide_digest": laid.digest, "slide_size": list(slide.size),
        "slide_reader": slide.reader, "backbone_loading": loading, "tissue": options.tissue,
        "lattice": options.lattice, "min_tissue": options.min_tissue,
    }  # fmt: skip
    return Query(
        slide.slide_id, grid, card, laid.digest, about, embed, tiles,
        functools.partial(_thumbnail, slide, laid.pixel_size), loading["options"], options.spots is not None,
        laid, close, lambda: None if making is None else making.advance(),
    )  # fmt: skip


def query_features(
    features: ForeignRows, slide: Path | None, bank: Bank, options: SlideOptions, run: RunOptions, listener: Listener
) -> Query:
    """Spots whose embeddings stand in a file; the order of its rows does not matter.

    Args:
        features: as read.
        slide: gives pixel size and thumbnail; None: neither is looked for in pixels.
        bank: whose backbone the features are of; `fit.expect_features` has looked at them.
        options: spots (None: those of the file), pixel size, pitch.
        run: the seed of the sample.
        listener: told what happens.

    Raises:
        FeaturesError: for spots without places, a missing pixel size, and rows that do not join.
    """
    if slide is not None:
        opened, pixel_size = open_with_pixel_size(slide, options, listener)
        with opened:
            slide_id, shown, stretch = opened.slide_id, _thumbnail(opened, pixel_size), opened.stretch
            about: dict[str, Any] = {
                "slide": opened.path.name, "slide_digest": opened.digest(), "slide_size": list(opened.size),
                "slide_reader": opened.reader,
            }  # fmt: skip
    else:
        slide_id, shown, stretch = features.path.name.split(".")[0], None, (1.0, 1.0)
        pixel_size = _stated_pixel_size(features, options)
        about = {"slide": slide_id, "slide_digest": "", "slide_size": [], "slide_reader": "none: features from a file"}
    pitch = options.pitch_um or bank.geometry["pitch_um"]
    features = in_pixels(features, pixel_size.mpp)
    names, level0, order = _place_spots(features, options, slide_id, pitch / pixel_size.mpp)
    if text := doubt_places(features, order, level0, pitch / pixel_size.mpp):
        listener.warn(f"{slide_id}: {text}")
    centres = from_level0(level0, stretch)
    width, height = about["slide_size"] or (np.inf, np.inf)
    if n_outside := int(((centres < 0) | (centres >= (width, height))).any(axis=1).sum()):
        raise FeaturesError(
            f"{features.path}: {n_outside} of {len(centres)} spots lie outside the {width} x {height} px of {slide_id}",
            "Are the features of this slide? Coordinates are level-0 px, x to the right and y down.",
        )
    places = lattice_places(centres, pitch / pixel_size.mpp)
    in_order = np.array_equal(order, np.arange(len(order)))
    values = features.values if in_order else np.ascontiguousarray(features.values[order])
    expect_fov(bank, features, pixel_size.mpp)
    fov = fov_of(features, pixel_size.mpp) or tile_um(bank.geometry, pixel_size.mpp)
    grid = TileGrid(
        slide_id, names, centres, places, TilePx(bank.card.tile_px), Microns(fov), Microns(pitch), pixel_size, stretch
    )
    listener.say(f"{slide_id}: {len(grid)} spots with {features.kind} features of {features.path}")
    for note in features.notes:
        listener.say(f"{features.path}: {note}")
    card = replace(
        bank.card, weights_sha256="", feature=f"{bank.card.feature or bank.card.name}, as {features.path.name} has it"
    )
    about |= {
        "features_file": str(features.path), "features_kind": features.kind, "features_encoder": features.encoder,
        "features_sha256": fingerprint(values, names),
    }  # fmt: skip
    sample = values[sample_rows(grid, seed=run.seed)]
    digest = fingerprint(about["features_sha256"], about["slide_digest"])
    embedded = Embedded(values, sample, grid, {})
    return Query(slide_id, grid, card, digest, about, lambda: embedded, None, lambda: shown)


def _place_spots(
    features: ForeignRows, options: SlideOptions, slide_id: str, pitch_px: float
) -> tuple[Strings, Doubles, NDArray[np.int64]]:
    """Names and centres of the spots in the order of the output, and the rows of the file that they are."""
    if options.spots is not None:
        (given, centres), _ = read_spots(options.spots)
        names = _make_names(slide_id, centres, pitch_px) if given is None else np.asarray(given, np.str_)
        return names, centres, join_rows(features, names, centres, within_px=JOIN_SHARE * pitch_px)
    if features.centres is None:
        raise FeaturesError(
            f"{features.path}: {features.kind} features without coordinates, so nobody knows where the spots are",
            "Give the spots: --spots FILE with name,x,y in level-0 px, or --spots COHORT:SECTION.",
        )
    # By place, so that the same spots give the same output whatever the order of the rows.
    order = np.lexsort((features.centres[:, 0], features.centres[:, 1]))
    centres = features.centres[order]
    names = _make_names(slide_id, centres, pitch_px) if features.names is None else features.names[order]
    return names, centres, order


def doubt_places(rows: ForeignRows, order: Ints, centres: Doubles, pitch_px: float) -> str:
    """A line where rows that were joined by name lie elsewhere than the spots of these names; empty otherwise."""
    if rows.names is None or rows.centres is None:
        return ""
    far = np.linalg.norm(rows.centres[order] - centres, axis=1) > 0.5 * pitch_px
    if not far.any():
        return ""
    return (
        f"{int(far.sum())} of {len(order)} spots of {rows.path} lie elsewhere than the spots of these names, such as "
        f"{rows.names[order[int(np.argmax(far))]]}: spots of one name, but of one section?"
    )


def _make_names(slide_id: str, centres: Doubles, pitch_px: float) -> Strings:
    names = np.array([f"{slide_id}:{row}_{column}" for row, column in lattice_places(centres, pitch_px)], np.str_)
    if len(np.unique(names)) < len(names):
        raise FeaturesError(f"{slide_id}: two spots lie at the same place", "Give every spot a name of its own.")
    return names


def _stated_pixel_size(features: ForeignRows, options: SlideOptions) -> PixelSize:
    stated = [] if features.mpp is None else [(f"{features.kind} file", features.mpp)]
    if options.mpp is None and not stated:
        raise FeaturesError(
            f"{features.path} does not say how many um a pixel is, and there is no slide to ask", "Give --mpp."
        )
    return resolve_pixel_size(stated, given=options.mpp, strict=options.strict_mpp)[0]


def _embed_sample(
    laid: LaidOut, tile_px: int, options: SlideOptions, make: Callable[[TileGrid, str, int], SlideEmbeddings],
    run: RunOptions, listener: Listener,
) -> Floats | None:  # fmt: skip
    """Embeddings of at most 2,000 tissue tiles, for a slide whose own spots were given; None without tissue."""
    slide = laid.slide
    try:
        grid = plan_tiles(
            slide, laid.pixel_size, fov_um=laid.lay["fov_um"], pitch_um=laid.lay["pitch_um"], tile_px=tile_px,
            tissue=laid.tissue, lattice=options.lattice, min_tissue=options.min_tissue,
        )  # fmt: skip
        if not len(grid):
            raise SlideError("no tissue found")
    except SlideError as error:
        listener.warn(f"{slide.slide_id}: {error.message}; the given spots are used all the same")
        return None
    grid = grid.rows(sample_rows(grid, seed=run.seed))
    return make(grid, "sample", len(grid)).finish().values


def _thumbnail(slide: RemoteSlide, pixel_size: PixelSize) -> Thumbnail:
    """In the proportions of the slide's own px, so that one scale does for both directions."""
    pixels, scale = slide.call(overview, pixel_size, um_per_px=max(slide.size) * pixel_size.mpp / THUMBNAIL_PX)
    return unstretch(pixels, slide.stretch), scale
