"""DeepSpot's own container, a whole pickled module: read with leave only, and never run."""

import collections
import itertools
import os
import pickle
import runpy
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import RobustScaler, StandardScaler

from genrag_cli.backbones.base import Loading, SpotContext
from genrag_cli.backbones.checkpoints import read_checkpoint
from genrag_cli.backbones.registry import load_backbone
from genrag_cli.backbones.weights import digest_weights, join_digests
from genrag_cli.errors import BackboneError
from genrag_cli.testing.random_weights import random_tensors, save_weights

layout = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("deepspot_layout.py"))))
GENES, WIDTH, HIDDEN, ENSEMBLE = layout.GENES, layout.WIDTH, layout.HIDDEN, layout.ENSEMBLE
deepspot, uni, save_genes = layout.deepspot, layout.uni, layout.save_genes
FULL = "spot_subspot_neighbors"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("encoder") / "pytorch_model.bin", random_tensors(uni(), seed=1))


def pickle_module(
    path: Path, monkeypatch: pytest.MonkeyPatch, home: str, tensors: Tensors, scaler: object, context: str = FULL
) -> Path:
    """torch.save of a module of classes that are gone when it is read: DeepSpot's own and Lightning's.

    Args:
        path: of the file.
        monkeypatch: takes the modules back out.
        home: module that has DeepSpot, `deepspot.model` before May 2025 and `deepspot.spot.model` since.
        tensors: by name.
        scaler: fitted, or None.
        context: hyper-parameter `spot_context`.
    """
    lightning, deep, losses = (types.ModuleType(name) for name in ("lightning.fabric", home, f"{home}_loss"))

    def define(module: types.ModuleType, thing: Any) -> Any:
        thing.__module__ = module.__name__
        thing.__qualname__ = thing.__name__
        setattr(module, thing.__name__, thing)
        return thing

    class AttributeDict(dict[str, Any]):
        pass

    def loss_mse_function(y: Any, y_hat: Any) -> Any:
        return (y - y_hat) ** 2

    class Phi(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Sequential(torch.nn.Linear(WIDTH, HIDDEN), torch.nn.Dropout(0.3), torch.nn.ReLU())

    class Rho(torch.nn.Module):
        def __init__(self, bags: int) -> None:
            super().__init__()
            last = torch.nn.Linear(bags * HIDDEN, len(GENES))
            self.model = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.ReLU(), last, torch.nn.Dropout(0.1))

    class DeepSpot(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._hparams = AttributeDict(input_size=WIDTH, spot_context=context, scaler=scaler)
            self._dtype, self._device = torch.float32, torch.device("cpu")
            self.scaler, self.loss_func = scaler, loss_mse_function
            self.training_loss: Any = [np.float64(0.25)]
            self.phi_spot = torch.nn.ModuleList([Phi() for _ in range(ENSEMBLE)])
            self.rho = torch.nn.ModuleList([Rho(context.count("_") + 1) for _ in range(ENSEMBLE)])
            self._forward_fn = self._forward_spot

        def _forward_spot(self, x: Any) -> Any:
            return x

    define(lightning, AttributeDict)
    define(losses, loss_mse_function)
    for thing in (Phi, Rho, DeepSpot):
        define(deep, thing)
    with monkeypatch.context() as patch:
        for module in (lightning, deep, losses):
            for parent in itertools.accumulate(module.__name__.split("."), "{}.{}".format):
                patch.setitem(sys.modules, parent, types.ModuleType(parent))
        for module in (lightning, deep, losses):
            patch.setitem(sys.modules, module.__name__, module)
        made = DeepSpot()
        made.load_state_dict(tensors)
        torch.save(made, path)
    assert home not in sys.modules
    return path


@pytest.mark.parametrize(
    ("home", "scaler"),
    [("deepspot.model", StandardScaler()), ("deepspot.spot.model", RobustScaler()), ("deepspot.spot.model", None)],
)
def test_pickled_module_gives_what_its_tensors_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Path, home: str, scaler: Any
) -> None:
    tensors = random_tensors(deepspot(2), seed=7)
    labels = np.random.default_rng(3).gamma(1.0, 1.0, (50, len(GENES))).astype(np.float32)
    options = {"genes": save_genes(tmp_path), "scaler": "none", "context": "spot_neighbors"}
    if scaler is not None:
        scaler.fit(labels)
        centre = scaler.mean_ if isinstance(scaler, StandardScaler) else scaler.center_
        np.savez(tmp_path / "s.npz", mean=centre, scale=scaler.scale_)
        options["scaler"] = str(tmp_path / "s.npz")
    path = pickle_module(tmp_path / "final_model.pkl", monkeypatch, home, tensors, scaler, "spot_neighbors")
    whole: Any = load_backbone(
        "deepspot", loading=Loading(path, {"encoder": encoder}, {"genes": options["genes"]}, unsafe_pickle=True)
    )
    safe = save_weights(tmp_path / "final_model.safetensors", tensors)
    plain: Any = load_backbone("deepspot", loading=Loading(safe, {"encoder": encoder}, options))
    features = np.random.default_rng(4).standard_normal((4, WIDTH), dtype=np.float32)
    spots = SpotContext(
        features=features, centres=np.zeros((4, 2)), array_rc=np.array([[0, 0], [0, 1], [1, 1], [2, 1]]), mpp=0.5,
        pitch_um=100, fov_um=55,
    )  # fmt: skip
    found, expected = (model.predict(spots, np.array(GENES)).values for model in (whole, plain))
    np.testing.assert_array_equal(found, expected)
    assert whole.card.weights_sha256 == join_digests(digest_weights(path), digest_weights(encoder))
    if scaler is not None:  # upstream goes back through the scaler itself
        bare: Any = load_backbone("deepspot", loading=Loading(safe, {"encoder": encoder}, options | {"scaler": "none"}))
        inside = bare._net.decode(torch.tensor(joined_of(bare, spots))).numpy()
        np.testing.assert_allclose(found, np.maximum(scaler.inverse_transform(inside), 0), rtol=1e-5, atol=1e-6)


def joined_of(model: Any, spots: SpotContext) -> np.ndarray:
    own = model._phi(spots.features)
    return np.concatenate([own, model._largest_of_neighbours(spots, own)], axis=1)


def test_context_that_the_module_contradicts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Path
) -> None:
    tensors = random_tensors(deepspot(2))
    path = pickle_module(tmp_path / "m.pkl", monkeypatch, "deepspot.model", tensors, None, "spot_neighbors")
    options = {"genes": save_genes(tmp_path), "context": "spot_subspot"}
    with pytest.raises(BackboneError, match="'spot_subspot' asked, it says 'spot_neighbors'"):
        load_backbone("deepspot", loading=Loading(path, {"encoder": encoder}, options, unsafe_pickle=True))


def test_pickled_module_is_not_read_without_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Path
) -> None:
    path = pickle_module(tmp_path / "final_model.pkl", monkeypatch, "deepspot.model", random_tensors(deepspot()), None)
    with pytest.raises(BackboneError, match="more than tensors") as told:
        load_backbone("deepspot", loading=Loading(path, {"encoder": encoder}, {"genes": save_genes(tmp_path)}))
    assert "--unsafe-pickle" in told.value.hint


class Planted:
    """Makes a folder where a pickle of it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("written", ["torch", "pickle"])
def test_planted_pickle_is_never_run(tmp_path: Path, encoder: Path, written: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / "final_model.pkl"
    held = {"state_dict": random_tensors({"phi_spot.0.model.0.bias": (3,)}), "extra": Planted(mark)}
    if written == "torch":
        torch.save(held, path)
    else:
        path.write_bytes(pickle.dumps(held))
    options = {"genes": save_genes(tmp_path)}
    with pytest.raises(BackboneError):
        read_checkpoint(path)
    for allowed in (False, True):
        with pytest.raises(BackboneError):
            load_backbone("deepspot", loading=Loading(path, {"encoder": encoder}, options, unsafe_pickle=allowed))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Planted(mark)))
    assert mark.exists()  # it is armed


def test_pickled_scaler_of_another_kind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Path
) -> None:
    scaler = collections.Counter(a=1)
    path = pickle_module(tmp_path / "m.pkl", monkeypatch, "deepspot.model", random_tensors(deepspot()), scaler)
    given = Loading(path, {"encoder": encoder}, {"genes": save_genes(tmp_path)}, unsafe_pickle=True)
    with pytest.raises(BackboneError, match="scaler is a Counter"):
        load_backbone("deepspot", loading=given)
