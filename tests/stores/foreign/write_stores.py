"""The same embeddings in Zarr stores, AnnData, tables and numpy's files."""

import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np

tiles = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_tiles.py"))))
SIDE_PX, MPP, VIEWS, save_tensor = tiles.SIDE_PX, tiles.MPP, tiles.VIEWS, tiles.save_tensor


def _spatialdata(path, elements, attributes, zarr_format):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import spatialdata
        from spatialdata._io import format as formats

        kinds = [formats.SpatialDataContainerFormatV01(), formats.RasterFormatV02(), formats.ShapesFormatV02(),
                 formats.TablesFormatV01()]  # fmt: skip
        made = spatialdata.SpatialData(**elements, attrs=attributes)
        made.write(path, sdata_formats=kinds if zarr_format == 2 else None)
    return path


def wsidata_elements(t, key="tiles", model="uni"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import anndata
        import geopandas
        import pandas as pd
        from shapely import box
        from spatialdata.models import ShapesModel, TableModel

        ids = np.arange(len(t.names))
        squares = [box(x, y, x + SIDE_PX, y + SIDE_PX) for x, y in t.corners]
        back = ids[::-1]
        tiles = geopandas.GeoDataFrame(
            {"tile_id": ids[back], "tissue_id": 0, "geometry": [squares[i] for i in back]}
        )  # the shapes are in another order than the table: joined by tile_id
        obs = pd.DataFrame({"tile_id": ids, "library_id": pd.Categorical([key] * len(ids))}, index=ids.astype(str))
        table = TableModel.parse(
            anndata.AnnData(X=t.values, obs=obs), region=key, region_key="library_id", instance_key="tile_id"
        )
        return {"shapes": {key: ShapesModel.parse(tiles)}, "tables": {f"{model}_{key}": table}}


TILE_SPEC = {
    "height": 16, "width": 16, "stride_height": 16, "stride_width": 16, "mpp": 1.0, "ops_level": 0,
    "ops_downsample": 2.0, "base_level": 0, "base_downsample": 2.0, "tissue_name": "tissues",
}  # fmt: skip


def wsidata(folder, t, zarr_format=3):
    attributes = {"tile_spec": {"tiles": TILE_SPEC}, "slide_properties": {"mpp": MPP, "shape": [1000, 1000]}}
    return _spatialdata(folder / "S.zarr", wsidata_elements(t), attributes, zarr_format)


def wsidata_v2(folder, t):
    return wsidata(folder, t, 2)


def wsidata_zip(folder, t):
    from genrag_cli.stores.atomic import pack_folder

    store = wsidata(folder, t)
    pack_folder(store, folder / "S.zarr.zip")
    return folder / "S.zarr.zip"


def wsidata_old(folder, t):
    """What is about the slide and the tiles stands in tables."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import anndata

        elements = wsidata_elements(t)
        spec = {"height": 16, "width": 16, "mpp": 1.0, "level": 0, "downsample": 2, "tissue_name": "tissues"}
        elements["tables"]["tile_spec"] = anndata.AnnData(uns={"tiles": spec})
        elements["tables"]["slide_properties"] = anndata.AnnData(uns={"mpp": MPP, "n_level": 1})
        return _spatialdata(folder / "S.zarr", elements, {}, 2)


def annotated(t, **more):
    import anndata
    import pandas as pd

    index = pd.Index(t.names.tolist(), dtype=object)
    return anndata.AnnData(
        X=more.pop("X", t.values), obs=pd.DataFrame(index=index), obsm={"spatial": t.centres, **more.pop("obsm", {})},
        **more,
    )  # fmt: skip


def spatialdata_table(folder, t, zarr_format=3):
    """Counts in X, embeddings in obsm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spatialdata.models import TableModel

        data = annotated(t, X=None, obsm={"uni": t.values})
        return _spatialdata(folder / "S.zarr", {"tables": {"table": TableModel.parse(data)}}, {}, zarr_format)


def spatialdata_v2(folder, t):
    return spatialdata_table(folder, t, 2)


def generag_views(folder, t):
    return save_tensor(folder / "S_uni_aug.pt", np.repeat(t.values[:, None], VIEWS, axis=1))


def generag_plain(folder, t):
    return save_tensor(folder / "S_uni.pt", t.values.astype(np.float64))


def h5ad(folder, t):
    annotated(t).write_h5ad(folder / "S.h5ad")
    return folder / "S.h5ad"


def h5ad_obsm(folder, t):
    annotated(t, X=None, obsm={"X_uni": t.values}).write_h5ad(folder / "S.h5ad")
    return folder / "S.h5ad"


def h5ad_sparse(folder, t):
    from scipy import sparse

    annotated(t, X=sparse.csr_matrix(t.values)).write_h5ad(folder / "S.h5ad", compression="gzip")
    return folder / "S.h5ad"


def _anndata_zarr(folder, t, zarr_format):
    import anndata

    with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=zarr_format):
        warnings.simplefilter("ignore")
        annotated(t).write_zarr(folder / "S.zarr")
    return folder / "S.zarr"


def anndata_zarr(folder, t):
    return _anndata_zarr(folder, t, 3)


def anndata_zarr_v2(folder, t):
    return _anndata_zarr(folder, t, 2)


def anndata_zip(folder, t):
    from genrag_cli.stores.atomic import pack_folder

    pack_folder(_anndata_zarr(folder, t, 2), folder / "S.zip")
    return folder / "S.zip"


def npz(folder, t):
    np.savez(
        folder / "S.npz", features=t.values, names=t.names, centres=t.centres, encoder="uni", mpp=MPP,
        fov_um=SIDE_PX * MPP,
    )  # fmt: skip
    return folder / "S.npz"


def npz_bytes(folder, t):
    np.savez_compressed(folder / "S.npz", embeddings=t.values, barcodes=t.names.astype("S"))
    return folder / "S.npz"


def npz_places(folder, t):
    np.savez(folder / "S.npz", X=t.values, xy=t.centres)
    return folder / "S.npz"


def frame(t, names="barcode", places=True, columns=None):
    import pandas as pd

    table = pd.DataFrame(t.values, columns=list(columns if columns is not None else t.genes))
    if places:
        table.insert(0, "x", t.centres[:, 0])
        table.insert(1, "y", t.centres[:, 1])
    if names:
        table.insert(0, names, t.names)
    return table


def parquet(folder, t):
    frame(t).to_parquet(folder / "S.parquet")
    return folder / "S.parquet"


def parquet_index(folder, t):
    """Names are an index without a name."""
    table = frame(t, names=None, places=False)
    table.index = t.names
    table.to_parquet(folder / "S.parquet")
    return folder / "S.parquet"


def csv(folder, t):
    frame(t, "name").to_csv(folder / "S.csv", index=False)
    return folder / "S.csv"


def csv_index(folder, t):
    table = frame(t, names=None, places=False)
    table.index = t.names
    table.to_csv(folder / "S.csv.gz")
    return folder / "S.csv.gz"


def tsv_places(folder, t):
    frame(t, names=None).to_csv(folder / "S.tsv", index=False, sep="\t")
    return folder / "S.tsv"


def own(folder, t):
    from genrag_cli.stores.embeddings import write_embeddings
    from genrag_cli.types import BackboneCard, PixelSize, TileGrid

    n = len(t.names)
    grid = TileGrid(
        "S", t.names, t.centres, np.stack([np.arange(n), np.zeros(n, int)], axis=1), 16, SIDE_PX * MPP, 24.0,
        PixelSize(MPP, "given"),
    )  # fmt: skip
    path = folder / "S.uni.zarr.zip"
    card = BackboneCard("uni", "1", t.values.shape[1], 16, "none")
    write_embeddings(path, grid, card, iter([t.values]), key="k", extra={})
    return path
