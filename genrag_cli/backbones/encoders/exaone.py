"""EXAONE-Path 2.5's patch encoder: ViT-B/14 of LG AI Research (Yun et al. 2025, arXiv 2512.14019).

Facts from LG-AI-EXAONE/EXAONE-Path-2.5. A plain vision transformer as in DINO: GELU, no layer scale, no registers, a
position for the class token too. Its embedding is the one before the alignment with omics, which the slide encoder adds
with all patches of a slide at hand; that encoder is not part of this.

The names in the file carry the classes that wrap the network, `patch_encoder.backbone.`; files without either or both
are taken too.
"""

from typing import Any

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.backbones.encoder import IMAGENET, EncoderRecipe, Transform
from genrag_cli.units import Microns, TilePx


def _build(checkpoint: Any) -> Any:
    import timm

    return timm.create_model(
        "vit_base_patch16_224",
        img_size=224,
        patch_size=14,
        depth=checkpoint.count("blocks."),
        num_classes=0,
    )


RECIPE = EncoderRecipe(
    sheet=BackboneSheet(
        name="exaone-path-2.5",
        kind="encoder",
        dim=768,
        tile_px=TilePx(256),
        licence="EXAONEPath AI Model License Agreement 1.0 - NC",
        feature="CLS token of the patch encoder after the final norm, before the alignment with omics, of the tile's "
        "central 224 px",
        source="LG-AI-EXAONE/EXAONE-Path-2.5: patch_transformer.py, extract_single_slide_feature.py",
        fov_um=Microns(128),
        precision="bfloat16",
        weights=(
            WeightsFile(repo="LGAI-EXAONE/EXAONE-Path-2.5", filenames=("patch-encoder/model.safetensors",), gated=True),
        ),
        unchecked="the weights, their commit, their file name and the prefix of their names, which follow from the "
        "published code; the crop, which is that of the first release (resize to 256, crop 224), while the README "
        "at commit 2b1cd78 resizes the whole tile to 224 instead",
    ),
    build=_build,
    pool=lambda net, inputs: net(inputs),
    transform=Transform(*IMAGENET, resize=256, crop=224),
    read={"prefixes": ("module.", "_orig_mod.", "model.", "patch_encoder.", "backbone.")},
)
