"""--dry-run: every command has it or only reads, and nothing in any folder is touched by it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from genrag_cli.cli.app import app

READERS = {
    "bank info": "prints a manifest",
    "bank verify": "compares files with their digests and prints",
    "backbones list": "prints what is installed",
    "backbones info": "prints what is known of a backbone",
    "cohort info": "reads sections and prints",
    "inspect": "reads a few tiles and prints",
    "status": "prints the states of slides",
    "verify": "compares files with their digests and prints",
}
"""Commands without --dry-run, and why they need none."""


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    for word, below in getattr(command, "commands", {}).items():
        yield from leaves(below, f"{name} {word}".strip())
    if not hasattr(command, "commands"):
        yield name, command


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder with its date and size."""
    every = (folder, *folder.rglob("*"))
    return {str(p.relative_to(folder)): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in every}


def test_every_command_has_a_dry_run_or_only_reads():
    every = dict(leaves(typer.main.get_command(app)))
    flags = {name: {flag for param in command.params for flag in param.opts} for name, command in every.items()}
    without = {name for name, own in flags.items() if "--dry-run" not in own}
    assert len(every) > 15
    assert without <= READERS.keys()


@pytest.fixture(scope="module")
def made(tmp_path_factory, generag, cohort, built_bank) -> Path:
    """A folder with a cohort, a bank of it and a prediction."""
    folder = tmp_path_factory.mktemp("dry")
    shutil.copytree(cohort, folder / "train")
    shutil.copytree(built_bank, folder / "b.zarr")
    slide = folder / "train" / "images" / "P3_1.tif"
    options = ("--backbone", "stain", "--bank", folder / "b.zarr", "--workers", "1", "--alpha", "0.003", "--genes", "9")
    spots = ("--spots", f"{folder / 'train'}:P3_1")
    done = generag("retrieve", slide, *options, *spots, "--out", folder / "p.h5ad")
    assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize(
    "line",
    [
        "build-bank @/train --bank @/new.zarr --backbone stain",
        "tune @/b.zarr --backbone stain --plot @/curves.png",
        "embed @/train/images/P3_1.tif --bank @/b.zarr --backbone stain --out @/new",
        "retrieve @/train/images/P3_1.tif --bank @/b.zarr --backbone stain --out @/new",
        "evaluate @/p.h5ad --truth @/train:P3_1",
        "evaluate @/b.zarr --backbone stain --protocol leave-section-out --out @/new",
        "evaluate @/train --backbone stain --patients prefix --protocol leave-patient-out --out @/new/deeper",
        "export @/p.h5ad --genes all",
        "export @/p.h5ad --genes 5 --out @/new/e.h5ad",
        "explain @/p.h5ad --spot SPOT --out @/new/x.png",
        "plot @/p.h5ad --out @/new/p.png",
        "plot @/p.h5ad --kind ranks --truth @/train:P3_1",
        "bank remove P1_1 --bank @/b.zarr",
        "cohort scan @/train --out @/new/cohort.csv",
        "demo --out @/new",
        "doctor --out @/new",
        "backbones check lite0",
        "backbones fetch lite0 stain uni",
    ],
)
def test_a_dry_run_says_what_it_would_do_and_touches_nothing(generag, made, monkeypatch, line):
    from genrag_cli.outputs.prediction import read_prediction

    monkeypatch.chdir(made)
    spot = str(read_prediction(made / "p.h5ad").names[0])
    before = snapshot(made)
    done = generag(*line.replace("SPOT", spot).replace("@", str(made)).split(), "--dry-run")
    assert done.code == 0, done.err
    assert "would" in done.err or "is here" in done.err, done.err
    assert snapshot(made) == before


def test_a_dry_run_refuses_what_the_run_would_refuse(generag, made):
    generag("plot", made / "p.h5ad", "--genes", "NOSUCH", "--dry-run").expect_refusal(2, "NOSUCH")
    generag("explain", made / "p.h5ad", "--spot", "nowhere", "-q", "--dry-run").expect_refusal(2, "nowhere")
    generag("build-bank", made / "train", "--backbone", "nobody", "-q", "--dry-run").expect_refusal(1, "nobody")


def test_a_dry_run_never_loads_weights(generag, made, monkeypatch):
    from genrag_cli.backbones import registry

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a backbone was loaded")

    monkeypatch.setattr(registry, "load_backbone", refuse)
    for line in ("build-bank", made / "train", "--bank", made / "n.zarr"), ("demo",), ("backbones", "check", "lite0"):
        assert generag(*line, "--dry-run").code == 0


def test_what_would_be_done_can_be_had_as_json(generag, made, monkeypatch):
    import json

    monkeypatch.chdir(made)
    done = generag(
        "evaluate", "b.zarr", "--backbone", "stain", "--protocol", "leave-section-out", "--json", "--dry-run"
    )
    assert json.loads(done.out)["protocols"][0]["folds"] == ["P1_1", "P2_1"]
    fetched = json.loads(generag("backbones", "fetch", "uni", "--json", "--dry-run").out)
    assert fetched[0]["dry_run"]
