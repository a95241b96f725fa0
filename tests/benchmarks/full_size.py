"""Every encoder once at its published size: parameters, file, seconds to load and to embed, peak memory.

    python tests/benchmarks/full_size.py [--only NAME ...] [--tiles N] [--device DEVICE]

Weights are random, of the shapes that an encoder's own `build` asks for at the published depth, and saved under the
names of the published file. One encoder at a time: its file is made in a process of its own, loaded and used in
another, and deleted. Seconds to load hold the import of torch and timm and the digest of the file, which has just been
written and so comes from memory. The peak is of that whole process: Python, torch and the pages of the mapped file too.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from meter import load_average, resident
from setting import describe_machine, format_table

from genrag_cli.backbones.base import Loading
from genrag_cli.backbones.encoder import EncoderRecipe
from genrag_cli.backbones.registry import GROUP, load_backbone

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Published:
    """What a published file has that the network's own tensors do not say."""

    depth: int = 0
    """Blocks; 0: the network has one depth only."""
    file: str = "pytorch_model.bin"
    stored: Callable[[Shapes], Shapes] = dict
    """Names and shapes of the network to those of the file."""


def store_dinov2(shapes: Shapes) -> Shapes:
    """timm's names to those of transformers' Dinov2Model, and the token that it trains with."""
    out: Shapes = {"embeddings.mask_token": (1, shapes["cls_token"][-1])}
    for name, shape in shapes.items():
        top = {
            "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
            "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
            "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
            "norm.weight": "layernorm.weight", "norm.bias": "layernorm.bias",
        }.get(name)  # fmt: skip
        if top:
            out[top] = shape
            continue
        layer = name.replace("blocks.", "encoder.layer.").replace("attn.proj", "attention.output.dense")
        layer = layer.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1")
        if "attn.qkv" in layer:
            for part in ("query", "key", "value"):
                out[layer.replace("attn.qkv", f"attention.attention.{part}")] = (shape[0] // 3, *shape[1:])
        else:
            out[layer] = shape
    return out


PUBLISHED = {
    "uni": Published(24),
    "uni2-h": Published(24),
    "conch": Published(12),
    "conch-v1.5": Published(
        24, "pytorch_model_vision.bin", lambda shapes: shapes | {"trunk.pos_embed": (1, 1 + 14 * 14, 1024)}
    ),
    "exaone-path-2.5": Published(
        12, "model.safetensors", lambda shapes: {f"patch_encoder.backbone.{k}": v for k, v in shapes.items()}
    ),
    "virchow2": Published(32, "model.safetensors"),
    "h-optimus-0": Published(40),
    "gigapath": Published(40),
    "phikon-v2": Published(24, "model.safetensors", store_dinov2),
    "resnet50": Published(
        0, "model.safetensors", lambda shapes: shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}
    ),
}  # fmt: skip
"""Depths as published: model cards and code that each adapter names as its source."""


def main() -> None:
    """Runs all encoders one after the other and prints the table, or one stage and its JSON."""
    asked = read_arguments()
    if asked.stage:
        print(json.dumps({"make": make, "use": use}[asked.stage](asked.only[0], asked.file, asked)))
        return
    print(f"machine: {describe_machine()}; load average {load_average()} before it started", flush=True)
    print(f"{asked.tiles} tiles on {asked.device}\n", flush=True)
    rows = []
    for name in asked.only or PUBLISHED:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / PUBLISHED[name].file
            made = run_stage("make", name, path, asked)
            used = run_stage("use", name, path, asked)
        rows.append([
            name, f"{made['parameters'] / 1e6:.1f}", str(used["dim"]), f"{made['bytes'] / 1e6:.0f}",
            f"{used['load']:.1f}", f"{used['tile']:.2f}", f"{used['peak'] / 1e6:.0f}",
        ])  # fmt: skip
        print(f"  {' | '.join(rows[-1])}", file=sys.stderr, flush=True)
    print(format_table(("encoder", "parameters (M)", "d", "file (MB)", "load (s)", "a tile (s)", "peak (MB)"), rows))


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PUBLISHED, metavar="NAME", help=", ".join(PUBLISHED))
    parser.add_argument("--tiles", type=int, default=4, help="tiles to embed, in one call")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stage", choices=("make", "use"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_stage(stage: str, name: str, path: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """One stage in a process of its own."""
    command = [sys.executable, __file__, "--stage", stage, "--only", name, "--file", str(path)]
    command += ["--tiles", str(asked.tiles), "--device", asked.device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def make(name: str, path: Path, _: argparse.Namespace) -> dict[str, int]:
    """Saves random weights of the published size."""
    import torch

    from genrag_cli.testing.random_weights import random_tensors, save_weights

    (entry,) = {e.value: e for e in entry_points(group=GROUP, name=name)}.values()
    recipe: EncoderRecipe = entry.load()
    published = PUBLISHED[name]
    sizes: Any = SimpleNamespace(count=lambda _: published.depth)
    with torch.device("meta"):
        net = recipe.build(sizes)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    save_weights(path, random_tensors(published.stored(shapes)))
    return {"parameters": sum(math.prod(p.shape) for p in net.parameters()), "bytes": path.stat().st_size}


def use(name: str, path: Path, asked: argparse.Namespace) -> dict[str, float]:
    """Loads them and embeds tiles of noise; the first tile is not timed."""
    start = time.perf_counter()
    backbone = load_backbone(name, asked.device, Loading(path))
    load = time.perf_counter() - start
    side = backbone.card.tile_px
    tiles = np.random.default_rng(0).integers(0, 256, (asked.tiles, side, side, 3), dtype=np.uint8)
    backbone.encode(tiles[:1])
    start = time.perf_counter()
    found = backbone.encode(tiles)
    each = (time.perf_counter() - start) / asked.tiles
    if found.shape != (asked.tiles, backbone.card.dim) or not np.isfinite(found).all():
        raise SystemExit(f"{name}: embeddings of shape {found.shape}, finite: {np.isfinite(found).all()}")
    return {"dim": backbone.card.dim, "load": load, "tile": each, "peak": resident("VmHWM")}


if __name__ == "__main__":
    main()
