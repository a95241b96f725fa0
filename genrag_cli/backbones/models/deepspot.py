"""DeepSpot (Nonchev et al. 2025, medRxiv 2025.02.09.25321567): genes from bags of tile embeddings by a frozen encoder.

Facts from ratschlab/DeepSpot, `deepspot/spot`, `deepspot/utils` and its notebooks. Knows which tiles make the bags of
a spot and what becomes of the output; the network is in `deepspot_network`, its files in `deepspot_files`, the
encoders in `deepspot_encoder`. All sizes are read from the tensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.base import BackboneSheet, SpotContext, WeightsFile, expect_tiles
from genrag_cli.backbones.gene_list import pick
from genrag_cli.backbones.models import deepspot_encoder
from genrag_cli.backbones.models.deepspot_files import WHAT, read_genes, read_weights, settle_scaler
from genrag_cli.backbones.weights import digest_weights, find_or_fetch, join_digests
from genrag_cli.errors import BackboneError
from genrag_cli.types import LOG1P_CP10K, Expression, Floats, Strings
from genrag_cli.units import Microns, TilePx

if TYPE_CHECKING:
    import torch

SIDE_PX = TilePx(224)
PARTS = 3
"""Sub-tiles along a side of a spot's tile."""
_ROWS = 1024


class DeepSpot:
    """The encoder's embedding of a spot's tile; genes from it, from its 9 parts and from its neighbours.

    A spot's tile has the side of the spot's diameter. Its parts are a third of that at the slide's own resolution
    (what is left by a side that 3 does not divide is cut off right and below, as upstream does), read again while
    predicting. Neighbours are other spots whose row and column differ by at most `radius` each: on Visium's staggered
    rows those are the 4 diagonal ones, on a square lattice 8. For a spot without any, one all-black tile is encoded.

    The definition is upstream's inference, one spot at a time. In its training, bags of fewer neighbours are filled up
    with zeros, so that phi(0) may win the maximum; that is no part of this.

    What comes out is brought back through the scaler once, and what is then below 0 becomes 0. (Upstream's notebooks go
    back through it a second time after the function that has done so.)
    """

    sheet = BackboneSheet(
        name="deepspot",
        kind="model",
        dim=None,
        tile_px=SIDE_PX,
        licence="MIT (code); the encoder's own (UNI: CC-BY-NC-ND-4.0); of the weights: see Zenodo record 15322099",
        feature="embedding of the spot's tile by the frozen encoder (UNI: CLS token after the final norm)",
        source="Nonchev et al. 2025; ratschlab/DeepSpot",
        fov_um=Microns(55),
        weights=(
            WeightsFile(
                filenames=("final_model.safetensors", "final_model.pt", "final_model.pkl"),
                where="Zenodo record 15322099 has DeepSpot_pretrained_model_weights.zip, with a final_model.pkl and an "
                "info_highly_variable_genes.csv for each model.",
            ),
            deepspot_encoder.FILE,
        ),
        needs=("neighbours", "positions"),
        scale=LOG1P_CP10K.name,
        options={
            "genes": "required: the model's info_highly_variable_genes.csv, or its genes in order, one a line",
            "scaler": "required beside tensors: .npz with mean and scale per gene, or none; a pickle has its own",
            "encoder": f"of its training: {', '.join(deepspot_encoder.KNOWN)}; default {deepspot_encoder.DEFAULT}",
            "radius": "of neighbours, in steps of the lattice; default 1",
            "context": "bags of spots: spot, spot_subspot, spot_neighbors or spot_subspot_neighbors; default: what the "
            "weights say",
        },
        unchecked="the released weights, their licence and how their scalers are pickled; phikon-v2's transform, which "
        "upstream takes from the hub; upstream's half precision on GPUs",
    )

    def __init__(
        self,
        device: str = "cpu",
        weights: Path | None = None,
        parts: Mapping[str, Path] | None = None,
        options: Mapping[str, str] | None = None,
        unsafe_pickle: bool = False,
    ) -> None:
        from genrag_cli.backbones.batches import Batcher, open_device
        from genrag_cli.backbones.checkpoints import load_into
        from genrag_cli.backbones.models.deepspot_network import DeepSpotNetwork, Sizes, settle_context

        told = options or {}
        path = find_or_fetch(self.sheet, self.sheet.weights[0], weights)
        held = read_weights(path, unsafe_pickle)
        sizes = Sizes.of(held.checkpoint)
        self._context = settle_context(sizes.bags, told.get("context"), held.context, path)
        self._radius = _read_radius(told.get("radius", "1"))
        self.genes = read_genes(told.get("genes"), sizes.genes)
        scaler, scaler_path = settle_scaler(held, told.get("scaler"))
        self._scaler = scaler and scaler.expect(sizes.genes, scaler_path or path)
        net: Any = load_into(lambda: DeepSpotNetwork(sizes), held.checkpoint, self.sheet.name)
        self._device = open_device(device)
        self._net = net.to(self._device)
        self._batcher = Batcher(self._device)
        name = told.get("encoder", deepspot_encoder.DEFAULT)
        self.encoder = deepspot_encoder.load_encoder(self.sheet, name, (parts or {}).get(deepspot_encoder.PART), device)
        if self.encoder.dim != sizes.dim:
            raise BackboneError(
                f"{WHAT}: {path} takes embeddings of {sizes.dim} numbers, {name} gives {self.encoder.dim}",
                f"Say what it was trained on with --backbone-option encoder=NAME: {', '.join(deepspot_encoder.KNOWN)}.",
            )
        self._hidden = sizes.hidden
        self.scale = LOG1P_CP10K
        digests = [held.checkpoint.sha256, self.encoder.sha256]
        self.card = self.sheet.card(
            dim=sizes.dim,
            revision=f"1+{name}+{self._context}+radius{self._radius}",
            weights_sha256=join_digests(*digests, *([digest_weights(scaler_path)] if scaler_path else [])),
            genes=self.genes,
            needs=self.sheet.needs if "neighbors" in self._context else (),
        )

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Embeds spots' tiles by the frozen encoder.

        Args:
            pixels: (b, 224, 224, 3) uint8 RGB.

        Returns:
            (b, dim) float32.
        """
        expect_tiles(pixels, self.card)
        return self.encoder.encode(pixels)

    def predict(self, spots: SpotContext, genes: Strings) -> Expression:
        """Predicts genes at all spots of a slide; see `ExpressionModel.predict`.

        Raises:
            BackboneError: for unknown genes, features of another backbone, or without a slide where parts of spots are
                wanted.
        """
        columns = pick(self.genes, genes, WHAT)
        if spots.features.ndim != 2 or spots.features.shape[1] != self.card.dim:
            raise BackboneError(
                f"{WHAT} takes embeddings of shape (n, {self.card.dim}), found {spots.features.shape}",
                "Embed the slide with the same weights.",
            )
        n, values = len(spots), np.empty((len(spots), len(columns)), np.float32)
        if n:
            bags = [self._phi(spots.features)]
            if "subspot" in self._context:
                bags.append(self._sum_parts(spots))
            if "neighbors" in self._context:
                bags.append(self._largest_of_neighbours(spots, bags[0]))
            joined = np.concatenate(bags, axis=1)

            def decode(rows: slice) -> "torch.Tensor":
                decoded: torch.Tensor = self._net.decode(self._tensor(joined[rows]))[:, columns]
                return decoded

            values = self._batcher.run(n, len(columns), decode)
            if self._scaler is not None:
                values = (values * self._scaler.scale[columns] + self._scaler.mean[columns]).astype(np.float32)
        return Expression(np.maximum(values, 0), np.arange(n).astype(np.str_), self.genes[columns], LOG1P_CP10K)

    def _phi(self, features: Floats) -> Floats:
        """(b, dim) to (b, hidden)."""
        return self._batcher.run(len(features), self._hidden, lambda rows: self._net.phi(self._tensor(features[rows])))

    def _sum_parts(self, spots: SpotContext) -> Floats:
        """(n, hidden): phi of the 9 parts of each spot's tile, summed."""
        if spots.tiles is None:
            raise BackboneError(
                f"{WHAT} reads the parts of each spot's tile, and there is no slide to read",
                "Give the slide itself, not features alone; or weights of context spot or spot_neighbors.",
            )
        side = round(spots.fov_um / spots.mpp)
        if side < PARTS:
            raise BackboneError(
                f"{WHAT}: a tile of {spots.fov_um:g} um is {side} px of this slide ({spots.mpp:g} um each), too few "
                f"for {PARTS} x {PARTS} parts",
                "Use a slide of higher resolution.",
            )
        out, done = np.empty((len(spots), self._hidden), np.float32), 0
        for batch in spots.tiles(spots.fov_um, side):
            cut = _cut(batch.pixels)
            phi = self._phi(self.encoder.encode(cut)).reshape(len(batch.rows), PARTS * PARTS, self._hidden)
            out[batch.rows] = phi.sum(axis=1)
            done += len(batch.rows)
            spots.progress(done, len(spots))
        if done != len(spots):
            raise BackboneError(f"{WHAT}: tiles of {done} spots were read, there are {len(spots)}")
        return out

    def _largest_of_neighbours(self, spots: SpotContext, phi: Floats) -> Floats:
        """(n, hidden): element by element the largest phi (n, hidden) of each spot's neighbours."""
        from genrag_cli.backbones.models.deepspot_network import neighbours_of

        starts, neighbour = neighbours_of(spots.array_rc, self._radius)
        if (neighbour == len(spots)).any():
            black = self.encoder.encode(np.zeros((1, SIDE_PX, SIDE_PX, 3), np.uint8))
            phi = np.concatenate([phi, self._phi(black)])
        out = np.empty((len(spots), self._hidden), np.float32)
        for low in range(0, len(spots), _ROWS):
            rows = slice(low, min(len(spots), low + _ROWS))
            first = starts[rows.start]
            theirs = phi[neighbour[first : starts[rows.stop]]]
            out[rows] = np.maximum.reduceat(theirs, starts[rows] - first, axis=0)
        return out

    def _tensor(self, values: NDArray[Any]) -> "torch.Tensor":
        import torch

        return torch.from_numpy(np.array(values, order="C")).to(self._device)


def _cut(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(b, s, s, 3) to (b * 9, s // 3, s // 3, 3), row by row; what is left over right and below is not seen."""
    part = tiles.shape[1] // PARTS
    kept = tiles[:, : PARTS * part, : PARTS * part].reshape(len(tiles), PARTS, part, PARTS, part, 3)
    return kept.swapaxes(2, 3).reshape(-1, part, part, 3)


def _read_radius(asked: str) -> int:
    if not asked.isdecimal():
        raise BackboneError(f"{WHAT}: radius {asked!r} is not a whole number", "Give 1, or what training had.")
    return int(asked)
