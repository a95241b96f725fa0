"""What is refused, with what was found and what to do: choices left open, wrong shapes, damage."""

import json
import runpy
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.foreign import read_features

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_foreign.py"))))
TRUTH = make.make_truth()
VALUES, CORNERS = TRUTH.values, TRUTH.corners


def trident(folder, features=VALUES, coords=CORNERS):
    return make.h5(folder / "S.h5", {"features": features, "coords": coords}, {"coords": make.TRIDENT})


@pytest.mark.parametrize(
    ("features", "coords", "said"),
    [
        (VALUES[0], CORNERS, r"shape \(6,\).*one row for a whole slide"),
        (np.stack([VALUES, VALUES]), CORNERS, r"shape \(2, 12, 6\)"),
        (VALUES, CORNERS[:5], r"coords is int64 \(5, 2\), expected x, y for each of 12 rows"),
        (VALUES, np.ones((12, 3)), r"coords is float64 \(12, 3\)"),
        (np.where(np.arange(6) == 2, np.nan, VALUES), CORNERS, "12 of 12 rows hold values that are no finite"),
        (VALUES.astype(np.float64) * 1e300, CORNERS, "no finite float32"),
        (VALUES > 0, CORNERS, "features holds bool, not numbers"),
    ],
)
def test_wrong_shapes_and_values_of_a_tile_file(features, coords, said, tmp_path):
    with pytest.raises(FeaturesError, match=said):
        read_features(trident(tmp_path, features, coords))


def test_a_clam_file_without_its_patches_has_no_places_and_says_why(tmp_path):
    path = make.h5(tmp_path / "h5_files" / "S.h5", {"features": VALUES, "coords": CORNERS})
    rows = read_features(path)
    assert rows.centres is None
    assert "patches/S.h5" in rows.notes[0]


def test_patches_of_other_corners_do_not_tell_the_side(tmp_path):
    make.h5(tmp_path / "patches" / "S.h5", {"coords": CORNERS + 1}, {"coords": make.CLAM})
    path = make.h5(tmp_path / "h5_files" / "S.h5", {"features": VALUES, "coords": CORNERS})
    assert read_features(path).centres is None


def test_a_level_without_its_downsample_does_not_tell_the_side(tmp_path):
    attributes = {"patch_size": 8, "patch_level": 1}
    path = make.h5(tmp_path / "S.h5", {"features": VALUES, "coords": CORNERS}, {"coords": attributes})
    assert read_features(path).centres is None


def test_stamp_coordinates_without_um_are_not_guessed(tmp_path):
    rows = read_features(make.h5(tmp_path / "S.h5", {"feats": VALUES, "coords": CORNERS}, root={"extractor": "x"}))
    assert (rows.centres, rows.centres_um) == (None, None)
    assert "make it with STAMP 2" in rows.notes[0]
    px = read_features(make.stamp(tmp_path, TRUTH, unit="px", tile_size_um=None))
    assert (px.centres_um, px.fov_um) == (None, None)


def test_stamp_features_of_a_slide_are_refused(tmp_path):
    with pytest.raises(FeaturesError, match="STAMP features of a slide, not of tiles"):
        read_features(make.stamp(tmp_path, TRUTH, feat_type="slide"))


def test_pixels_are_no_embeddings(tmp_path):
    path = make.h5(tmp_path / "S.h5", {"img": np.zeros((2, 4, 4, 3), np.uint8), "barcode": np.array([[b"a"], [b"b"]])})
    with pytest.raises(FeaturesError, match="holds pixels of tiles, no embeddings"):
        read_features(path)


def test_another_dataset_can_be_asked_for(tmp_path):
    path = make.h5(tmp_path / "S.h5", {"features": VALUES, "coords": CORNERS, "cls": VALUES[:, :2]})
    assert read_features(path, key="cls").values.shape == (12, 2)
    with pytest.raises(FeaturesError, match=r"no 'csl' among its datasets: cls \(12, 2\), features") as caught:
        read_features(path, key="csl")
    assert "cls" in caught.value.hint


@pytest.mark.parametrize("kind", ["slide_embeddings", "hierarchical_embeddings"])
def test_slide2vecs_other_embeddings_are_refused(kind, tmp_path):
    path = make.slide2vec(tmp_path, TRUTH)
    path.with_name("S.meta.json").write_text(json.dumps({"artifact_type": kind}))
    with pytest.raises(FeaturesError, match=f"slide2vec calls these {kind}"):
        read_features(path)


def test_slide2vec_coordinates_of_another_run_are_refused(tmp_path):
    path = make.slide2vec_npz(tmp_path, TRUTH)
    np.savez(path, features=VALUES, tile_index=np.arange(12) + 1)
    with pytest.raises(FeaturesError, match="number their tiles differently"):
        read_features(path)
    np.savez(path, features=VALUES[:7])
    with pytest.raises(FeaturesError, match="has 12 tiles, the features 7 rows"):
        read_features(path)


def test_slide2vec_features_without_coordinates_say_where_they_were_looked_for(tmp_path):
    path = make.slide2vec(tmp_path, TRUTH)
    (tmp_path / "tiles" / "S.coordinates.npz").unlink()
    rows = read_features(path)
    assert (rows.kind, rows.encoder, rows.centres, rows.fov_um) == ("slide2vec", "uni", None, 16.0)
    assert "../tiles/S.coordinates.npz" in rows.notes[0]


def test_an_axis_that_cannot_be_views_is_not_averaged(tmp_path):
    path = make.save_tensor(tmp_path / "S.pt", np.ones((12, 36, 6), np.float32))
    with pytest.raises(FeaturesError, match="can be 7 or 8 views of a tile, not 36"):
        read_features(path)


def test_views_that_differ_are_averaged(tmp_path):
    views = np.random.default_rng(4).normal(size=(5, 7, 3)).astype(np.float32)
    rows = read_features(make.save_tensor(tmp_path / "S_uni_aug.pt", views))
    expected = (sum(views[:, v].astype(np.float64) for v in range(7)) / 7).astype(np.float32)
    np.testing.assert_allclose(rows.values, expected, rtol=2e-7, atol=1e-7)
    assert rows.notes == ("averaged over 7 views of each tile",)


def test_samples_of_predictions_are_no_embeddings(tmp_path):
    path = make.save_tensor(tmp_path / "generated_samples_lr_Stem_core_20sample.pt", np.ones((240, 6), np.float32))
    with pytest.raises(FeaturesError, match="samples of predictions, not embeddings") as caught:
        read_features(path)
    assert "--anchors-from" in caught.value.hint


def test_tensors_by_name_leave_a_choice_that_is_not_made(tmp_path):
    import torch

    path = tmp_path / "S.pt"
    torch.save({"cls": torch.ones(3, 2), "mean": torch.zeros(3, 2)}, path)
    with pytest.raises(FeaturesError, match=r"several tensors that could be meant: cls \(3, 2\), mean \(3, 2\)"):
        read_features(path)
    assert read_features(path, key="mean").values.sum() == 0


def test_half_precision_of_any_kind_is_read(tmp_path):
    import torch

    for dtype in (torch.float16, torch.bfloat16):
        torch.save(torch.full((3, 2), 1.5, dtype=dtype), tmp_path / "S.pt")
        assert (read_features(tmp_path / "S.pt").values == 1.5).all()


def test_several_matrices_of_an_anndata_leave_a_choice_that_is_not_made(tmp_path):
    make.annotated(TRUTH, obsm={"uni": VALUES[:, :3]}).write_h5ad(tmp_path / "S.h5ad")
    with pytest.raises(FeaturesError, match=r"several X and obsm .*X \(12, 6\), uni \(12, 3\)"):
        read_features(tmp_path / "S.h5ad")
    assert read_features(tmp_path / "S.h5ad", key="uni").values.shape == (12, 3)
    assert read_features(tmp_path / "S.h5ad", key="X").values.shape == (12, 6)


def test_names_that_only_count_the_rows_are_no_names(tmp_path):
    counted = make.Truth(np.arange(12).astype(str), TRUTH.centres, VALUES, TRUTH.genes)
    rows = read_features(make.h5ad(tmp_path, counted))
    assert rows.names is None
    assert "only count the rows" in rows.notes[0]
    names = tmp_path / "names.csv"
    names.write_text("barcode,other\n" + "\n".join(f"{n},1" for n in TRUTH.names))
    assert read_features(make.h5ad(tmp_path, counted), names_from=names).names.tolist() == TRUTH.names.tolist()
    shuffled = counted.rows(np.arange(12)[::-1])
    assert read_features(make.h5ad(tmp_path, shuffled)).names.tolist() == shuffled.names.tolist()


def test_names_come_from_an_h5ad(tmp_path):
    path = make.generag_views(tmp_path, TRUTH)
    assert read_features(path, names_from=make.h5ad(tmp_path, TRUTH)).names.tolist() == TRUTH.names.tolist()
    with pytest.raises(FeaturesError, match=r"parquet\) holds no names of rows"):
        read_features(path, names_from=make.parquet(tmp_path, TRUTH))
    headed = tmp_path / "headed.csv"
    headed.write_text("barcode\n" + "\n".join(TRUTH.names))
    assert read_features(path, names_from=headed).names.tolist() == TRUTH.names.tolist()
    short = tmp_path / "names.txt"
    short.write_text("a\nb\nc")
    with pytest.raises(FeaturesError, match=r"has 3 names, .* has 12 rows"):
        read_features(path, names_from=short)


def several_tables():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        elements = make.wsidata_elements(TRUTH)
        elements["tables"].update(make.wsidata_elements(TRUTH, model="conch")["tables"])
    return elements


def test_several_tables_leave_a_choice_that_is_not_made(tmp_path):
    spec = {"tile_spec": {"tiles": make.TILE_SPEC}}
    path = make._spatialdata(tmp_path / "S.zarr", several_tables(), spec, 3)
    with pytest.raises(FeaturesError, match=r"several tables.*conch_tiles \(12, 6\), uni_tiles \(12, 6\)"):
        read_features(path)
    rows = read_features(path, key="conch_tiles")
    assert (rows.encoder, rows.kind) == ("conch", "wsidata-zarr")
    with pytest.raises(FeaturesError, match="no 'resnet_tiles' among its tables"):
        read_features(path, key="resnet_tiles")


def test_shapes_in_another_coordinate_system_place_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spatialdata.transformations import Scale, set_transformation

        elements = make.wsidata_elements(TRUTH)
        set_transformation(elements["shapes"]["tiles"], Scale([2.0, 2.0], axes=("x", "y")), "global")
    rows = read_features(make._spatialdata(tmp_path / "S.zarr", elements, {}, 3))
    assert rows.centres is None
    assert "coordinate system" in rows.notes[-1]


def test_tables_of_text_with_columns_that_are_no_numbers(tmp_path):
    table = make.frame(TRUTH)
    table["tissue"] = "tumour"
    table.to_csv(tmp_path / "S.csv", index=False)
    with pytest.raises(FeaturesError, match="neither names, x, y nor numbers: tissue"):
        read_features(tmp_path / "S.csv")


def test_tables_with_two_columns_of_names_or_repeated_spots(tmp_path):
    table = make.frame(TRUTH)
    table["name"] = table["barcode"]
    table.to_parquet(tmp_path / "S.parquet")
    with pytest.raises(FeaturesError, match="several columns could be names: barcode, name"):
        read_features(tmp_path / "S.parquet")
    table["barcode"] = "same"
    table.drop(columns="name").to_csv(tmp_path / "S.csv", index=False)
    with pytest.raises(FeaturesError, match="spot names are not unique: same"):
        read_features(tmp_path / "S.csv")
    with pytest.raises(FeaturesError, match="one table, so nothing in it is called 'x'"):
        read_features(tmp_path / "S.csv", key="x")


def test_missing_numbers_of_a_table_are_refused(tmp_path):
    (tmp_path / "S.csv").write_text("name,a,b\ns1,1,2\ns2,,3\n")
    with pytest.raises(FeaturesError, match="1 of 2 rows hold values that are no finite"):
        read_features(tmp_path / "S.csv")


def test_names_of_a_table_stay_text(tmp_path):
    (tmp_path / "S.csv").write_text("name,a\n007,1\n07,2\nNA,3\n")
    assert read_features(tmp_path / "S.csv").names.tolist() == ["007", "07", "NA"]


def broken_zip(folder):
    (folder / "F.npz").write_bytes(b"PK\x03\x04 and nothing more")
    return folder / "F.npz"


def other_zip(folder):
    with zipfile.ZipFile(folder / "F.zip", "w") as file:
        file.writestr("readme.md", "text")
    return folder / "F.zip"


def nested_zip(folder):
    with zipfile.ZipFile(folder / "F.zip", "w") as file:
        file.writestr("S.zarr/.zgroup", "{}")
    return folder / "F.zip"


def cut_h5(folder):
    path = trident(folder)
    path.write_bytes(path.read_bytes()[:600])
    return path


def cut_parquet(folder):
    path = make.parquet(folder, TRUTH)
    path.write_bytes(path.read_bytes()[:-9])
    return path


def other_h5(folder):
    return make.h5(folder / "F.h5", {"scores": VALUES})


def other_zarr(folder):
    (folder / "F.zarr").mkdir()
    (folder / "F.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    return folder / "F.zarr"


def a_picture(folder):
    (folder / "F.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    return folder / "F.png"


def a_folder(folder):
    (folder / "d").mkdir()
    (folder / "d" / "notes.txt").write_text("x")
    return folder / "d"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (broken_zip, "damaged zip"),
        (other_zip, "a zip file of readme.md"),
        (nested_zip, r"a zip file of S.zarr/.zgroup"),
        (cut_h5, "cut short: 600 of"),
        (cut_parquet, "cannot be read as Parquet"),
        (other_h5, r"no known layout, it holds scores \(12, 6\)"),
        (other_zarr, "no known layout, it holds nothing"),
        (a_picture, "unknown file, it starts with"),
        (a_folder, "no Zarr store, it holds notes.txt"),
        (lambda f: f / "absent.h5", "absent.h5 cannot be read: No such file"),
    ],
    ids=lambda v: getattr(v, "__name__", "said"),
)
def test_unknown_and_damaged_files_are_refused_with_what_was_found(write, said, tmp_path):
    with pytest.raises(FeaturesError, match=said) as caught:
        read_features(write(tmp_path))
    assert caught.value.hint
    assert caught.value.exit_code == 1


def test_formats_are_told_by_content_and_not_by_extension(tmp_path):
    for write, other in ((make.trident, "S.csv"), (make.npz, "S.h5"), (make.csv, "S.pt"), (make.parquet, "S.npz")):
        folder = tmp_path / other
        folder.mkdir()
        path = write(folder, TRUTH)
        renamed = path.rename(folder / f"renamed-{other}")
        assert read_features(renamed).values.tobytes() == VALUES.tobytes()


def test_npz_with_two_of_a_kind(tmp_path):
    path = tmp_path / "S.npz"
    np.savez(path, features=VALUES, embeddings=VALUES * 2)
    with pytest.raises(FeaturesError, match="several arrays that could be meant"):
        read_features(path)
    assert (read_features(path, key="embeddings").values == VALUES * 2).all()
    np.savez(path, features=VALUES, xy=TRUTH.centres, centres=TRUTH.centres)
    with pytest.raises(FeaturesError, match="both centres and xy"):
        read_features(path)


def test_an_old_anndata_is_refused(tmp_path):
    import h5py

    path = make.h5ad(tmp_path, TRUTH)
    with h5py.File(path, "a") as file:
        del file["obs"].attrs["encoding-type"]
    with pytest.raises(FeaturesError, match=r"not stored as anndata has stored it since 0\.7"):
        read_features(path)
