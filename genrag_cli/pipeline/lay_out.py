"""One slide laid out: pixel size, tissue, spots."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genrag_cli.cohorts import read_truth
from genrag_cli.errors import CohortError, SlideError, UsageError
from genrag_cli.pipeline.apart import read_apart
from genrag_cli.pipeline.geometry import Geometry, tile_um
from genrag_cli.pipeline.options import SlideOptions
from genrag_cli.slides import (
    RemoteSlide,
    Slide,
    Tissue,
    choose_pitch,
    find_tissue,
    plan_spots,
    plan_tiles,
    read_spots_csv,
    resolve_pixel_size,
)
from genrag_cli.slides.spots import Spots
from genrag_cli.slides.square import from_level0
from genrag_cli.types import Ints, Listener, PixelSize, TileGrid


def open_with_pixel_size(path: Path, options: SlideOptions, listener: Listener) -> tuple[RemoteSlide, PixelSize]:
    """Opens a slide in the process that decodes and settles its pixel size, saying what is doubtful."""
    slide = RemoteSlide(path, pictures=options.mpp is not None)
    slide.slide_id = options.name or slide.slide_id
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


@dataclass(frozen=True, eq=False)
class LaidOut:
    """A slide, open, and its spots; close it."""

    slide: RemoteSlide
    digest: str
    """Of the slide as it was when it was opened."""
    pixel_size: PixelSize
    tissue: Tissue
    grid: TileGrid
    lay: Mapping[str, float]
    """`fov_um` and `pitch_um`."""

    def expect_unchanged(self) -> None:
        """Refuses a result of a slide that is no longer what it was when it was opened.

        Raises:
            SlideError: where the file was replaced or has vanished.
        """
        try:
            now = self.slide.digest()
        except SlideError as error:
            raise SlideError(
                f"{self.slide.path}: vanished while it was being read", "Put it back, then run the same command again."
            ) from error
        if now != self.digest:
            raise SlideError(
                f"{self.slide.path}: replaced by another file while it was being read, so nothing is written",
                "Run the same command again.",
            )

    def facts(self) -> dict[str, Any]:
        """What a status says of a slide."""
        width, height = self.slide.size
        return {
            "reader": self.slide.reader, "width": width, "height": height, "mpp": float(self.pixel_size.mpp),
            "mpp_source": self.pixel_size.source, "tissue_share": round(float(self.tissue.mask.mean()), 4),
        }  # fmt: skip

    def close(self) -> None:
        """Closes the slide."""
        self.slide.close()


def lay_out(
    path: Path, options: SlideOptions, geometry: Geometry | None, trained_fov: float | None, tile_px: int,
    listener: Listener,
) -> LaidOut:  # fmt: skip
    """Opens a slide, finds its tissue and plans its spots.

    Args:
        path: the slide.
        options: of the slide.
        geometry: of the bank, for what the options leave open; None where there is no bank.
        trained_fov: um, the backbone's own field of view, for what both leave open.
        tile_px: side of a tile as the backbone takes it.
        listener: told what happens; notes the seconds.

    Raises:
        SlideError: for a slide that cannot be read.
    """
    with listener.timed("open"):
        slide, pixel_size = open_with_pixel_size(path, options, listener)
    try:
        digest = slide.digest()
        fov_um, pitch_um = choose_geometry(options, geometry, trained_fov, pixel_size.mpp)
        with listener.timed("tissue"):
            tissue = slide.call(find_tissue, pixel_size, how=options.tissue)
        grid = plan_grid(slide, pixel_size, tissue, options, fov_um=fov_um, pitch_um=pitch_um, tile_px=tile_px)
    except BaseException:
        slide.close()
        raise
    listener.say(describe_grid(slide, grid))
    return LaidOut(slide, digest, pixel_size, tissue, grid, {"fov_um": fov_um, "pitch_um": pitch_um})


def plan_grid(
    slide: RemoteSlide, pixel_size: PixelSize, tissue: Tissue, options: SlideOptions, *, fov_um: float,
    pitch_um: float, tile_px: int,
) -> TileGrid:  # fmt: skip
    """The spots of a slide: those of a file, or every one on tissue."""
    if options.spots is not None:
        (names, centres), array_rc = read_spots(options.spots)
        given = names, from_level0(centres, slide.stretch)
        grid = plan_spots(
            slide, pixel_size, given, fov_um=fov_um, pitch_um=pitch_um, tile_px=tile_px, array_rc=array_rc
        )
    else:
        grid = plan_tiles(
            slide, pixel_size, fov_um=fov_um, pitch_um=pitch_um, tile_px=tile_px, tissue=tissue,
            min_tissue=options.min_tissue, lattice=options.lattice,
        )  # fmt: skip
    return replace(grid, stretch=slide.stretch)


def read_spots(text: str) -> tuple[Spots, Ints | None]:
    """Spots of a file, or of a measured section given as COHORT:SECTION; with lattice places where they are known."""
    if ":" in text and not Path(text).exists():
        measured = read_apart(text, CohortError, read_truth, text)
        return (measured.names, measured.centres), measured.array_rc
    return read_spots_csv(text), None


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
    if options.overlap is not None and fov is not None:
        pitch = choose_pitch(fov, overlap=options.overlap)
    if fov is None or pitch is None:
        raise UsageError(
            "no field of view: there is no bank to take it from, and this backbone works at any",
            "Give --fov-um (and --pitch-um), or --bank with a bank that is there.",
        )
    if fov <= 0 or pitch <= 0:
        raise UsageError(f"--fov-um {fov:g} and --pitch-um {pitch:g} must be above 0")
    return float(fov), float(pitch)
