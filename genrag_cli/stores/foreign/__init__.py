"""Embeddings and predictions that were made elsewhere, read as rows and joined to spots by name or place.

It knows file formats of other tools. It does not know banks, slides or what the numbers are used for, and it runs no
code that a file brings.
"""

from genrag_cli.stores.foreign.join import in_pixels, join_rows
from genrag_cli.stores.foreign.reading import read_features, read_predictions
from genrag_cli.stores.foreign.rows import ForeignRows

__all__ = ["ForeignRows", "in_pixels", "join_rows", "read_features", "read_predictions"]
