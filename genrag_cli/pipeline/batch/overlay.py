"""The picture of a slide's tissue and spots, and the contours of its tissue, beside its result."""

from pathlib import Path

from genrag_cli.pipeline.lay_out import LaidOut


def write_overlay(laid: LaidOut, folder: Path, name: str) -> None:
    """Writes `NAME.tissue.png` and `NAME.tissue.geojson`."""
