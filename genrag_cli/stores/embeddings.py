"""What `generag embed` writes: one zipped AnnData per slide and backbone, with the grid and what made it.

Embeddings are stored as the backbone gave them. This module does not embed.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli._version import __version__
from genrag_cli.errors import BankError, OutputError
from genrag_cli.stores.seal import check
from genrag_cli.stores.zipped import add_rows, opened, packing, read_frame, write_anndata
from genrag_cli.types import BackboneCard, Embeddings, Floats, PixelSize, TileGrid
from genrag_cli.units import Microns, Mpp, TilePx


def write_embeddings(
    path: Path, grid: TileGrid, card: BackboneCard, blocks: Iterator[Floats], *, key: str, extra: dict[str, Any]
) -> None:
    """Writes embeddings block by block; the file appears when the last row is in.

    Args:
        path: `SLIDE.BACKBONE.zarr.zip`.
        grid: the n spots.
        card: the backbone.
        blocks: (b, d) blocks that together are the n rows.
        key: fingerprint of the slide, grid and card; a rerun with an equal one does nothing.
        extra: more provenance, flat.
    """
    import anndata
    import pandas as pd

    about = {
        "generag_version": __version__,
        "key": key,
        "card": dataclasses.asdict(card),
        "grid": {
            "slide_id": grid.slide_id, "tile_px": grid.tile_px, "fov_um": grid.fov_um, "pitch_um": grid.pitch_um,
            "pixel_size": dataclasses.asdict(grid.pixel_size),
        },
        **extra,
    }  # fmt: skip
    obs = pd.DataFrame(
        {"array_row": grid.array_rc[:, 0], "array_col": grid.array_rc[:, 1]},
        index=pd.Index(grid.names.tolist(), dtype=object),
    )
    adata = anndata.AnnData(obs=obs, obsm={"spatial": grid.level0}, uns={"generag": json.dumps(about, sort_keys=True)})
    with packing(path) as folder:
        write_anndata(folder, adata)
        add_rows(folder, f"obsm/{card.name}", (len(grid), card.dim), blocks)


def read_about(path: Path) -> dict[str, Any]:
    """The provenance of an embeddings file, with its `key`.

    Raises:
        BankError: where the file is no zipped Zarr store.
        OutputError: where it is not as it was written, or something else.
    """
    if (found := check(path)).state in ("damaged", "changed") and path.exists():
        raise OutputError(f"{path}: {found.reason}", "Give another --out, or --overwrite to make it again.")
    with opened(path) as group:
        if "uns" not in group or "generag" not in group["uns"]:
            raise OutputError(f"{path} was not written by generag", "Give another --out, or --overwrite to replace it.")
        about: dict[str, Any] = json.loads(str(group["uns/generag"][()]))
        return about


def read_embeddings(path: Path) -> Embeddings:
    """The whole file.

    Raises:
        BankError: where the file is damaged.
    """
    about = read_about(path)
    card = BackboneCard(**about["card"])
    with opened(path) as group:
        obs = read_frame(group, "obs")
        if f"obsm/{card.name}" not in group:
            raise BankError(f"{path} holds no embeddings of {card.name}", "Run `generag embed` again.")
        values = np.asarray(group[f"obsm/{card.name}"][...], np.float32)
        centres = np.asarray(group["obsm/spatial"][...], np.float64)
    size = about["grid"]["pixel_size"]
    grid = TileGrid(
        slide_id=about["grid"]["slide_id"],
        names=np.asarray(obs.index, np.str_),
        centres=centres,
        array_rc=obs[["array_row", "array_col"]].to_numpy(np.int64),
        tile_px=TilePx(about["grid"]["tile_px"]),
        fov_um=Microns(about["grid"]["fov_um"]),
        pitch_um=Microns(about["grid"]["pitch_um"]),
        pixel_size=PixelSize(Mpp(size["mpp"]), size["source"], tuple((s, v) for s, v in size["others"])),
    )
    return Embeddings(values, grid, card)
