"""The published code's own inputs give the minimiser of the published objective (preset paper).

Its files: counts of each slide as h5ad; embeddings of seven views, (n, 7, d) in a .pt file whose rows are those of the
h5ad; first guesses of 20 samples, (20 n, genes) in a .pt file; the panel, a gene a line. Its problem, for every spot:

    min (1 / 2M) |b - D a|^2 + alpha r |a|_1 + alpha (1 - r) / 2 |a|_2^2  over a >= 0,  D = [sqrt(w) E; sqrt(1 - w) Y]

with M = d + k rows, alpha .01, r .9, w .75.
"""

from types import SimpleNamespace

import anndata
import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet

from genrag_cli.synthetic import write_cohort

D, K = 24, 30
ALPHA, RATIO, OMEGA = 0.01, 0.9, 0.75


def densify(matrix):
    return np.asarray(matrix.todense() if hasattr(matrix, "todense") else matrix, np.float64)


@pytest.fixture(scope="module")
def published(generag, tmp_path_factory):
    """A bank of two slides and the prediction of the third, through the command line, and all inputs as arrays."""
    home = tmp_path_factory.mktemp("published")
    names = write_cohort(home / "train", layout="hest", size_px=1200, n_genes=60)
    rng = np.random.default_rng(5)
    slides = {name: anndata.read_h5ad(home / "train" / "st" / f"{name}.h5ad") for name in names}
    genes = sorted(set.intersection(*(set(a.var_names) for a in slides.values())))
    mixing = rng.normal(size=(len(genes), D))
    (home / "1spot_uni_ebd_aug").mkdir()
    views = {}
    for name, adata in slides.items():
        counts = densify(adata[:, genes].X)
        core = np.log1p(counts) @ mixing / 5
        views[name] = (core[:, None] + 0.2 * rng.normal(size=(len(counts), 7, D))).astype(np.float32)
        torch.save(torch.from_numpy(views[name]), home / "1spot_uni_ebd_aug" / f"{name}_uni_aug.pt")
    held = names[-1]
    panel = [genes[i] for i in rng.permutation(len(genes))[:K]]
    (home / "selected_mine_list.txt").write_text("\n".join(panel) + "\n")
    truth = densify(slides[held][:, panel].X)
    samples = np.maximum(truth[:, None] + rng.normal(size=(len(truth), 20, K)), 0).astype(np.float32)
    file = home / "generated_samples_lr_uni_mine_20sample.pt"
    torch.save(torch.from_numpy(samples.reshape(-1, K)), file)

    bank, names_of = home / "b.zarr", home / "train" / "st"
    done = generag(
        "build-bank", home / "train", "--exclude", held, "--backbone", "uni", "--bank", bank, "--workers", "1",
        "--features", home / "1spot_uni_ebd_aug", "--names-from", names_of,
    )  # fmt: skip
    assert done.code == 0, done.err
    done = generag(
        "retrieve", "--features", home / "1spot_uni_ebd_aug" / f"{held}_uni_aug.pt", "--anchors-from", file,
        "--genes-from", home / "selected_mine_list.txt", "--names-from", names_of / f"{held}.h5ad",
        "--spots", f"{home / 'train'}:{held}", "--mpp", "0.5", "--backbone", "uni", "--bank", bank,
        "--out", home / "p.h5ad",
        "--preset", "paper", "--gap", "1e-7", "--genes", "all", "--anchors-scale", "counts", "--workers", "1",
    )  # fmt: skip
    assert done.code == 0, done.err
    bank_names = names[:-1]
    return SimpleNamespace(
        found=anndata.read_h5ad(home / "p.h5ad"),
        spots=[f"{name}/{spot}" for name in bank_names for spot in slides[name].obs_names],
        embeddings=np.concatenate([views[name].mean(1, dtype=np.float64) for name in bank_names]),
        counts={g: np.concatenate([densify(slides[name][:, [g]].X)[:, 0] for name in bank_names]) for g in genes},
        query=dict(zip(slides[held].obs_names, views[held].mean(1, dtype=np.float64), strict=True)),
        y_init=dict(zip(slides[held].obs_names, samples.mean(1, dtype=np.float64), strict=True)),
        panel=panel,
    )


def pose(p, spot):
    """D (M, N) and b (M,) of a spot, in float64."""
    anchors = np.stack([p.counts[g] for g in p.panel])
    low, high = np.sqrt(OMEGA), np.sqrt(1 - OMEGA)
    return np.vstack([low * p.embeddings.T, high * anchors]), np.concatenate(
        [low * p.query[spot], high * p.y_init[spot]]
    )


def objective(dictionary, b, a):
    ridge = 0.5 * ALPHA * (1 - RATIO) * a @ a
    return ((b - dictionary @ a) ** 2).sum() / (2 * len(b)) + ALPHA * RATIO * np.abs(a).sum() + ridge


def test_published_inputs_give_the_published_minimiser(published):
    p, found = published, published.found
    column = {name: i for i, name in enumerate(found.uns["generag_bank_obs"].tolist())}
    order = [column[spot] for spot in p.spots]
    weights = found.obsm["generag_weights"].toarray()[:, order].astype(np.float64)
    full = np.stack([p.counts[g] for g in found.var_names], 1)
    assert found.uns["generag_anchors"].tolist() == p.panel
    assert len(found) == len(p.query)
    solver = ElasticNet(alpha=ALPHA, l1_ratio=RATIO, fit_intercept=False, positive=True, tol=1e-10, max_iter=1_000_000)
    for row, spot in enumerate(found.obs_names):
        dictionary, b = pose(p, spot)
        best = solver.fit(dictionary, b).coef_
        ours, theirs = objective(dictionary, b, weights[row]), objective(dictionary, b, best)
        assert abs(ours - theirs) <= 1e-6 * theirs, spot
        expression = best @ full
        np.testing.assert_allclose(found.X[row], expression, rtol=1e-3, atol=1e-6, err_msg=spot)
