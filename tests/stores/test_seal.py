"""Digests that travel with files, and what they say of files that were mangled."""

import hashlib
import io
import json
import os
import zipfile

import anndata
import h5py
import numpy as np
import pytest
import scanpy
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.stores.atomic import new_file, new_folder, pack_folder
from genrag_cli.stores.seal import DIGESTS, MARK, SEAL_BYTES, check, recorded_digest, seal_file, seal_folder
from genrag_cli.stores.zipped import opened, write_anndata, write_arrays

VALUES = np.random.default_rng(0).random((30, 8), np.float32)


def write_h5ad(path, *, sealed=True):
    with new_file(path, sealed=sealed) as temporary:
        anndata.AnnData(VALUES).write_h5ad(temporary)
        if sealed:
            with h5py.File(temporary, "r+") as file:
                file.attrs["mark"] = np.bytes_(MARK)
    return path


def write_zarr(path, *, sealed=True):
    with new_folder(path, sealed=sealed) as temporary:
        write_anndata(temporary, anndata.AnnData(obsm={"x": VALUES}))
    return path


@pytest.mark.parametrize(
    "read", [anndata.read_h5ad, scanpy.read_h5ad, lambda p: anndata.read_h5ad(p, backed="r").to_memory()]
)
def test_readers_do_not_see_the_seal_of_an_hdf5_file(tmp_path, read):
    path = write_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(read(path).X, VALUES)
    assert check(path).state == "whole"


def test_readers_do_not_see_the_seal_of_a_folder(tmp_path):
    path = write_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(anndata.read_zarr(path).obsm["x"], VALUES)
    assert DIGESTS not in zarr.open_group(path, mode="r")
    assert check(path).state == "whole"


def test_readers_do_not_see_the_seal_of_a_zip(tmp_path):
    write_arrays(tmp_path / "a.zarr.zip", {"x": VALUES}, {})
    with opened(tmp_path / "a.zarr.zip") as group:
        np.testing.assert_array_equal(group["x"][...], VALUES)
    assert zipfile.ZipFile(tmp_path / "a.zarr.zip").testzip() is None
    assert check(tmp_path / "a.zarr.zip").state == "whole"


def test_the_digest_is_the_one_that_sha256sum_gives_of_the_bytes_before_the_seal(tmp_path):
    content = write_h5ad(tmp_path / "a.h5ad").read_bytes()
    assert check(tmp_path / "a.h5ad").sha256 == hashlib.sha256(content[:-SEAL_BYTES]).hexdigest()
    assert int(content.split()[-1]) == len(content) - SEAL_BYTES


@pytest.mark.parametrize("write", [write_h5ad, write_zarr])
def test_equal_content_gives_equal_bytes(tmp_path, write):
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    pairs = [(one, two)] if one.is_file() else [(p, two / p.relative_to(one)) for p in one.rglob("*") if p.is_file()]
    assert all(a.read_bytes() == b.read_bytes() for a, b in pairs)


@pytest.mark.parametrize("values", [{}, {"a": np.ones(3)}, {"a": np.ones(30_000)}])
def test_an_hdf5_file_that_was_opened_for_writing_is_changed(tmp_path, values):
    path = write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file.update(values)
    assert check(path).state == "changed"
    assert "after it was written" in check(path).reason


def test_an_hdf5_file_that_was_read_is_not_changed(tmp_path):
    path = write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(path, "r") as file:
        assert file["X"].shape == VALUES.shape
    assert check(path).state == "whole"


def test_a_file_of_an_earlier_version_is_unsealed_and_read(tmp_path):
    for path in (write_h5ad(tmp_path / "a.h5ad", sealed=False), write_zarr(tmp_path / "a.zarr", sealed=False)):
        assert check(path).state == "unsealed"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", "b")
    assert check(tmp_path / "a.zip").state == "unsealed"


def test_a_file_added_to_a_zip_is_a_change(tmp_path):
    write_arrays(tmp_path / "a.zarr.zip", {"x": VALUES}, {})
    with zipfile.ZipFile(tmp_path / "a.zarr.zip", "a") as archive:
        archive.writestr("more", "b")
    assert check(tmp_path / "a.zarr.zip").state == "changed"


def test_a_file_added_to_a_folder_is_a_change_but_a_hidden_one_is_not(tmp_path):
    path = write_zarr(tmp_path / "a.zarr")
    (path / ".DS_Store").write_text("x")
    assert check(path).state == "whole"
    (path / "more").write_text("x")
    assert check(path).state == "changed"
    assert "more" in check(path).reason


def lose(path):
    next(p for p in path.rglob("c/*") if p.is_file()).unlink()


def flip(path):
    chunk = max((p for p in path.rglob("c/*") if p.is_file()), key=lambda p: p.stat().st_size)
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])


def cut(path):
    chunk = max((p for p in path.rglob("c/*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(chunk, 3)


@pytest.mark.parametrize(
    ("mangle", "said"), [(lose, "missing"), (flip, "with other bytes"), (cut, "of another length")]
)
def test_a_damaged_folder_is_noticed(tmp_path, mangle, said):
    path = write_zarr(tmp_path / "a.zarr")
    mangle(path)
    assert check(path).state == "damaged"
    assert said in check(path).reason


@pytest.mark.parametrize(
    "text", ["", "[", "{}", "[" * 100_000, '{"files": 3, "sha256": "x"}', '{"files": {"a": []}, "sha256": ""}', "\0"]
)
def test_a_mangled_list_of_digests_is_damage(tmp_path, text):
    path = write_zarr(tmp_path / "a.zarr")
    (path / DIGESTS).write_text(text)
    assert check(path).state == "damaged"


def test_a_list_that_is_consistent_and_of_other_lengths_is_damage(tmp_path):
    path = write_zarr(tmp_path / "a.zarr")
    content = json.loads((path / DIGESTS).read_text())
    content["files"]["zarr.json"] = ["x"]
    (path / DIGESTS).write_text(json.dumps(content))
    assert check(path).state == "damaged"


@pytest.mark.parametrize("kind", ["a.h5ad", "a.zarr.zip"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_mangled_file_is_whole(tmp_path_factory, kind, data):
    path = tmp_path_factory.mktemp("fuzz") / kind
    write_h5ad(path) if kind.endswith("h5ad") else write_arrays(path, {"x": VALUES}, {})
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "head", "grow", "swap", "zero"]))
    if how == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        content = content[:at]
    elif how == "head":
        content = bytearray(data.draw(st.binary(min_size=1, max_size=64))) + content
    elif how == "grow":
        content += data.draw(st.binary(min_size=1, max_size=200))
    elif how == "swap":
        content = content[at:] + content[:at] if at else content + b"x"
    else:
        content[at : at + 64] = bytes(b ^ 0xFF for b in content[at : at + 64])
    path.write_bytes(content)
    assert check(path).state in ("damaged", "changed")


@pytest.mark.parametrize("size", [1, 50, SEAL_BYTES, SEAL_BYTES + 1])
def test_rubbish_under_a_name_of_ours_is_damaged(tmp_path, size):
    for name, state in (("a.h5ad", "damaged"), ("a.zarr.zip", "damaged"), ("a.svs", "unsealed")):
        (tmp_path / name).write_bytes(b"x" * size)
        assert check(tmp_path / name).state == state


def test_a_hole_of_a_terabyte_is_not_read(tmp_path):
    path = write_h5ad(tmp_path / "a.h5ad")
    os.truncate(path, 1 << 40)
    assert check(path).state == "damaged"


def test_what_cannot_be_read_is_said(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert check(tmp_path / "pipe").reason == "neither a file nor a folder"
    assert check(tmp_path / "none").reason == "no such file or folder"
    (tmp_path / "empty").write_bytes(b"")
    assert "empty" in check(tmp_path / "empty").reason


def test_a_plain_file_can_be_sealed_too(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    seal_file(tmp_path / "a")
    assert check(tmp_path / "a").state == "whole"


def test_a_zip_is_packed_into_the_same_bytes(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_text("x")
    for name in ("one", "two"):
        pack_folder(tmp_path / "f", tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert zipfile.ZipFile(io.BytesIO((tmp_path / "one").read_bytes())).namelist() == ["a"]


def test_the_digest_that_is_recorded_is_read_without_the_rest(tmp_path):
    path = tmp_path / "a.h5ad"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(5000))
    assert recorded_digest(path) == ""
    seal_file(path)
    sealed = path.read_bytes()
    assert recorded_digest(path) == check(path).sha256 != ""
    path.write_bytes(b"x" + sealed[1:])
    assert recorded_digest(path) != ""
    assert recorded_digest(tmp_path / "nowhere") == ""


def test_so_is_that_of_a_folder(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_text("{}")
    assert recorded_digest(tmp_path / "a.zarr") == ""
    seal_folder(tmp_path / "a.zarr")
    assert recorded_digest(tmp_path / "a.zarr") == check(tmp_path / "a.zarr").sha256 != ""


def test_zeros_over_the_digest_and_the_mark_are_damage(tmp_path):
    path = write_h5ad(tmp_path / "a.h5ad")
    content = path.read_bytes()
    path.write_bytes(content[:-SEAL_BYTES].replace(MARK.encode(), bytes(len(MARK))) + bytes(SEAL_BYTES))
    assert check(path).state == "damaged"


def test_a_zip_that_says_a_wrong_length_of_its_comment_is_damaged(tmp_path):
    path = tmp_path / "a.zarr.zip"
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "zarr.json").write_text("{}")
    pack_folder(tmp_path / "g", path)
    content = bytearray(path.read_bytes())
    content[-SEAL_BYTES - 2] ^= 1
    content[-1] ^= 1
    path.write_bytes(content)
    assert check(path).state == "damaged"
