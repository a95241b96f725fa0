"""Loki's similarity average over OmiCLIP embeddings (Chen et al., Nature Methods 2025, doi 10.1038/s41592-025-02707-1).

Facts from GuangyuWangLab2021/Loki, `src/loki/utils.py` (embeddings) and `src/loki/predex.py` (the average): the
prediction is the mean of all training profiles, each weighted by its similarity to the tile, divided by the sum of the
similarities; weights are neither clipped nor sharpened.

It differs from Loki in one thing. Loki compares a tile with the *text* embedding of each training spot's gene sentence.
A bank holds no text embeddings, so here the *image* embedding of the bank's spot stands in for it. Absolute numbers are
therefore not Loki's; the arithmetic of the average is.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.base import BackboneSheet, Reference, SpotContext, WeightsFile, expect_tiles
from genrag_cli.backbones.encoder import OPENAI_CLIP, Transform
from genrag_cli.backbones.weights import find_or_fetch
from genrag_cli.errors import BackboneError, nearest
from genrag_cli.types import Doubles, Expression, Floats, Ints, Scale, Strings
from genrag_cli.units import TilePx

if TYPE_CHECKING:
    import torch

    from genrag_cli.backbones.checkpoints import Checkpoint

DIM = 768
NOT_NEEDED = ("text.", "text_decoder.", "logit_scale", "logit_bias")
"""Starts of names in the file that images do not use. Any other name that the tower does not have is refused."""
_ROWS = 4096
_LEAST_MEAN = 1e-6
"""A mean similarity at or below this is nothing but the rounding of float32 embeddings, or negative."""


class Loki:
    """OmiCLIP's image tower, and the average of the bank weighted by similarity.

    As the weights are linear in the embeddings, sum_j (q . b_j) y_j = q . (sum_j b_j y_j'): one pass over the bank
    gives the (d, k) matrix that all tiles share, and no (n, N) matrix of similarities is ever made. Sums are float64.
    """

    sheet = BackboneSheet(
        name="loki",
        kind="model",
        dim=DIM,
        tile_px=TilePx(224),
        licence="BSD-3-Clause (code); licence of the weights: see their page",
        feature="OmiCLIP image embedding (CoCa ViT-L/14, first pooled query, projected), length 1; stands in for the "
        "text embeddings of the bank's gene sentences, which Loki compares with",
        source="GuangyuWangLab2021/Loki, src/loki; mlfoundations/open_clip, coca_ViT-L-14",
        weights=(WeightsFile(repo="WangGuangyuLab/Loki", filenames=("checkpoint.pt",)),),
        needs=("bank",),
        unchecked="Loki weighs training spots by image-to-text similarity, this by image-to-image similarity, so its "
        "numbers are not Loki's; not checked: the commit and licence of the weights, their container, and the field of "
        "view of training",
    )
    genes: Strings = np.array([], np.str_)
    """Whatever the bank has."""
    scale: Scale | None = None
    """That of the bank's expression."""

    def __init__(self, device: str = "cpu", weights: Path | None = None) -> None:
        from genrag_cli.backbones.batches import Batcher, open_device
        from genrag_cli.backbones.checkpoints import load_into, read_checkpoint

        path = find_or_fetch(self.sheet, self.sheet.weights[0], weights)
        checkpoint = _select(read_checkpoint(path))
        self._device = open_device(device)
        net: Any = load_into(lambda: _build(checkpoint), checkpoint, self.sheet.name)
        self._net = net.to(self._device)
        self._batcher = Batcher(self._device, self.sheet.precision)
        self._transform = Transform(*OPENAI_CLIP, resize=self.sheet.tile_px, interpolation="bicubic")
        self.card = self.sheet.card(weights_sha256=checkpoint.sha256)

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Embeds tiles.

        Args:
            pixels: (b, 224, 224, 3) uint8 RGB.

        Returns:
            (b, 768) of length 1.
        """
        expect_tiles(pixels, self.card)
        return self._batcher.run(len(pixels), DIM, lambda rows: self._embed(pixels[rows]))

    def _embed(self, pixels: NDArray[np.uint8]) -> "torch.Tensor":
        embedded: torch.Tensor = self._net["visual"](self._transform(pixels).to(self._device, non_blocking=True))
        return embedded

    def predict(self, spots: SpotContext, genes: Strings) -> Expression:
        """Averages the bank's expression, each bank spot weighted by its cosine similarity to the tile.

        Where the bank's expression says which values are missing, a gene's average is over the spots that have it.

        Args:
            spots: n spots with the bank as `reference`.
            genes: (k,) names, all of the bank's.

        Returns:
            (n, k) in the scale of the bank's expression.

        Raises:
            BackboneError: without a bank, for genes that it does not have, for embeddings of no length, and for tiles
                whose similarities to the bank do not sum to more than 0, over which there is no average.
        """
        reference = spots.reference
        if reference is None or not len(reference.features):
            raise BackboneError("backbone loki averages over a bank, and was given none", "Use it with a bank.")
        found, known = spots.features.shape[1], reference.features.shape[1]
        if found != known:
            raise BackboneError(f"backbone loki: embeddings of {found} numbers against a bank of {known}")
        weighted, total, counted = _sum_bank(reference, _columns(reference, genes), spots)
        values = np.empty((len(spots), len(genes)), np.float32)
        for rows in _slices(len(spots)):
            unit = _unit_rows(spots.features[rows], "tile", rows.start)
            sums = unit @ total
            _expect_positive(sums / counted, rows.start, genes)
            values[rows] = (unit @ weighted) / sums
        names = np.arange(len(spots)).astype(np.str_)
        return Expression(values, names, np.asarray(genes, np.str_), reference.expression.scale)


def _select(checkpoint: "Checkpoint") -> "Checkpoint":
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(NOT_NEEDED)}
    return dataclasses.replace(checkpoint, tensors=kept)


def _build(checkpoint: "Checkpoint") -> Any:
    from torch import nn

    from genrag_cli.backbones.models.omiclip_tower import ImageTower

    depth = checkpoint.count("visual.transformer.resblocks.")
    return nn.ModuleDict({"visual": ImageTower(depth)})  # messages name tensors as the file does


def _columns(reference: Reference, genes: Strings) -> Ints:
    position = {gene: column for column, gene in enumerate(reference.expression.genes.tolist())}
    if missing := [gene for gene in genes.tolist() if gene not in position]:
        shown = ", ".join(missing[:8]) + (f", ... ({len(missing)} in all)" if len(missing) > 8 else "")
        raise BackboneError(
            f"backbone loki: the bank's expression does not have {shown}", nearest(missing[0], position)
        )
    return np.array([position[gene] for gene in genes.tolist()], np.int64)


def _sum_bank(reference: Reference, columns: Ints, spots: SpotContext) -> tuple[Doubles, Doubles, Doubles]:
    """Sums over the bank's unit embeddings b_j: of b_j y_j (d, k), and of b_j (d, 1); and how many they are (1,).

    Where values are missing, the last two are per gene, (d, k) and (k,), over the spots that have it.
    """
    expression, n = reference.expression, len(reference.features)
    width = 1 if expression.present is None else len(columns)
    weighted = np.zeros((reference.features.shape[1], len(columns)))
    total, counted = np.zeros((len(weighted), width)), np.zeros(width)
    for rows in _slices(n):
        unit = _unit_rows(reference.features[rows], "bank spot", rows.start)
        values = expression.values[rows][:, columns].astype(np.float64)
        if expression.present is None:
            there = np.ones((len(unit), 1))
        else:
            there = expression.present[rows][:, columns].astype(np.float64)
            values = np.where(there > 0, values, 0)  # a filler may be anything, nan too
        weighted += unit.T @ values
        total += unit.T @ there
        counted += there.sum(axis=0)
        spots.progress(rows.stop, n)
    if not counted.all():
        none = expression.genes[columns[counted == 0]].tolist()
        raise BackboneError(f"backbone loki: no spot of the bank has a value of {', '.join(none[:8])}")
    return weighted, total, counted


def _unit_rows(features: Floats, what: str, first: int) -> Doubles:
    """(b, d) scaled to length 1; stored embeddings may be shorter, as a mean of views is."""
    values = features.astype(np.float64)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    usable = np.isfinite(length[:, 0]) & (length[:, 0] > 0)
    if not usable.all():
        raise BackboneError(
            f"backbone loki: the embedding of {what} {first + int(np.argmin(usable))} has length 0 or is not finite",
            "Embed it again.",
        )
    unit: Doubles = values / length
    return unit


def _expect_positive(means: Doubles, first: int, genes: Strings) -> None:
    """Refuses mean similarities (b, 1 or k) over which an average would divide by nothing or turn its sign."""
    usable = means > _LEAST_MEAN
    if not usable.all():
        row, column = np.unravel_index(int(np.argmin(usable)), means.shape)
        over = f" over the spots that have {genes[column]}" if means.shape[1] > 1 else ""
        raise BackboneError(
            f"backbone loki: the similarities of tile {first + int(row)} to the bank{over} have a mean of "
            f"{means[row, column]:.3g}; an average that is weighted by them needs one above 0",
            "Is the bank of the same tissue and stain, and are bank and tiles embedded by the same weights?",
        )


def _slices(n: int) -> Iterator[slice]:
    return (slice(low, min(n, low + _ROWS)) for low in range(0, n, _ROWS))
