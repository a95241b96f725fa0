"""Stem (Zhu et al. 2025, arXiv 2501.15598): a diffusion transformer that samples expression given UNI and CONCH.

Facts from SichenZhu/Stem (Stem/models.py, Stem/diffusion, stem_sample.py, stem_train.py, dataset_preprocess.ipynb).
Knows its checkpoint, its conditions, and how many samples are averaged; the network is in `stem_network`, the sampler
and the noise in `diffusion`, the two encoders are the recipes `uni` and `conch`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.base import BackboneSheet, SpotContext, WeightsFile, expect_tiles
from genrag_cli.backbones.encoder import EncoderRecipe, resize_tiles
from genrag_cli.backbones.encoders import conch, uni
from genrag_cli.backbones.gene_list import pick, read_gene_list
from genrag_cli.backbones.weights import find_or_fetch, join_digests
from genrag_cli.errors import BackboneError, UsageError
from genrag_cli.types import LOG2_COUNTS, BackboneCard, Expression, Floats, Strings, fingerprint
from genrag_cli.units import TilePx

if TYPE_CHECKING:
    import torch

    from genrag_cli.backbones.checkpoints import Checkpoint

UNI_DIM, CONCH_DIM = 1024, 512
_CONCH_FIRST, _CONCH_SIDE = 256, 448
"""A tile is made 256 px wide (Lanczos) before CONCH's own transform makes it 448 (bicubic)."""
_HEAD_DIM = 64
"""Published: 6 heads at width 384. The shapes do not tell how many heads there are."""
_SPOTS = 1024
"""Spots whose samples are held at a time: 1024 x 20 x 300 genes are 25 MB, however large the slide."""
_CONTAINERS = ("ema", "model")


class Stem:
    """UNI's and CONCH's embeddings of a tile; the mean of expression vectors sampled for them.

    Samples are seeded per spot: a spot's noise comes from the run's seed, the bytes of its own embedding and the number
    of the sample (`SpotNoise`), so its prediction does not depend on the other spots, their order or the batch size
    beyond float rounding. Upstream draws the noise of a batch from one generator, which makes a spot's samples depend
    on its neighbours in the file; its numbers therefore agree in distribution and not digit by digit.
    """

    sheet = BackboneSheet(
        name="stem",
        kind="model",
        dim=UNI_DIM + CONCH_DIM,
        tile_px=TilePx(224),
        licence="MIT (Stem); CC-BY-NC-ND-4.0 (UNI and CONCH)",
        feature="UNI's CLS token (1024), then CONCH's image embedding (512); not normalised",
        source="Zhu et al. 2025, arXiv 2501.15598; SichenZhu/Stem",
        weights=(
            WeightsFile(where="Stem's authors publish none: train it with their repository (checkpoints/STEP.pt)."),
            replace(uni.RECIPE.sheet.weights[0], part="uni"),
            replace(conch.RECIPE.sheet.weights[0], part="conch"),
        ),
        scale=LOG2_COUNTS.name,
        options={
            "genes": "required: the gene list of training (selected_gene_list.txt), one symbol a line, in its order",
            "steps": "sampling steps, 2 to 1000 (default 1000: none left out)",
            "samples": "samples a spot that are averaged (default 20)",
            "weights": "ema (default, as published) or model: which of a checkpoint's two sets of weights",
            "heads": f"attention heads (default: width / {_HEAD_DIM}, which is the published 6 at width 384)",
        },
        unchecked="a trained checkpoint, of which none is public. Published tiles are 224 px at native resolution, or "
        "as wide as a spot where that is more (--crop stem); the wider ones are made 224 px by whoever cuts tiles, "
        "where upstream makes them 224 px for UNI and 256 px for CONCH with Lanczos each",
    )

    def __init__(
        self,
        device: str = "cpu",
        weights: Path | None = None,
        parts: Mapping[str, Path] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        from genrag_cli.backbones.batches import Batcher, open_device
        from genrag_cli.backbones.checkpoints import load_into
        from genrag_cli.backbones.models.diffusion import TRAINED_STEPS, Schedule
        from genrag_cli.backbones.models.stem_network import Sizes, StemNetwork

        told = options or {}
        self._samples = _whole(told, "samples", 20, least=1)
        self._schedule = Schedule.linear(_whole(told, "steps", TRAINED_STEPS, least=2, most=TRAINED_STEPS))
        self._device = open_device(device)
        checkpoint = _read(find_or_fetch(self.sheet, self.sheet.weights[0], weights), told.get("weights", "ema"))
        sizes = Sizes.of(checkpoint)
        if sizes.condition != UNI_DIM + CONCH_DIM:
            raise BackboneError(
                f"{checkpoint.path} is conditioned on {sizes.condition} numbers a spot, not on the {UNI_DIM} of UNI "
                f"and the {CONCH_DIM} of CONCH",
                "A Stem that was trained on other embeddings is another backbone.",
            )
        heads = _whole(told, "heads", max(1, sizes.width // _HEAD_DIM), least=1, most=sizes.width)
        if sizes.width % heads:
            raise UsageError(f"--backbone-option heads={heads}: width {sizes.width} is not a multiple of it")
        self.genes = _read_genes(told, sizes.genes)
        net: Any = load_into(lambda: StemNetwork(sizes, heads), checkpoint, "stem")
        self._net = net.to(self._device)
        self._batcher = Batcher(self._device, self.sheet.precision)
        _, uni_file, conch_file = self.sheet.weights
        given = parts or {}
        self._uni = _exact(uni.RECIPE)(device, find_or_fetch(self.sheet, uni_file, given.get("uni")))
        self._conch = _exact(conch.RECIPE)(device, find_or_fetch(self.sheet, conch_file, given.get("conch")))
        self.scale = LOG2_COUNTS
        self.card = BackboneCard(
            name=self.sheet.name,
            revision="1",
            dim=UNI_DIM + CONCH_DIM,
            tile_px=self.sheet.tile_px,
            licence=self.sheet.licence,
            weights_sha256=join_digests(
                checkpoint.sha256, self._uni.card.weights_sha256, self._conch.card.weights_sha256
            ),
            feature=self.sheet.feature,
            scale=LOG2_COUNTS.name,
            genes_sha256=fingerprint(self.genes),
        )

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Conditions, in float32 as they were trained on.

        Args:
            pixels: (b, 224, 224, 3) uint8 RGB.

        Returns:
            (b, 1536): UNI's 1024, CONCH's 512.
        """
        expect_tiles(pixels, self.card)
        wide = resize_tiles(resize_tiles(pixels, _CONCH_FIRST, "lanczos"), _CONCH_SIDE, "bicubic")
        return np.concatenate([self._uni.encode(pixels), self._conch.encode(wide)], axis=1)

    def predict(self, spots: SpotContext, genes: Strings) -> Expression:
        """Mean of the samples, log2(1 + count), not clipped; see `ExpressionModel.predict`.

        All of the model's genes are sampled together whichever are asked for. `spots.progress` is told passes of the
        network: spots x samples x steps of them.

        Raises:
            BackboneError: for unknown genes, or embeddings of another backbone.
        """
        columns = pick(self.genes, genes, "backbone stem")
        conditions = np.ascontiguousarray(spots.features, np.float32)
        if conditions.ndim != 2 or conditions.shape[1] != self.card.dim:
            raise BackboneError(
                f"backbone stem takes embeddings of shape (n, {self.card.dim}), found {conditions.shape}",
                "Embed the slide with stem itself.",
            )
        n = len(conditions)
        values = np.empty((n, len(columns)), np.float32)
        for low in range(0, n, _SPOTS):
            part = conditions[low : low + _SPOTS]
            sampled = self._sample(part, spots, low, n)
            values[low : low + len(part)] = sampled[:, :, columns].mean(axis=1, dtype=np.float64)
        return Expression(values, np.arange(n).astype(np.str_), self.genes[columns], LOG2_COUNTS)

    def _sample(self, conditions: Floats, spots: SpotContext, before: int, total: int) -> Floats:
        """(b, samples, G) of b spots, of which `before` others are done."""
        import torch

        from genrag_cli.backbones.models.diffusion import SpotNoise, sample

        n_genes, steps = len(self.genes), len(self._schedule)
        spot = np.repeat(np.arange(len(conditions)), self._samples)
        replicate = np.tile(np.arange(self._samples), len(conditions))
        told = 0

        def work(rows: slice) -> "torch.Tensor":
            noise = SpotNoise(spots.seed, conditions[spot[rows]], replicate[rows])
            given = torch.from_numpy(conditions[spot[rows]]).to(self._device)

            def tell(step: int) -> None:
                nonlocal told
                passes = (before * self._samples + rows.start) * steps + (rows.stop - rows.start) * step
                told = max(told, passes)  # a batch that did not fit starts again, smaller
                spots.progress(told, total * self._samples * steps)

            return sample(
                lambda x, t: self._net(x, t, given),
                self._schedule,
                lambda: torch.from_numpy(noise.draw(n_genes)).to(self._device),
                tell,
            )

        flat = self._batcher.run(len(spot), n_genes, work)
        return flat.reshape(len(conditions), self._samples, n_genes)


def _exact(recipe: EncoderRecipe) -> EncoderRecipe:
    """The recipe in float32 on every device: Stem was trained on embeddings that were computed so."""
    return replace(recipe, sheet=replace(recipe.sheet, precision="float32"))


def _read(path: Path, wanted: str) -> "Checkpoint":
    """The tensors wanted of {model, ema, opt}; a file of bare tensors is taken as it is, as upstream does."""
    from genrag_cli.backbones.checkpoints import read_checkpoint

    if wanted not in _CONTAINERS:
        raise UsageError(f"--backbone-option weights={wanted}: unknown", f"Known: {', '.join(_CONTAINERS)}")
    checkpoint = read_checkpoint(path, containers=(wanted, *(c for c in _CONTAINERS if c != wanted)))
    found = checkpoint.container.split(".")[0]
    if found in _CONTAINERS and found != wanted:
        raise BackboneError(
            f"{path} has the weights {found!r} and not {wanted!r}",
            "Published predictions are made with the moving average (ema). Take the last step's weights with "
            "--backbone-option weights=model."
            if wanted == "ema"
            else "Leave --backbone-option weights=model out.",
        )
    return checkpoint


def _read_genes(options: Mapping[str, str], expected: int) -> Strings:
    if not options.get("genes"):
        raise BackboneError(
            f"backbone stem: the checkpoint has {expected} genes and not their names",
            "Name the list of training with --backbone-option genes=FILE (upstream: selected_gene_list.txt).",
        )
    return read_gene_list(options["genes"], "backbone stem", expected)


def _whole(options: Mapping[str, str], name: str, default: int, *, least: int, most: int | None = None) -> int:
    text = options.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < least or (most is not None and int(text) > most):
        span = f"{least} to {most}" if most is not None else f"{least} or more"
        raise UsageError(f"--backbone-option {name}={text}: not a whole number, {span}", "See: generag backbones info")
    return int(text)
