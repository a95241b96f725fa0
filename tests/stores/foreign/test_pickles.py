"""Pickles in files made elsewhere are refused and not executed."""

import json
import pickle
import runpy
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.foreign import read_features, read_predictions

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_foreign.py"))))
TRUTH = make.make_truth()
VALUES = TRUTH.values


class Planted:
    """Would write a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def planted_torch(folder, mark):
    import torch

    torch.save({"features": Planted(mark)}, folder / "F.pt")
    return folder / "F.pt"


def planted_torch_legacy(folder, mark):
    import torch

    torch.save(Planted(mark), folder / "F.pt", _use_new_zipfile_serialization=False)
    return folder / "F.pt"


def planted_npz(folder, mark):
    np.savez(folder / "F.npz", features=VALUES, names=np.array([Planted(mark)] * 12, object))
    return folder / "F.npz"


def planted_npy(folder, mark):
    np.save(folder / "F.npy", np.array([[Planted(mark)]], object), allow_pickle=True)
    return folder / "F.npy"


def planted_pickle(folder, mark):
    (folder / "F.pt").write_bytes(pickle.dumps(Planted(mark)))
    return folder / "F.pt"


def planted_coordinates(folder, mark):
    path = make.slide2vec_1(folder, TRUTH)
    np.save(folder / "coordinates" / "S.npy", np.array([Planted(mark)] * 12, object), allow_pickle=True)
    return path


def planted_zarr(folder, mark):
    """Text of Zarr v2, encoded by a pickle on top: some versions of numcodecs decode it."""
    store = make.anndata_zarr_v2(folder, TRUTH)
    array = store / "obs" / "_index"
    told = json.loads((array / ".zarray").read_text())
    told["filters"] = [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}]
    told["compressor"] = None
    (array / ".zarray").write_text(json.dumps(told))
    (store / ".zmetadata").unlink(missing_ok=True)
    for chunk in array.glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(Planted(mark)))
    return store


PLANTED = [
    planted_torch, planted_torch_legacy, planted_npz, planted_npy, planted_pickle, planted_coordinates, planted_zarr,
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_pickle_is_refused_and_not_executed(plant, tmp_path, monkeypatch):
    if find_spec("numcodecs.pickles"):  # whose guard is not what is tested here
        monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    mark = tmp_path / "executed"
    path = plant(tmp_path, mark)
    for read in (read_features, read_predictions):
        with pytest.raises(FeaturesError):
            read(path)
    assert not mark.exists()


def test_the_planted_mark_would_be_left_if_a_pickle_were_executed(tmp_path):
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(Planted(mark)))
    assert mark.exists()
