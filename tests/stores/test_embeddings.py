"""Embeddings files."""

import numpy as np
import pytest

from genrag_cli.errors import OutputError
from genrag_cli.stores.atomic import pack_folder
from genrag_cli.stores.embeddings import read_about, read_embeddings, write_embeddings
from genrag_cli.types import BackboneCard, PixelSize, TileGrid

CARD = BackboneCard("stain", "1", 6, 224, "none")
GRID = TileGrid(
    "s", np.array(["s:0_0", "s:0_1", "s:1_0"]),
    np.array([[1.5, 2], [3, 4], [5, 6]]), np.array([[0, 0], [0, 1], [1, 0]]),
    224, 200.0, 150.0, PixelSize(0.5, "aperio property", (("TIFF resolution", 0.51),)),
)  # fmt: skip
VALUES = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)


def test_grid_card_and_values_survive(tmp_path):
    path = tmp_path / "s.stain.zarr.zip"
    write_embeddings(path, GRID, CARD, iter([VALUES[:2], VALUES[2:]]), key="k", extra={"slide": "s.svs"})
    found = read_embeddings(path)
    np.testing.assert_array_equal(found.values, VALUES)
    np.testing.assert_array_equal(found.grid.centres, GRID.centres)
    assert found.grid.names.tolist() == GRID.names.tolist()
    assert (found.card, found.grid.pixel_size, found.grid.fov_um) == (CARD, GRID.pixel_size, 200.0)
    assert read_about(path)["key"] == "k"


def test_a_row_too_few_leaves_no_file(tmp_path):
    with pytest.raises(OutputError, match="2 rows"):
        write_embeddings(tmp_path / "a.zarr.zip", GRID, CARD, iter([VALUES[:2]]), key="k", extra={})
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_short_is_said(tmp_path):
    path = tmp_path / "a.zarr.zip"
    write_embeddings(path, GRID, CARD, iter([VALUES]), key="k", extra={})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OutputError, match=r"a\.zarr\.zip: (cut short|damaged)"):
        read_embeddings(path)


def test_somebody_elses_zip_is_not_ours(tmp_path):
    import zarr

    zarr.create_group(tmp_path / "g", zarr_format=3)
    pack_folder(tmp_path / "g", tmp_path / "a.zarr.zip")
    with pytest.raises(OutputError, match="not written by generag"):
        read_about(tmp_path / "a.zarr.zip")
