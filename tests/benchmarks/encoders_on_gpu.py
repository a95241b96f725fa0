"""Encoders on a device against the CPU in float64, and tiles per second; part of `gpu_check.py`. Needs torch and timm.

UNI at full size on random weights in its published layout. Right: 8 tiles, in float32 and in the recommended precision,
against the same network in float64 on the CPU. Fast: tiles already in memory, in batches that the encoder chooses, and
again with a tenth of the card's memory, where batches have to be halved. Without a GPU: two blocks, a few tiles.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrag_cli.backbones.checkpoints import load_into, read_checkpoint
from genrag_cli.backbones.encoders.uni import RECIPE
from genrag_cli.testing.random_weights import random_tensors, save_weights, vit_shapes

LIMITS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest error beside the largest number of an embedding that counts as right."""


def check_encoders(device: torch.device) -> list[dict[str, Any]]:
    """A row per precision: error against float64, tiles per second, batch, peak memory, and whether it is right."""
    gpu = device.type == "cuda"
    depth, n_timed = (24, 2048) if gpu else (2, 16)
    tiles = np.random.default_rng(0).integers(0, 256, (n_timed, 224, 224, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = save_weights(Path(folder) / "uni.safetensors", random_tensors(vit_shapes(1024, depth)))
        checkpoint = read_checkpoint(path)
        exact = load_into(lambda: RECIPE.build(checkpoint), checkpoint, "uni").double()
        with torch.inference_mode():
            wanted = RECIPE.pool(exact, RECIPE.transform(tiles[:8]).double()).numpy()
        del exact
        precisions = dict.fromkeys(["float32", RECIPE.sheet.precision]) if gpu else ["float32"]
        return [_measure(path, precision, tiles, wanted, device, depth) for precision in precisions]


def _measure(
    path: Path, precision: Any, tiles: np.ndarray, wanted: np.ndarray, device: torch.device, depth: int
) -> dict[str, Any]:
    gpu = device.type == "cuda"
    recipe = replace(RECIPE, sheet=replace(RECIPE.sheet, precision=precision))
    encoder = recipe(device=str(device), weights=path)
    error = float(np.abs(encoder.encode(tiles[:8]) - wanted).max() / np.abs(wanted).max())
    encoder.encode(tiles[: min(64, len(tiles))])  # the size of batches is measured on the first ones
    row = {"encoder": f"uni, {depth} blocks", "precision": precision, "error": error}
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    encoder.encode(tiles)
    seconds = time.perf_counter() - began
    row |= {"tiles": len(tiles), "tiles / s": len(tiles) / seconds, "batch": encoder._batcher._size or "fixed"}
    halved: Any = "-"
    if gpu:
        row["peak, GB"] = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(0.1)
        try:
            few = encoder.encode(tiles[:1024])
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        halved = encoder._batcher._size
        error = max(error, float(np.abs(few[:8] - wanted).max() / np.abs(wanted).max()))
    return row | {"batch in a tenth of the memory": halved, "right": error <= LIMITS[precision]}
