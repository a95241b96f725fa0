"""Virchow2: ViT-H/14 of Paige with four register tokens (Zimmermann et al. 2024, arXiv 2408.00738).

Facts from the model card as quoted by TRIDENT, slide2vec and eva. The network is timm's `vit_huge_patch14_224` with
gated MLPs (SwiGLU, 3416 wide) and positions for all tokens, class and registers included. An embedding is two things
side by side, so it is twice as long as the network is wide.
"""

from typing import Any

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.backbones.encoder import IMAGENET, EncoderRecipe, Transform
from genrag_cli.units import Microns, TilePx

_REGISTERS = 4


def _build(checkpoint: Any) -> Any:
    import timm
    import torch

    return timm.create_model(
        "vit_huge_patch14_224",
        img_size=224,
        depth=checkpoint.count("blocks."),
        init_values=1e-5,
        num_classes=0,
        reg_tokens=_REGISTERS,
        mlp_ratio=5.3375,
        global_pool="",  # all tokens, after the final norm
        dynamic_img_size=True,
        mlp_layer=timm.layers.SwiGLUPacked,
        act_layer=torch.nn.SiLU,
    )


def _pool(net: Any, inputs: Any) -> Any:
    import torch

    tokens = net(inputs)
    return torch.cat([tokens[:, 0], tokens[:, 1 + _REGISTERS :].mean(1)], dim=1)


RECIPE = EncoderRecipe(
    sheet=BackboneSheet(
        name="virchow2",
        kind="encoder",
        dim=2560,
        tile_px=TilePx(224),
        licence="CC-BY-NC-ND-4.0",
        feature="CLS token, then the mean of the patch tokens without the registers, both after the final norm",
        source="model card paige-ai/Virchow2, as quoted by mahmoodlab/TRIDENT and clemsgrs/slide2vec; arXiv 2408.00738",
        fov_um=Microns(112),
        precision="float16",
        weights=(
            WeightsFile(
                repo="paige-ai/Virchow2",
                filenames=("model.safetensors", "pytorch_model.bin"),
                revision="3158645804b69e3f3bc4439d4116edddf0840a72",
                gated=True,
            ),
        ),
        unchecked="the weights themselves; the commit is quoted by several public projects, the hub was not asked",
    ),
    build=_build,
    pool=_pool,
    transform=Transform(*IMAGENET, resize=224, interpolation="bicubic"),
)
