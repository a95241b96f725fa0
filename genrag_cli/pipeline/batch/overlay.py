"""The picture of a slide's tissue and spots, and the contours of its tissue, beside its result."""

import json
from pathlib import Path

from genrag_cli.outputs.contours import tissue_geojson
from genrag_cli.outputs.overlay import tissue_overlay, write_overlay
from genrag_cli.pipeline.lay_out import LaidOut
from genrag_cli.stores.atomic import new_file


def picture_tissue(laid: LaidOut, folder: Path, name: str) -> None:
    """Writes `NAME.tissue.png` and `NAME.tissue.geojson` (level-0 px).

    Raises:
        OutputError: where they cannot be written.
    """
    tissue, grid = laid.tissue, laid.grid
    side_px = grid.pitch_um / grid.pixel_size.mpp
    pixels = tissue_overlay(tissue.overview, tissue.mask, tissue.scale, grid.centres, side_px)
    with new_file(folder / f"{name}.tissue.png") as temporary:
        write_overlay(pixels, temporary)
    across, down = grid.stretch
    contours = tissue_geojson(tissue.mask, (tissue.scale * across, tissue.scale * down))
    with new_file(folder / f"{name}.tissue.geojson") as temporary:
        temporary.write_text(json.dumps(contours), encoding="utf-8")
