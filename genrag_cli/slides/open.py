"""Which reader a path gets.

Knows the first bytes of files and the order in which readers are tried.
Does not read pixels.
"""

import os
from pathlib import Path

from genrag_cli.errors import SlideError, UsageError
from genrag_cli.slides.base import Slide
from genrag_cli.slides.files import expect_there

READER = "GENERAG_READER"
"""Variable that names a reader to take for every slide; unset: the one that fits."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURES = {b"\xff\xd8\xff": "JPG", b"\x89PNG": "PNG"}
_HINT = "Slides are what OpenSlide reads (SVS, NDPI, MRXS, SCN, BIF, ...), TIFF, OME-TIFF, OME-Zarr, a folder of DICOM."


def open_slide(path: str | Path, *, pictures: bool = False) -> Slide:
    """Opens a slide; close it, or use it as a context manager.

    Args:
        path: a slide file, a folder that holds one DICOM series, or that of an OME-NGFF image.
        pictures: accept JPG and PNG too, because the pixel size comes from elsewhere.

    Raises:
        SlideError: where there is nothing, nothing that a reader takes, or nothing that the reader asked for takes.
        UsageError: where `GENERAG_READER` names no reader.
    """
    from genrag_cli.slides.openslide import OpenSlideSlide, detect_vendor
    from genrag_cli.slides.picture import PictureSlide

    path = Path(path)
    expect_there(path)
    if asked := os.environ.get(READER):
        return _open_as_asked(path, asked)
    if path.is_dir():
        return _open_folder(path)
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise SlideError(f"{path}: cannot be read: {error.strerror}") from error
    for magic, kind in _PICTURES.items():
        if head.startswith(magic):
            if pictures:
                return PictureSlide(path)
            raise SlideError(
                f"{path}: a {kind} picture does not know its pixel size; taken by slide commands only with --mpp",
                "Add --mpp with the um per px of the picture.",
            )
    vendor = detect_vendor(path)
    if vendor not in (None, "generic-tiff"):
        return OpenSlideSlide(path)
    if head in _TIFF:
        return _open_tiff(path, tiled=vendor is not None)
    raise SlideError(f"{path}: not a slide", _HINT)


def _open_as_asked(path: Path, name: str) -> Slide:
    """The reader that the environment names, and no other."""
    from genrag_cli.slides.cucim import NAME, CucimSlide

    if name != NAME:
        raise UsageError(f"{READER}={name}: no reader is called so", f"Known: {NAME}; leave it out for the usual ones.")
    return CucimSlide(path)


def _open_folder(path: Path) -> Slide:
    """An image in Zarr, or a series of DICOM."""
    from genrag_cli.slides.ngff import NgffSlide, is_image, is_zarr
    from genrag_cli.slides.openslide import OpenSlideSlide

    if is_image(path):
        return NgffSlide(path)
    if is_zarr(path):
        found = sorted(p for p in (*path.glob("*"), *path.glob("images/*")) if p.is_dir() and is_image(p))
        shown = f"Give one of its images: {', '.join(map(str, found[:5]))}" if found else "It holds no image."
        raise SlideError(f"{path}: a Zarr folder without the metadata of an image", shown)
    return OpenSlideSlide(path)


def _open_tiff(path: Path, *, tiled: bool) -> Slide:
    """A TIFF of no vendor: OpenSlide where it sees the whole pyramid (it is faster), otherwise tifffile.

    tifffile looks first, because OpenSlide shows greyscale and 16-bit files as if they were colour, and of an
    OME-TIFF it sees neither the pyramid nor the pixel size.
    """
    from genrag_cli.slides.openslide import OpenSlideSlide
    from genrag_cli.slides.tiff import TiffSlide

    slide = TiffSlide(path)
    if tiled and slide.vendor != "ome":
        try:
            other = OpenSlideSlide(path)
        except SlideError:
            return slide
        if len(other.levels) >= len(slide.levels):
            slide.close()
            return other
        other.close()
    return slide
