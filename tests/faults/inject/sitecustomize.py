"""Faults in a process that this folder is on the PYTHONPATH of, as `GENERAG_FAULT` asks for them: a JSON object.

| key | meaning |
|---|---|
| `slide` | name of the slide's file |
| `at` | `open`, or `tiles` |
| `rows` | of the tiles that are struck; all if left out |
| `how` | `raise`, `segfault`, `hang`, `memory` |

Modules are patched as soon as they have been imported; nothing of the package knows of it.
"""

import ctypes
import functools
import importlib.machinery
import json
import os
import sys
import time


def strike(how):
    if how == "segfault":
        ctypes.string_at(0)
    if how == "hang":
        time.sleep(3600)
    if how == "memory":
        import numpy as np

        taken = []
        while True:  # address space only; nothing touches it
            taken.append(np.empty(1 << 30, np.uint8))
    raise OSError("made-up fault")


def patch_open(module, fault):
    open_slide = module.open_slide

    @functools.wraps(open_slide)
    def faulty(path, **named):
        if path.name == fault["slide"] and fault["at"] == "open":
            strike(fault["how"])
        return open_slide(path, **named)

    module.open_slide = faulty


def patch_tiles(module, fault):
    read = module.TileReader.read

    @functools.wraps(read)
    def faulty(self, row, into):
        if fault["at"] == "tiles" and self.grid.slide_id + ".tif" == fault["slide"]:
            rows = fault.get("rows")
            if rows is None or row in rows:
                strike(fault["how"])
        return read(self, row, into)

    module.TileReader.read = faulty


PATCHES = {"genrag_cli.slides.open": patch_open, "genrag_cli.slides.tiles": patch_tiles}


class Patcher(importlib.machinery.PathFinder):
    """Finds modules as usual and patches those of `PATCHES` once they are there."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in PATCHES:
            return None
        spec = super().find_spec(name, path, target)
        load = spec.loader.exec_module

        def patched(module):
            load(module)
            PATCHES[name](module, json.loads(os.environ["GENERAG_FAULT"]))

        spec.loader.exec_module = patched
        return spec


if os.environ.get("GENERAG_FAULT"):
    sys.meta_path.insert(0, Patcher)
