"""What fails beside the slide: encoder, solver, disk, the place that slides are copied to; the others are done."""

import errno
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from genrag_cli.backbones.encoders.stain import Stain
from genrag_cli.pipeline.batch.staging import Stage
from genrag_cli.pipeline.solver import WORK


def fails_with(error):
    def act(real, *args, **named):
        raise error

    return act


def gives_no_numbers(real, *args, **named):
    return np.full_like(real(*args, **named), np.nan)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (fails_with(RuntimeError("made-up defect")), "unexpected RuntimeError: made-up defect"),
        (fails_with(torch.OutOfMemoryError("made-up: no memory")), "made-up: no memory"),
        (fails_with(MemoryError()), "out of memory"),
        (gives_no_numbers, "no finite numbers"),
    ],
    ids=["defect", "gpu memory", "memory", "not finite"],
)
def test_an_encoder_that_fails_on_one_slide(night, at_victim, monkeypatch, act, words):
    at_victim(Stain, "encode", act)
    night.expect(night.run(), {"b": words})
    monkeypatch.undo()
    night.expect_mended()


def test_a_solver_that_fails_on_one_slide(night, at_victim, monkeypatch):
    at_victim(WORK, "solve", fails_with(ValueError("made-up defect")))
    night.expect(night.run(), {"b": "unexpected ValueError: made-up defect"})
    monkeypatch.undo()
    night.expect_mended()


@pytest.mark.parametrize(
    ("ending", "number"),
    [("h5ad", errno.EIO), ("h5ad", errno.ENOSPC), ("zarr.zip", errno.EIO), ("zarr.zip", errno.EROFS)],
    ids=["EIO", "ENOSPC", "EIO, embeddings", "EROFS, embeddings"],
)
def test_a_disk_that_refuses_one_result(night, monkeypatch, number, ending):
    fsync = os.fsync

    def failing(handle):
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        if name.startswith(f".b.stain.{ending}.") and name.endswith(".partial"):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    night.expect(night.run(), {"b": f"b.stain.{ending}"})
    monkeypatch.undo()
    night.expect_mended()


def test_a_disk_that_is_full_before_the_night_is_over(night, small_disk):
    disk, leave = small_disk
    night.out = disk / "out"
    first = night.out / "a.stain.h5ad"

    class Watching(threading.Thread):
        """Leaves next to nothing once the first result stands."""

        def run(self):
            while not first.exists():
                time.sleep(0.005)
            leave(300)

    watching = Watching()
    watching.start()
    ran = night.run()
    watching.join()
    night.expect(ran, dict.fromkeys("bc", "disk full"))
    leave(None)
    night.out = Path(shutil.copytree(night.out, disk.parent / "out"))  # all three do not fit on that disk
    night.expect_mended()


def test_a_copy_that_fails(night, monkeypatch):
    pour = Stage._pour

    def failing(self, source, target, told):
        if target.name == "b.tif":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        pour(self, source, target, told)

    stage = night.slides.parent / "local"
    monkeypatch.setattr(Stage, "_pour", failing)
    night.expect(night.run("--stage", stage), {"b": "cannot be copied"})
    assert list(stage.iterdir()) == []
    monkeypatch.undo()
    night.expect_mended("--stage", stage)
    assert list(stage.iterdir()) == []


def test_no_room_for_copies(night, small_disk):
    disk, _ = small_disk
    ran = night.run("--stage", disk)
    night.expect(ran, dict.fromkeys("abc", "do not fit into --stage"))
    assert list(disk.iterdir()) == []
    night.expect_mended()
