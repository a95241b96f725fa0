"""Banks and embeddings on disk: AnnData in zipped Zarr v3, behind an atomic manifest."""
