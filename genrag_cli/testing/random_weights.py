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
        draw: NDArray[Any] = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith(("num_batches_tracked",)):
            out[name] = torch.tensor(1)
            continue
        if name.endswith("running_var"):
            draw = 1 + 0.1 * np.abs(draw)
        elif name.endswith((".gamma", "norm.weight")) or (len(shape) == 1 and name.endswith("weight")):
            draw = 1 + 0.1 * draw
        elif len(shape) > 1:
            draw = draw / np.sqrt(np.prod(shape[1:], dtype=float))
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
