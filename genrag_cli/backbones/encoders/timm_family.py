"""Any image network of timm, as `timm:NAME`: NAME as timm spells it, with or without the tag of its weights.

Knows how timm describes its networks (`pretrained_cfg`): input size, mean, sd, resampling, licence and the hub's
repository. Knows no network. Tiles are as large as timm resizes images to when it evaluates, and cropped as timm crops
them: 235 px, of which the network sees the central 224, where the crop is 0.95.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.backbones.encoder import EncoderRecipe, Transform
from genrag_cli.errors import BackboneError, nearest
from genrag_cli.units import TilePx

if TYPE_CHECKING:
    from genrag_cli.backbones.checkpoints import Checkpoint

_FILES = ("model.safetensors", "pytorch_model.bin")
_HOW = "Write timm:NAME, such as timm:resnet18 or timm:vit_small_patch16_224.augreg_in21k."
_FEATURE = "what the network's classifier is given: its features, pooled as timm pools them"
_UNCHECKED = "whether the file on the hub has timm's own names; another layout is refused"


@dataclass(frozen=True)
class TimmFamily:
    """What the entry point `timm` names: given a network's name it returns a recipe, by itself it is no backbone."""

    sheet: BackboneSheet

    def __call__(self, name: str = "", **given: Any) -> EncoderRecipe:
        """The recipe of `timm:NAME`; imports timm, reads no weights.

        Args:
            name: a network of timm, with or without a tag.
            given: what a factory is given, by someone who forgot the name.

        Raises:
            BackboneError: without a name, for a name or tag that timm does not know (with the nearest), or for a
                network that does not take square RGB images.
        """
        if not name or given:
            raise BackboneError("backbone timm is a family of networks, not one of them", _HOW)
        return _describe(name, self.sheet)


def _describe(name: str, family: BackboneSheet) -> EncoderRecipe:
    import timm
    import torch

    config = _find_config(name)
    with torch.device("meta"):  # weighs nothing
        net = timm.create_model(name, num_classes=0)
    data = timm.data.resolve_model_data_config(net)
    channels, height, width = data["input_size"]
    if channels != 3 or height != width:
        raise BackboneError(
            f"backbone timm:{name} takes images of shape {data['input_size']}", "Name a network for square RGB images."
        )
    kinds = ("bilinear", "bicubic", "lanczos")
    if data["interpolation"] not in kinds:
        raise BackboneError(
            f"backbone timm:{name} resamples by {data['interpolation']!r}", f"Name a network with {' or '.join(kinds)}."
        )
    side = math.floor(height / data["crop_pct"])
    sheet = replace(
        family,
        name=f"timm:{name}",
        tile_px=TilePx(side),
        licence=config.license or "not stated by timm",
        source=f"timm {timm.__version__}, pretrained cfg of {config.architecture}.{config.tag or 'none'}",
        weights=(_place_weights(name, config),),
    )
    return EncoderRecipe(
        sheet=sheet,
        build=lambda checkpoint: timm.create_model(name, num_classes=0),  # noqa: ARG005 - the name says its size
        pool=lambda network, inputs: network(inputs),
        transform=Transform(
            tuple(data["mean"]), tuple(data["std"]), side, data["interpolation"], None if side == height else height
        ),
        select=lambda checkpoint: _drop_classifier(checkpoint, name),
    )


def _find_config(name: str) -> Any:
    """timm's pretrained cfg."""
    import timm

    architecture, dot, _ = name.partition(".")
    if not timm.is_model(architecture):
        raise BackboneError(
            f"backbone timm:{name}: timm {timm.__version__} has no network {architecture!r}",
            nearest(f"timm:{architecture}", [f"timm:{known}" for known in timm.list_models()]),
        )
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    if dot and name not in tagged:
        raise BackboneError(
            f"backbone timm:{name}: timm {timm.__version__} has no such weights of {architecture}",
            nearest(f"timm:{name}", [f"timm:{known}" for known in tagged]),
        )
    return timm.get_pretrained_cfg(name)


def _place_weights(name: str, config: Any) -> WeightsFile:
    if not config.hf_hub_id:
        return WeightsFile(where=f"timm knows no weights of {name} on the hub.")
    return WeightsFile(repo=config.hf_hub_id, filenames=(config.hf_hub_filename,) if config.hf_hub_filename else _FILES)


def _drop_classifier(checkpoint: "Checkpoint", name: str) -> "Checkpoint":
    """Without the tensors that the network has with its classifier and lacks without it; all others are kept."""
    import timm
    import torch

    with torch.device("meta"):
        whole, headless = (set(timm.create_model(name, **how).state_dict()) for how in ({}, {"num_classes": 0}))
    classifier = whole - headless
    return replace(checkpoint, tensors={k: v for k, v in checkpoint.tensors.items() if k not in classifier})


member = TimmFamily(
    BackboneSheet(
        name="timm",
        kind="encoder",
        dim=None,
        tile_px=TilePx(224),
        licence="of each network its own",
        feature=_FEATURE,
        source="timm",
        weights=(WeightsFile(where=f"Each network has its own. {_HOW}"),),
        unchecked=_UNCHECKED,
    )
)
