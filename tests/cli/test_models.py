"""Models that make their own first guess, through the command line: anchors, scales and the bank that they need."""

import json
import sys

import anndata
import numpy as np
import pytest

PLUGIN = '''
import numpy as np
from genrag_cli.types import BackboneCard, Expression, LOG2_COUNTS

class Toy:
    """Three colour means; genes follow the first in log2 counts."""
    def __init__(self, device="cpu", options=None):
        genes = (options or {}).get("genes", "")
        self.genes = np.array(genes.split("+"))
        self.shift = float((options or {}).get("shift", 0))
        self.scale = LOG2_COUNTS
        self.card = BackboneCard("toy", "1", dim=3, tile_px=16, licence="MIT", scale="log2_counts",
                                 genes_sha256=genes[:64])
    def encode(self, pixels):
        return pixels.mean(axis=(1, 2)).astype("float32")
    def predict(self, spots, genes):
        place = {g: i for i, g in enumerate(self.genes.tolist())}
        values = np.stack([spots.features[:, 0] / 64 + place[g] % 3 for g in genes.tolist()], 1) - 2 + self.shift
        return Expression(values.astype("float32"), np.arange(len(values)).astype(str), genes, self.scale)

class Broken(Toy):
    """Breaks what it promised, in the way that it is told."""
    def __init__(self, device="cpu", options=None):
        super().__init__(device, options)
        import dataclasses
        self.bad = options.get("bad", "")
        self.card = dataclasses.replace(self.card, name="broken")
    def predict(self, spots, genes):
        if self.bad == "raise":
            raise KeyError("something")
        if self.bad == "order":
            return super().predict(spots, genes[::-1])
        if self.bad == "short":
            found = super().predict(spots, genes)
            return Expression(found.values[:-1], found.names[:-1], genes, found.scale)
        found = super().predict(spots, genes)
        found.values[0, 0] = np.nan
        return found

class Mean:
    """Predicts the bank's mean, whatever the tile."""
    genes, scale = np.zeros(0, str), None
    def __init__(self, device="cpu"):
        self.card = BackboneCard("mean", "1", dim=3, tile_px=16, licence="MIT", needs=("bank",))
    def encode(self, pixels):
        return pixels.mean(axis=(1, 2)).astype("float32")
    def predict(self, spots, genes):
        known = spots.reference.expression
        where = [known.genes.tolist().index(g) for g in genes.tolist()]
        mean = known.values[:, where].mean(0, keepdims=True).repeat(len(spots), 0)
        return Expression(mean, np.arange(len(mean)).astype(str), genes, known.scale)
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    home = tmp_path / "plugin"
    info = home / "made_up_models-1.0.dist-info"
    info.mkdir(parents=True)
    (home / "made_up_models.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made_up_models\nVersion: 1.0\n")
    lines = ["[generag.backbones]", "toy = made_up_models:Toy", "mean = made_up_models:Mean"]
    lines.append("broken = made_up_models:Broken")
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(home)
    monkeypatch.delitem(sys.modules, "made_up_models", raising=False)


@pytest.fixture
def genes(built_bank):
    return json.loads((built_bank / "genes.json").read_text())["genes"]


def build(generag, cohort, bank, name, *options):
    done = generag(
        "build-bank", cohort, "--exclude", "P3_1", "--backbone", name, "--bank", bank, "--workers", "1", *options
    )
    assert done.code == 0, done.err
    return done


def predict(generag, slide, bank, name, out, *options):
    common = ("--backbone", name, "--bank", bank, "--out", out, "--workers", "1", "--alpha", ".003", "--quiet")
    return generag("retrieve", slide, *common, *options)


def test_models_genes_anchor_its_bank_and_its_scale_is_converted_or_refused(
    generag, cohort, slide, tmp_path, toy, genes
):
    bank, known = tmp_path / "b.zarr", [*genes[5:30], "NOT-IN-BANK"]
    build(generag, cohort, bank, "toy", "--backbone-option", f"genes={'+'.join(known)}")

    refused = predict(generag, slide, bank, "toy", tmp_path)
    refused.expect_refusal(1, "log2_counts", "log1p_cp10k", "--preset paper", "--anchor-scale model")

    done = predict(generag, slide, bank, "toy", tmp_path, "--preset", "paper")
    assert done.code == 0, done.err
    found = anndata.read_h5ad(tmp_path / "P3_1.toy.h5ad")
    anchors, about = found.uns["generag_anchors"].tolist(), found.uns["generag"]
    assert set(anchors) <= set(genes[5:30])
    assert [about[k] for k in ("first_guess", "first_guess_scale", "y_init_unit")] == ["model", "log2_counts", "counts"]
    place = [known.index(g) % 3 for g in anchors]
    spread = np.log2(1 + found.obsm["generag_y_init"]) - np.array(place)
    above = (found.obsm["generag_y_init"] > 1e-6).all(axis=1)
    np.testing.assert_allclose(spread[above], np.broadcast_to(spread[above][:, :1], spread[above].shape), atol=1e-3)
    assert about["first_guess_below_0"] == int((found.obsm["generag_y_init"] == 0).sum())
    assert not list(tmp_path.glob(".*guess"))

    at = ("--spots", f"{cohort}:P3_1")
    done = predict(generag, slide, bank, "toy", tmp_path, "--anchor-scale", "model", *at)
    assert done.code == 0, done.err
    found = anndata.read_h5ad(tmp_path / "P3_1.toy.h5ad")
    assert found.uns["generag"]["y_init_unit"] == "log2_counts"
    scored = generag("evaluate", tmp_path / "P3_1.toy.h5ad", "--truth", f"{cohort}:P3_1", "--allow-short")
    assert scored.code == 0, scored.err
    assert "the first guess is in scale log2_counts" in scored.err


def test_options_are_remembered_and_other_genes_refused(generag, cohort, slide, tmp_path, toy, genes):
    bank = tmp_path / "b.zarr"
    build(generag, cohort, bank, "toy", "--backbone-option", f"genes={'+'.join(genes[:8])}")
    others = ("--backbone-option", f"genes={'+'.join(genes[8:16])}")
    other = predict(generag, slide, bank, "toy", tmp_path, "--preset", "paper", *others)
    other.expect_refusal(1, "genes with digest", "backbone toy")
    assert predict(generag, slide, bank, "toy", tmp_path, "--preset", "paper").code == 0
    first = anndata.read_h5ad(tmp_path / "P3_1.toy.h5ad")
    done = predict(generag, slide, bank, "toy", tmp_path, "--preset", "paper", "--backbone-option", "shift=1")
    assert done.code == 0, done.err
    second = anndata.read_h5ad(tmp_path / "P3_1.toy.h5ad")
    assert json.loads(second.uns["generag"]["backbone_loading"])["options"]["shift"] == "1"
    both = (first.obsm["generag_y_init"] > 0) & (second.obsm["generag_y_init"] > 0)
    np.testing.assert_allclose(
        second.obsm["generag_y_init"][both], 2 * first.obsm["generag_y_init"][both] + 1, rtol=1e-4
    )  # an option that no card names still makes another prediction: log2(1 + y) + 1
    verify = generag("bank", "verify", "--bank", bank)
    assert verify.code == 0
    (bank / "predicts" / "toy.json").write_text("{}")
    assert generag("bank", "verify", "--bank", bank).code == 1


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_model_that_needs_the_bank_is_given_it_in_the_presets_scale(generag, cohort, slide, tmp_path, toy, preset):
    bank = tmp_path / "b.zarr"
    build(generag, cohort, bank, "mean")
    done = predict(generag, slide, bank, "mean", tmp_path, "--preset", preset)
    assert done.code == 0, done.err
    found = anndata.read_h5ad(tmp_path / "P3_1.mean.h5ad")
    anchors = found.uns["generag_anchors"].tolist()
    mean = found.var.loc[anchors, "bank_mean"].to_numpy()
    np.testing.assert_allclose(found.obsm["generag_y_init"][0], mean, rtol=1e-4)


def test_views_of_a_model_are_refused(generag, cohort, tmp_path, toy):
    done = generag("build-bank", cohort, "--backbone", "mean", "--bank", tmp_path / "b", "--views", "7", "-q")
    done.expect_refusal(2, "views")


def test_model_that_breaks_a_promise_is_refused_or_put_right(generag, cohort, slide, tmp_path, toy, genes):
    bank, known = tmp_path / "b.zarr", f"genes={'+'.join(genes[:8])}"
    for name in ("toy", "broken"):
        build(generag, cohort, bank, name, "--backbone-option", known)
    paper = ("--preset", "paper")
    for bad, said in (("raise", "failed to predict: KeyError"), ("short", "predicted"), ("nan", "not finite")):
        done = predict(generag, slide, bank, "broken", tmp_path, *paper, "--backbone-option", f"bad={bad}")
        done.expect_refusal(1, "backbone broken", said)
    for name, options in (("toy", ()), ("broken", ("--backbone-option", "bad=order"))):
        assert predict(generag, slide, bank, name, tmp_path, *paper, *options).code == 0
    first, second = (anndata.read_h5ad(tmp_path / f"P3_1.{name}.h5ad") for name in ("toy", "broken"))
    np.testing.assert_array_equal(first.obsm["generag_y_init"], second.obsm["generag_y_init"])


def test_prediction_of_single_tiles_goes_on_block_by_block(generag, cohort, slide, tmp_path, toy, genes, monkeypatch):
    from genrag_cli.pipeline import guess

    monkeypatch.setattr(guess, "SPOTS_EACH", 7)
    bank, known = tmp_path / "b.zarr", f"genes={'+'.join(genes[:8])}"
    build(generag, cohort, bank, "toy", "--backbone-option", known)
    seen, real = [], guess._predict

    def stop_at_third(model, spots, names, scale):
        seen.append(len(spots))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(model, spots, names, scale)

    monkeypatch.setattr(guess, "_predict", stop_at_third)
    assert predict(generag, slide, bank, "toy", tmp_path, "--preset", "paper").code == 75
    assert predict(generag, slide, bank, "toy", tmp_path, "--preset", "paper").code == 0
    found = anndata.read_h5ad(tmp_path / "P3_1.toy.h5ad")
    assert sum(seen) == len(found) + seen[2], "only the block that was stopped is done twice"
