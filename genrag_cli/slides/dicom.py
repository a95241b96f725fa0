"""The little that has to be known about DICOM files beside what OpenSlide tells.

Knows how to find the files of a series and whether OpenSlide's colours of a file are right.
Does not decode pixels for anybody; `slides.openslide` does the reading.
"""

import mmap
import re
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import SlideError

# Study UID directly followed by series UID, explicit VR little endian: only the file's own series has both in a row.
_SERIES = re.compile(rb"\x20\x00\x0d\x00UI..[0-9.\x00 ]{1,64}\x20\x00\x0e\x00UI(..)([0-9.]{1,64})", re.DOTALL)
_MATRIX = re.compile(rb"\x48\x00\x06\x00UL\x04\x00(....)\x48\x00\x07\x00UL\x04\x00(....)", re.DOTALL)
_PIXEL_DATA = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"
_HEADER_BYTES = 1 << 20


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM, whatever its name."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def series_uid(path: Path) -> str:
    """The series that a file belongs to; empty where the header is not in the usual encoding."""
    with path.open("rb") as file:
        found = _SERIES.search(file.read(_HEADER_BYTES))
    return found.group(2).decode().rstrip("\0 ") if found else ""


def series_files(path: Path) -> list[Path]:
    """The DICOM files of the folder `path`, or of the series that the file `path` belongs to.

    Raises:
        SlideError: for a folder without DICOM or with more than one series.
    """
    folder = path if path.is_dir() else path.parent
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and is_dicom(p)]
    if not files:
        raise SlideError(
            f"{path}: a folder is a slide only where it holds a DICOM series, and it holds no DICOM file",
            "Give the slide file itself (for MIRAX the .mrxs file, not its folder).",
        )
    series = {p: series_uid(p) for p in files}
    if path.is_file():
        return [p for p in files if series[p] == series[path]]
    if len(set(series.values())) > 1:
        raise SlideError(
            f"{path}: {len(set(series.values()))} DICOM series in one folder, of {', '.join(p.name for p in files[:3])}"
            f"{', ...' if len(files) > 3 else ''}",
            "Give one .dcm file of the series that is meant, or put each series into its own folder.",
        )
    return files


def first_frame(files: list[Path], size: tuple[int, int]) -> bytes:
    """The first JPEG frame of the file that holds level 0.

    Args:
        files: files of one series.
        size: width and height of level 0.

    Returns:
        the frame, with what follows it in the file (decoders ignore that); empty where there is none.
    """
    for path in files:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            matrix = _MATRIX.search(data)
            if matrix and tuple(struct.unpack("<I", part)[0] for part in matrix.groups()) == size:
                start = data.find(_PIXEL_DATA, matrix.end())
                frame = data.find(b"\xff\xd8\xff", start) if start >= 0 else -1
                return bytes(data[frame : frame + (8 << 20)]) if frame >= 0 else b""
    return b""


def is_undone_ycbcr(frame: bytes, seen: NDArray[np.uint8]) -> bool:
    """Whether pixels are luma and chroma that were never turned into red, green and blue.

    Some writers call frames RGB that are ordinary JPEG, i.e. YCbCr inside. A reader that believes them shows white
    as salmon. The frame itself, decoded as JPEG, tells which of the two was read.

    Args:
        frame: the frame's JPEG data.
        seen: (h, w, 3) what a reader made of its upper left corner.

    Returns:
        True only where `seen` matches the frame's YCbCr and not its RGB.
    """
    from PIL import Image

    try:
        image = Image.open(BytesIO(frame))
        if image.format != "JPEG" or image.mode != "RGB":
            return False
        h, w = min(image.height, seen.shape[0]), min(image.width, seen.shape[1])
        rgb = image.crop((0, 0, w, h))
    except (OSError, SyntaxError):  # not a JPEG that Pillow reads: nothing to compare with
        return False

    def distance(pixels: NDArray[np.uint8]) -> float:
        return float(np.abs(pixels.astype(np.int16) - seen[:h, :w]).mean())

    return distance(np.asarray(rgb.convert("YCbCr"))) < min(4.0, distance(np.asarray(rgb)))
