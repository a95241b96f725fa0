"""CONCH: the image tower of a CoCa, ViT-B/16 at 448 px.

Lu et al., Nature Medicine 2024, doi 10.1038/s41591-024-02856-4.

Facts from mahmoodlab/CONCH, `conch/open_clip_custom` (`coca_model.py`, `vision_tower.py`, `transform.py`,
`model_configs/conch_ViT-B-16.json`). The feature is that of `encode_image(proj_contrast=False, normalize=False)`, which
the authors recommend for image tasks. Knows nothing of the text tower, which lies in the same file.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.backbones.encoder import OPENAI_CLIP, EncoderRecipe, Transform
from genrag_cli.units import Microns, TilePx

if TYPE_CHECKING:
    from genrag_cli.backbones.checkpoints import Checkpoint

DIM, WIDTH, POOL_HEADS = 512, 768, 8
NOT_NEEDED = (
    "text.", "text_decoder.", "logit_scale",
    "visual.proj_contrast", "visual.attn_pool_caption.", "visual.ln_caption.",
)  # fmt: skip
"""Starts of names in the file that the image feature does not use: text towers, temperature, the projection into the
space shared with text, and the pooler for captions. Any other name that the network does not have is refused."""


def _select(checkpoint: "Checkpoint") -> "Checkpoint":
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(NOT_NEEDED)}
    return dataclasses.replace(checkpoint, tensors=kept)


def _build(checkpoint: "Checkpoint") -> Any:
    import timm
    from torch import nn

    from genrag_cli.backbones.encoders.attention_pool import AttentionPool, PooledTrunk

    depth = checkpoint.count("visual.trunk.blocks.")
    trunk = timm.create_model("vit_base_patch16_224", img_size=448, num_classes=0, depth=depth)
    pool = AttentionPool(DIM, WIDTH, POOL_HEADS, queries=1)
    return nn.ModuleDict({"visual": PooledTrunk(trunk, pool, DIM)})  # messages name tensors as the file does


RECIPE = EncoderRecipe(
    sheet=BackboneSheet(
        name="conch",
        kind="encoder",
        dim=DIM,
        tile_px=TilePx(448),
        licence="CC-BY-NC-ND-4.0",
        feature="attention-pooled tokens after ln_contrast, before the projection, not normalised",
        source="mahmoodlab/CONCH, conch/open_clip_custom; field of view: README of mahmoodlab/TRIDENT",
        fov_um=Microns(256),
        precision="float32",
        weights=(
            WeightsFile(
                repo="MahmoodLab/conch",
                filenames=("pytorch_model.bin",),
                revision="f9ca9f877171a28ade80228fb195ac5d79003357",
                gated=True,
            ),
        ),
        unchecked="the commit, which public code quotes and the hub was not asked for; which tensors the file holds "
        "beside the image tower",
    ),
    build=_build,
    pool=lambda net, inputs: net["visual"](inputs),
    transform=Transform(*OPENAI_CLIP, resize=448, interpolation="bicubic"),
    select=_select,
)
