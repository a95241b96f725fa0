"""CONCH v1.5: ViT-L/16 at 448 px with an attention pooler, the patch encoder of TITAN.

Ding et al. 2024, arXiv 2411.19666.

Facts from the loader in mahmoodlab/TRIDENT, `trident/patch_encoder_models/model_zoo/conchv1_5`. The file holds position
embeddings of a 14 x 14 grid (224 px), which that loader stretches to 28 x 28 at every call; here it is done once, on
loading, with the same arithmetic.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.backbones.encoder import IMAGENET, EncoderRecipe, Transform
from genrag_cli.errors import BackboneError
from genrag_cli.units import Microns, TilePx

if TYPE_CHECKING:
    import torch

    from genrag_cli.backbones.checkpoints import Checkpoint

DIM, WIDTH, POOL_HEADS = 768, 1024, 8
_STORED, _USED = 14, 28
"""Patches along a side: of the network as it was saved, and of a tile."""
_POSITIONS = "trunk.pos_embed"


def _select(checkpoint: "Checkpoint") -> "Checkpoint":
    shape = checkpoint.shape(_POSITIONS)
    side = math.isqrt(max(0, shape[1] - 1)) if len(shape) == 3 else 0
    if side < 1 or shape != (1, 1 + side**2, WIDTH):
        raise BackboneError(
            f"{checkpoint.path}: {_POSITIONS} has shape {shape}, which is no square grid of width {WIDTH} with a class "
            "token",
            "Is this the right checkpoint?",
        )
    stretched = _stretch(checkpoint.tensors[_POSITIONS].float(), side)
    return dataclasses.replace(checkpoint, tensors=checkpoint.tensors | {_POSITIONS: stretched})


def _stretch(positions: "torch.Tensor", side: int) -> "torch.Tensor":
    """(1, 1 + side^2, w) to (1, 1 + 28^2, w), in the two steps of the published loader."""
    import torch
    from torch.nn import functional

    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if side != _STORED:
        grid = functional.interpolate(grid, size=(_STORED, _STORED), mode="bilinear", antialias=False)
    # The tenth is the published guard against a grid one too small; it moves the sampling points a little.
    scale = (_USED + 0.1) / _STORED
    grid = functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _build(checkpoint: "Checkpoint") -> Any:
    import timm

    from genrag_cli.backbones.encoders.attention_pool import PlainAttentionPool, PooledTrunk

    depth = checkpoint.count("trunk.blocks.")
    trunk = timm.create_model("vit_large_patch16_224", img_size=448, num_classes=0, init_values=1.0, depth=depth)
    return PooledTrunk(trunk, PlainAttentionPool(DIM, WIDTH, POOL_HEADS), DIM)


RECIPE = EncoderRecipe(
    sheet=BackboneSheet(
        name="conch-v1.5",
        kind="encoder",
        dim=DIM,
        tile_px=TilePx(448),
        licence="CC-BY-NC-ND-4.0",
        feature="attention-pooled tokens after ln_contrast, not normalised",
        source="mahmoodlab/TRIDENT, trident/patch_encoder_models/model_zoo/conchv1_5; field of view: its README",
        fov_um=Microns(256),
        precision="float16",
        weights=(WeightsFile(repo="MahmoodLab/conchv1_5", filenames=("pytorch_model_vision.bin",), gated=True),),
        unchecked="the commit of the weights; that their position embeddings are of a 14 x 14 grid is what public "
        "loaders expect (another grid is brought to 14 x 14 first, as TRIDENT does)",
    ),
    build=_build,
    pool=lambda net, inputs: net(inputs),
    transform=Transform(*IMAGENET, resize=448),
    select=_select,
)
