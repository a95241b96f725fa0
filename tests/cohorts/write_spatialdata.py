"""SpatialData stores on disk, written by the spatialdata package: Visium spots, cells and bins of Visium HD."""

import warnings
from types import SimpleNamespace

import numpy as np
from scipy import sparse

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import spatialdata
    from spatialdata._io import format as formats
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine, Identity, Scale

GENES = ("ACTB", "KRT5", "CD4")
PITCH = 40.0
"""px between Visium spots of the stores below: 2.5 um per px without a scale."""
ZARR_2 = [formats.SpatialDataContainerFormatV01(), formats.RasterFormatV02(), formats.ShapesFormatV02(),
          formats.TablesFormatV01()]  # fmt: skip
OLDEST = [formats.SpatialDataContainerFormatV01(), formats.RasterFormatV01(), formats.ShapesFormatV01(),
          formats.TablesFormatV01()]  # fmt: skip


def image(size=(400, 300), channels=3, transformations=None, **options):
    """A picture of noise."""
    pixels = np.random.default_rng(1).integers(0, 255, (channels, size[1], size[0]), dtype=np.uint8)
    return Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=transformations, **options)


def table(region, instances, *, obs=None, matrix=sparse.csr_matrix, genes=GENES, var=None, seed=0, prefix="spot"):
    """A table that annotates one region, or several where `region` is an array."""
    import anndata
    import pandas as pd

    n = len(instances)
    counts = np.random.default_rng(seed).poisson(2, (n, len(genes))).astype(np.float32)
    names = [f"{prefix}{i}-1" for i in range(n)]
    frame = pd.DataFrame(
        {"region": pd.Categorical(np.broadcast_to(region, n)), "id": instances, **(obs or {})}, index=names
    )
    data = anndata.AnnData(matrix(counts), obs=frame, var=pd.DataFrame(var or {}, index=list(genes)))
    regions = sorted(set(np.broadcast_to(region, n).tolist()))
    return TableModel.parse(
        data, region=regions if len(regions) > 1 else regions[0], region_key="region", instance_key="id"
    )


def circles(xy, radius, index, transformations=None):
    shapes = ShapesModel.parse(np.asarray(xy, float), geometry=0, radius=radius, transformations=transformations)
    shapes.index = list(index)
    return shapes


def hexagons(rows=6, columns=6):
    """array_row, array_col and x, y in px of a Visium lattice."""
    rc = np.array([(r, 2 * c + r % 2) for r in range(rows) for c in range(columns)])
    return rc, np.stack([rc[:, 1] * PITCH / 2, rc[:, 0] * PITCH * np.sqrt(3) / 2], axis=1) + 30


def save(path, *, sdata_formats=None, **elements):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spatialdata.SpatialData(**elements).write(path, sdata_formats=sdata_formats)
    return path


def write_visium(
    folder,
    name="V",
    *,
    shuffle=True,
    ids="number",
    images=None,
    drop=(),
    sdata_formats=None,
    with_obsm=False,
    **options,
):
    """Spots as spatialdata-io writes them; returns the store, its positions and counts in the order of the table."""
    rc, xy = hexagons()
    names = [i + 100 if ids == "number" else f"s{i}" for i in range(len(rc))]
    order = np.random.default_rng(3).permutation(len(rc)) if shuffle else np.arange(len(rc))
    order = [i for i in order if i not in drop]
    obs = {"array_row": rc[:, 0], "array_col": rc[:, 1], "in_tissue": np.ones(len(rc), int), **options.pop("obs", {})}
    annotation = table("spots", names, obs=obs, **options)
    if with_obsm:
        annotation.obsm["spatial"] = xy * 1.6
    spots = circles(xy[order], PITCH * 0.275, [names[i] for i in order], {"global": Scale([2.0, 2.0], axes=("x", "y"))})
    pictures = {"spots_image": image((600, 500), transformations={"global": Scale([1.25, 1.25], axes=("x", "y"))})}
    store = save(
        folder / f"{name}.zarr", images=pictures if images is None else images, shapes={"spots": spots},
        tables={"table": annotation}, sdata_formats=sdata_formats,
    )  # fmt: skip
    counts = annotation.X.toarray() if sparse.issparse(annotation.X) else annotation.X
    return SimpleNamespace(store=store, xy=xy * 2 / 1.25, counts=counts, annotation=annotation)


def write_cells(folder, name="C", *, kind="circles", unit=None):
    """Cells in um, on an image that lies turned by a quarter and scaled, as a Xenium store has it."""
    from shapely import Point

    rng = np.random.default_rng(5)
    xy, radii = rng.random((80, 2)) * (500, 300) + 50, rng.random(80) * 4 + 3
    ids = [f"aaaa{i}-1" for i in range(80)]
    # H&E of .5 um/px: px to um, a quarter turn.
    turned = Affine(np.array([[0.0, 0.5, 0.0], [-0.5, 0.0, 600.0], [0, 0, 1]]), ("x", "y"), ("x", "y"))
    pictures = {"he_image": image((1300, 1200), transformations={"global": turned})}
    if kind == "circles":
        shapes = circles(xy, radii, ids, {"global": Identity()})
    else:
        import geopandas

        frame = geopandas.GeoDataFrame(
            {"geometry": [Point(*p).buffer(r) for p, r in zip(xy, radii, strict=True)]}, index=ids
        )
        shapes = ShapesModel.parse(frame, transformations={"global": Identity()})
    annotation = table("cells", ids, prefix="cell")
    store = save(folder / f"{name}.zarr", images=pictures, shapes={"cells": shapes}, tables={"table": annotation})
    if unit:
        metadata = store / "images" / "he_image" / "zarr.json"
        metadata.write_text(metadata.read_text().replace('"unit"', f'"{unit}"').replace(f'"{unit}":', '"unit":'))
    px = np.stack([(600 - xy[:, 1]) / 0.5, xy[:, 0] / 0.5], axis=1)
    return SimpleNamespace(store=store, px=px, counts=annotation.X.toarray())


def write_bins(folder, sizes=(8, 16)):
    """Visium HD: a table and squares for each size of bin over 256 um, .5 um per px."""
    import geopandas
    from shapely import box

    shapes, tables = {}, {}
    for um in sizes:
        n = 256 // um
        rc, side = np.array([(r, c) for r in range(n) for c in range(n)]), um / 0.5
        squares = [box(c * side, r * side, (c + 1) * side, (r + 1) * side) for r, c in rc]
        name = f"H_square_{um:03}um"
        shapes[name] = ShapesModel.parse(
            geopandas.GeoDataFrame({"geometry": squares}), transformations={"global": Identity()}
        )
        obs = {"array_row": rc[:, 0], "array_col": rc[:, 1]}
        tables[f"square_{um:03}um"] = table(name, list(range(len(rc))), obs=obs, prefix=f"s_{um:03}um_")
    pictures = {"H_full_image": image((512, 512), transformations={"global": Identity()})}
    return save(folder / "H.zarr", images=pictures, shapes=shapes, tables=tables)
