"""The real slide, as SVS and as DICOM, against a bank of real sections, up to squidpy."""

import anndata
import numpy as np
import pytest
from typer.testing import CliRunner

from genrag_cli.cli.app import app

pytestmark = pytest.mark.real


def generag(*words):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def predictions(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    bank = folder / "bank.zarr"
    without = [w for name in ("C3", "C4", "C5") for w in ("--exclude", name)]
    generag(
        "build-bank", shared_data / "her2st", "--patients", "letter", "--backbone", "stain", "--bank", bank, *without
    )
    slides = (shared_data / "wsi/CMU-1-Small-Region.svs", shared_data / "wsi/dicom_cmu1_small")
    options = ("--bank", bank, "--backbone", "stain", "--pitch-um", "100", "--genes", "200", "--out", folder)
    generag("retrieve", *slides, *options)
    return [folder / f"{name}.stain.h5ad" for name in ("CMU-1-Small-Region", "dicom_cmu1_small")]


def test_both_files_of_a_slide_give_the_same_grid(predictions):
    svs, dicom = (anndata.read_h5ad(path) for path in predictions)
    assert svs.n_obs > 20
    assert [n.split(":")[1] for n in svs.obs_names] == [n.split(":")[1] for n in dicom.obs_names]
    np.testing.assert_allclose(svs.obsm["spatial"], dicom.obsm["spatial"], atol=0.5)


def test_every_value_is_the_weighted_sum_of_its_references(predictions, tmp_path):
    adata = anndata.read_h5ad(predictions[0])
    weights = adata.obsm["generag_weights"]
    assert weights.shape[1] == len(adata.uns["generag_bank_obs"]) == 470
    assert (weights.data > 0).all()
    assert adata.obs["generag_gap"].max() <= 1e-4
    bank = _bank_values(predictions[0].parent / "bank.zarr", adata)
    mean = adata.var["bank_mean"].to_numpy()
    rest = 1 - np.asarray(weights.sum(1)).ravel()
    np.testing.assert_allclose(adata.X, rest[:, None] * mean + weights @ bank, atol=1e-4)


def _bank_values(folder, adata):
    """log1p CP10K of the references, read with anndata alone, in the order of the weights' columns."""
    import zarr

    parts = []
    for section in adata.uns["generag_bank_sections"]:
        with zarr.storage.ZipStore(folder / "sections" / f"{section}.zarr.zip", mode="r") as store:
            part = anndata.read_zarr(zarr.open_group(store, mode="r"))
        counts = part[:, adata.var_names].X.toarray()
        parts.append(np.log1p(1e4 * counts / part.obs["total_counts"].to_numpy()[:, None]))
    return np.concatenate(parts)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", [0, 1])
def test_scanpy_and_squidpy_open_plot_and_run_morans_i(predictions, which):
    import matplotlib as mpl

    mpl.use("Agg")
    import scanpy as sc
    import squidpy as sq

    adata = anndata.read_h5ad(predictions[which])
    genes = adata.var_names[:3].tolist()
    sc.pl.spatial(adata, color=genes[0], show=False)
    sq.pl.spatial_scatter(adata, color=[*genes, "generag_n_refs"])
    sq.gr.spatial_neighbors(adata)
    sq.gr.spatial_autocorr(adata, mode="moran", genes=genes, n_perms=None)
    assert np.isfinite(adata.uns["moranI"]["I"]).all()
