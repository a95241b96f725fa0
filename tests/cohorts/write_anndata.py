"""AnnData files and HEST-bench tasks on disk, made up."""

import csv
import json
import warnings

import numpy as np

LETTERS = "ACGT"


def barcode(i):
    """A Visium barcode."""
    return "".join(LETTERS[(i >> (2 * k)) & 3] for k in range(16)) + "-1"


def visium_array(n_rows=4, n_cols=10, pitch_px=137.0, turn=0.02):
    """array row, column of every second place, and where they lie: hexagonal, slightly turned."""
    rc = np.array([(r, c) for r in range(n_rows) for c in range(n_cols) if (r + c) % 2 == 0])
    xy = np.stack([rc[:, 1] * pitch_px / 2, rc[:, 0] * pitch_px * np.sqrt(3) / 2], axis=1)
    cos, sin = np.cos(turn), np.sin(turn)
    return rc, xy @ np.array([[cos, sin], [-sin, cos]]) + 500


def as_stored(values, form):
    """Counts as `dense`, `csr` or `csc`."""
    from scipy import sparse

    return values if form == "dense" else getattr(sparse, f"{form}_matrix")(values)


def write_anndata(
    path, values, *, form="csr", names=None, genes=None, var=None, obs=None, spatial="line", uns=None, layers=None,
    raw=None, index_name=None, backed=False, zarr_format=3,
):  # fmt: skip
    """Writes counts (n, G), as .h5ad or .zarr by the ending."""
    import anndata
    import pandas as pd

    n, n_genes = values.shape
    names = [f"s{i}" for i in range(n)] if names is None else names
    genes = [f"G{i}" for i in range(n_genes)] if genes is None else genes
    data = anndata.AnnData(
        as_stored(values, form),
        obs=pd.DataFrame(obs or {}, index=pd.Index(names, name=index_name)),
        var=pd.DataFrame(var or {}, index=pd.Index(genes, name=index_name)),
        uns=uns or {},
    )
    if isinstance(spatial, str):
        spatial = np.stack([np.arange(n) * 100.0 + 50, np.full(n, 70.0)], axis=1)
    if spatial is not None:
        data.obsm["spatial"] = spatial
    for key, layer in (layers or {}).items():
        data.layers[key] = as_stored(layer, form)
    if raw is not None:
        data.raw = anndata.AnnData(
            as_stored(raw, form), obs=data.obs, var=pd.DataFrame(index=[f"R{i}" for i in range(raw.shape[1])])
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zarr":
        with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=zarr_format):
            warnings.simplefilter("ignore", UserWarning)  # announces anndata's next defaults
            data.write_zarr(path)
    elif backed:
        data.write_h5ad(path.with_suffix(".all.h5ad"))
        half = anndata.read_h5ad(path.with_suffix(".all.h5ad"), backed="r")
        half[:].copy(filename=path).file.close()
        half.file.close()
        path.with_suffix(".all.h5ad").unlink()
    else:
        data.write_h5ad(path)
    return path


def write_split(path, rows, columns=("sample_id", "patches_path", "expr_path")):
    """A table of one side of a split."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([columns, *rows])


def listed(*names):
    """Rows of a split, as HEST writes them."""
    return [(name, f"patches/{name}.h5", f"adata/{name}.h5ad") for name in names]


def write_task(root, samples=("S1", "S2", "S3"), *, splits=((("S3", "S1"), ("S2",)), (("S2",), ("S1",)))):
    """A HEST-bench task; patches are not opened by cohorts."""
    rng = np.random.default_rng(0)
    for name in samples:
        write_anndata(root / "adata" / f"{name}.h5ad", rng.poisson(2, (6, 4)).astype(np.float32), form="dense")
        (root / "patches").mkdir(exist_ok=True)
        (root / "patches" / f"{name}.h5").write_bytes(b"not opened by cohorts")
    for number, (train, test) in enumerate(splits):
        write_split(root / "splits" / f"train_{number}.csv", listed(*train))
        write_split(root / "splits" / f"test_{number}.csv", listed(*test))
    (root / "var_50genes.json").write_text(json.dumps({"genes": ["G1", "G3"]}))
    return root
