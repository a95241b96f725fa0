import subprocess
import sys
from pathlib import Path

import pytest

from genrag_cli.backbones.registry import load_backbone, names
from genrag_cli.errors import BackboneError

PLUGIN = """
from genrag_cli.types import BackboneCard

class Good:
    def __init__(self, device="cpu"):
        self.card = BackboneCard("good", "1", dim=3, tile_px=8, licence="MIT")
    def encode(self, pixels):
        return pixels.mean(axis=(1, 2)).astype("float32")

class NoCard:
    def __init__(self, device="cpu"): ...
    def encode(self, pixels): ...

class NoEncode(Good):
    encode = None

class NoDim(Good):
    def __init__(self, device="cpu"):
        self.card = BackboneCard("nodim", "1", dim=0, tile_px=8, licence="MIT")

class NoDevice:
    def __init__(self): ...
"""
ENTRIES = {
    "good": "made_up_plugin:Good",
    "renamed": "made_up_plugin:Good",
    "nocard": "made_up_plugin:NoCard",
    "noencode": "made_up_plugin:NoEncode",
    "nodim": "made_up_plugin:NoDim",
    "nodevice": "made_up_plugin:NoDevice",
    "missing": "made_up_plugin:Missing",
    "absent": "made_up_absent_module:Thing",
}


def install(folder: Path, package: str, entries: dict[str, str]) -> None:
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[generag.backbones]", *lines]))


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "made_up_plugin.py").write_text(PLUGIN)
    install(tmp_path, "made_up_plugin", ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "made_up_plugin", raising=False)
    return tmp_path


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(BackboneError, match="unknown backbone 'lite'") as caught:
        load_backbone("lite")
    assert "lite0" in caught.value.hint


def test_installed_plugin_is_found_and_loaded(plugins: Path) -> None:
    assert {"good", "lite0", "stain"} <= set(names())
    assert load_backbone("good").card.dim == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent", "ModuleNotFoundError: No module named 'made_up_absent_module'"),
        ("missing", "AttributeError"),
        ("nodevice", "TypeError"),
        ("nocard", "not BackboneCard"),
        ("noencode", "no method encode"),
        ("nodim", "dim 0"),
        ("renamed", "its card says name 'good'"),
    ],
)
def test_broken_plugin_explains_itself(plugins: Path, name: str, reason: str) -> None:
    with pytest.raises(BackboneError, match=reason) as caught:
        load_backbone(name)
    assert "package made_up_plugin 1.0" in caught.value.message


def test_broken_plugin_does_not_stop_the_others(plugins: Path) -> None:
    with pytest.raises(BackboneError):
        load_backbone("absent")
    assert load_backbone("stain").card.name == "stain"


def test_name_claimed_by_two_packages_is_refused(plugins: Path) -> None:
    install(plugins, "made_up_rival", {"good": "made_up_plugin:Renamed"})
    with pytest.raises(BackboneError, match=r"claimed by .*made_up_plugin 1\.0.*made_up_rival 1\.0"):
        load_backbone("good")


def test_same_claim_seen_twice_is_one(plugins: Path) -> None:
    install(plugins, "made_up_twin", {"good": ENTRIES["good"]})
    assert load_backbone("good").card.name == "good"


def test_finding_names_and_heads_loads_no_torch() -> None:
    code = (
        "import sys, genrag_cli.backbones.probe, genrag_cli.backbones.registry as r\n"
        "r.load_backbone('stain'); print(r.names()); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "lite0" in done.stdout
