"""Prediction files: what is written comes back, and scanpy and squidpy use it with no glue."""

import anndata
import numpy as np
import pytest

from genrag_cli.errors import OutputError
from genrag_cli.outputs import keys
from genrag_cli.outputs.prediction import Prediction, read_about, read_prediction, write_prediction
from genrag_cli.types import LOG1P_CP10K, Expression, PixelSize, SparseCodes, TileGrid

N, G = 36, 8
RC = np.stack(np.divmod(np.arange(N), 6), 1)
NAMES = np.array([f"s:{r}_{c}" for r, c in RC])
GENES = np.array([f"G{i}" for i in range(G)])
X = np.random.default_rng(0).gamma(2, 1, (N, G)).astype(np.float32)
PRESENT = np.random.default_rng(1).uniform(size=(N, G)) < 0.8


def prediction(genes=GENES, **changes):
    grid = TileGrid("s", NAMES, RC[:, ::-1] * 400.0 + 200, RC, 224, 200.0, 200.0, PixelSize(0.5, "test"))
    codes = SparseCodes(
        np.arange(N + 1) * 2, np.tile(np.array([1, 4], np.int32), N), np.ones(2 * N, np.float32), 5,
        np.full(N, 1e-5), np.full(N, 9, np.float32), np.full(N, "solved"),
    )  # fmt: skip
    fields = {
        "grid": grid, "codes": codes, "bank_spots": np.array([f"A/{i}" for i in range(5)]),
        "bank_sections": np.array(["A"]), "y_init": Expression(X[:, :3], NAMES, GENES[:3], LOG1P_CP10K),
        "genes": genes, "scale": LOG1P_CP10K, "spot_um": 100.0,
        "about": {"key": "k", "seed": 0, "backbone": {"name": "stain"}, "signed": False},
        "obs": {keys.MORPHOLOGY_RESIDUAL: np.zeros(N, np.float32)}, "var": {keys.VAR_ANCHOR: np.ones(len(genes), bool)},
        "thumbnail": (np.full((60, 60, 3), 200, np.uint8), 0.025),
    }  # fmt: skip
    return Prediction(**{**fields, **changes})


def unmasked(blocks):
    return ((block, None) for block in blocks)


def masked(n_blocks):
    return zip(np.array_split(X, n_blocks), np.array_split(PRESENT, n_blocks), strict=True)


@pytest.fixture
def h5ad(tmp_path):
    write_prediction(tmp_path / "p.h5ad", prediction(), unmasked(np.array_split(X, 4)))
    return tmp_path / "p.h5ad"


def test_what_was_written_is_read(h5ad):
    found = read_prediction(h5ad)
    np.testing.assert_array_equal(found.expression.values, X)
    assert found.expression.scale == LOG1P_CP10K
    assert found.y_init.genes.tolist() == ["G0", "G1", "G2"]
    np.testing.assert_array_equal(found.codes.indices, np.tile([1, 4], N))
    assert found.bank_spots[4] == "A/4"
    assert found.slide_id == "s"
    assert read_about(h5ad)["seed"] == 0


def test_the_keys_are_those_that_scverse_tools_read(h5ad):
    adata = anndata.read_h5ad(h5ad)
    assert adata.obsm["generag_weights"].shape == (N, 5)
    assert {"array_row", "array_col", "in_tissue", "library_id", "generag_n_refs", "generag_gap"} <= set(adata.obs)
    spatial = adata.uns["spatial"]["s"]
    assert spatial["scalefactors"]["spot_diameter_fullres"] == 200
    assert spatial["images"]["hires"].shape == (60, 60, 3)
    assert adata.obs["library_id"].dtype == "category"
    assert adata.X.dtype == np.float32
    assert adata.uns["generag"]["unit"] == "log1p_cp10k"


def test_zarr_holds_the_same(tmp_path, h5ad):
    folder = tmp_path / "p.zarr"
    write_prediction(folder, prediction(), unmasked([X]), as_h5ad=False)
    one, other = read_prediction(h5ad), read_prediction(folder)
    np.testing.assert_array_equal(one.expression.values, other.expression.values)
    np.testing.assert_array_equal(one.codes.weights, other.codes.weights)
    assert anndata.read_zarr(folder).shape == (N, G)


def test_no_expression_keeps_the_weights(tmp_path):
    path = tmp_path / "p.h5ad"
    write_prediction(path, prediction(genes=GENES[:0], var={}), iter([]))
    found = read_prediction(path)
    assert len(found.expression.genes) == 0
    assert len(found.codes) == N
    assert anndata.read_h5ad(path).shape == (N, 0)


def test_a_row_too_few_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="9 rows"):
        write_prediction(tmp_path / "p.h5ad", prediction(), unmasked([X[:9]]))


@pytest.mark.parametrize(("name", "read"), [("p.h5ad", anndata.read_h5ad), ("p.zarr", anndata.read_zarr)])
def test_what_is_missing_is_a_layer_that_comes_back(tmp_path, name, read):
    write_prediction(tmp_path / name, prediction(), masked(5), as_h5ad=name.endswith("h5ad"))
    found = read_prediction(tmp_path / name).expression
    np.testing.assert_array_equal(found.present, PRESENT)
    np.testing.assert_array_equal(found.values, X)
    layer = read(tmp_path / name).layers[keys.PRESENT]
    assert layer.dtype == bool
    np.testing.assert_array_equal(layer, PRESENT)


def test_where_nothing_can_be_missing_there_is_no_layer(h5ad):
    assert read_prediction(h5ad).expression.present is None
    assert list(anndata.read_h5ad(h5ad).layers) == []


@pytest.mark.parametrize("first", [None, PRESENT[:9]])
def test_blocks_of_which_some_do_not_say_what_is_missing_are_refused(tmp_path, first):
    second = PRESENT[9:] if first is None else None
    with pytest.raises(OutputError, match="row 9"):
        write_prediction(tmp_path / "p.h5ad", prediction(), iter([(X[:9], first), (X[9:], second)]))


@pytest.mark.filterwarnings("ignore")
def test_scanpy_reads_the_layer(tmp_path):
    import scanpy as sc

    write_prediction(tmp_path / "p.h5ad", prediction(), masked(2))
    adata = sc.read_h5ad(tmp_path / "p.h5ad")
    frame = sc.get.obs_df(adata, keys=["G0", "G3"], layer=keys.PRESENT)
    np.testing.assert_array_equal(frame.to_numpy(bool), PRESENT[:, [0, 3]])
    adata = adata[:, PRESENT.all(axis=0)].copy()  # how one would take the genes that are there everywhere
    assert adata.layers[keys.PRESENT].all()


@pytest.mark.parametrize("content", [b"", b"not hdf5 at all"])
def test_something_else_is_refused(tmp_path, content):
    path = tmp_path / "p.h5ad"
    path.write_bytes(content)
    with pytest.raises(OutputError, match="cannot be read"):
        read_prediction(path)


def test_another_anndata_is_refused(tmp_path):
    anndata.AnnData(X).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(OutputError, match="not a prediction"):
        read_about(tmp_path / "a.h5ad")


@pytest.mark.filterwarnings("ignore")
def test_scanpy_and_squidpy_plot_it_and_run_morans_i(h5ad):
    import matplotlib as mpl

    mpl.use("Agg")
    import scanpy as sc
    import squidpy as sq

    adata = anndata.read_h5ad(h5ad)
    sc.pl.spatial(adata, color="G0", show=False)
    sq.pl.spatial_scatter(adata, color=["G0", "generag_n_refs"])
    sq.gr.spatial_neighbors(adata)
    sq.gr.spatial_autocorr(adata, mode="moran", genes=["G0", "G1"], n_perms=None)
    assert np.isfinite(adata.uns["moranI"]["I"]).all()
