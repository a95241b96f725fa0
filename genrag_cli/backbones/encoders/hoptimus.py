"""H-optimus-0: ViT-g/14 of Bioptimus with four register tokens (2024).

Facts from the model card. The network is timm's `vit_giant_patch14_reg4_dinov2` at 224 px: 40 blocks of width 1536,
gated MLPs (SwiGLU, 4096 wide), positions for the patches only. Mean and sd are of its own training tiles.
"""

from typing import Any

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.backbones.encoder import EncoderRecipe, Transform
from genrag_cli.units import Microns, TilePx


def _build(checkpoint: Any) -> Any:
    import timm

    return timm.create_model(
        "vit_giant_patch14_reg4_dinov2",
        img_size=224,
        depth=checkpoint.count("blocks."),
        init_values=1e-5,
        num_classes=0,
        dynamic_img_size=False,
    )


RECIPE = EncoderRecipe(
    sheet=BackboneSheet(
        name="h-optimus-0",
        kind="encoder",
        dim=1536,
        tile_px=TilePx(224),
        licence="Apache-2.0",
        feature="CLS token after the final norm",
        source="model card bioptimus/H-optimus-0",
        fov_um=Microns(112),
        precision="float16",
        weights=(
            WeightsFile(
                repo="bioptimus/H-optimus-0",
                filenames=("pytorch_model.bin",),
                revision="b145cc1e6c6b30d3251aa8b1f844e6974188a743",
                gated=True,
            ),
        ),
        unchecked="the weights themselves; the commit is quoted by several public projects, the hub was not asked",
    ),
    build=_build,
    pool=lambda net, inputs: net(inputs),
    transform=Transform(mean=(0.707223, 0.578729, 0.703617), sd=(0.211883, 0.230117, 0.177517)),
)
