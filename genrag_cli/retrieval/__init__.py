"""The solver: from a dictionary and queries to sparse codes with a certificate. Needs torch and numpy alone."""

from genrag_cli.retrieval.solve import solve

__all__ = ["solve"]
