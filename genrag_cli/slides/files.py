"""Which files a slide consists of, told from names alone, for whoever copies or watches it.

Does not open slides; `slides.openslide` knows what OpenSlide itself says of the format.
"""

import re
from pathlib import Path

from genrag_cli.errors import SlideError
from genrag_cli.slides import dicom
from genrag_cli.slides.ngff import is_zarr

INDEXES = (".vms", ".vmu")
"""Hamamatsu's tables of the files of a slide."""
MIRAX = ".mrxs"


def slide_files(path: Path) -> list[Path]:
    """Every file of a slide, the one that is opened (if it is one) first.

    Raises:
        SlideError: where there is nothing, or a folder that is no slide.
    """
    expect_there(path)
    if path.is_dir():
        if is_zarr(path):
            return sorted(p for p in path.rglob("*") if p.is_file())
        return dicom.series_files(path)
    if path.suffix.lower() == MIRAX:
        return [path, *mirax_files(path)]
    if path.suffix.lower() in INDEXES:
        return [path, *indexed_files(path)]
    if dicom.is_dicom(path):
        return [path, *(p for p in dicom.series_files(path) if p != path)]
    return [path]


def expect_there(path: Path) -> None:
    """Refuses a path that leads nowhere.

    Raises:
        SlideError: where there is nothing.
    """
    if not path.exists():
        raise SlideError(f"{path}: no such slide", "Check the path; quote names with spaces.")


def mirax_files(path: Path) -> list[Path]:
    """The files in the folder beside NAME.mrxs."""
    return sorted(p for p in path.with_suffix("").rglob("*") if p.is_file())


def indexed_files(path: Path) -> list[Path]:
    """The files that a VMS or VMU index names, as far as they lie beside it."""
    values = re.findall(r"=[ \t]*([^\r\n]+)", path.read_text("utf-8", errors="replace"))
    beside = {path.parent / value.strip() for value in values}
    return sorted(p for p in beside if p.parent == path.parent and p.is_file())
