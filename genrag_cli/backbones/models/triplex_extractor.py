"""The frozen extractors that TRIPLEX's global and neighbour branches look through: `cigar` ResNet-18, or UNI.

Facts of `cigar` from ozanciga/self-supervised-histopathology (the checkpoint's names) and from NEXGEM/TRIPLEX,
`src/preprocess/extract_img_features.py` (224 px, ImageNet mean and sd). Knows which of the two a file holds; UNI itself
is in `genrag_cli.backbones.encoders.uni`.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.backbones.encoder import IMAGENET, Encoder, EncoderRecipe, Transform
from genrag_cli.backbones.encoders import uni
from genrag_cli.backbones.weights import find_or_fetch
from genrag_cli.errors import BackboneError
from genrag_cli.units import Microns, TilePx

if TYPE_CHECKING:
    from genrag_cli.backbones.checkpoints import Checkpoint

PART = "extractor"
FILE = WeightsFile(
    part=PART,
    filenames=(
        "tenpercent_resnet18.ckpt",
        "pytorchnative_tenpercent_resnet18.ckpt",
        *uni.RECIPE.sheet.weights[0].filenames,
    ),
    where="Width 512: pytorchnative_tenpercent_resnet18.ckpt of the release nativetenpercent of ozanciga's repository "
    "self-supervised-histopathology, or tenpercent_resnet18.ckpt of its release tenpercent. Width 1024: "
    "pytorch_model.bin of MahmoodLab/UNI.",
)
_RESNET = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
"""Starts of the names that upstream takes from `cigar`'s file; heads of its own training (fc.1, fc.3) are left."""


def _build_resnet18(_: "Checkpoint") -> Any:
    import timm

    return timm.create_model("resnet18", num_classes=0)


def _select_resnet18(checkpoint: "Checkpoint") -> "Checkpoint":
    bare = {k.removeprefix("model.").removeprefix("resnet."): v for k, v in checkpoint.tensors.items()}
    return dataclasses.replace(checkpoint, tensors={k: v for k, v in bare.items() if k.startswith(_RESNET)})


CIGAR = EncoderRecipe(
    sheet=BackboneSheet(
        name="triplex extractor cigar",
        kind="encoder",
        dim=512,
        tile_px=TilePx(224),
        licence="MIT",
        feature="last feature map of ResNet-18 averaged over the tile",
        source="Ciga, Xu and Martel 2022; ozanciga/self-supervised-histopathology; NEXGEM/TRIPLEX",
        fov_um=Microns(112),
        weights=(FILE,),
    ),
    build=_build_resnet18,
    pool=lambda net, inputs: net(inputs),
    transform=Transform(*IMAGENET, resize=224),
    select=_select_resnet18,
)
WIDTHS = {512: CIGAR, 1024: uni.RECIPE}
"""Which extractor goes with which width of TRIPLEX: embeddings are not projected."""


def load_extractor(sheet: BackboneSheet, dim: int, given: Path | None, device: str, unsafe_pickle: bool) -> Encoder:
    """Loads the extractor of a TRIPLEX of width `dim`.

    Args:
        sheet: TRIPLEX's.
        dim: width of the embeddings that it takes.
        given: the extractor's file; None: UNI as it lies on this machine or in the hub, `cigar` never.
        device: 'cpu', 'cuda', ...
        unsafe_pickle: whether a file that holds more than tensors may be read.

    Raises:
        BackboneError: where the file cannot be had, is neither of the two, or is of another width.
    """
    from genrag_cli.backbones.checkpoints import load_into
    from genrag_cli.backbones.inert_pickle import read_pickled

    if dim not in WIDTHS:
        raise BackboneError(
            f"triplex: its weights take embeddings of {dim} numbers, and no extractor of that width is known",
            f"Known: {', '.join(f'{width} ({recipe.sheet.name})' for width, recipe in WIDTHS.items())}.",
        )
    file = FILE
    if given is None and WIDTHS[dim] is uni.RECIPE:
        file = dataclasses.replace(uni.RECIPE.sheet.weights[0], part=PART)
    path = find_or_fetch(sheet, file, given)
    checkpoint, _ = read_pickled(path, unsafe_pickle)
    recipe = uni.RECIPE if "cls_token" in checkpoint.tensors else CIGAR
    if recipe is not WIDTHS[dim]:
        raise BackboneError(
            f"triplex: its weights take embeddings of {dim} numbers; {path} looks like {recipe.sheet.name}, which "
            f"gives {recipe.sheet.dim}",
            FILE.where,
        )
    if recipe.select is not None:
        checkpoint = recipe.select(checkpoint)
    net = load_into(lambda: recipe.build(checkpoint), checkpoint, recipe.sheet.name)
    return Encoder(recipe, net, checkpoint.sha256, device)
