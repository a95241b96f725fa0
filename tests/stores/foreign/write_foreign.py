"""Writers of the same embeddings in every layout that is read, and what a reader should say of each file.

Each writer takes a folder and a `Truth` and gives back the file. Values are whole in float16, so that no format rounds
them.
"""

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

_here = Path(__file__)
stores = SimpleNamespace(**runpy.run_path(str(_here.with_name("write_stores.py"))))
tiles = stores.tiles
globals().update({k: v for part in (tiles, stores) for k, v in vars(part).items() if not k.startswith("__")})
# The writers by their own names, for tests that run this file.


@dataclasses.dataclass(frozen=True)
class Layout:
    """A writer and what the reader should say of its file."""

    write: object
    kind: str
    named: bool
    placed: bool
    encoder: str = ""
    mpp: float | None = None
    fov_um: float | None = None
    in_um: bool = False
    needs_names: bool = False


MPP = tiles.MPP
_F = tiles.SIDE_PX * MPP
LAYOUTS = {
    layout.write.__name__: layout
    for layout in (
        Layout(tiles.trident, "trident-h5", False, True, "uni_v1"),
        Layout(tiles.trident_early, "trident-h5", False, True, "uni_v1"),
        Layout(tiles.trident_batched, "trident-h5", False, True, "uni_v1"),
        Layout(tiles.trident_on_fishing_rod, "trident-h5", False, True, "uni_v1"),
        Layout(tiles.clam, "clam-h5", False, True),
        Layout(tiles.clam_features_elsewhere, "clam-h5", False, True),
        Layout(tiles.clam_with_attributes, "clam-h5", False, True),
        Layout(tiles.stamp, "stamp-h5", False, False, "mahmood-uni", fov_um=_F, in_um=True),
        Layout(tiles.stamp_2_0, "stamp-h5", False, False, "mahmood-uni", fov_um=_F, in_um=True),
        Layout(tiles.stamp_without_unit, "stamp-h5", False, False, "mahmood-uni", fov_um=_F, in_um=True),
        Layout(tiles.stamp_patch_embeddings, "stamp-h5", False, False, "mahmood-uni", fov_um=_F, in_um=True),
        Layout(tiles.hest, "hest-h5", True, False),
        Layout(tiles.hest_text, "hest-h5", True, False),
        Layout(tiles.slide2vec, "slide2vec", False, True, "uni", MPP, _F),
        Layout(tiles.slide2vec_class, "slide2vec", False, True, "uni", MPP, _F),
        Layout(tiles.slide2vec_npz, "slide2vec", False, True, "uni", MPP, _F),
        Layout(tiles.slide2vec_recorded, "slide2vec", False, True, "uni", MPP, _F),
        Layout(tiles.slide2vec_3, "slide2vec", False, True, "", None, _F),
        Layout(tiles.slide2vec_1, "slide2vec", False, True, "", None, _F),
        Layout(tiles.slide2vec_npy, "slide2vec", False, True, "", None, _F),
        Layout(stores.wsidata, "wsidata-zarr", False, True, "uni", MPP, _F),
        Layout(stores.wsidata_v2, "wsidata-zarr", False, True, "uni", MPP, _F),
        Layout(stores.wsidata_zip, "wsidata-zarr", False, True, "uni", MPP, _F),
        Layout(stores.wsidata_old, "wsidata-zarr", False, True, "uni", MPP, _F),
        Layout(stores.spatialdata_table, "spatialdata-zarr", True, True),
        Layout(stores.spatialdata_v2, "spatialdata-zarr", True, True),
        Layout(stores.generag_views, "generag-pt", False, False, needs_names=True),
        Layout(stores.generag_plain, "generag-pt", False, False, needs_names=True),
        Layout(stores.h5ad, "h5ad", True, True),
        Layout(stores.h5ad_obsm, "h5ad", True, True),
        Layout(stores.h5ad_sparse, "h5ad", True, True),
        Layout(stores.anndata_zarr, "anndata-zarr", True, True),
        Layout(stores.anndata_zarr_v2, "anndata-zarr", True, True),
        Layout(stores.anndata_zip, "anndata-zarr", True, True),
        Layout(stores.npz, "npz", True, True, "uni", MPP, _F),
        Layout(stores.npz_bytes, "npz", True, False),
        Layout(stores.npz_places, "npz", False, True),
        Layout(stores.parquet, "parquet", True, True),
        Layout(stores.parquet_index, "parquet", True, False),
        Layout(stores.csv, "csv", True, True),
        Layout(stores.csv_index, "csv", True, False),
        Layout(stores.tsv_places, "csv", False, True),
        Layout(stores.own, "generag", True, True, "uni", MPP, _F),
    )
}
