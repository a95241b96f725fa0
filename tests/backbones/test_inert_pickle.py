"""Pickled torch files read without running anything of them."""

import collections
import fractions
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genrag_cli.backbones.inert_pickle import Held, read_inert, read_pickled, tensors_of
from genrag_cli.errors import BackboneError
from genrag_cli.testing.random_weights import save_weights


class Armed:
    """Writes a file where it is unpickled: when it is made, given its state, or given items."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,), {"state": 1}, iter([1, 2]), iter([("a", 3)]))


def test_nothing_that_a_file_names_is_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "f.pt", tmp_path / "ran"
    torch.save({"armed": Armed(mark), "weight": torch.arange(3.0)}, path)
    held = read_inert(path)
    assert not mark.exists()
    armed = held["armed"]
    assert isinstance(armed, Held)
    assert (armed.state, armed.members, armed.entries) == ({"state": 1}, [1, 2], {"a": 3})
    assert held["weight"].tolist() == [0, 1, 2]
    with pytest.raises((AttributeError, TypeError)):  # armed: it goes off before its odd state is refused
        torch.load(path, weights_only=False)
    assert mark.exists()


def test_plain_values_and_arrays_are_as_they_were(tmp_path: Path) -> None:
    saved = {
        "array": np.arange(6, dtype=np.float64).reshape(2, 3), "ordered": collections.OrderedDict(a=1), "text": "x",
        "counter": collections.Counter(b=2), "half": fractions.Fraction(1, 2), "numbers": [1, 2.5, None, True],
    }  # fmt: skip
    torch.save(saved, tmp_path / "f.pt")
    held = read_inert(tmp_path / "f.pt")
    np.testing.assert_array_equal(held["array"], saved["array"])
    assert (held["ordered"], held["text"], held["numbers"]) == ({"a": 1}, "x", [1, 2.5, None, True])
    assert (held["counter"].origin, held["counter"].called) == ("collections.Counter", ({"b": 2},))
    assert held["half"].origin == "fractions.Fraction"


def test_tensors_of_a_module_are_named_as_its_state_dict_names_them(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sequential(torch.nn.BatchNorm1d(3)))
    torch.save(module, tmp_path / "f.pt")
    found, expected = tensors_of(read_inert(tmp_path / "f.pt")), module.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert read_pickled(tmp_path / "f.pt", unsafe_pickle=True)[0].tensors.keys() == expected.keys()


def test_files_of_tensors_need_no_leave_and_others_do(tmp_path: Path) -> None:
    path = save_weights(tmp_path / "f.ckpt", {"w": torch.ones(2)}, prefix="model.", container="state_dict")
    checkpoint, held = read_pickled(path, unsafe_pickle=False)
    assert (list(checkpoint.tensors), held) == (["w"], None)
    armed = Armed(tmp_path / "ran")
    save_weights(path, {"w": torch.ones(2)}, prefix="model.", container="state_dict", beside=armed)
    with pytest.raises(BackboneError, match="more than tensors") as told:
        read_pickled(path, unsafe_pickle=False)
    assert "--unsafe-pickle" in told.value.hint
    checkpoint, held = read_pickled(path, unsafe_pickle=True)
    assert list(checkpoint.tensors) == ["w"]
    assert isinstance(held["beside"], Held)
    assert not (tmp_path / "ran").exists()


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    plain, script, cut = (tmp_path / name for name in ("plain.pkl", "script.pt", "cut.pt"))
    plain.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(BackboneError, match="did not write as a zip file"):
        read_inert(plain)
    torch.save({"a": torch.ones(100)}, cut)
    cut.write_bytes(cut.read_bytes()[:500])
    with pytest.raises(BackboneError, match="did not write as a zip file"):
        read_inert(cut)
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("script/constants.pkl", b"")
    with pytest.raises(BackboneError, match="TorchScript"):
        read_inert(script)
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("script/data.pkl", b"no pickle")
    with pytest.raises(BackboneError, match="cannot be read"):
        read_inert(script)


def test_pickle_that_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"counter": collections.Counter(a=1), "half": fractions.Fraction(1, 2)}, tmp_path / "f.pt")
    with pytest.raises(BackboneError, match="neither a state dict nor a torch module"):
        read_pickled(tmp_path / "f.pt", unsafe_pickle=True)
