"""STPath: expression of all spots of a slide at once, from GigaPath embeddings and where the spots are.

Huang et al., npj Digital Medicine 2025, 10.1038/s41746-025-02020-3; facts from Graph-and-Geometric-Learning/STPath. The
network is in `stpath_network`, names of genes, organs and technologies in `stpath_vocabulary`, the encoder in
`encoders.gigapath`. Spots with known expression, which upstream can be shown, are not offered: every spot is predicted
from the image.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.base import BackboneSheet, SpotContext, WeightsFile, expect_tiles
from genrag_cli.backbones.encoders.gigapath import RECIPE as GIGAPATH
from genrag_cli.backbones.gene_list import pick
from genrag_cli.backbones.weights import find_or_fetch, join_digests
from genrag_cli.errors import BackboneError
from genrag_cli.types import LN_COUNTS, Expression, Floats, Scale, Strings

ENCODER = "gigapath"
"""Part of the weights that embeds tiles."""


class StPath:
    """GigaPath for each tile, then a transformer over all spots of the slide."""

    sheet = BackboneSheet(
        name="stpath",
        kind="model",
        dim=GIGAPATH.sheet.dim,
        tile_px=GIGAPATH.sheet.tile_px,
        licence=f"STPath: none stated (code and weights); GigaPath: {GIGAPATH.sheet.licence}",
        feature=f"GigaPath: {GIGAPATH.sheet.feature}",
        source="Huang et al. 2025; Graph-and-Geometric-Learning/STPath and public copies of it",
        fov_um=GIGAPATH.sheet.fov_um,
        precision=GIGAPATH.sheet.precision,
        weights=(
            WeightsFile(
                repo="tlhuang/STPath",
                filenames=("stfm.pth", "stpath.pkl"),
                revision="3346881771f2ddb5575532df3df1b5477846d10a",
            ),
            replace(GIGAPATH.sheet.weights[0], part=ENCODER),
        ),
        needs=("positions", "slide"),
        scale=LN_COUNTS.name,
        options={
            "genes": "FILE: upstream's utils_data/symbol2ensembl.json, or all genes in the order of the outputs "
            "(required)",
            "organ": "name of the organ, as in HEST-1k or STimage-1K4M, or number of its row (default: not said)",
            "tech": "Spatial Transcriptomics, Visium, Xenium or Visium HD, or number of its row (default: not said)",
        },
        unchecked="the weights themselves, their commit (quoted by a public script; the hub was not asked) and the "
        "real symbol2ensembl.json. Parts of upstream's network were read in public copies only; with random weights of "
        "the published sizes (49.2 M numbers) LazySlide's copy gives the same to 5e-6. Field of view of training: "
        "GigaPath's, 128 um; upstream embedded the patches that HEST ships, 112 or 128 um, and those of STimage-1K4M. "
        "Pretraining left out the slides of HEST-bench, so numbers on other slides of HEST-1k are of slides that it "
        "has seen",
    )

    def __init__(
        self,
        device: str = "cpu",
        weights: Path | None = None,
        parts: Mapping[str, Path] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        from genrag_cli.backbones.batches import open_device
        from genrag_cli.backbones.checkpoints import load_into, read_checkpoint
        from genrag_cli.backbones.models.stpath_network import build_network
        from genrag_cli.backbones.models.stpath_vocabulary import find_organ, find_tech, read_vocabulary

        told = dict(options or {})
        checkpoint = read_checkpoint(find_or_fetch(self.sheet, self.sheet.weights[0], weights))
        _, dim = checkpoint.shape("input_encoder.image_embed.weight")
        if dim != self.sheet.dim:
            raise BackboneError(
                f"{checkpoint.path} takes embeddings of {dim} numbers, GigaPath's have {self.sheet.dim}",
                "Give the published STPath weights, which were trained on GigaPath.",
            )
        if "genes" not in told:
            raise BackboneError(
                "backbone stpath: which gene is which output is not in the checkpoint",
                "Name upstream's utils_data/symbol2ensembl.json: --backbone-option genes=FILE.",
            )
        self._vocabulary = read_vocabulary(told["genes"], checkpoint.shape("gene_exp_head.1.weight")[0])
        self._organ = find_organ(told.get("organ"), checkpoint.shape("input_encoder.organ_embed.weight")[0])
        self._tech = find_tech(told.get("tech"), checkpoint.shape("input_encoder.tech_embed.weight")[0])
        self._device = open_device(device)
        self._net: Any = load_into(lambda: build_network(checkpoint), checkpoint, "stpath").to(self._device)
        given = (parts or {}).get(ENCODER)
        self._encoder = GIGAPATH(device, find_or_fetch(self.sheet, self.sheet.weights[1], given))
        self.genes: Strings = self._vocabulary.names
        self.scale: Scale | None = LN_COUNTS
        digest = join_digests(checkpoint.sha256, self._encoder.card.weights_sha256)
        self.card = self.sheet.card(weights_sha256=digest, genes=self.genes)

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Embeds tiles by GigaPath: (b, 1536)."""
        expect_tiles(pixels, self.card)
        return self._encoder.encode(pixels)

    def predict(self, spots: SpotContext, genes: Strings) -> Expression:
        """Predicts all spots of the slide in one pass, each looking at all the others.

        Args:
            spots: embeddings and centres; centres are only compared with each other, so their unit does not count.
            genes: (k,) symbols or stable ids of the vocabulary; two symbols of one gene give the same values.

        Returns:
            (n, k) log(1 + counts); as the network gives them, so a few may be below 0.

        Raises:
            BackboneError: for genes that are not in the vocabulary, or embeddings of another length.
        """
        from genrag_cli.backbones.models.stpath_network import run_network

        columns = self._vocabulary.columns[pick(self.genes, genes, "backbone stpath")]
        if spots.features.shape[1:] != (self.card.dim,):
            raise BackboneError(
                f"backbone stpath takes embeddings (n, {self.card.dim}), found {spots.features.shape}",
                "Embed the slide with stpath or gigapath.",
            )
        values = run_network(
            self._net, self._device, spots.features, spots.centres, self._organ, self._tech, columns, spots.progress
        )
        names = np.arange(len(spots)).astype(np.str_)
        return Expression(values, names, np.asarray(genes, np.str_), LN_COUNTS)
