"""Units as types: a bare float in a signature says nothing, these say which."""

from typing import NewType

Microns = NewType("Microns", float)
"""A length on the tissue, in um."""

Mpp = NewType("Mpp", float)
"""A pixel size, in um per pixel."""

SlidePx = NewType("SlidePx", float)
"""A length or coordinate in level-0 pixels of a slide; x to the right, y down."""

TilePx = NewType("TilePx", int)
"""A length in pixels of a tile as a backbone sees it."""
