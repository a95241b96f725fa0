"""UNI: ViT-L/16 of Mahmood Lab (Chen et al., Nature Medicine 2024, doi 10.1038/s41591-024-02857-3).

Facts from the model card and from mahmoodlab/UNI. The network is timm's `vit_large_patch16_224`.
"""

from typing import Any

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.backbones.encoder import IMAGENET, EncoderRecipe, Transform
from genrag_cli.units import Microns, TilePx


def _build(checkpoint: Any) -> Any:
    import timm

    return timm.create_model(
        "vit_large_patch16_224",
        img_size=224,
        patch_size=16,
        init_values=1e-5,
        num_classes=0,
        dynamic_img_size=True,
        depth=checkpoint.count("blocks."),
    )


RECIPE = EncoderRecipe(
    sheet=BackboneSheet(
        name="uni",
        kind="encoder",
        dim=1024,
        tile_px=TilePx(224),
        licence="CC-BY-NC-ND-4.0",
        feature="CLS token after the final norm",
        source="model card MahmoodLab/UNI; mahmoodlab/UNI",
        fov_um=Microns(128),
        precision="float16",
        weights=(
            WeightsFile(
                repo="MahmoodLab/UNI",
                filenames=("pytorch_model.bin",),
                revision="b55a5ec6cade1a39edfe6534189a9b8ca7a022f0",
                gated=True,
            ),
        ),
        unchecked="the commit, which public code quotes and the hub was not asked for",
    ),
    build=_build,
    pool=lambda net, inputs: net(inputs),
    transform=Transform(*IMAGENET, resize=224),
)
