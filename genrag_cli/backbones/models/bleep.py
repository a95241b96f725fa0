"""BLEEP: image and expression in one space, a tile's expression from its nearest spots (Xie et al., NeurIPS 2023).

Facts from bowang-lab/BLEEP (models.py, modules.py, config.py, dataset.py, BLEEP_inference.ipynb, preprocess.ipynb).
Knows the two towers, both published preprocessings and the three published retrievals. Does not know Harmony, and no
bank beyond `Reference`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.base import BackboneSheet, Reference, SpotContext, WeightsFile, expect_tiles
from genrag_cli.backbones.encoder import IMAGENET
from genrag_cli.backbones.gene_list import pick, read_gene_list
from genrag_cli.backbones.weights import find_or_fetch
from genrag_cli.errors import BackboneError, UsageError, nearest
from genrag_cli.types import Doubles, Expression, Floats, Ints, Scale, Strings
from genrag_cli.units import TilePx

if TYPE_CHECKING:
    import torch

    from genrag_cli.backbones.checkpoints import Checkpoint

MODES = ("imagenet", "2023")
CHANNELS = ("bgr", "rgb")
RETRIEVALS = ("average", "simple", "weighted")
PUBLISHED_K = 50
_CELLS = 2**23
"""Similarities that are held at a time (64 MiB)."""
_ROWS = 1024
"""Spots of the bank whose expression is dense at a time."""


class Bleep:
    """Two towers that end in 256 numbers each; the image's are what is stored, the expression's what is searched."""

    sheet = BackboneSheet(
        name="bleep",
        kind="model",
        dim=None,
        tile_px=TilePx(224),
        licence="Apache-2.0 (code); weights: whoever trained them",
        feature="ResNet-50 pooled, then the image projection head; not normalised",
        source="Xie et al. 2023; bowang-lab/BLEEP at 2395967 and 1025095",
        weights=(WeightsFile(filenames=("best.pt",), where="Train them with bowang-lab/BLEEP (BLEEP_main.py)."),),
        needs=("bank",),
        options={
            "genes": "FILE: the genes that its expression tower was trained on, in that order (required)",
            "mode": "imagenet (default): values / 255, ImageNet mean and sd, as the code of 2024 means to; "
            "2023: values 0..255 as they are, as the code behind the paper",
            "channels": "bgr (default): blue first, as upstream reads images and never converts; rgb",
            "retrieval": "average (default): mean of the k nearest; simple: the nearest; weighted: mean of the k "
            "nearest by exp(-(d^2 - d_1^2 + 1)) of unnormalised embeddings",
            "k": "how many of the bank's spots (default 50; 1 for simple)",
        },
        unchecked="no published checkpoint to compare with. The expression tower was trained on Harmony-corrected "
        "values of all four slides together, which no new slide can be given; here it gets what Harmony was given, "
        "counts scaled to each section's median total, then log1p. The code of 2023 flips and turns tiles at random "
        "at inference too; mode 2023 does not. Upstream crops 224 px of the full image whatever the pixel size, which "
        "is 68 um on its own sections (from the pitch of their spots)",
    )

    def __init__(
        self, device: str = "cpu", weights: Path | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        from genrag_cli.backbones.batches import Batcher, open_device
        from genrag_cli.backbones.checkpoints import load_into, read_checkpoint

        told = dict(options or {})
        self._mode = _choose(told, "mode", MODES)
        self._channels = _choose(told, "channels", CHANNELS)
        self._retrieval = _choose(told, "retrieval", RETRIEVALS)
        self._k = _read_k(told.get("k"), self._retrieval)
        checkpoint = _rename_wells(read_checkpoint(find_or_fetch(self.sheet, self.sheet.weights[0], weights)))
        dim, n_genes = checkpoint.shape("spot_projection.projection.weight")
        if "genes" not in told:
            raise BackboneError(
                f"backbone bleep: its {n_genes} genes are not in the checkpoint",
                "Name the list that it was trained on: --backbone-option genes=FILE.",
            )
        self._inputs = read_gene_list(told["genes"], "backbone bleep", expected=n_genes)
        self._device = open_device(device)
        net: Any = load_into(lambda: _build(checkpoint), checkpoint, "bleep")
        # In float64 on the CPU: spots with equal counts get equal keys, whichever batch they are in. It is small.
        self._spot_head = net["spot_projection"].double()
        self._tower, self._image_head = (
            part.to(self._device) for part in (net["image_encoder"]["model"], net["image_projection"])
        )
        self._batcher = Batcher(self._device, self.sheet.precision)
        self.genes: Strings = np.array([], dtype=np.str_)
        self.scale: Scale | None = None
        self.card = self.sheet.card(
            dim=dim,
            revision=f"mode={self._mode} channels={self._channels}",
            weights_sha256=checkpoint.sha256,
            genes=self._inputs,
        )

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Embeds tiles by the image tower and its head: (b, 256), not normalised."""
        expect_tiles(pixels, self.card)
        return self._batcher.run(len(pixels), self.card.dim, lambda rows: self._project_tiles(pixels[rows]))

    def predict(self, spots: SpotContext, genes: Strings) -> Expression:
        """Means of the bank's expression over the spots whose expression embeds nearest to each tile's embedding.

        Nearest by cosine. Where two spots of the bank are equally near, the one that comes first is taken.

        Args:
            spots: with a `reference`; its counts must have all genes of the option `genes`.
            genes: (k,) some of the reference's.

        Returns:
            (n, k) in the scale of the reference's expression.

        Raises:
            BackboneError: without a bank, for a bank of fewer than k spots, or genes that are not in all of its spots.
        """
        reference = _expect_reference(spots, self._k)
        known = reference.expression
        columns = pick(known.genes, genes, "the bank of backbone bleep")
        if known.present is not None and not known.present[:, columns].all():
            lacking = known.genes[columns][~known.present[:, columns].all(axis=0)]
            raise BackboneError(
                f"backbone bleep: the bank has no {lacking[0]} in some of its spots ({len(lacking)} such genes)",
                "Ask for genes that all sections of the bank measured.",
            )
        keys = self._embed_expression(reference)
        units = _normalise(keys)
        out = np.empty((len(spots), len(columns)), np.float32)
        step = max(1, _CELLS // len(keys))
        for low in range(0, len(spots), step):
            queries = spots.features[low : low + step].astype(np.float64)
            # float32 of a product in float64: equal keys stay equal wherever in the matrix they are
            near = (_normalise(queries) @ units.T).astype(np.float32)
            for query, row, rows in zip(queries, out[low:], _nearest(near, self._k), strict=False):
                weights = self._weigh(query, keys[rows])
                row[:] = weights @ known.values[np.ix_(rows, columns)].astype(np.float64)
            spots.progress(min(low + step, len(spots)), len(spots))
        names = np.arange(len(spots)).astype(np.str_)
        return Expression(out, names, known.genes[columns], known.scale)

    def _project_tiles(self, pixels: NDArray[np.uint8]) -> "torch.Tensor":
        import torch

        ordered = pixels[..., ::-1] if self._channels == "bgr" else pixels
        inputs = torch.from_numpy(np.array(ordered, order="C")).to(self._device).permute(0, 3, 1, 2).to(torch.float32)
        if self._mode == "imagenet":  # by position: upstream gives blue the mean that ImageNet has for red
            mean, sd = (torch.tensor(v, device=self._device).view(1, 3, 1, 1) for v in IMAGENET)
            inputs = (inputs / 255 - mean) / sd
        return _project(self._image_head, self._tower(inputs))

    def _embed_expression(self, reference: Reference) -> Floats:
        """(N, 256) embeddings of the bank's expression, not normalised."""
        import torch

        keys: list[Floats] = []
        with torch.inference_mode():
            for counts, totals in reference.counts(self._inputs):
                factors = _median_factors(totals)
                for rows in (slice(low, low + _ROWS) for low in range(0, len(totals), _ROWS)):
                    logged = np.log1p(counts[rows].toarray() * factors[rows, None])
                    keys.append(_project(self._spot_head, torch.from_numpy(logged)).to(torch.float32).numpy())
        found = sum(len(part) for part in keys)
        if found != len(reference.expression.values):
            raise BackboneError(
                f"backbone bleep: counts of {found} spots for a bank of {len(reference.expression.values)}"
            )
        return np.concatenate(keys)

    def _weigh(self, query: Doubles, keys: Floats) -> Doubles:
        """Weights (k,) of the nearest, which sum to 1."""
        if self._retrieval != "weighted":
            return np.full(len(keys), 1 / len(keys))
        # exp(-(d_i^2 - d_1^2 + 1)) divided by its sum does not depend on d_1: the smallest keeps it from overflowing
        squares = ((keys - query) ** 2).sum(axis=1)
        weights: Doubles = np.exp(squares.min() - squares)
        shares: Doubles = weights / weights.sum()
        return shares


def _choose(told: Mapping[str, str], key: str, known: tuple[str, ...]) -> str:
    chosen = told.get(key, known[0])
    if chosen not in known:
        raise UsageError(f"--backbone-option {key}={chosen}: bleep has no such {key}", nearest(chosen, known))
    return chosen


def _read_k(told: str | None, retrieval: str) -> int:
    usual = 1 if retrieval == "simple" else PUBLISHED_K
    k = usual if told is None else int(told) if told.isdecimal() else 0
    if k < 1 or (retrieval == "simple" and k != 1):
        takes = "1" if retrieval == "simple" else "a number > 0"
        raise UsageError(
            f"--backbone-option k={told}: retrieval {retrieval} takes {takes}", f"The published number is {usual}."
        )
    return k


def _rename_wells(checkpoint: "Checkpoint") -> "Checkpoint":
    """Older files call the spots wells."""
    renamed = {
        f"spot_{name.removeprefix('well_')}" if name.startswith("well_") else name: tensor
        for name, tensor in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=renamed)


def _build(checkpoint: "Checkpoint") -> "torch.nn.Module":
    """The network with the widths of the tensors; also a ResNet-101 or 152, which upstream has under the same names."""
    import timm
    from torch import nn

    def head(name: str) -> nn.Module:
        dim, width = checkpoint.shape(f"{name}.projection.weight")
        return nn.ModuleDict(
            {"projection": nn.Linear(width, dim), "fc": nn.Linear(dim, dim), "layer_norm": nn.LayerNorm(dim)}
        )

    depths = tuple(checkpoint.count(f"image_encoder.model.layer{stage}.") for stage in (1, 2, 3, 4))
    if 0 in depths:
        raise BackboneError(
            f"{checkpoint.path}: its image tower is no ResNet", "Give a BLEEP checkpoint of the ResNet-50 variant."
        )
    tower = timm.create_model("resnet50", num_classes=0, global_pool="avg", layers=depths)
    towers = {name: head(name) for name in ("image_projection", "spot_projection")}
    return nn.ModuleDict({"image_encoder": nn.ModuleDict({"model": tower}), **towers})


def _project(head: Any, inputs: "torch.Tensor") -> "torch.Tensor":
    """p = Linear(inputs); LayerNorm(p + Linear(GELU(p)))."""
    from torch.nn import functional

    p = head["projection"](inputs)
    projected: torch.Tensor = head["layer_norm"](head["fc"](functional.gelu(p)) + p)
    return projected


def _median_factors(totals: Doubles) -> Doubles:
    """(n,) what each spot's counts are multiplied by, as scanpy's normalize_total does by default.

    The target is the median of the totals that are not 0; a spot without counts is left as it is.
    """
    counted = totals[totals > 0]
    target = np.median(counted) if len(counted) else 1.0
    return np.asarray(target / np.where(totals > 0, totals, target), np.float64)


def _expect_reference(spots: SpotContext, k: int) -> Reference:
    if spots.reference is None:
        raise BackboneError("backbone bleep predicts from the bank, and was given none", "Give a bank.")
    n = len(spots.reference.expression.values)
    if k > n:
        raise BackboneError(
            f"backbone bleep takes the {k} nearest spots, the bank has {n}",
            "Take fewer: --backbone-option k=NUMBER.",
        )
    return spots.reference


def _normalise(rows: Floats | Doubles) -> Doubles:
    """Rows of length 1; as torch's normalize, no length is taken as less than 1e-12."""
    wide = rows.astype(np.float64)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return wide


def _nearest(similarity: Floats, k: int) -> list[Ints]:
    """For each row the k columns with the largest values, ascending; of equal values the first columns."""
    least = np.partition(similarity, -k, axis=1)[:, -k]
    found = []
    for row, edge in zip(similarity, least, strict=True):
        above, level = np.flatnonzero(row > edge), np.flatnonzero(row == edge)
        found.append(np.sort(np.concatenate([above, level[: k - len(above)]])))
    return found
