"""ResNet-50 trained on ImageNet: the baseline of the pathology benchmarks (He et al. 2016, arXiv 1512.03385).

Facts from timm, whose `resnet50` it is. The weights are torchvision's first ones (`tv_in1k`), which CLAM, TRIDENT and
HEST-bench use as well; those cut the network after its third stage (1024 numbers), this takes all four. timm's own
default weights are `timm:resnet50`.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.backbones.encoder import IMAGENET, EncoderRecipe, Transform
from genrag_cli.units import TilePx

if TYPE_CHECKING:
    from genrag_cli.backbones.checkpoints import Checkpoint

_CLASSIFIER = ("fc.weight", "fc.bias")


def _select(checkpoint: "Checkpoint") -> "Checkpoint":
    """All but the classifier of the thousand ImageNet classes."""
    return replace(checkpoint, tensors={k: v for k, v in checkpoint.tensors.items() if k not in _CLASSIFIER})


def _build(checkpoint: Any) -> Any:  # noqa: ARG001 - a ResNet-50 has one depth
    import timm

    return timm.create_model("resnet50", num_classes=0)


RECIPE = EncoderRecipe(
    sheet=BackboneSheet(
        name="resnet50",
        kind="encoder",
        dim=2048,
        tile_px=TilePx(224),
        licence="BSD-3-Clause",
        feature="last feature map averaged over the tile",
        source="timm's pretrained cfg of resnet50.tv_in1k; arXiv 1512.03385",
        weights=(
            WeightsFile(
                repo="timm/resnet50.tv_in1k",
                filenames=("model.safetensors", "pytorch_model.bin"),
                revision="78f3ecfdb38e06d9b8397f662e7ab8fee96026fa",
            ),
        ),
        unchecked="the weights themselves; the commit is quoted by several public projects, the hub was not asked",
    ),
    build=_build,
    pool=lambda net, inputs: net(inputs),
    transform=Transform(*IMAGENET, resize=224),
    select=_select,
)
