"""Random weights in the layout of real ones, for tests of backbones whose weights nobody may ship.

Knows names, shapes and containers. A test says them from what was published, not from the adapter under test.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensors of these shapes: weights that keep activations near 1, norms and layer scales near 1, small biases."""
    rng = np.random.default_rng(seed)
    out: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        draw: NDArray[Any] = rng.random(shape, dtype=np.float32)  # uniform, in a third of the time of normal ones
        draw = (draw - np.float32(0.5)) * np.float32(12**0.5)
        if name.endswith(("num_batches_tracked",)):
            out[name] = torch.tensor(1)
            continue
        if name.endswith("running_var"):
            draw = 1 + 0.1 * np.abs(draw)
        elif name.endswith((".gamma", "norm.weight")) or (len(shape) == 1 and name.endswith("weight")):
            draw = 1 + 0.1 * draw
        elif len(shape) > 1:
            draw *= np.float32(np.prod(shape[1:], dtype=float) ** -0.5)
        else:
            draw = 0.1 * draw
        out[name] = torch.from_numpy(np.asarray(draw, np.float32))
    return out


def save_weights(
    path: Path, tensors: Mapping[str, torch.Tensor], *, prefix: str = "", container: str = "", **beside: Any
) -> Path:
    """Saves tensors as training code does.

    Args:
        path: .safetensors for that format, else a torch file.
        tensors: by name.
        prefix: put before every name (`module.`).
        container: key of a dict that holds them (`state_dict`); empty: the tensors are the file.
        beside: more entries of that dict (`epoch=3`).
    """
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(named, path)
    else:
        torch.save({container: named, **beside} if container else named, path)
    return path


def vit_shapes(
    width: int, depth: int, *, patch: int = 16, positions: int = 197, layer_scale: bool = True
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a plain vision transformer without a head, as timm saves it (UNI's file is one).

    Args:
        width: of a token.
        depth: blocks.
        patch: side of a patch in px.
        positions: rows of the position table, the class token's included.
        layer_scale: whether blocks scale their branches.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "pos_embed": (1, positions, width),
        "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,),
    }  # fmt: skip
    for i in range(depth):
        block: dict[str, tuple[int, ...]] = {
            "norm1.weight": (width,), "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "norm2.weight": (width,), "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,),
        }  # fmt: skip
        block |= {"ls1.gamma": (width,), "ls2.gamma": (width,)} if layer_scale else {}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}
