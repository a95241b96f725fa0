"""Phikon-v2: ViT-L/16 of Owkin, trained with DINOv2 (Filiot et al. 2024, arXiv 2409.09173).

Facts from the paper, from TRIDENT and from the transformers package, whose class `Dinov2Model` the hub's file was
saved by. The same network is timm's `vit_large_patch16_224` with layer scale; only names differ, and the three matrices
of an attention are one in timm.
"""

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.backbones.encoder import IMAGENET, EncoderRecipe, Transform
from genrag_cli.units import Microns, TilePx

if TYPE_CHECKING:
    from genrag_cli.backbones.checkpoints import Checkpoint

_UNUSED = "embeddings.mask_token"
"""Stands for hidden patches in training; no part of an embedding."""
_RENAMED = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.", r"blocks.\1.\2."),
    (r"layernorm\.", "norm."),
)
"""Names of transformers' Dinov2Model to timm's, matched from the start of a name."""


def _select(checkpoint: "Checkpoint") -> "Checkpoint":
    """The tensors under timm's names; those that it knows no name for keep theirs, and are then refused as extra."""
    import torch

    left = {name: tensor for name, tensor in checkpoint.tensors.items() if name != _UNUSED}
    out = {}
    for i in range(checkpoint.count("encoder.layer.")):
        for kind in ("weight", "bias"):
            names = [f"encoder.layer.{i}.attention.attention.{part}.{kind}" for part in ("query", "key", "value")]
            for name in names:
                checkpoint.shape(name)  # refuses where it is missing
            out[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat([left.pop(name) for name in names])
    for name, tensor in left.items():
        out[_rename(name)] = tensor
    return replace(checkpoint, tensors=out)


def _rename(name: str) -> str:
    for pattern, new in _RENAMED:
        if match := re.match(pattern, name):
            return match.expand(new) + name[match.end() :]
    return name


def _build(checkpoint: Any) -> Any:
    import timm

    return timm.create_model(
        "vit_large_patch16_224", img_size=224, init_values=1e-5, num_classes=0, depth=checkpoint.count("blocks.")
    )


RECIPE = EncoderRecipe(
    sheet=BackboneSheet(
        name="phikon-v2",
        kind="encoder",
        dim=1024,
        tile_px=TilePx(224),
        licence="Owkin non-commercial licence",
        feature="CLS token after the final norm",
        source="arXiv 2409.09173; mahmoodlab/TRIDENT; transformers' Dinov2Model",
        fov_um=Microns(112),
        weights=(
            WeightsFile(
                repo="owkin/phikon-v2",
                filenames=("model.safetensors",),
                revision="2ae989a9c40cffaa27f0a6cb29cc94d1d6f9a5fd",
            ),
        ),
        unchecked="the weights themselves; the commit is quoted by several public projects, the hub was not asked; the "
        "norms' epsilon is the 1e-6 of Dinov2Model",
    ),
    build=_build,
    pool=lambda net, inputs: net(inputs),
    transform=Transform(*IMAGENET, resize=224),
    select=_select,
)
