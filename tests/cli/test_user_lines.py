"""The lines that a person types first, in their order, on made-up data with random weights in UNI's layout."""

from pathlib import Path

import anndata
import pytest

from genrag_cli.synthetic import write_cohort
from genrag_cli.testing.random_weights import random_tensors, save_weights, vit_shapes

QUICK = ("--workers", "1", "--quiet")


@pytest.fixture(scope="module")
def uni_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One block of UNI's 24; its size is read from the tensors."""
    return save_weights(tmp_path_factory.mktemp("uni") / "pytorch_model.bin", random_tensors(vit_shapes(1024, 1)))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sections of a few spots each, for the many seconds that UNI takes over more."""
    folder = tmp_path_factory.mktemp("few") / "train"
    write_cohort(folder, size_px=800, n_genes=60)
    return folder


def test_bank_then_another_backbone_then_the_slide(generag, few, uni_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    train = tmp_path / "train"
    train.symlink_to(few)
    svs = tmp_path / "slide.tif"
    svs.symlink_to(few / "images" / "P3_1.tif")

    first = generag("build-bank", "train/", "--exclude", "P3_1", "--patients", "prefix", "--backbone", "stain", *QUICK)
    assert first.code == 0, first.err

    refused = generag("retrieve", "slide.tif", "--backbone", "uni", *QUICK)
    line = "generag build-bank train --backbone uni --exclude P3_1 --patients prefix --bank generag-bank.zarr"
    refused.expect_refusal(1, "no embeddings of backbone 'uni'", line, "--weights FILE", "generag backbones fetch uni")

    sections = sorted(tmp_path.glob("generag-bank.zarr/sections/*"))
    before = [path.stat().st_mtime_ns for path in sections]
    added = generag(*line.split()[1:], "--weights", uni_file, *QUICK)
    assert added.code == 0, added.err
    assert [path.stat().st_mtime_ns for path in sections] == before, "only embeddings are made"

    found = generag("retrieve", "slide.tif", "--backbone", "uni", *QUICK)
    assert found.code == 0, found.err
    adata = anndata.read_h5ad(tmp_path / "slide.uni.h5ad")
    assert adata.n_obs > 0
    assert adata.uns["generag"]["first_guess"] == "head"


def test_weights_that_are_nowhere_are_refused_with_every_way_to_them(generag, built_bank, cohort, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    done = generag("build-bank", cohort, "--backbone", "uni", "--bank", built_bank, *QUICK)
    done.expect_refusal(
        1, "backbone uni: its weights, pytorch_model.bin of MahmoodLab/UNI, cannot be had", "CC-BY-NC-ND-4.0",
        "generag backbones fetch uni", "--weights FILE",
    )  # fmt: skip


def test_other_weights_are_refused_when_the_bank_is_asked(generag, few, uni_file, tmp_path):
    bank, slide = tmp_path / "b.zarr", few / "images" / "P3_1.tif"
    build = ("build-bank", few, "--exclude", "P3_1", "--backbone", "uni", "--bank", bank, *QUICK)
    assert generag(*build, "--weights", uni_file).code == 0
    other = save_weights(tmp_path / "other.safetensors", random_tensors(vit_shapes(1024, 1), seed=1))
    done = generag("retrieve", slide, "--backbone", "uni", "--bank", bank, "--weights", other, *QUICK)
    done.expect_refusal(1, "weights with digest", str(bank))
    again = generag(*build, "--weights", other)
    again.expect_refusal(1, "weights_sha256", "--overwrite", "--bank")


def test_other_views_are_refused_and_the_banks_are_taken(generag, cohort, slide, tmp_path):
    bank = tmp_path / "b.zarr"
    build = ("build-bank", cohort, "--exclude", "P3_1", "--backbone", "stain", "--bank", bank, *QUICK)
    assert generag(*build, "--views", "7").code == 0
    common = ("retrieve", slide, "--backbone", "stain", "--bank", bank, "--out", tmp_path, "--alpha", "0.003", *QUICK)
    generag(*common, "--views", "8").expect_refusal(2, "--views 8", "built with 7")
    done = generag(*common)
    assert done.code == 0, done.err
    assert '"views": 7' in anndata.read_h5ad(tmp_path / "P3_1.stain.h5ad").uns["generag"]["backbone"]


def test_another_field_of_view_is_refused(generag, built_bank, slide):
    done = generag("retrieve", slide, "--backbone", "stain", "--bank", built_bank, "--fov-um", "80", *QUICK)
    done.expect_refusal(1, "--fov-um 80", "fov_um")


def test_colon_of_a_timm_network_is_in_no_files_name(generag, cohort, slide, tmp_path):
    import timm

    shapes = {k: tuple(v.shape) for k, v in timm.create_model("resnet10t", num_classes=0).state_dict().items()}
    file = save_weights(tmp_path / "weights" / "model.safetensors", random_tensors(shapes))
    bank, name = tmp_path / "b.zarr", "timm:resnet10t"
    build = ("build-bank", cohort, "--exclude", "P3_1", "--backbone", name, "--weights", file, "--bank", bank, *QUICK)
    assert generag(*build).code == 0
    done = generag("retrieve", slide, "--backbone", name, "--bank", bank, "--out", tmp_path, "--alpha", ".003", *QUICK)
    assert done.code == 0, done.err
    assert (tmp_path / "P3_1.timm-resnet10t.h5ad").exists()
    assert not list(tmp_path.rglob("*:*"))


def test_bank_never_mixes_weights_when_an_overwrite_is_stopped(generag, few, uni_file, tmp_path, monkeypatch):
    from genrag_cli.stores.bank_writer import BankWriter

    bank, slide = tmp_path / "b.zarr", few / "images" / "P3_1.tif"
    other = save_weights(tmp_path / "other.safetensors", random_tensors(vit_shapes(1024, 1), seed=1))
    build = ("build-bank", few, "--exclude", "P3_1", "--backbone", "uni", "--bank", bank, *QUICK)
    assert generag(*build, "--weights", uni_file).code == 0
    real = BankWriter.add_embeddings

    def add_one(self, card, name, *rest, **more):
        if name != "P1_1":
            raise KeyboardInterrupt
        real(self, card, name, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(BankWriter, "add_embeddings", add_one)
        assert generag(*build, "--weights", other, "--overwrite").code == 75
    broken = generag("retrieve", slide, "--backbone", "uni", "--bank", bank, "--out", tmp_path, *QUICK)
    broken.expect_refusal(1, "Repair it")
    assert generag(*build).code == 0, "the line that repairs it takes the new weights up"
    assert generag("retrieve", slide, "--backbone", "uni", "--bank", bank, "--out", tmp_path, *QUICK).code == 0
