"""Spatial gene expression from H&E slides by retrieval from a bank of measured spots."""

from genrag_cli._version import __version__

__all__ = ["__version__"]
