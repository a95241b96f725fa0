"""The solver: from a dictionary and queries to sparse codes with a certificate. Needs torch and numpy alone."""

from genrag_cli.retrieval.atoms import StreamedAtoms
from genrag_cli.retrieval.solve import prepare, solve

__all__ = ["StreamedAtoms", "prepare", "solve"]
