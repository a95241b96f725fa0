"""TRIPLEX (Chung et al., CVPR 2024, arXiv 2403.07592): genes from a spot's tile, its neighbourhood and its whole slide.

Facts from NEXGEM/TRIPLEX, `src/{model,dataset,preprocess}`. Knows its checkpoint (Lightning, `state_dict`, prefix
`model.`), which pixels its branches see, and its scale; the network is in `triplex_network`, the frozen extractors are
in `triplex_extractor`. All sizes are read from the tensors.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.base import BackboneSheet, SpotContext, WeightsFile, expect_tiles
from genrag_cli.backbones.gene_list import pick, read_gene_list
from genrag_cli.backbones.models import triplex_extractor
from genrag_cli.backbones.weights import find_or_fetch, join_digests
from genrag_cli.errors import BackboneError
from genrag_cli.types import Expression, Floats, Scale, Strings, TileBatch
from genrag_cli.units import Microns, TilePx

if TYPE_CHECKING:
    import torch

    from genrag_cli.backbones.checkpoints import Checkpoint
    from genrag_cli.backbones.models.triplex_network import Heads

WHAT = "backbone triplex"
SIDE_PX, FOV_UM = TilePx(224), Microns(112)
AROUND = 5
"""Tiles along a side of the neighbourhood: 5 x 224 = 1120 px, 560 um."""
SCALE = Scale(library="panel", size_factor=1e4, log="ln", smooth=True)
"""Upstream's `normalize_adata` with `cpm` and `smooth`, as its configurations for ST data have it."""
HEADS = "4/16/16"
WHITE = 255


class Triplex:
    """The extractor's embedding a tile; genes from all of a slide's embeddings, and from its pixels read again.

    Stored per tile is what the global branch needs of all spots. The other two branches read tiles of their own while
    predicting: 112 um at 224 px for the target, and 560 um at 1120 px, cut into 25 tiles, for the neighbourhood.

    Tiles of the neighbourhood that lie outside the slide are masked. Upstream knows the slide's size and masks a whole
    row or column of tiles that crosses its edge; here only pixels are known, in which white (255) stands for what is
    not there, so a tile counts as outside where all of it is white. The spot's own tile is never masked, as upstream.
    Tiles go row by row, as upstream cuts stored mosaics, and each tile's mask is its own. Upstream counts masks column
    by column, so beside stored mosaics its masks are transposed; that is not copied.

    Positions are the top-left corners of the tiles in level-0 px, as upstream takes them from its patch files.
    """

    sheet = BackboneSheet(
        name="triplex",
        kind="model",
        dim=None,
        tile_px=SIDE_PX,
        licence="none stated (code; no weights are published); MIT (extractor cigar), CC-BY-NC-ND-4.0 (extractor UNI)",
        feature="frozen extractor's embedding of the tile, input of the global branch: last feature map of ResNet-18 "
        "(cigar) averaged over the tile where it has 512 numbers, CLS token of UNI where it has 1024",
        source="Chung et al. 2024; NEXGEM/TRIPLEX",
        fov_um=FOV_UM,
        weights=(
            WeightsFile(where="TRIPLEX publishes no weights; its src/main.py trains and saves a Lightning .ckpt."),
            triplex_extractor.FILE,
        ),
        needs=("neighbours", "positions", "slide"),
        scale=SCALE.name,
        options={
            "genes": "required: the genes of training in their order, text with one a line, .csv or .npy",
            "heads": f"attention heads, fusion/global/neighbour, of the training's configuration; default {HEADS}",
        },
        unchecked="any trained weights, as none are published; upstream's own output, which its dropout makes random; "
        "the scale of weights trained without cpm and smooth, which upstream's configuration GSE240429 does",
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
        from genrag_cli.backbones.inert_pickle import read_pickled
        from genrag_cli.backbones.models.triplex_network import Sizes, TriplexNetwork

        told = options or {}
        path = find_or_fetch(self.sheet, self.sheet.weights[0], weights)
        checkpoint, _ = read_pickled(path, unsafe_pickle)
        sizes, heads = Sizes.of(checkpoint), _read_heads(told.get("heads", HEADS), checkpoint)
        self.genes = _read_genes(told, sizes.genes)
        net: Any = load_into(lambda: TriplexNetwork(sizes, heads), checkpoint, self.sheet.name)
        part = (parts or {}).get(triplex_extractor.PART)
        self._extractor = triplex_extractor.load_extractor(self.sheet, sizes.dim, part, device, unsafe_pickle)
        self._device = open_device(device)
        self._net = net.to(self._device)
        self._batcher = Batcher(self._device)
        self.scale = SCALE
        self.card = self.sheet.card(
            dim=sizes.dim,
            revision=f"1+heads{heads.fusion}-{heads.whole}-{heads.neighbour}",
            weights_sha256=join_digests(checkpoint.sha256, self._extractor.card.weights_sha256),
            genes=self.genes,
        )

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Embeds tiles by the frozen extractor.

        Args:
            pixels: (b, 224, 224, 3) uint8 RGB.

        Returns:
            (b, dim) float32.
        """
        expect_tiles(pixels, self.card)
        return self._extractor.encode(pixels)

    def predict(self, spots: SpotContext, genes: Strings) -> Expression:
        """Predicts genes at all spots of a slide; see `ExpressionModel.predict`.

        Raises:
            BackboneError: for unknown genes, features of another backbone or field of view, or without a slide to read.
        """
        columns = pick(self.genes, genes, WHAT)
        self._expect_spots(spots)
        n, values = len(spots), np.empty((len(spots), len(columns)), np.float32)
        if n:
            tokens = self._look_globally(spots)
            fused = self._look_at_targets(spots, tokens) + self._look_around(spots, tokens)

            def decode(rows: slice) -> "torch.Tensor":
                decoded: torch.Tensor = self._net.decode(self._tensor(fused[rows]))[:, columns]
                return decoded

            values = self._batcher.run(n, len(columns), decode)
        return Expression(values, np.arange(n).astype(np.str_), self.genes[columns], SCALE)

    def _expect_spots(self, spots: SpotContext) -> None:
        if spots.features.ndim != 2 or spots.features.shape[1] != self.card.dim:
            raise BackboneError(
                f"{WHAT} takes embeddings of shape (n, {self.card.dim}), found {spots.features.shape}",
                "Embed the slide with the same weights.",
            )
        if abs(spots.fov_um - FOV_UM) > 0.5:
            raise BackboneError(
                f"{WHAT} takes embeddings of tiles of {FOV_UM:g} um, found tiles of {spots.fov_um:g} um",
                f"Build the bank with --fov-um {FOV_UM:g}.",
            )
        if spots.tiles is None:
            raise BackboneError(
                f"{WHAT} reads the tiles of spots and what is around them, and there is no slide to read",
                "Give the slide itself, not features alone; or use another model.",
            )

    def _look_globally(self, spots: SpotContext) -> Floats:
        """(n, dim) global tokens; all spots attend to each other, so they are computed in one go."""
        import torch

        from genrag_cli.backbones.batches import exactly

        corners = np.round(spots.centres - FOV_UM / spots.mpp / 2).astype(np.float32)
        with exactly(self._device, "float32"):
            try:
                tokens = self._net.look_globally(self._tensor(spots.features), self._tensor(corners)).cpu().numpy()
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise BackboneError(
                    f"{WHAT}: {len(spots)} spots, which attend to each other, do not fit into the memory of "
                    f"{self._device}",
                    "Use --device cpu, or a wider pitch.",
                ) from error
        found: Floats = tokens
        return found

    def _look_at_targets(self, spots: SpotContext, tokens: Floats) -> Floats:
        """(n, dim): what the global tokens see in the spots' own tiles."""
        fused = np.empty_like(tokens)
        transform = triplex_extractor.CIGAR.transform  # upstream's own: to 0..1, ImageNet mean and sd
        for batch in _read(spots, FOV_UM, SIDE_PX):
            own = tokens[batch.rows]

            def work(rows: slice, batch: TileBatch = batch, own: Floats = own) -> "torch.Tensor":
                images = transform(batch.pixels[rows]).to(self._device)
                seen: torch.Tensor = self._net.fuse_target(images, self._tensor(own[rows]))
                return seen

            fused[batch.rows] = self._batcher.run(len(batch.rows), self.card.dim, work)
        return fused

    def _look_around(self, spots: SpotContext, tokens: Floats) -> Floats:
        """(n, dim): what the global tokens see in the spots' neighbourhoods."""
        fused, done = np.empty_like(tokens), 0
        for batch in _read(spots, Microns(AROUND * FOV_UM), TilePx(AROUND * SIDE_PX)):
            tiles = _cut(batch.pixels)
            outside = (tiles == WHITE).all(axis=(2, 3, 4))
            outside[:, AROUND * AROUND // 2] = False
            features = np.zeros((*outside.shape, self.card.dim), np.float32)
            features[~outside] = self._extractor.encode(tiles[~outside])
            own = tokens[batch.rows]

            def work(
                rows: slice, features: Floats = features, outside: NDArray[np.bool_] = outside, own: Floats = own
            ) -> "torch.Tensor":
                inputs = (self._tensor(part[rows]) for part in (features, outside, own))
                seen: torch.Tensor = self._net.fuse_neighbours(*inputs)
                return seen

            fused[batch.rows] = self._batcher.run(len(batch.rows), self.card.dim, work)
            done += len(batch.rows)
            spots.progress(done, len(spots))
        return fused

    def _tensor(self, values: NDArray[Any]) -> "torch.Tensor":
        import torch

        return torch.from_numpy(np.array(values, order="C")).to(self._device)


def _read(spots: SpotContext, fov_um: Microns, tile_px: TilePx) -> Iterator[TileBatch]:
    """Batches of tiles, all rows of them."""
    read = 0
    for batch in spots.tiles(fov_um, tile_px) if spots.tiles is not None else ():
        read += len(batch.rows)
        yield batch
    if read != len(spots):
        raise BackboneError(f"{WHAT}: tiles of {read} spots were read, there are {len(spots)}")


def _cut(mosaics: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(b, 1120, 1120, 3) to (b, 25, 224, 224, 3), row by row."""
    cut = mosaics.reshape(len(mosaics), AROUND, SIDE_PX, AROUND, SIDE_PX, 3).swapaxes(2, 3)
    return cut.reshape(len(mosaics), AROUND * AROUND, SIDE_PX, SIDE_PX, 3)


def _read_heads(asked: str, checkpoint: "Checkpoint") -> "Heads":
    from genrag_cli.backbones.models.triplex_network import Heads

    numbers = asked.split("/")
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        raise BackboneError(
            f"{WHAT}: heads {asked!r} are not three numbers", f"Give fusion/global/neighbour, such as {HEADS}."
        )
    heads = Heads(*map(int, numbers))
    known = checkpoint.shape("neighbor_encoder.layer.layers.0.0.fn.attention_biases")[0]
    if heads.neighbour != known:
        raise BackboneError(
            f"{WHAT}: {heads.neighbour} heads of the neighbour encoder asked, {checkpoint.path} has {known}",
            "Give heads=NUM_HEADS1/NUM_HEADS2/NUM_HEADS3 of the configuration that it was trained with.",
        )
    return heads


def _read_genes(options: Mapping[str, str], expected: int) -> Strings:
    if not options.get("genes"):
        raise BackboneError(
            f"{WHAT}: the checkpoint has {expected} genes and not their names",
            "Name the list of training with --backbone-option genes=FILE (upstream: the genes of its mean_*genes.json "
            "or var_*genes.json, the first num_outputs of them, one a line).",
        )
    return read_gene_list(options["genes"], WHAT, expected)
