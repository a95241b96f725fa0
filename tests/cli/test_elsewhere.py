"""Embeddings and first guesses that were made elsewhere, in place of a slide, a backbone and a head."""

import csv

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from genrag_cli.cohorts import open_section
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.embeddings import read_embeddings

MPP = "1.2"
COMMON = ("--backbone", "stain", "--workers", "1", "--alpha", "0.003", "--quiet", "--overwrite")


class Rows:
    """Embeddings and guesses of the held-out section's spots, and how other tools write them, in any order of rows."""

    def __init__(self, embeddings, counts, genes, seed=1):
        self.order = np.random.default_rng(seed).permutation(len(embeddings.values))
        self.values = embeddings.values[self.order]
        self.names = embeddings.grid.names[self.order]
        self.centres = embeddings.grid.centres[self.order]
        self.side = embeddings.grid.side_px
        self.guess = np.asarray(counts[self.order], np.float32)
        self.genes = genes

    def without(self, row):
        kept = np.delete(np.arange(len(self.names)), row)
        other = object.__new__(Rows)
        vars(other).update(vars(self))
        for name in ("values", "names", "centres", "guess"):
            setattr(other, name, getattr(self, name)[kept])
        return other

    def write(self, kind, folder):
        path = folder / dict.fromkeys(("trident", "clam", "hest"), "P3_1.h5").get(kind, f"P3_1.{kind}")
        getattr(self, f"_{kind}")(path)
        return path

    def _npz(self, path):
        np.savez(path, features=self.values, names=self.names, centres=self.centres)

    def _csv(self, path):
        table = pd.DataFrame(self.values.astype(np.float64), columns=[f"f{i}" for i in range(self.values.shape[1])])
        table.insert(0, "name", self.names)
        table.to_csv(path, index=False, float_format="%.17g")

    def _parquet(self, path):
        table = pd.DataFrame(self.values, columns=[f"f{i}" for i in range(self.values.shape[1])])
        table.insert(0, "barcode", self.names)
        table.to_parquet(path)

    def _h5ad(self, path):
        adata = anndata.AnnData(X=self.values, obs=pd.DataFrame(index=self.names.tolist()))
        adata.obsm["spatial"] = self.centres
        adata.write_h5ad(path)

    def _trident(self, path):
        with h5py.File(path, "w") as file:
            file["features"] = self.values
            file["coords"] = np.round(self.centres - self.side / 2).astype(np.int64)
            file["coords"].attrs.update({"patch_size_level0": int(np.round(self.side)), "patch_size": 256})

    def _clam(self, path):
        with h5py.File(path, "w") as file:
            file["features"] = self.values
            file["coords"] = np.round(self.centres - self.side / 2).astype(np.int64)
            file["coords"].attrs.update(
                {"patch_size": int(np.round(self.side)), "patch_level": 0, "downsample": np.array([1.0, 1.0])}
            )

    def _hest(self, path):
        with h5py.File(path, "w") as file:
            file["embeddings"] = self.values
            file["barcodes"] = self.names.astype("S")[:, None]
            file["coords"] = np.round(self.centres - self.side / 2).astype(np.int64)

    def _pt(self, path):
        torch.save(torch.from_numpy(self.values[:, None].repeat(7, axis=1)), path)
        path.with_suffix(".names.txt").write_text("\n".join(self.names) + "\n")


@pytest.fixture(scope="module")
def rows(generag, cohort, built_bank, tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded")
    at = ("--spots", f"{cohort}:P3_1")
    done = generag(
        "embed", cohort / "images" / "P3_1.tif", "--backbone", "stain", "--bank", built_bank, "--out", out, *at
    )
    assert done.code == 0, done.err
    measured = open_section(f"{cohort}:P3_1").load()
    genes = measured.genes[np.asarray(measured.counts.sum(0)).ravel() > 0][::2]
    where = [measured.genes.tolist().index(g) for g in genes]
    place = {name: i for i, name in enumerate(measured.names.tolist())}
    embeddings = read_embeddings(out / "P3_1.stain.spots.zarr.zip")
    counts = measured.counts.toarray()[[place[n] for n in embeddings.grid.names.tolist()]][:, where]
    return Rows(embeddings, counts, genes)


@pytest.fixture(scope="module")
def spots_file(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("spots") / "spots.csv"
    order = np.argsort(rows.names)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "x", "y"])
        table.writerows([rows.names[i], *map(repr, rows.centres[i].tolist())] for i in order)
    return path


def predict(generag, bank, out, features, *options):
    done = generag("retrieve", "--features", features, "--bank", bank, "--out", out, *COMMON, *options)
    return done, (anndata.read_h5ad(out / "P3_1.stain.h5ad") if done.code == 0 else None)


@pytest.fixture(scope="module")
def expected(generag, built_bank, rows, spots_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected")
    done, found = predict(generag, built_bank, out, rows.write("npz", out), "--spots", spots_file, "--mpp", MPP)
    assert done.code == 0, done.err
    return found


@pytest.mark.parametrize("kind", ["csv", "parquet", "h5ad", "trident", "clam", "hest", "pt"])
def test_same_features_in_any_format_and_order_give_the_same_to_the_last_bit(
    generag, built_bank, rows, spots_file, expected, tmp_path, kind
):
    path = rows.write(kind, tmp_path)
    named = ("--names-from", path.with_suffix(".names.txt")) if kind == "pt" else ()
    done, found = predict(generag, built_bank, tmp_path, path, "--spots", spots_file, "--mpp", MPP, *named)
    assert done.code == 0, done.err
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    np.testing.assert_array_equal(found.X, expected.X)
    np.testing.assert_array_equal(found.obsm["generag_weights"].toarray(), expected.obsm["generag_weights"].toarray())


def test_no_slide_and_no_torch_model_are_needed_with_both_files(generag, built_bank, rows, tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a backbone was loaded")

    monkeypatch.setattr("genrag_cli.backbones.registry.load_backbone", forbidden)
    guess = tmp_path / "guess.h5ad"
    anndata.AnnData(
        X=rows.guess[::-1], obs=pd.DataFrame(index=rows.names[::-1].tolist()),
        var=pd.DataFrame(index=rows.genes.tolist()),
    ).write_h5ad(guess)  # fmt: skip
    both = ("--anchors-from", guess, "--anchors-scale", "counts", "--mpp", MPP, "--preset", "paper")
    done, found = predict(generag, built_bank, tmp_path, rows.write("h5ad", tmp_path), *both)
    assert done.code == 0, done.err
    about = found.uns["generag"]
    assert (about["first_guess"], about["slide_reader"]) == ("file", "none: features from a file")
    assert found.uns["generag_anchors"].tolist() == rows.genes.tolist()
    place = {name: i for i, name in enumerate(rows.names.tolist())}
    asked = rows.guess[[place[n] for n in found.obs_names]]
    np.testing.assert_array_equal(found.obsm["generag_y_init"], asked)
    np.testing.assert_allclose(found.obsm["spatial"], rows.centres[[place[n] for n in found.obs_names]])


def test_one_spot_missing_or_extra_is_refused_by_name(generag, built_bank, rows, spots_file, tmp_path):
    lacking, spots = rows.without(3), ("--spots", spots_file, "--mpp", MPP)
    predict(generag, built_bank, tmp_path, lacking.write("npz", tmp_path), *spots)[0].expect_refusal(1, rows.names[3])
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("".join(spots_file.read_text().splitlines(True)[:-1]))
    last = spots_file.read_text().splitlines()[-1].split(",")[0]
    done, _ = predict(generag, built_bank, tmp_path, rows.write("parquet", tmp_path), "--spots", fewer, "--mpp", MPP)
    done.expect_refusal(1, last)


def test_features_of_another_length_are_refused(generag, built_bank, rows, tmp_path):
    path = tmp_path / "P3_1.npz"
    np.savez(path, features=rows.values[:, :4], names=rows.names, centres=rows.centres)
    predict(generag, built_bank, tmp_path, path, "--mpp", MPP)[0].expect_refusal(1, "4 numbers", "has 6", "--backbone")


def test_what_is_not_said_is_asked_for(generag, built_bank, rows, tmp_path):
    npz = rows.write("npz", tmp_path)
    predict(generag, built_bank, tmp_path, npz)[0].expect_refusal(1, "how many um a pixel is", "--mpp")
    bare = tmp_path / "bare.npz"
    np.savez(bare, features=rows.values, names=rows.names)
    predict(generag, built_bank, tmp_path, bare, "--mpp", MPP)[0].expect_refusal(1, "without coordinates", "--spots")
    guess = tmp_path / "guess.npz"
    np.savez(guess, values=rows.guess, names=rows.names, genes=rows.genes)
    done, _ = predict(generag, built_bank, tmp_path, npz, "--mpp", MPP, "--anchors-from", guess)
    done.expect_refusal(1, "states no scale", "--anchors-scale")
    generag("retrieve", "--bank", built_bank, *COMMON).expect_refusal(2, "no slide was given", "--features")
    generag("retrieve", "x.svs", "--bank", built_bank, "--features-key", "k", *COMMON).expect_refusal(
        2, "--features-key"
    )


def test_bank_of_features_takes_features_and_refuses_pixels(generag, cohort, slide, rows, tmp_path):
    folder, bank = tmp_path / "features", tmp_path / "b.zarr"
    folder.mkdir()
    build = ("build-bank", cohort, "--exclude", "P3_1", "--bank", bank, "--workers", "1", "--quiet")
    for name in ("P1_1", "P2_1"):
        measured = open_section(f"{cohort}:{name}").load()
        values = np.random.default_rng(len(measured)).normal(size=(len(measured), 6)).astype(np.float32)
        np.savez(folder / f"{name}_mine.npz", features=values[::-1], names=measured.names[::-1])
    generag(*build, "--features", folder).expect_refusal(2, "--backbone NAME")
    generag(*build, "--features", folder, "--backbone", "../mine").expect_refusal(2, "../mine")
    done = generag(*build, "--features", folder, "--backbone", "mine")
    assert done.code == 0, done.err
    common = ("--backbone", "mine", "--bank", bank, "--out", tmp_path, "--workers", "1", "--alpha", ".003", "--quiet")
    generag("retrieve", slide, *common).expect_refusal(1, "were read from files", "--features")
    done = generag("retrieve", "--features", rows.write("npz", tmp_path), "--mpp", MPP, *common)
    assert done.code == 0, done.err
    assert (tmp_path / "P3_1.mine.h5ad").exists()


def test_encoder_that_the_file_names_must_be_the_banks(generag, built_bank, rows, tmp_path):
    path = rows.write("trident", tmp_path)
    with h5py.File(path, "r+") as file:
        file["features"].attrs["encoder"] = "virchow2"
    done, _ = predict(generag, built_bank, tmp_path, path, "--mpp", MPP)
    done.expect_refusal(1, "virchow2", "built with stain", "--same-encoder")
    assert predict(generag, built_bank, tmp_path, path, "--mpp", MPP, "--same-encoder")[0].code == 0


def test_guesses_of_a_file_go_with_a_slide_too(generag, cohort, slide, built_bank, rows, tmp_path):
    guess = tmp_path / "guess.parquet"
    table = pd.DataFrame(rows.guess, columns=rows.genes.tolist())
    table.insert(0, "name", rows.names)
    table.to_parquet(guess)
    at = ("--spots", f"{cohort}:P3_1", "--bank", built_bank, "--out", tmp_path, *COMMON)
    done = generag("retrieve", slide, "--anchors-from", guess, "--anchors-scale", "log2_counts", *at)
    done.expect_refusal(1, f"{guess} is in scale log2_counts", "log1p_cp10k", "--preset paper")
    done = generag("retrieve", slide, "--anchors-from", guess, "--anchors-scale", "log1p_cp10k", *at)
    assert done.code == 0, done.err
    found = anndata.read_h5ad(tmp_path / "P3_1.stain.h5ad")
    place = {name: i for i, name in enumerate(rows.names.tolist())}
    np.testing.assert_array_equal(found.obsm["generag_y_init"], rows.guess[[place[n] for n in found.obs_names]])
    assert found.uns["generag"]["slide_statistics"].endswith("tissue tiles of the slide")


def test_guessed_genes_that_the_bank_lacks_are_refused_or_left_out_and_recorded(generag, built_bank, rows, tmp_path):
    guess = tmp_path / "guess.npz"
    genes = np.append(rows.genes[:-1], "NOT-IN-BANK")
    np.savez(guess, values=rows.guess, names=rows.names, genes=genes)
    how = ("--mpp", MPP, "--anchors-from", guess, "--anchors-scale", "counts", "--preset", "paper")
    npz = rows.write("npz", tmp_path)
    predict(generag, built_bank, tmp_path, npz, *how)[0].expect_refusal(1, "NOT-IN-BANK", "--drop-missing-anchors")
    done, found = predict(generag, built_bank, tmp_path, npz, *how, "--drop-missing-anchors")
    assert done.code == 0, done.err
    assert found.uns["generag"]["anchors_left_out"] == '["NOT-IN-BANK"]'
    assert found.uns["generag_anchors"].tolist() == rows.genes[:-1].tolist()


def features_for(cohort, folder, names, dim=6, key="features"):
    folder.mkdir(exist_ok=True)
    for name in names:
        measured = open_section(f"{cohort}:{name}").load()
        draw = np.random.default_rng(len(measured)).normal(size=(2, len(measured), dim)).astype(np.float32)
        np.savez(folder / f"{name}.npz", names=measured.names, **{key: draw[0], "other": draw[1]})
    return folder


def test_another_array_or_other_names_of_the_same_files_are_embedded_anew(generag, cohort, tmp_path):
    folder, bank = features_for(cohort, tmp_path / "f", ("P1_1", "P2_1")), tmp_path / "b.zarr"
    build = ("build-bank", cohort, "--exclude", "P3_1", "--bank", bank, "--backbone", "mine", "--features", folder)
    for key in ("features", "other"):
        assert generag(*build, "--features-key", key).code == 0
        stored = Bank.open(bank, "mine")
        with np.load(folder / "P1_1.npz") as file:
            wanted = dict(zip(file["names"].tolist(), file[key], strict=True))
        names = [n.split("/")[1] for n in stored.spot_names.tolist() if n.startswith("P1_1/")]
        np.testing.assert_array_equal(next(iter(stored.embeddings)), [wanted[n] for n in names])


def test_sections_that_all_fail_end_with_a_reason_and_not_a_traceback(generag, cohort, tmp_path):
    (tmp_path / "empty").mkdir()
    done = generag(
        "build-bank", cohort, "--backbone", "mine", "--features", tmp_path / "empty", "--bank", tmp_path / "b",
        "--skip-bad", "--quiet",
    )  # fmt: skip
    done.expect_refusal(1, "no section is left")


def test_two_backbones_whose_files_would_be_called_alike_are_refused(generag, cohort, tmp_path):
    folder, bank = features_for(cohort, tmp_path / "f", ("P1_1", "P2_1")), tmp_path / "b.zarr"
    build = ("build-bank", cohort, "--exclude", "P3_1", "--bank", bank, "--features", folder, "--quiet")
    build += ("--features-key", "features")
    assert generag(*build, "--backbone", "a:b").code == 0
    generag(*build, "--backbone", "a-b").expect_refusal(1, "'a:b'", "'a-b'")
    assert generag("bank", "verify", "--bank", bank).code == 0


def test_changed_places_of_guesses_make_another_prediction(generag, built_bank, rows, tmp_path):
    npz, guess = rows.write("npz", tmp_path), tmp_path / "guess.npz"
    how = ("--mpp", MPP, "--anchors-from", guess, "--anchors-scale", "log1p_cp10k")
    common = [w for w in COMMON if w != "--overwrite"]
    found = []
    for centres in (rows.centres, rows.centres[::-1]):
        np.savez(guess, values=rows.guess, centres=centres, genes=rows.genes)
        done = generag("retrieve", "--features", npz, "--bank", built_bank, "--out", tmp_path, *common, *how)
        assert done.code == 0, done.err
        found.append(anndata.read_h5ad(tmp_path / "P3_1.stain.h5ad").obsm["generag_y_init"])
    np.testing.assert_array_equal(np.sort(found[0], axis=0), np.sort(found[1], axis=0))
    assert not np.array_equal(found[0], found[1])


def test_embeddings_of_generag_itself_with_other_views_are_refused(generag, cohort, built_bank, tmp_path):
    slide, at = cohort / "images" / "P3_1.tif", ("--spots", f"{cohort}:P3_1")
    made = ("embed", slide, "--backbone", "stain", "--bank", built_bank, "--out", tmp_path / "e.zarr.zip", *at)
    assert generag(*made, "--views", "7").code == 0
    done, _ = predict(generag, built_bank, tmp_path, tmp_path / "e.zarr.zip")
    done.expect_refusal(1, "view count 7")
    assert generag(*made, "--views", "1", "--overwrite").code == 0
    done = generag("retrieve", "--features", tmp_path / "e.zarr.zip", "--bank", built_bank, "--out", tmp_path, *COMMON)
    assert done.code == 0, done.err
    assert "warning" not in done.err


def test_spots_of_the_same_names_elsewhere_are_warned_of_and_outside_the_slide_refused(
    generag, cohort, built_bank, rows, spots_file, tmp_path
):
    path, at = tmp_path / "P3_1.npz", ("--spots", spots_file, "--mpp", MPP)
    np.savez(path, features=rows.values, names=rows.names, centres=rows.centres + 50_000)
    done, _ = predict(generag, built_bank, tmp_path, path, *at)
    assert done.code == 0
    assert "lie elsewhere than the spots of these names" in done.err
    slide = cohort / "images" / "P3_1.tif"
    done = generag("retrieve", slide, "--features", path, "--bank", built_bank, "--out", tmp_path, *COMMON)
    done.expect_refusal(1, "lie outside the 1200 x 1200 px")


@pytest.mark.parametrize("mpp", ["0", "-1"])
def test_pixel_sizes_that_cannot_be_are_usage_errors(generag, built_bank, rows, tmp_path, mpp):
    done, _ = predict(generag, built_bank, tmp_path, rows.write("npz", tmp_path), "--mpp", mpp)
    done.expect_refusal(2, f"pixel size {mpp} um/px was given")


def test_repeated_genes_of_a_table_are_seen_behind_what_pandas_calls_them(generag, built_bank, rows, tmp_path):
    guess = tmp_path / "guess.csv"
    genes = rows.genes.tolist()
    lines = [",".join(["name", *genes[:2], genes[0]])] + [f"{n},1,2,3" for n in rows.names]
    guess.write_text("\n".join(lines))
    how = ("--mpp", MPP, "--anchors-from", guess, "--anchors-scale", "counts", "--preset", "paper")
    done, _ = predict(generag, built_bank, tmp_path, rows.write("npz", tmp_path), *how)
    done.expect_refusal(1, "same name", genes[0])
