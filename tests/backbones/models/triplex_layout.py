"""TRIPLEX's published names and shapes, its files, and a slide made of given tiles. Run by test_triplex.py."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrag_cli.backbones.base import Loading
from genrag_cli.testing.random_weights import save_weights
from genrag_cli.types import TileBatch

GENES = ["FASN", "ERBB2", "GNAS", "ACTB", "MUC1"]
Tensors = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


def resnet18(stem: str, norm: str, stages: list[str]) -> Shapes:
    """torchvision's ResNet-18 without classifier; names of stem, its norm and the four stages are the caller's."""

    def bn(name: str, width: int) -> Shapes:
        sized: Shapes = {f"{name}.{k}": (width,) for k in ("weight", "bias", "running_mean", "running_var")}
        return sized | {f"{name}.num_batches_tracked": ()}

    shapes: Shapes = {f"{stem}.weight": (64, 3, 7, 7)} | bn(norm, 64)
    before = 64
    for stage, width in zip(stages, (64, 128, 256, 512), strict=True):
        for i in range(2):
            at, into = f"{stage}.{i}", before if i == 0 else width
            shapes |= {f"{at}.conv1.weight": (width, into, 3, 3)} | bn(f"{at}.bn1", width)
            shapes |= {f"{at}.conv2.weight": (width, width, 3, 3)} | bn(f"{at}.bn2", width)
            if into != width:
                shapes |= {f"{at}.downsample.0.weight": (width, into, 1, 1)} | bn(f"{at}.downsample.1", width)
        before = width
    return shapes


def triplex(dim: int = 512, depths: tuple[int, int, int] = (1, 2, 1), heads: int = 16) -> Shapes:
    """Names and shapes of state_dict["model.<name>"]; depths of fusion, global and neighbour encoder, MLP ratio 1."""
    shapes = resnet18("target_encoder.0", "target_encoder.1", [f"target_encoder.{i}" for i in (4, 5, 6, 7)])
    shapes |= {"target_linear.weight": (dim, 512), "target_linear.bias": (dim,)}

    def layer(at: str, attention: Shapes) -> Shapes:
        inner = {
            "0.norm.weight": (dim,), "0.norm.bias": (dim,), "0.fn.to_out.0.weight": (dim, dim),
            "0.fn.to_out.0.bias": (dim,), "1.norm.weight": (dim,), "1.norm.bias": (dim,),
            "1.fn.net.0.weight": (dim, dim), "1.fn.net.0.bias": (dim,),
            "1.fn.net.3.weight": (dim, dim), "1.fn.net.3.bias": (dim,),
        }  # fmt: skip
        return {f"{at}.{k}": v for k, v in (inner | {f"0.fn.{k}": v for k, v in attention.items()}).items()}

    for i in range(depths[0]):
        shapes |= layer(
            f"fusion_encoder.fusion_layer.layers.{i}", {"to_q.weight": (dim, dim), "to_kv.weight": (2 * dim, dim)}
        )
    for i in range(depths[1]):
        at = "layer1.layers.0" if i == 0 else f"layer2.layers.{i - 1}"
        shapes |= layer(f"global_encoder.{at}", {"to_qkv.weight": (3 * dim, dim)})
    for i in range(depths[2]):
        shapes |= layer(
            f"neighbor_encoder.layer.layers.{i}",
            {"to_qkv.weight": (3 * dim, dim), "attention_biases": (heads, 25)},
        )
    shapes |= {"global_encoder.pos_layer.proj.weight": (dim, 1, 3, 3), "global_encoder.pos_layer.proj.bias": (dim,)}
    for name in ("fusion_encoder", "global_encoder", "neighbor_encoder"):
        shapes |= {f"{name}.norm.weight": (dim,), f"{name}.norm.bias": (dim,)}
    for name in ("fc", "fc_target", "fc_neighbor", "fc_global"):
        shapes |= {f"{name}.weight": (len(GENES), dim), f"{name}.bias": (len(GENES),)}
    return shapes


def cigar() -> Shapes:
    """Names and shapes of tenpercent_resnet18.ckpt, `model.resnet.` left out; it has heads of its own training."""
    shapes = resnet18("conv1", "bn1", ["layer1", "layer2", "layer3", "layer4"])
    return shapes | {"fc.1.weight": (8, 512), "fc.1.bias": (8,), "fc.3.weight": (4, 8), "fc.3.bias": (4,)}


def save(folder: Path, own: Tensors, extractor: Tensors, **beside: Any) -> Loading:
    """Both files as upstream has them."""
    folder.mkdir(exist_ok=True)
    genes = folder / "genes.txt"
    genes.write_text("\n".join(GENES) + "\n")
    weights = save_weights(folder / "triplex.ckpt", own, prefix="model.", container="state_dict", epoch=3, **beside)
    part = save_weights(
        folder / "tenpercent_resnet18.ckpt", extractor, prefix="model.resnet.", container="state_dict", epoch=9
    )
    return Loading(weights, {"extractor": part}, {"genes": str(genes)})


def mosaic(tiles: dict[int, np.ndarray]) -> np.ndarray:
    """1120 px of white, with some of the 25 tiles filled in, counted row by row."""
    whole = np.full((1120, 1120, 3), 255, np.uint8)
    for at, tile in tiles.items():
        row, column = divmod(at, 5)
        whole[224 * row : 224 * (row + 1), 224 * column : 224 * (column + 1)] = tile
    return whole


def reader(targets: list[np.ndarray], around: list[dict[int, np.ndarray]]) -> Callable[[float, int], Any]:
    """A slide that gives these tiles, seven spots at a time."""

    def tiles(fov_um: float, tile_px: int) -> Iterator[TileBatch]:
        assert (fov_um, tile_px) in ((112, 224), (560, 1120))
        for low in range(0, len(targets), 7):
            rows = np.arange(low, min(low + 7, len(targets)))
            pixels = [targets[i] if tile_px == 224 else mosaic(around[i]) for i in rows]
            yield TileBatch(rows, np.stack(pixels))

    return tiles


def noise(n: int, seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (n, 224, 224, 3), dtype=np.uint8))
