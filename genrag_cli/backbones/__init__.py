"""Tiles to embeddings, and embeddings to expression.

Importing this package loads no torch; a backbone loads what it needs when it is asked for by name (`registry`).
"""
