"""Identity of what a slide is asked for: the content of the files that options name, not their names or dates."""

import dataclasses
from pathlib import Path
from typing import Any

from genrag_cli.errors import UsageError
from genrag_cli.pipeline.lay_out import read_spots
from genrag_cli.pipeline.options import SlideOptions
from genrag_cli.slides import RemoteSlide
from genrag_cli.stores.atomic import digest_file
from genrag_cli.types import fingerprint

TISSUE_METHODS = ("density", "otsu", "none")


def digest_of_options(options: SlideOptions) -> str:
    """Fingerprint of options, files by their content.

    Raises:
        UsageError: for a file that is not there.
    """
    spots: tuple[Any, ...] = ([], (), ())
    if options.spots is not None:
        (names, centres), places = read_spots(options.spots)
        spots = ([] if names is None else list(names), centres, () if places is None else places)
    tissue = options.tissue
    if tissue not in TISSUE_METHODS:
        try:
            tissue = digest_file(Path(tissue))
        except OSError as error:
            raise UsageError(
                f"--tissue {tissue}: cannot be read: {error.strerror}",
                f"Known: {', '.join(TISSUE_METHODS)}, or a file with a mask (PNG, TIFF) or contours (GeoJSON).",
            ) from error
    stated = dataclasses.asdict(dataclasses.replace(options, spots=None, tissue=tissue))
    return fingerprint(stated, *spots)


def digest_of_slide(path: Path) -> str:
    """Identity of a slide's content, read in the process that decodes.

    Raises:
        SlideError: where it cannot be opened.
    """
    with RemoteSlide(path, pictures=True) as slide:
        return slide.digest()
