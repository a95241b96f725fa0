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
from genrag_cli.types import LOG2_COUNTS, Expression, Floats, Strings
from genrag_cli.units import TilePx

if TYPE_CHECKING:
    import torch

    from genrag_cli.backbones.checkpoints import Checkpoint

UNI_DIM, CONCH_DIM = 1024, 512
_CONCH_FIRST, _CONCH_SIDE = 256, 448
"""A tile is made 256 px wide (Lanczos) before CONCH's own transform makes it 448 (bicubic)."""
_HEAD_DIM = 64
"""Published: 6 heads at width 384. The shapes do not tell how many heads there are."""
_ROWS = 512
"""Samples that are drawn together at most (upstream: 200). On GPUs free memory decides, below this."""
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
            WeightsFile(where="Stem's authors publish none. Train it with their repository, which saves STEP.pt."),
            replace(uni.RECIPE.sheet.weights[0], part="uni"),
            replace(conch.RECIPE.sheet.weights[0], part="conch"),
        ),
        scale=LOG2_COUNTS.name,
        options={
            "genes": "required: the gene list of training (selected_gene_list.txt), one symbol a line, in its order",
            "steps": "sampling steps, 2 to 1000 (default 1000: none left out)",
            "samples": f"samples a spot that are averaged, 1 to {_ROWS} (default 20)",
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
        self._samples = _whole(told, "samples", 20, least=1, most=_ROWS)
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
        self._batcher = Batcher(self._device, self.sheet.precision, most=max(1, _ROWS // self._samples))
        _, uni_file, conch_file = self.sheet.weights
        given = parts or {}
        self._uni = _exact(uni.RECIPE)(device, find_or_fetch(self.sheet, uni_file, given.get("uni")))
        self._conch = _exact(conch.RECIPE)(device, find_or_fetch(self.sheet, conch_file, given.get("conch")))
        self.scale = LOG2_COUNTS
        digests = (checkpoint.sha256, self._uni.card.weights_sha256, self._conch.card.weights_sha256)
        self.card = self.sheet.card(weights_sha256=join_digests(*digests), genes=self.genes)

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
        mean = self._sample(conditions, spots)
        names = np.arange(len(conditions)).astype(np.str_)
        return Expression(mean[:, columns], names, self.genes[columns], LOG2_COUNTS)

    def _sample(self, conditions: Floats, spots: SpotContext) -> Floats:
        """(n, G) means over samples; all samples of some spots at a time."""
        import torch

        from genrag_cli.backbones.models.diffusion import SpotNoise, sample

        n_genes, steps, samples = len(self.genes), len(self._schedule), self._samples
        total, told = len(conditions) * samples * steps, 0

        def work(rows: slice) -> "torch.Tensor":
            repeated = np.repeat(conditions[rows], samples, axis=0)
            noise = SpotNoise(spots.seed, repeated, np.tile(np.arange(samples), rows.stop - rows.start))
            given = torch.from_numpy(repeated).to(self._device)

            def tell(step: int) -> None:
                nonlocal told
                passes = (rows.start * steps + (rows.stop - rows.start) * step) * samples
                told = max(told, passes)  # a batch that did not fit starts again, smaller
                spots.progress(told, total)

            drawn = sample(
                lambda x, t: self._net(x, t, given),
                self._schedule,
                lambda: torch.from_numpy(noise.draw(n_genes)).to(self._device),
                tell,
            )
            return drawn.view(-1, samples, n_genes).mean(dim=1)

        return self._batcher.run(len(conditions), n_genes, work)


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


def _whole(options: Mapping[str, str], name: str, default: int, *, least: int, most: int) -> int:
    text = options.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise UsageError(
            f"--backbone-option {name}={text}: not a whole number, {least} to {most}",
            "See: generag backbones info stem",
        )
    return int(text)
