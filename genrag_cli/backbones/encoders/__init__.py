"""Encoders: tiles to embeddings, one adapter a file, each written from what was published."""
