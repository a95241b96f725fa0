"""A vision transformer written out in float64 from the published equations, and its names and shapes in timm's layout.

For the tests of several encoders, which load it by path; each test says its own sizes, as they were published.
"""

import numpy as np
import torch

from genrag_cli.testing.random_weights import random_tensors

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def name_shapes(
    *, width: int, patch: int, positions: int, hidden: int, gated: bool, scaled: bool, registers: int = 0,
    depth: int = 1,
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """Names and shapes of a checkpoint.

    Args:
        width: of a token.
        patch: side of a patch in px.
        positions: position embeddings; as many as patches where class and register tokens have none.
        hidden: rows of the first matrix of an MLP; a gated one packs two halves into it.
        gated: whether MLPs are gated (SwiGLU).
        scaled: whether blocks have layer scale.
        registers: register tokens.
        depth: blocks.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "pos_embed": (1, positions, width),
        "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    if registers:
        shapes["reg_token"] = (1, registers, width)
    for i in range(depth):
        block = {
            "norm1.weight": (width,), "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "norm2.weight": (width,), "norm2.bias": (width,),
            "mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (width, hidden // 2 if gated else hidden), "mlp.fc2.bias": (width,),
        }  # fmt: skip
        if scaled:
            block |= {"ls1.gamma": (width,), "ls2.gamma": (width,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def fill(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors; tokens and positions as large as the patches are, so that a misplaced one shows.

    All of them are near 0.01, so that the epsilon of the first norm shows too.
    """
    tensors = random_tensors(shapes, seed)
    for name, shape in shapes.items():
        if name in {"cls_token", "reg_token", "pos_embed"}:
            tensors[name] = tensors[name] * float(0.01 * np.sqrt(np.prod(shape[1:], dtype=float)))
        elif name.startswith("patch_embed."):
            tensors[name] = tensors[name] * 0.01
    return tensors


def hollow(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Zeros of these shapes that take no room, in memory or in a torch file; for files that are to be refused."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def forward(
    tensors: dict[str, torch.Tensor], pixels: np.ndarray, *, heads: int, gated: bool,
    mean: tuple[float, ...] = IMAGENET[0], sd: tuple[float, ...] = IMAGENET[1],
) -> torch.Tensor:  # fmt: skip
    """All tokens after the final norm: (n, 1 + registers + patches, width) float64.

    Args:
        tensors: by timm's names.
        pixels: (n, s, s, 3) uint8, s a multiple of the patch.
        heads: of an attention.
        gated: silu(first half) times second half, in place of GELU.
        mean: of each channel, values 0 to 1.
        sd: of each channel.
    """
    t = {name: tensor.double() for name, tensor in tensors.items()}
    width, _, patch, _ = t["patch_embed.proj.weight"].shape
    n, side = len(pixels), pixels.shape[1] // patch
    x = (torch.tensor(pixels).double() / 255 - torch.tensor(mean).double()) / torch.tensor(sd).double()
    x = x.reshape(n, side, patch, side, patch, 3).permute(0, 1, 3, 5, 2, 4).reshape(n, side * side, -1)
    x = x @ t["patch_embed.proj.weight"].reshape(width, -1).T + t["patch_embed.proj.bias"]
    before = [t[name].expand(n, -1, -1) for name in ("cls_token", "reg_token") if name in t]
    positions = t["pos_embed"]
    if positions.shape[1] == side * side:
        x = torch.cat([*before, x + positions], 1)
    else:
        x = torch.cat([*before, x], 1) + positions
    for i in range(1 + max(int(name.split(".")[1]) for name in t if name.startswith("blocks."))):
        x = _block({k.removeprefix(f"blocks.{i}."): v for k, v in t.items()}, x, heads, gated)
    return _norm(x, t["norm.weight"], t["norm.bias"])


def _block(b: dict[str, torch.Tensor], x: torch.Tensor, heads: int, gated: bool) -> torch.Tensor:
    n, _, width = x.shape
    size = width // heads
    h = _norm(x, b["norm1.weight"], b["norm1.bias"]) @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]
    q, k, v = h.reshape(n, -1, 3, heads, size).permute(2, 0, 3, 1, 4)
    weights = torch.exp(q @ k.transpose(-1, -2) / size**0.5)
    a = (weights / weights.sum(-1, keepdim=True) @ v).transpose(1, 2).reshape(n, -1, width)
    x = x + b.get("ls1.gamma", 1.0) * (a @ b["attn.proj.weight"].T + b["attn.proj.bias"])
    h = _norm(x, b["norm2.weight"], b["norm2.bias"]) @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
    if gated:
        first, second = h.chunk(2, -1)
        h = first / (1 + torch.exp(-first)) * second
    else:
        h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
    return x + b.get("ls2.gamma", 1.0) * (h @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"])


def _norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6) * weight + bias
