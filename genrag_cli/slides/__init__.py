"""Pixels: slides and pictures of sections, their pixel size, their tissue and their tiles.

Knows file formats of slides and coordinates on them; the only home, with `synthetic`, of openslide and tifffile.
Does not know genes, backbones or banks.
"""

from genrag_cli.slides.base import Level, Pixels, Slide
from genrag_cli.slides.mpp import resolve_pixel_size
from genrag_cli.slides.open import open_slide
from genrag_cli.slides.order import reading_order
from genrag_cli.slides.patches import PatchSlide, open_patches, which_have_patches
from genrag_cli.slides.remote import RemoteSlide, TileStream
from genrag_cli.slides.spots import lattice_places, plan_spots, read_spots_csv
from genrag_cli.slides.tiles import (
    best_level,
    choose_pitch,
    expect_whole,
    n_beyond_edge,
    plan_tiles,
    read_tiles,
    sample_rows,
)
from genrag_cli.slides.tissue import Tissue, find_tissue, overview, tissue_mask, tissue_share

__all__ = [
    "Level",
    "PatchSlide",
    "Pixels",
    "RemoteSlide",
    "Slide",
    "TileStream",
    "Tissue",
    "best_level",
    "choose_pitch",
    "expect_whole",
    "find_tissue",
    "lattice_places",
    "n_beyond_edge",
    "open_patches",
    "open_slide",
    "overview",
    "plan_spots",
    "plan_tiles",
    "read_spots_csv",
    "read_tiles",
    "reading_order",
    "resolve_pixel_size",
    "sample_rows",
    "tissue_mask",
    "tissue_share",
    "which_have_patches",
]
