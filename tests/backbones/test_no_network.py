"""No backbone touches the network unless weights must be fetched.

`conftest.py` refuses sockets in this whole folder, so each contract that runs in it is run without a network. Here
stands that the refusal works, that no backbone is left out, and that a sheet costs neither network nor torch.
"""

import json
import re
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from genrag_cli.backbones.base import Loading
from genrag_cli.backbones.registry import FAMILY, load_backbone
from genrag_cli.errors import BackboneError
from genrag_cli.testing.random_weights import random_tensors, save_weights

HERE = Path(__file__).parent
NAMES = sorted(entry.name for entry in entry_points(group="generag.backbones") if entry.value.startswith("genrag_cli."))
name_shapes = runpy.run_path(str(HERE / "encoders" / "plain_vit.py"))["name_shapes"]


def nothing(folder: Path) -> Loading:
    return Loading()


def uni(folder: Path) -> Loading:
    shapes = name_shapes(width=1024, patch=16, positions=197, hidden=4096, gated=False, scaled=True, depth=1)
    return Loading(save_weights(folder / "pytorch_model.bin", random_tensors(shapes)))


ADAPTERS: dict[str, Callable[[Path], Loading]] = {"stain": nothing, "lite0": nothing, "uni": uni}
"""Some of each kind: no weights, weights of a package, a file that was given."""


@pytest.mark.parametrize("name", ADAPTERS)
def test_loading_and_embedding_ask_nothing_of_the_network(
    name: str, tmp_path: Path, network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    backbone = load_backbone(name, loading=ADAPTERS[name](tmp_path))
    side = backbone.card.tile_px
    tiles = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    assert np.isfinite(backbone.encode(tiles)).all()
    assert network == []


def test_the_refusal_is_felt_by_the_hubs_client(
    network: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match="cannot be had"):
        load_backbone("uni")
    assert network, "weights that must be fetched are asked for over the network"
    network.clear()


@pytest.mark.parametrize("ask", [socket.create_connection, socket.getaddrinfo])
def test_the_refusal_is_felt_by_sockets(network: list[str], ask: Callable[..., object]) -> None:
    refused = getattr(socket, ask.__name__)
    with pytest.raises(RuntimeError, match="the network was asked"):
        refused("192.0.2.1", 9)
    with socket.socket() as one, pytest.raises(RuntimeError, match=r"192\.0\.2\.1"):
        one.connect(("192.0.2.1", 9))
    assert len(network) == 2
    network.clear()


@pytest.mark.parametrize("name", NAMES)
def test_each_backbone_keeps_its_contract_in_this_folder(name: str) -> None:
    written = rf'^    name = "{re.escape(name)}{":.+" if name == FAMILY else chr(34)}'
    texts = {path.name: path.read_text() for path in HERE.rglob("test_*.py")}
    found = [n for n, t in texts.items() if re.search(written, t, re.MULTILINE) and "Contract)" in t]
    assert found, f"no class in {HERE.name} inherits the contract for {name}"


SHEETS = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise RuntimeError("a socket was opened")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sys.modules.update(dict.fromkeys(("torch", "timm", "torchvision", "huggingface_hub")))  # importing them now fails
from genrag_cli.backbones.registry import read_sheet

def reason(name):
    try:
        sheet = read_sheet(name)
    except Exception as error:
        return str(error).splitlines()[0]
    return "" if sheet is not None and sheet.name == name else f"sheet {sheet}"

print(json.dumps({name: reason(name) for name in sys.argv[1:]}))
"""


@pytest.fixture(scope="module")
def reasons() -> dict[str, str]:
    """Why a sheet cannot be read without torch, timm and network; empty where it can."""
    command = [sys.executable, "-c", SHEETS, *NAMES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_sheet_is_read_without_network_torch_and_timm(reasons: dict[str, str], name: str) -> None:
    assert reasons[name] == ""
