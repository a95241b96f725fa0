"""Looks for the one image that can be the full-resolution slide of a section whose layout has no place for it.

Goes by names and places only and opens no slide; small pictures that a pipeline made are looked at, to say what they
are worth. Several candidates are as good as none: nothing here chooses between them.
"""

from collections.abc import Iterable
from pathlib import Path

SUFFIXES = (
    ".tif", ".tiff", ".btf", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".qptiff", ".jpg", ".jpeg", ".png",
)  # fmt: skip
_FOLDERS = ("image", "images")
# Pictures that Space Ranger makes, in case they lie outside spatial/.
_MADE_BY_PIPELINE = (
    "tissue_hires_image", "tissue_lowres_image", "detected_tissue_image", "aligned_tissue_image", "aligned_fiducials",
    "cytassist_image",
)  # fmt: skip


def find_images(folders: Iterable[Path], home: Path, name: str) -> list[Path]:
    """The files that can be the slide of a section.

    Args:
        folders: every image in them and in their image/ and images/ counts.
        home: the section's folder; beside it, and in image/ and images/ there, only files called `name` count.
        name: of the section.

    Returns:
        sorted paths; one file under several names (links) once.
    """
    inside = [
        path
        for folder in folders
        for place in (folder, *(folder / f for f in _FOLDERS))
        if place.is_dir()
        for path in place.iterdir()
        if _is_slide(path)
    ]
    endings = [e for s in SUFFIXES for e in (s, s.upper())] + [".ome.tif", ".ome.tiff"]
    places = (home.parent, *(home.parent / f for f in _FOLDERS))
    beside = [place / f"{name}{ending}" for place in places for ending in endings]
    found = [*inside, *(path for path in beside if path.is_file())]
    return sorted({path.resolve(): path for path in sorted(found, reverse=True)}.values())


def describe_preview(path: Path) -> str:
    """What a preview picture is worth as an image of the section: never enough to embed, and sometimes nothing."""
    from PIL import Image

    shown = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        return f"no {shown} either"
    try:
        with Image.open(path) as picture:
            is_blank = picture.convert("RGB").getcolors(maxcolors=1) is not None
    except (OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return f"{shown} cannot be read ({error})"
    if is_blank:
        return f"{shown} is blank (one colour) and unusable even for a look"
    return f"{shown} is too coarse to embed"


def _is_slide(path: Path) -> bool:
    if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.is_file():
        return False
    return not path.stem.lower().endswith(_MADE_BY_PIPELINE)
