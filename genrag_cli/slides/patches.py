"""Tiles that were cut beforehand: an HDF5 file of patches around the spots of a section, as HEST hands them out.

`img` (n, S, S, 3) uint8 RGB, `coords` (n, 2), `barcode` (n, 1) or (n,). Two conventions are in use, and the attributes
of `img` or `coords` tell them apart:

| | HEST-1k, and HEST's code since | HEST-bench, written by older code |
|---|---|---|
| `coords` | x, y of the upper left corner in level-0 px | y, x (row first) of the centre in level-0 px |
| side on the slide in level-0 px | `patch_size_src` | `patch_size` (beside `factor`) |
| um per level-0 px | `pixel_size` | not stated; patches of 224 px were made at 0.5 um/px |

Knows where patches lie and what they show. Does not know slides, and joins patches with spots by name only: a file
holds a subset of the spots, in an order of its own.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from genrag_cli.errors import SlideError
from genrag_cli.slides.base import Level, Pixels, as_number, content_digest
from genrag_cli.types import Doubles, Ints, Strings, TileBatch, TileGrid

BENCH_PX, BENCH_MPP = 224, 0.5
_IMAGES, _NAMES = ("img", "imgs", "images"), ("barcode", "barcodes")
_HINT = "Expected img (n, S, S, 3) uint8, coords (n, 2) and barcode (n, 1), as HEST writes them."
_CENTRE_SHARE = 0.25
"""A patch whose centre is further from its spot than this share of its side is another section's."""
_FOV_SLACK = 1.01
_CUTS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("without suffixes such as -1", lambda name: re.sub(r"(-\d+)+$", "", name)),
    ("cut to 18 characters", lambda name: name[:18]),
)


class PatchSlide:
    """Patches in place of a slide: what pipelines ask of a `Slide`, except pixels away from the spots.

    Args:
        path: the HDF5 file.

    Raises:
        SlideError: where it is no such file, or contradicts itself.
    """

    reader = "patches/h5"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.slide_id = path.stem
        self._file = _open_hdf5(path)
        try:
            self._images = _data_set(self._file, path, _IMAGES)
            self.patch_px = _side_of(self._images, path)
            self.names: Strings = _read_names(_data_set(self._file, path, _NAMES), path)
            """(n,) unique barcodes."""
            coords = _read_coords(_data_set(self._file, path, ("coords",)), path)
            if not len(self._images) == len(self.names) == len(coords):
                raise SlideError(
                    f"{path}: {len(self._images)} patches, {len(coords)} coordinates and {len(self.names)} barcodes",
                    "Is the file complete?",
                )
            stated = _read_attributes(self._images, self._file["coords"], path)
        except BaseException:
            self._file.close()
            raise
        self.rows = {name: row for row, name in enumerate(self.names.tolist())}
        self._pixel_size = ("patches pixel_size", stated["pixel_size"]) if "pixel_size" in stated else None
        self.side_px = _source_side(stated, self.patch_px, path)
        """Side on the slide in level-0 px; None where the file does not state it."""
        centred = "patch_size_src" not in stated and {"patch_size", "factor"} <= set(stated)
        half = (self.side_px or 0) / 2
        self.corners: Doubles = coords[:, ::-1] - half if centred else coords
        """(n, 2) x, y of the upper left corners in level-0 px."""
        self.notes: tuple[str, ...] = ()
        if centred and self._pixel_size is None and self.patch_px == BENCH_PX and self.side_px:
            self._pixel_size = (f"patches at {BENCH_MPP} um/px", BENCH_MPP * self.patch_px / self.side_px)
            self.notes = (f"states no pixel size; its patches are taken as {BENCH_MPP} um/px, as HEST-bench's are",)
        # Where the side is not stated it is measured against the spots later; four times the patch leaves room for it.
        width, height = np.ceil(self.corners.max(axis=0) + (self.side_px or 4 * self.patch_px))
        self.size = (int(width), int(height))
        """The extent of the patches: the slide is at least this wide and high."""
        self.levels = [Level(*self.size, 1.0)]

    def pixel_size_candidates(self) -> list[tuple[str, float]]:
        """What the file states."""
        return [] if self._pixel_size is None else [self._pixel_size]

    def read_region(self, x: int, y: int, w: int, h: int, level: int) -> Pixels:
        """Refuses: there is nothing between the patches.

        Raises:
            SlideError: always.
        """
        raise SlideError(
            f"{self.path}: patches around spots are no slide; {w} x {h} px at {x}, {y} (level {level}) were asked",
            "Give the slide itself for anything but tiles of the measured spots.",
        )

    def read_patch(self, row: int) -> Pixels:
        """(S, S, 3) pixels of one patch.

        Raises:
            SlideError: where the file is damaged.
        """
        try:
            return np.asarray(self._images[row], np.uint8)
        except (OSError, ValueError) as error:
            raise SlideError(f"{self.path}: patch {row} cannot be read ({error})", "Is the file complete?") from error

    def tile_size(self, level: int) -> None:
        """Patches are stored one by one."""

    def digest(self) -> str:
        """Identity of the file's content."""
        return content_digest([self.path])

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_patches(path: str | Path) -> PatchSlide:
    """Opens a file of patches; close it, or use it as a context manager.

    Raises:
        SlideError: where there is nothing, or it is no such file.
    """
    return PatchSlide(Path(path))


def which_have_patches(slide: PatchSlide, names: Sequence[str] | Strings) -> Any:
    """(n,) bool: which spots have a patch, joined as `match_patches` does.

    Raises:
        SlideError: where barcodes agree only after a cut that makes them ambiguous.
    """
    return match_patches(slide, names)[0] >= 0


def match_patches(slide: PatchSlide, names: Sequence[str] | Strings) -> tuple[Ints, str]:
    """Joins spots with patches by name.

    Names that agree as they are decide. Where none does, one cut for all is tried (a suffix such as -1, HEST's cut to
    18 characters) and counts only if it leaves every name of both sides unique.

    Returns:
        (n,) rows of the patches, -1 where a spot has none; and how names were cut, empty where they were not.

    Raises:
        SlideError: where a cut would join names and is ambiguous.
    """
    spots = [str(name) for name in names]
    found = np.array([slide.rows.get(name, -1) for name in spots], np.int64)
    if (found >= 0).any():
        return found, ""
    for how, cut in _CUTS:
        rows = {cut(name): row for name, row in slide.rows.items()}
        keys = [cut(name) for name in spots]
        found = np.array([rows.get(key, -1) for key in keys], np.int64)
        if not (found >= 0).any():
            continue
        spot, patch = spots[int(np.argmax(found >= 0))], slide.names[int(found.max())]
        if len(rows) < len(slide.rows) or len(set(keys)) < len(spots):
            raise SlideError(
                f"{slide.path}: patches (such as {patch}) and spots (such as {spot}) agree only {how}, and so cut "
                "several have one name",
                "Give both the same names.",
            )
        return found, f"spots (such as {spot}) and patches (such as {patch}) are joined {how}"
    return found, ""


def read_patches(slide: PatchSlide, grid: TileGrid, rows: Ints, batch: int) -> Iterator[TileBatch]:
    """Gives the tiles of a grid out of patches: cut to the grid's field of view about the centre, resized.

    One batch is read ahead; within a batch the file is read in its own order.

    Args:
        slide: open; must stay open until the last batch is taken.
        grid: of the same section.
        rows: (m,) rows of the grid to read, in this order.
        batch: tiles per batch.

    Raises:
        SlideError: for a spot that has no patch or lies elsewhere than its patch, and for a field of view that is
            larger than the patches.
    """
    matched = match_patches(slide, grid.names)[0]
    side = _check_places(slide, grid, matched, rows)
    if grid.side_px > _FOV_SLACK * side:
        raise SlideError(
            f"{slide.path}: patches of {side * grid.pixel_size.mpp:.4g} um are smaller than the field of view of "
            f"{grid.fov_um:g} um",
            f"Use --fov-um {math.floor(side * grid.pixel_size.mpp)} or less, or give the slide.",
        )
    width = min(grid.side_px / side, 1.0) * slide.patch_px

    def read(chunk: Ints) -> TileBatch:
        pixels = np.empty((len(chunk), grid.tile_px, grid.tile_px, 3), np.uint8)
        for i in np.argsort(matched[chunk]):
            pixels[i] = _crop_centre(slide.read_patch(int(matched[chunk[i]])), width, grid.tile_px)
        return TileBatch(chunk, pixels)

    pool = ThreadPoolExecutor(1, thread_name_prefix="tiles")
    try:
        ahead = None
        for start in range(0, len(rows), batch):
            coming = pool.submit(read, rows[start : start + batch])
            if ahead is not None:
                yield ahead.result()
            ahead = coming
        if ahead is not None:
            yield ahead.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_places(slide: PatchSlide, grid: TileGrid, matched: Ints, rows: Ints) -> float:
    """Side of the patches in level-0 px, after seeing that each asked spot has its patch around it."""
    if len(bare := rows[matched[rows] < 0]):
        raise SlideError(
            f"{slide.path}: {len(bare)} of {len(rows)} spots have no patch, such as {grid.names[bare[0]]}; "
            f"the file's barcodes are such as {slide.names[0]}",
            "Leave these spots out, or give the slide.",
        )
    side = slide.side_px or _measure_side(slide, grid, matched)
    centres = slide.corners[matched[rows]] + side / 2
    far = np.abs(centres - grid.centres[rows]).max(axis=1, initial=0)
    if len(rows) and far.max() > _CENTRE_SHARE * side:
        worst = int(np.argmax(far))
        (px, py), (x, y) = centres[worst], grid.centres[rows[worst]]
        raise SlideError(
            f"{slide.path}: {int((far > _CENTRE_SHARE * side).sum())} of {len(rows)} patches are not where their spots "
            f"are: that of {grid.names[rows[worst]]} is centred on x {px:g}, y {py:g}, the spot on x {x:g}, y {y:g}",
            "Patches and spots are of two sections, or of two versions of one; give the file that belongs here.",
        )
    return side


def _measure_side(slide: PatchSlide, grid: TileGrid, matched: Ints) -> float:
    """Twice the way from a patch's corner to its spot, which has to be the same for all, across and down."""
    known = matched >= 0
    way = grid.centres[known] - slide.corners[matched[known]]
    half = float(np.median(way))
    if half <= 0 or np.abs(way - half).max() > max(2.0, 0.02 * half):
        raise SlideError(
            f"{slide.path}: does not state patch_size_src, and its corners do not lie at one distance from the spots",
            "Are patches and spots of one section? Otherwise add the attribute patch_size_src to img.",
        )
    return float(round(2 * half))


def _crop_centre(patch: Pixels, width: float, tile_px: int) -> Pixels:
    """The middle of a patch, `width` px wide, at (tile_px, tile_px, 3)."""
    from PIL import Image

    edge = (len(patch) - width) / 2
    # Whole px first, as for slides: resizing would otherwise look beyond the box.
    whole = math.floor(edge + 1e-6)
    inner = patch[whole : len(patch) - whole, whole : len(patch) - whole]
    low = max(edge - whole, 0.0)
    box = (low, low, len(inner) - low, len(inner) - low)
    return np.array(Image.fromarray(inner).resize((tile_px, tile_px), Image.Resampling.BILINEAR, box=box))


def _open_hdf5(path: Path) -> Any:
    import h5py

    if not path.is_file():
        raise SlideError(f"{path}: no such file of patches")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise SlideError(f"{path}: cannot be opened as HDF5 ({error})", _HINT) from error


def _data_set(file: Any, path: Path, keys: tuple[str, ...]) -> Any:
    found = next((file[key] for key in keys if key in file and hasattr(file[key], "shape")), None)
    if found is None:
        why = "; it holds coordinates only" if "coords" in file and keys == _IMAGES else ""
        raise SlideError(f"{path}: no data set {keys[0]}, found {', '.join(file) or 'nothing'}{why}", _HINT)
    return found


def _side_of(images: Any, path: Path) -> int:
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or 0 in shape:
        raise SlideError(f"{path}: {images.name} is {shape} {images.dtype}", _HINT)
    return int(shape[1])


def _read_names(barcodes: Any, path: Path) -> Strings:
    try:
        cells = [v.decode() if isinstance(v, bytes) else str(v) for v in np.asarray(barcodes[()]).reshape(-1)]
    except UnicodeDecodeError as error:
        raise SlideError(f"{path}: barcodes are not UTF-8 ({error})") from error
    names, times = np.unique(np.array(cells, np.str_), return_counts=True)
    if len(repeated := names[times > 1]):
        raise SlideError(
            f"{path}: {len(repeated)} barcodes occur more than once, such as {repeated[0]}",
            "A spot can have one patch only.",
        )
    return np.array(cells, np.str_)


def _read_coords(coords: Any, path: Path) -> Doubles:
    if len(coords.shape) != 2 or coords.shape[1] != 2 or coords.dtype.kind not in "iuf":
        raise SlideError(f"{path}: coords is {coords.shape} {coords.dtype}", _HINT)
    values: Doubles = np.asarray(coords[()], np.float64)
    if not np.all(np.isfinite(values)):
        raise SlideError(f"{path}: some patches have no coordinates")
    return values


def _read_attributes(images: Any, coords: Any, path: Path) -> dict[str, float]:
    """Lengths above 0 among the attributes of both data sets."""
    stated: dict[str, float] = {}
    for holder in (images, coords):
        for key in ("patch_size_src", "patch_size", "factor", "downsample", "pixel_size"):
            cells = np.asarray(holder.attrs.get(key, ())).reshape(-1)
            value = as_number(cells[0]) if len(cells) == 1 else None
            if value is None or not 0 < value < math.inf:
                continue
            if abs(stated.get(key, value) / value - 1) > 1e-3:
                raise SlideError(f"{path}: {key} is {stated[key]:g} on {images.name} and {value:g} on coords")
            stated[key] = value
    return stated


def _source_side(stated: dict[str, float], patch_px: int, path: Path) -> float | None:
    shrunk = stated["downsample"] * patch_px if "downsample" in stated else None
    side = stated.get("patch_size_src", stated.get("patch_size") if "factor" in stated else shrunk)
    if side and shrunk and abs(side / shrunk - 1) > 0.02:
        raise SlideError(
            f"{path}: patches of {patch_px} px are said to cover {side:g} px of the slide, and to be shrunk "
            f"{stated['downsample']:g} times, which is {shrunk:g} px",
            "The attributes patch_size_src and downsample contradict each other.",
        )
    return side
