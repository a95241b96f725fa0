"""UNI2-h: ViT-H/14 of Mahmood Lab with eight register tokens (successor of UNI, model card of January 2025).

Facts from the model card, as TRIDENT and eva quote it. The network is timm's `vit_giant_patch14_224` with other sizes:
24 blocks of width 1536, gated MLPs (SwiGLU, 4096 wide, both halves packed into one matrix of 8192 rows), and positions
for the patches only, not for the class and register tokens.
"""

from typing import Any

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.backbones.encoder import IMAGENET, EncoderRecipe, Transform
from genrag_cli.units import Microns, TilePx


def _build(checkpoint: Any) -> Any:
    import timm
    import torch

    return timm.create_model(
        "vit_giant_patch14_224",
        img_size=224,
        patch_size=14,
        depth=checkpoint.count("blocks."),
        num_heads=24,
        init_values=1e-5,
        embed_dim=1536,
        mlp_ratio=2.66667 * 2,
        num_classes=0,
        no_embed_class=True,
        mlp_layer=timm.layers.SwiGLUPacked,
        act_layer=torch.nn.SiLU,
        reg_tokens=8,
        dynamic_img_size=True,
    )


RECIPE = EncoderRecipe(
    sheet=BackboneSheet(
        name="uni2-h",
        kind="encoder",
        dim=1536,
        tile_px=TilePx(224),
        licence="CC-BY-NC-ND-4.0",
        feature="CLS token after the final norm",
        source="model card MahmoodLab/UNI2-h, as quoted by mahmoodlab/TRIDENT and kaiko-ai/eva",
        fov_um=Microns(128),
        precision="bfloat16",
        weights=(
            WeightsFile(
                repo="MahmoodLab/UNI2-h",
                filenames=("pytorch_model.bin",),
                revision="d517a8dd47902dd7c308b3c36f63bce47e7b9a43",
                gated=True,
            ),
        ),
        unchecked="the weights themselves; the commit is quoted by several public projects, the hub was not asked",
    ),
    build=_build,
    pool=lambda net, inputs: net(inputs),
    transform=Transform(*IMAGENET, resize=224),
)
