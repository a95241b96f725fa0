"""What folds within a bank predict of a section is what `retrieve` predicts of it from a bank without it."""

import shutil
from types import SimpleNamespace

import anndata
import numpy as np
import pytest

from genrag_cli.errors import BankError
from genrag_cli.outputs import keys
from genrag_cli.pipeline.tuning.data import BankData
from genrag_cli.pipeline.tuning.model import Retriever, fit
from genrag_cli.pipeline.tuning.settings import PAPER, Settings
from genrag_cli.pipeline.tuning.trust import QUANTILES, Trust
from genrag_cli.pipeline.tuning.tune import collect
from genrag_cli.stores.atomic import writer_lock
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.stores.tunings import add_tuning
from genrag_cli.types import COUNTS, LOG1P_CP10K

HELD = "P3_1"
MPP = 1.2
SETTINGS = [
    Settings(references=12),
    Settings(context=0.5, ridge=10, omega=0.75, references=15, share=0.5),
    Settings(context=0.7, standardise="bank", omega=0.5, references=20, l1_ratio=0.5, share=0.75),
    Settings(omega=0.05, references=8, centred=False, spread=False, anchor_scale="cp10k", share=0.25),
]


@pytest.fixture(scope="module")
def whole(generag, cohort, tmp_path_factory):
    """A bank of all sections, and the held-out one's embeddings and places as files."""
    home = tmp_path_factory.mktemp("whole")
    common = ("--patients", "prefix", "--backbone", "stain", "--workers", "1", "--quiet")
    done = generag("build-bank", cohort, *common, "--bank", home / "all.zarr")
    assert done.code == 0, done.err
    bank = Bank.open(home / "all.zarr", "stain")
    data = BankData.of(bank)
    section = data.sections[data.names.tolist().index(HELD)]
    values = list(bank.embeddings)[data.names.tolist().index(HELD)]
    np.savez(home / f"{HELD}.npz", features=values, names=section.names, centres=section.centres)
    lines = [f"{n},{x!r},{y!r}" for n, (x, y) in zip(section.names, section.centres.tolist(), strict=True)]
    (home / "spots.csv").write_text("name,x,y\n" + "\n".join(lines) + "\n")
    return SimpleNamespace(home=home, bank=bank, names=section.names)


def predict_by_fold(data, settings):
    """The fold that leaves the held-out section out."""
    train, held = (np.flatnonzero((data.names[data.section_of] == HELD) == side) for side in (False, True))
    fitted = fit(data, settings, train, np.flatnonzero(data.common))
    retriever = Retriever.of(fitted, settings)
    (codes,) = retriever.ask(held)
    parts = retriever.parts(held, codes)
    return SimpleNamespace(
        values=parts.predict(settings.share), codes=codes, genes=data.bank.genes[fitted.genes], truth=parts.truth,
        guess=fitted.regression.predict(fitted.basis.scores(fitted.features[held]), fitted.core),
        residuals=retriever.residuals(held, codes),
    )  # fmt: skip


def store(folder, settings):
    """The settings, fitted to all of a bank, as its tuning."""
    bank = Bank.open(folder, "stain")
    data, unknown, steps = BankData.of(bank), np.zeros(len(bank.genes)), np.linspace(0, 1, QUANTILES)
    fitted = fit(data, settings, np.arange(len(data)), np.flatnonzero(data.common))
    trust = Trust(*[unknown] * 5, steps, steps, {}, {}, 0)
    about = {"key": "by hand", "settings": settings.words(), "rule": "none", "feature_scale": fitted.feature_scale}
    with writer_lock(folder, BankError):
        add_tuning(BankWriter(folder), "stain", bank.number, collect(data, fitted, settings, trust), about)


def predict_by_command(generag, whole, folder, *options):
    """The held-out section from a bank without it, standardised by the same spots."""
    features, out = whole.home / f"{HELD}.npz", folder.parent / "p.h5ad"
    done = generag(
        "retrieve", "--features", features, "--spots", whole.home / "spots.csv", "--mpp", MPP, "--backbone", "stain",
        "--workers", "1", "--bank", folder, "--out", out, "--genes", "all", "--quiet", *options,
    )  # fmt: skip
    assert done.code == 0, done.err
    found = anndata.read_h5ad(out)
    assert found.obs_names.tolist() == whole.names.tolist()
    return found


def assert_near(found, expected, tolerance=1e-3):
    spread = expected.std(axis=0).max()
    assert spread > 0
    np.testing.assert_allclose(found, expected, atol=tolerance * spread, rtol=0)


@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_a_fold_predicts_what_retrieve_predicts(generag, whole, bank, settings):
    store(bank, settings)
    found = predict_by_command(generag, whole, bank)
    expected = predict_by_fold(BankData.of(whole.bank), settings)
    assert found.uns["generag"]["tuning"] == 1
    assert_near(found[:, expected.genes].X, expected.values)
    assert_near(found.obsm["generag_weights"].toarray(), expected.codes.dense())
    for column, values in zip((keys.MORPHOLOGY_RESIDUAL, keys.ANCHOR_RESIDUAL), expected.residuals, strict=True):
        np.testing.assert_allclose(found.obs[column], values, atol=1e-3)


def test_the_first_guess_of_a_fold_is_that_of_retrieve(generag, whole, bank):
    settings = SETTINGS[1]
    store(bank, settings)
    found = predict_by_command(generag, whole, bank)
    expected = predict_by_fold(BankData.of(whole.bank), settings)
    assert found.uns["generag_anchors"].tolist() == Bank.open(bank, "stain").anchors.tolist()
    assert_near(found.obsm["generag_y_init"], expected.guess)


def test_a_fold_with_published_values_predicts_what_preset_paper_predicts(generag, whole, built_bank, tmp_path):
    folder = shutil.copytree(built_bank, tmp_path / "b.zarr")
    found = predict_by_command(generag, whole, folder, "--preset", "paper")
    expected = predict_by_fold(BankData.of(whole.bank, scale=COUNTS), PAPER)
    assert_near(found.obsm["generag_y_init"], expected.guess)
    assert_near(found.obsm["generag_weights"].toarray(), expected.codes.dense())
    assert_near(found[:, expected.genes].X, expected.values)


def test_a_bank_is_read_in_the_scale_asked_for(whole):
    counts, logs = (BankData.of(whole.bank, scale=s).expression for s in (COUNTS, LOG1P_CP10K))
    (_, first, totals), *_ = whole.bank.count_blocks(10**6)
    n = first.shape[0]
    np.testing.assert_array_equal(counts[:n].toarray(), first.toarray())
    expected = np.log1p(first.toarray() * 1e4 / totals[:, None])
    np.testing.assert_allclose(logs[:n].toarray(), expected, rtol=1e-5)
