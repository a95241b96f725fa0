"""Prov-GigaPath's tile encoder: ViT-g of Microsoft and Providence (Xu et al., Nature 2024, 10.1038/s41586-024-07441-w).

Facts from prov-gigapath/prov-gigapath and from public copies of the hub's config. The network is timm's
`vit_giant_patch14_dinov2`, but with patches of 16 px whatever that name says: 40 blocks of width 1536, gated MLPs
(SwiGLU, 4096 wide), a position for the class token too, no registers. The slide encoder is not part of this.

It takes tiles of 256 px and sees the 224 px in their middle.
"""

from typing import Any

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.backbones.encoder import IMAGENET, EncoderRecipe, Transform
from genrag_cli.units import Microns, TilePx


def _build(checkpoint: Any) -> Any:
    import timm

    return timm.create_model(
        "vit_giant_patch14_dinov2",
        img_size=224,
        in_chans=3,
        patch_size=16,
        embed_dim=1536,
        depth=checkpoint.count("blocks."),
        num_heads=24,
        init_values=1e-5,
        mlp_ratio=5.33334,
        num_classes=0,
    )


RECIPE = EncoderRecipe(
    sheet=BackboneSheet(
        name="gigapath",
        kind="encoder",
        dim=1536,
        tile_px=TilePx(256),
        licence="Prov-GigaPath licence terms (research only)",
        feature="CLS token after the final norm, of the tile's central 224 px",
        source="prov-gigapath/prov-gigapath README and LICENSE; mahmoodlab/TRIDENT",
        fov_um=Microns(128),
        precision="float16",
        weights=(
            WeightsFile(
                repo="prov-gigapath/prov-gigapath",
                filenames=("pytorch_model.bin",),
                revision="eba85dd46097c3eedfcc2a3a9a930baecb6bcc19",
                gated=True,
            ),
        ),
        unchecked="the weights themselves; the commit is quoted by several public projects, the hub was not asked; the "
        "licence is that of the code repository, others call the hub's Apache-2.0 with conditions",
    ),
    build=_build,
    pool=lambda net, inputs: net(inputs),
    transform=Transform(*IMAGENET, resize=256, interpolation="bicubic", crop=224),
)
