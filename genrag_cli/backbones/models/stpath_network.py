"""STPath's network, inference only: a transformer over all spots of a slide whose attention falls with distance.

Facts from Graph-and-Geometric-Learning/STPath (model/model.py, model/encoder/spatial_transformer.py, model/nn_utils,
app/pipeline/inference.py). Knows names and arithmetic of the network, not what its genes, organs and technologies are
called.

Upstream averages its spatial bias over four frames: the offsets to all other spots, centred, turned to their principal
axes, with each of the four pairs of signs, beside their length, through one linear map without bias. The signs cancel
in that mean, whatever the axes are, so that what is left is the length times the map's third column. That is computed
here directly: nothing of size n x n x 4 is held, and no eigenvectors that equal eigenvalues would leave open.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from genrag_cli.backbones.batches import exactly
from genrag_cli.types import Doubles, Floats, Ints

if TYPE_CHECKING:
    from genrag_cli.backbones.checkpoints import Checkpoint

MASK_TOKEN = 1
"""Of the expression vocabulary: a spot whose expression is to be predicted."""
RESERVED = 2
"""Columns of the expression vocabulary before the first gene: padding and the mask."""
EXTENT = 100.0
"""Coordinates run from 0 to this, along each axis by itself."""
_CELLS = 2**22
"""Attention weights that are held at a time (16 MiB)."""


def build_network(checkpoint: "Checkpoint") -> nn.Module:
    """The network with the sizes of the tensors."""

    def block(index: int) -> nn.Module:
        heads = checkpoint.shape(f"model.blks.{index}.attn.edge_bias.0.weight")[0]
        hidden, _ = checkpoint.shape(f"model.blks.{index}.mlp.fc1.weight")
        attention = {
            "layernorm_qkv": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * width)),
            "W_output": nn.Sequential(nn.Linear(width, width)),
            "edge_bias": nn.Sequential(nn.Linear(3, heads, bias=False)),
        }
        perceptron = {
            "fc1": nn.Linear(width, hidden),
            "norm": nn.LayerNorm(hidden),
            "fc2": nn.Linear(hidden, width),
        }
        return nn.ModuleDict({"attn": nn.ModuleDict(attention), "mlp": nn.ModuleDict(perceptron)})

    width, features = checkpoint.shape("input_encoder.image_embed.weight")
    n_genes, _ = checkpoint.shape("gene_exp_head.1.weight")
    inputs = {
        "image_embed": nn.Linear(features, width),
        "gene_embed": nn.Linear(n_genes, width, bias=False),
        "tech_embed": nn.Embedding(checkpoint.shape("input_encoder.tech_embed.weight")[0], width),
        "organ_embed": nn.Embedding(checkpoint.shape("input_encoder.organ_embed.weight")[0], width),
    }
    blocks = nn.ModuleList(block(i) for i in range(checkpoint.count("model.blks.")))
    return nn.ModuleDict(
        {
            "input_encoder": nn.ModuleDict(inputs),
            "model": nn.ModuleDict({"blks": blocks}),
            "gene_exp_head": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, n_genes)),
        }
    )


def rescale(centres: Doubles) -> Floats:
    """(n, 2) coordinates brought to 0..100 along each axis by itself, as upstream does.

    Where all spots share a coordinate upstream divides 0 by 0; here that axis is 0.
    """
    if not len(centres):
        return np.empty((0, 2), np.float32)
    moved = centres - centres.min(axis=0)
    extent = moved.max(axis=0)
    scaled: Doubles = moved / np.where(extent > 0, extent, 1) * EXTENT
    return scaled.astype(np.float32)


def run_network(
    net: Any,
    device: torch.device,
    features: Floats,
    centres: Doubles,
    organ: int,
    tech: int,
    columns: Ints,
    progress: Callable[[int, int], None],
) -> Floats:
    """Expression of all spots of a slide, none of which is known.

    Memory grows with n, not with n x n: attention goes through the spots some at a time, each looking at all.

    Args:
        net: as `build_network` makes it, on the device.
        device: where it is.
        features: (n, f) embeddings of the tiles.
        centres: (n, 2) in any unit; only their layout counts.
        organ: row of the table of organs.
        tech: row of the table of technologies.
        columns: (k,) of the expression vocabulary.
        progress: told (done, total) parts.

    Returns:
        (n, k) log(1 + counts).
    """
    n = len(features)
    if not n:
        return np.empty((0, len(columns)), np.float32)
    encoder, blocks = net["input_encoder"], list(net["model"]["blks"])
    norm, linear = net["gene_exp_head"]
    with exactly(device, "float32"):
        where = torch.from_numpy(rescale(centres)).to(device)
        context = encoder["gene_embed"].weight[:, MASK_TOKEN]
        context = context + encoder["tech_embed"].weight[tech] + encoder["organ_embed"].weight[organ]
        states = encoder["image_embed"](torch.from_numpy(features).to(device)) + context
        for done, block in enumerate(blocks, start=1):
            states = _advance(block, states, where)
            progress(done, len(blocks) + 1)
        wanted = torch.from_numpy(columns).to(device)
        predicted = functional.linear(norm(states), linear.weight[wanted], linear.bias[wanted])
    progress(len(blocks) + 1, len(blocks) + 1)
    values: Floats = predicted.cpu().numpy()
    return values


def _advance(block: Any, states: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """One block: x + attention(LayerNorm(x)), then x + fc2(LayerNorm(GELU(fc1(x)))), which is not normalised first."""
    attention, perceptron = block["attn"], block["mlp"]
    fall = attention["edge_bias"][0].weight[:, 2]
    n, width = states.shape
    heads = len(fall)
    made = attention["layernorm_qkv"](states).view(n, 3, heads, width // heads)
    query, key, value = made.permute(1, 2, 0, 3)  # each (heads, n, width / heads)
    query = query * query.shape[-1] ** -0.5
    step, seen = max(1, _CELLS // (n * heads)), torch.empty_like(states)
    for rows in (slice(low, low + step) for low in range(0, n, step)):
        apart = torch.cdist(where[rows], where, compute_mode="donot_use_mm_for_euclid_dist")
        scores = query[:, rows] @ key.transpose(1, 2) + fall[:, None, None] * apart
        seen[rows] = (scores.softmax(dim=-1) @ value).transpose(0, 1).reshape(-1, width)
    states = states + attention["W_output"](seen)
    after: torch.Tensor = states + perceptron["fc2"](perceptron["norm"](functional.gelu(perceptron["fc1"](states))))
    return after
