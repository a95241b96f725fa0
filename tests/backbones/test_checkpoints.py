"""Tensors out of every container and into a network; what is wrong with a file is said, and no pickle is executed."""

import os
import pickle
from argparse import Namespace
from collections import OrderedDict
from hashlib import sha256

import numpy as np
import pytest
import torch

from genrag_cli.backbones.checkpoints import Checkpoint, load_into, read_checkpoint
from genrag_cli.errors import BackboneError
from genrag_cli.testing.random_weights import random_tensors, save_weights

SHAPES = {"first.weight": (4, 3), "first.bias": (4,), "blocks.0.weight": (2, 4), "blocks.1.weight": (2, 4)}
TENSORS = random_tensors(SHAPES)
MODULE = {f"module.{k}": v for k, v in TENSORS.items()}


def same(found, expected=TENSORS):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


WRAPPED = {
    "plain": (TENSORS, {}, "plain"),
    "lightning": (
        {"state_dict": {f"model.{k}": v for k, v in TENSORS.items()}, "epoch": 3, "lr": 0.1},
        {},
        "state_dict.",
    ),
    "data parallel": (MODULE, {}, "module."),
    "data parallel in lightning": ({"state_dict": {f"model.module.{k}": v for k, v in TENSORS.items()}}, {}, "model."),
    "compiled": ({"model": {f"_orig_mod.{k}": v for k, v in TENSORS.items()}}, {}, "_orig_mod."),
    "nested": ({"teacher": {"model": {"state_dict": TENSORS}}}, {}, "teacher.model.state_dict."),
    "ema alone": ({"ema": TENSORS, "step": 7}, {}, "ema."),
    "ema of timm": ({"state_dict_ema": TENSORS}, {}, "state_dict_ema."),
    "averaged": ({"n_averaged": torch.tensor(5), **MODULE}, {}, "module."),
    "ema preferred": ({"model": {"other": torch.zeros(1)}, "ema": TENSORS}, {"containers": ("ema", "model")}, "ema."),
    "prefix of its own": ({f"net.{k}": v for k, v in TENSORS.items()}, {"prefixes": ("net.",)}, "net."),
    "metrics of numpy beside": (
        {"state_dict": TENSORS, "best": np.float32(1), "epoch": np.int64(3)},
        {},
        "state_dict.",
    ),
    "ordered": (OrderedDict(TENSORS), {}, "plain"),
}


@pytest.mark.parametrize("case", WRAPPED)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_tensors_come_out_of_every_container(tmp_path, case, zipped):
    content, keywords, container = WRAPPED[case]
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(path, **keywords)
    same(found.tensors)
    assert container in found.container
    assert found.sha256 == sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["w.safetensors", "blob-without-an-ending"])
def test_safetensors_are_read_whatever_they_are_called(tmp_path, name):
    path = save_weights(tmp_path / "w.safetensors", TENSORS, prefix="module.").rename(tmp_path / name)
    found = read_checkpoint(path)
    same(found.tensors)
    assert found.container == "module."


def test_prefixes_that_only_some_names_have_stay(tmp_path):
    mixed = {"model.a": torch.zeros(1), "b": torch.zeros(1)}
    same(read_checkpoint(save_weights(tmp_path / "w.bin", mixed)).tensors, mixed)


def test_the_preferred_container_wins_where_there_are_several(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"ema": {"a": torch.ones(1)}, "model": {"a": torch.zeros(1)}}, path)
    assert read_checkpoint(path).tensors["a"] == 0
    assert read_checkpoint(path, containers=("ema",)).tensors["a"] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "args": {"lr": 0.1}}, "it holds epoch, args"),
        ({}, "it holds nothing"),
        ([torch.zeros(1)], "it holds list"),
        ({"state_dict": {}}, "it holds nothing"),
        (torch.zeros(1), "it holds Tensor"),
    ],
)
def test_files_without_named_tensors_are_refused_and_say_what_they_hold(tmp_path, content, said):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="no tensors at the top or under any of state_dict") as caught:
        read_checkpoint(tmp_path / "w.pth")
    assert said in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["w.safetensors", "w.pth", "old.pth"])
@pytest.mark.parametrize("kept", [0, 1, 3, 9, 40, 0.5, 0.98])
def test_truncated_and_empty_files_are_refused_by_name(tmp_path, kind, kept):
    path = tmp_path / kind
    if kind == "old.pth":
        torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    else:
        save_weights(path, TENSORS)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(BackboneError, match=kind) as caught:
        read_checkpoint(path)
    assert "opy it again" in caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "content",
    [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", b"<!DOCTYPE html><html>", b"a,b\n1,2\n"],
    ids=["git-lfs", "a web page", "csv"],
)
def test_files_that_are_no_weights_say_what_they_begin_with(tmp_path, content):
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(BackboneError, match="neither safetensors nor a torch file; it begins with") as caught:
        read_checkpoint(tmp_path / "w.bin")
    assert repr(content[:7])[1:-1] in caught.value.message
    assert "Git LFS" in caught.value.hint


@pytest.mark.parametrize("name", ["nowhere.pth", "."])
def test_a_path_without_a_file_is_refused(tmp_path, name):
    with pytest.raises(BackboneError, match="no weights at"):
        read_checkpoint(tmp_path / name)


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "place", ["zip", "before torch 1.6", "bare pickle", "bare pickle, protocol 4", "named safetensors"]
)
def test_a_planted_pickle_is_refused_and_not_executed(tmp_path, place):
    trap, path = tmp_path / "executed", tmp_path / ("w.safetensors" if place == "named safetensors" else "w.pth")
    content = {"state_dict": TENSORS, "config": Planted(trap)}
    if place.startswith("bare"):
        path.write_bytes(pickle.dumps(content["config"], protocol=4 if "4" in place else 2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=place != "before torch 1.6")
    with pytest.raises(BackboneError) as caught:
        read_checkpoint(path)
    assert not trap.exists()
    assert path.name in caught.value.message
    if place != "named safetensors":
        assert "run code that the file brings" in caught.value.message
    assert "weights_only" not in str(caught.value), "torch's advice to read it all the same"
    trapped = pickle.loads(pickle.dumps(Planted(trap)))  # the trap works: this is what must not have happened
    assert trapped is None
    assert trap.exists()


@pytest.mark.parametrize(
    ("value", "named"),
    [(Namespace(lr=0.1), "argparse.Namespace"), (torch.nn.Linear(1, 1), "Linear"), (np.zeros(2), "numpy")],
)
def test_objects_beside_the_tensors_are_refused_by_their_type(tmp_path, value, named):
    torch.save({"state_dict": TENSORS, "more": value}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=rf"holds more than tensors \(.*{named}") as caught:
        read_checkpoint(tmp_path / "w.pth")
    assert "safetensors" in caught.value.hint


def checkpoint_of(tmp_path, tensors=TENSORS):
    return read_checkpoint(save_weights(tmp_path / "w.bin", tensors))


def test_count_is_the_number_of_numbered_modules(tmp_path):
    names = ["blocks.0.a", "blocks.11.a", "blocks.2.a", "blocks.x.a", "layers.3", "head.blocks.40.a"]
    found = checkpoint_of(tmp_path, {n: torch.zeros(1) for n in names})
    assert [found.count(b) for b in ("blocks.", "layers.", "head.blocks.", "none.")] == [12, 4, 41, 0]


def test_shape_is_that_of_the_tensor_and_a_missing_one_is_named(tmp_path):
    found = checkpoint_of(tmp_path)
    assert found.shape("first.weight") == (4, 3)
    with pytest.raises(BackboneError, match=r"no tensor head\.weight; it has 4 tensors, such as first\.weight"):
        found.shape("head.weight")


def test_under_keeps_a_prefix_without_it(tmp_path):
    found = checkpoint_of(tmp_path)
    inner = found.under("blocks.")
    assert isinstance(inner, Checkpoint)
    same(inner.tensors, {"0.weight": TENSORS["blocks.0.weight"], "1.weight": TENSORS["blocks.1.weight"]})
    assert inner.sha256 == found.sha256
    with pytest.raises(BackboneError, match=r"no tensor is called visual\.\.\."):
        found.under("visual.")


class Net(torch.nn.Module):
    """A parameter, two buffers of which checkpoints hold one, and a tensor that is a plain attribute."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 4)
        self.register_buffer("kept", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("made", torch.tensor([0.0, 1.0, 2.0]), persistent=False)
        self.plain = torch.full((2,), 7.0)


NET = {"first.weight": TENSORS["first.weight"], "first.bias": TENSORS["first.bias"], "kept": torch.tensor([5, 6])}


def test_network_is_loaded_in_full_and_what_checkpoints_do_not_hold_is_made(tmp_path):
    net = load_into(Net, checkpoint_of(tmp_path, NET), "toy")
    same(dict(net.state_dict()), NET)
    assert net.made.tolist() == [0, 1, 2]
    assert net.plain.tolist() == [7, 7]
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_and_integers_stay(tmp_path, dtype):
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in NET.items()}
    net = load_into(Net, checkpoint_of(tmp_path, stored), "toy")
    same(dict(net.state_dict()), {k: v.float() if v.is_floating_point() else v for k, v in stored.items()})


def test_what_is_missing_extra_and_misshapen_is_listed_together(tmp_path):
    wrong = {"first.weight": torch.zeros(4, 5), "kept": NET["kept"], "head.weight": torch.zeros(1), "x": torch.zeros(1)}
    with pytest.raises(BackboneError) as caught:
        load_into(Net, checkpoint_of(tmp_path, wrong), "toy")
    for text in (
        "w.bin does not fit toy", "1 missing: first.bias", "2 extra: head.weight, x",
        "1 misshapen: first.weight (4, 5) instead of (4, 3)",
    ):  # fmt: skip
        assert text in caught.value.message
    assert caught.value.hint


def test_long_lists_are_cut_and_counted(tmp_path):
    many = NET | {f"extra.{i}": torch.zeros(1) for i in range(20)}
    with pytest.raises(BackboneError, match=r"20 extra: extra\.0, .*extra\.7, \.\.\.\n") as caught:
        load_into(Net, checkpoint_of(tmp_path, many), "toy")
    assert "extra.8" not in caught.value.message
