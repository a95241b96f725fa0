"""HisToGene (Pang, Su and Li 2021, doi 10.1101/2021.11.28.470212): genes of all spots of a slide from one transformer.

Facts from maxpmx/HisToGene. Knows its checkpoint (Lightning, tensors under `state_dict`, no prefix), its patches, its
positions and its scale; the network is in `histogene_network`. Depth, genes and positions are read from the tensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.base import BackboneSheet, SpotContext, WeightsFile, expect_tiles
from genrag_cli.backbones.gene_list import pick, read_gene_list
from genrag_cli.backbones.weights import find_or_fetch
from genrag_cli.errors import BackboneError, UsageError
from genrag_cli.types import Expression, Floats, Ints, Scale, Strings
from genrag_cli.units import Microns, TilePx

SIDE_PX = 112
SCALE = Scale(library="panel", size_factor=1e4, log="log10")
"""scprep's library-size normalisation (rescale 10,000) and log (base 10, pseudocount 1) of the model's own genes: the
library of a spot is their sum, because the table is cut down to them first."""
_POSITIONS = ("array", "shifted")


class HisToGene:
    """Patch embeddings a tile; genes from all of them and their places in the array.

    Positions are array numbers as the spots have them, x the column and y the row: `x` and `y` of an ST position
    table, which is what was trained on. With `--backbone-option positions=shifted` both start at 0 at the first column
    and the first row of the spots given.
    """

    sheet = BackboneSheet(
        name="histogene",
        kind="model",
        dim=None,
        tile_px=TilePx(SIDE_PX),
        licence="MIT (code); none stated (weights)",
        feature="patch embedding of raw 0..255 pixels, before positions are added",
        source="Pang, Su and Li 2021; maxpmx/HisToGene",
        fov_um=Microns(75),
        weights=(
            WeightsFile(
                where="HisToGene's repository says in model/download_checkpoint.txt where its Lightning .ckpt is; its "
                "tutorial trains and saves one."
            ),
        ),
        needs=("positions", "slide"),
        scale=SCALE.name,
        options={
            "genes": "required: the genes of training in their order, as .npy of strings or as text, one a line",
            "positions": "array (default): array numbers as they are; shifted: both start at 0",
        },
        unchecked="the released checkpoint; the field of view in um: published are 112 px of the original image, which "
        "is about 75 um on her2st's patients B to H and 105 um on A",
    )

    def __init__(
        self, device: str = "cpu", weights: Path | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        from genrag_cli.backbones.batches import Batcher, open_device
        from genrag_cli.backbones.checkpoints import load_into, read_checkpoint
        from genrag_cli.backbones.models.histogene_network import HisToGeneNetwork, Sizes

        told = options or {}
        self._shift = _wants_shift(told)
        self._device = open_device(device)
        checkpoint = read_checkpoint(find_or_fetch(self.sheet, self.sheet.weights[0], weights))
        sizes = Sizes.of(checkpoint)
        if sizes.pixels != 3 * SIDE_PX * SIDE_PX:
            raise BackboneError(
                f"{checkpoint.path} embeds patches of {sizes.pixels} numbers, not 3 x {SIDE_PX} x {SIDE_PX}",
                "Ports of HisToGene that take other patches, or another encoder's features, are other models.",
            )
        self.genes = _read_genes(told, sizes.genes)
        net: Any = load_into(lambda: HisToGeneNetwork(sizes), checkpoint, "histogene")
        self._net = net.to(self._device)
        self._limits = (sizes.n_x, sizes.n_y)
        self._batcher = Batcher(self._device)
        self.scale = SCALE
        self.card = self.sheet.card(dim=sizes.dim, weights_sha256=checkpoint.sha256, genes=self.genes)

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Patch embeddings.

        Args:
            pixels: (b, 112, 112, 3) uint8 RGB.

        Returns:
            (b, dim) float32.
        """
        import torch

        expect_tiles(pixels, self.card)

        def work(rows: slice) -> torch.Tensor:
            tiles = torch.from_numpy(np.array(pixels[rows], order="C")).to(self._device)  # a copy: may be read-only
            embedded: torch.Tensor = self._net.embed(tiles)
            return embedded

        return self._batcher.run(len(pixels), self.card.dim, work)

    def predict(self, spots: SpotContext, genes: Strings) -> Expression:
        """Predicts genes at all spots of a slide, which are one sequence; see `ExpressionModel.predict`.

        Raises:
            BackboneError: for unknown genes, features of another backbone, positions beyond the tables, or a slide that
                does not fit into memory.
        """
        import torch

        from genrag_cli.backbones.batches import exactly

        columns = pick(self.genes, genes, "backbone histogene")
        features = np.array(spots.features, np.float32, order="C")
        if features.ndim != 2 or features.shape[1] != self.card.dim:
            raise BackboneError(
                f"backbone histogene takes embeddings of shape (n, {self.card.dim}), found {features.shape}",
                "Embed the slide with the same weights.",
            )
        n = len(features)
        values = np.empty((n, len(self.genes)), np.float32)
        if n:
            x, y = self._places(spots.array_rc)
            with exactly(self._device, "float32"):
                inputs = (torch.from_numpy(a).to(self._device) for a in (features, x, y))
                try:
                    values[:] = self._net(*inputs).cpu().numpy()
                except (torch.OutOfMemoryError, MemoryError) as error:
                    raise BackboneError(
                        f"{n} spots, which are one sequence, do not fit into the memory of {self._device}",
                        "Use --device cpu, or a wider pitch.",
                    ) from error
        spots.progress(n, n)
        return Expression(values[:, columns], np.arange(n).astype(np.str_), self.genes[columns], SCALE)

    def _places(self, array_rc: Ints) -> tuple[Ints, Ints]:
        """(n,) x = column and (n,) y = row as the tables count them."""
        places = np.array(array_rc[:, ::-1], np.int64)
        if self._shift:
            places -= places.min(axis=0)
        for axis, limit, at in zip("xy", self._limits, places.T, strict=True):
            if at.min() < 0 or at.max() >= limit:
                span = int(at.max() - at.min()) + 1
                raise BackboneError(
                    f"backbone histogene knows {axis} positions 0 to {limit - 1}, these spots have {at.min()} to "
                    f"{at.max()}",
                    "Count them from 0 with --backbone-option positions=shifted."
                    if span <= limit
                    else f"They span {span}: use weights trained with at least that many positions, or a wider pitch.",
                )
        return np.ascontiguousarray(places[:, 0]), np.ascontiguousarray(places[:, 1])


def _wants_shift(options: Mapping[str, str]) -> bool:
    asked = options.get("positions", _POSITIONS[0])
    if asked not in _POSITIONS:
        raise UsageError(f"--backbone-option positions={asked}: unknown", f"Known: {', '.join(_POSITIONS)}")
    return asked == "shifted"


def _read_genes(options: Mapping[str, str], expected: int) -> Strings:
    if not options.get("genes"):
        raise BackboneError(
            f"backbone histogene: the checkpoint has {expected} genes and not their names",
            "Name the list of training with --backbone-option genes=FILE (upstream: data/her_hvg_cut_1000.npy).",
        )
    return read_gene_list(options["genes"], "backbone histogene", expected)
