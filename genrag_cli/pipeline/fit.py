"""Whether a query and a bank were made by the same backbone in the same way; what differs is refused by name."""

import re
from typing import Any

from genrag_cli.backbones.base import Backbone, ExpressionModel
from genrag_cli.errors import BackboneError, FeaturesError, UsageError
from genrag_cli.pipeline.geometry import expect_geometry, tile_um
from genrag_cli.pipeline.options import SlideOptions
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.foreign import ForeignRows
from genrag_cli.types import BackboneCard
from genrag_cli.units import Microns, TilePx

DECISIVE = ("revision", "dim", "tile_px", "weights_sha256", "views", "scale", "genes_sha256")
"""Fields of a card in which two embeddings or predictions may not differ."""
_WORDS = {"views": "view count", "weights_sha256": "weights with digest", "genes_sha256": "genes with digest"}
_ELSEWHERE = "elsewhere:"
"""Begins the revision of a card whose embeddings were read from files; what those call their encoder follows."""
_FOV_SLACK = 0.01
"""Of a field of view that a file states; one measured by a tile's px varies with the slide's pixel size."""
_SIDE_SLACK = 0.05


def identity(card: BackboneCard) -> tuple[Any, ...]:
    """What decides whether embeddings are the same, without the words on a card."""
    return (card.name, *(getattr(card, field) for field in DECISIVE))


def differences(here: BackboneCard, there: BackboneCard) -> list[tuple[str, Any, Any]]:
    """What decides and differs: (field, here, there)."""
    return [(f, getattr(here, f), getattr(there, f)) for f in DECISIVE if getattr(here, f) != getattr(there, f)]


def check_fit(bank: Bank, backbone: Backbone, options: SlideOptions) -> None:
    """Refuses a backbone or a field of view that is not the bank's.

    Raises:
        BackboneError: naming what is on both sides.
        BankError: for another field of view.
    """
    here, there = backbone.card, bank.card
    expect_pixels(bank)
    for field, a, b in differences(here, there):
        what = _WORDS.get(field, field)
        raise BackboneError(
            f"backbone {here.name} has {what} {a or 'none'}, the bank {bank.folder} was built with {b or 'none'}",
            "Ask for the views that the bank has, or build the bank again with these."
            if field == "views"
            else "Give the weights and options that the bank was built with, or build the bank again.",
        )
    if isinstance(backbone, ExpressionModel) and len(backbone.genes):
        missing = [gene for gene in bank.anchors.tolist() if gene not in set(backbone.genes.tolist())]
        if missing:
            raise BackboneError(
                f"backbone {here.name} does not predict {len(missing)} anchor genes of the bank {bank.folder}, such as "
                f"{missing[0]}",
                "Run build-bank again with this backbone: it chooses anchors among the genes that the model predicts.",
            )
    expect_geometry(bank.folder, bank.geometry, crop=None, fov_um=options.fov_um)


def expect_pixels(bank: Bank) -> None:
    """Refuses a bank whose embeddings were read from files, where a query's would be made here.

    Raises:
        BackboneError: with the remedy.
    """
    if made_elsewhere(bank.card):
        raise BackboneError(
            f"the embeddings of {bank.card.name} in the bank {bank.folder} were read from files ({bank.card.feature}), "
            "and nobody can tell whether a backbone here makes the same",
            "Give the slide's features as a file too (--features), or build a bank from pixels (--bank).",
        )


def expect_views(asked: int | None, bank: Bank) -> int:
    """The bank's view count.

    Raises:
        UsageError: where another was asked.
    """
    have = bank.card.views
    if asked is not None and asked != have:
        raise UsageError(
            f"--views {asked} asked; the bank {bank.folder} was built with {have} for backbone {bank.card.name}",
            "Leave --views out, or build the bank with these views (another --bank).",
        )
    return have


def expect_features(
    bank: Bank, features: ForeignRows, options: SlideOptions, *, same_encoder: bool, has_guess: bool
) -> list[str]:
    """Refuses features of a file that cannot be the bank's backbone's.

    Args:
        bank: opened with a backbone.
        features: as read.
        options: the field of view may be asked for.
        same_encoder: take whatever the file calls its encoder for the bank's backbone.
        has_guess: whether first guesses come from a file too.

    Returns:
        What could not be checked, a line each.

    Raises:
        FeaturesError: for another length or encoder, naming both (`expect_fov` looks at the field of view).
    """
    card, where = bank.card, f"{features.path} ({features.kind})"
    if features.values.shape[1] != card.dim:
        raise FeaturesError(
            f"{where} has features of {features.values.shape[1]} numbers, backbone {card.name} of the bank "
            f"{bank.folder} has {card.dim}",
            "Are they of this backbone? Name the one that they are of with --backbone.",
        )
    from_files = made_elsewhere(card)
    theirs = card.revision.removeprefix(_ELSEWHERE) if from_files else card.name
    if features.encoder and theirs and not same_encoder and not _same_name(theirs, features.encoder, from_files):
        raise FeaturesError(
            f"{where} says that {features.encoder} made its features, the bank {bank.folder} was built with {theirs}",
            "If these are two words for one encoder with the same weights, say so: --same-encoder.",
        )
    if (card.scale or "bank" in card.needs) and not has_guess:
        raise FeaturesError(
            f"the first guess of {card.name} is its own, and features alone cannot give it",
            "Give it as a file too: --anchors-from FILE.",
        )
    expect_geometry(bank.folder, bank.geometry, crop=None, fov_um=options.fov_um)
    if features.card is not None and not from_files:
        for field, a, b in differences(features.card, card):
            raise FeaturesError(
                f"{where} was made with {_WORDS.get(field, field)} {a or 'none'}, the bank {bank.folder} with "
                f"{b or 'none'}",
                "Make the features again with what the bank was built with.",
            )
        return []
    unchecked = not_stated(features)
    if features.encoder and not theirs:
        unchecked.append(f"the bank's files do not say which encoder made them, {where} says {features.encoder}")
    if not from_files:
        unchecked.append(f"no digest of weights stands in {where}, so they were not compared with the bank's")
    return unchecked


def not_stated(features: ForeignRows) -> list[str]:
    """What a file does not say of its features and so cannot be compared, a line each."""
    lines = [] if features.encoder else [f"{features.path} does not say which encoder made it"]
    if features.fov_um is None and features.side_px is None:
        lines.append(f"{features.path} does not say how large its tiles are on the tissue")
    return lines


def fov_of(features: ForeignRows, mpp: float) -> float | None:
    """Side of a file's tiles on the tissue in um, as it states it, else by their px on the slide; None: unknown."""
    return features.fov_um or (None if features.side_px is None else features.side_px * mpp)


def same_fov(one: float | None, other: float | None, slack: float = _SIDE_SLACK) -> bool:
    """Whether two fields of view are one; what is unknown differs from nothing."""
    return not one or not other or abs(one - other) <= slack * other


def expect_fov(bank: Bank, features: ForeignRows, mpp: float) -> None:
    """Refuses features of tiles of another size than the bank's.

    Raises:
        FeaturesError: naming both.
    """
    found, card = fov_of(features, mpp), bank.card
    wanted = card.fov_um if made_elsewhere(card) else tile_um(bank.geometry, mpp)
    if not same_fov(found, wanted, _FOV_SLACK if features.fov_um else _SIDE_SLACK):
        raise FeaturesError(
            f"{features.path} ({features.kind}) was made of tiles of {found:g} um, the bank {bank.folder} of tiles of "
            f"{wanted:g} um",
            "Make the features again at the bank's field of view, or build the bank at theirs (--fov-um).",
        )


def made_elsewhere(card: BackboneCard) -> bool:
    """Whether a bank's embeddings were read from files."""
    return card.revision.startswith(_ELSEWHERE)


def card_of_features(name: str, features: ForeignRows, mpp: float) -> BackboneCard:
    """The card of a bank's embeddings that are read from files, under a name that a person gave."""
    fov = fov_of(features, mpp)
    return BackboneCard(
        name=name,
        revision=_ELSEWHERE + features.encoder,
        dim=features.values.shape[1],
        tile_px=TilePx(0),
        licence="not known: made elsewhere",
        fov_um=None if fov is None else Microns(fov),
        feature=f"as {features.kind} files have it",
    )


def _same_name(ours: str, theirs: str, exact: bool) -> bool:
    """Whether a file's word for its encoder is the backbone's: `uni_v1` is `uni`'s, `MahmoodLab/UNI` too."""
    a = re.sub(r"[^a-z0-9]", "", ours.lower())
    if exact:
        return a == re.sub(r"[^a-z0-9]", "", theirs.lower())
    word = "[^a-z0-9]*".join(a)  # whole words only: `unimodal` is not `uni`
    return re.search(rf"(?<![a-z]){word}(?![a-z])", theirs.lower()) is not None
