"""TRIPLEX's network, inference only: three encoders and the fusion of what they say.

Written from NEXGEM/TRIPLEX, `src/model/TRIPLEX/{TRIPLEX,module}.py`. Modules are named so that a checkpoint's tensors
find their places. Knows no files, no tiles and no extractor.

What differs from upstream, and why:
- No dropout. Upstream's evaluation keeps it on in the global encoder, so that its own numbers are drawn at random.
- Attention in float32 by torch instead of flash-attn in half precision. Each path keeps upstream's layout of the packed
  weights: (head, dimension, q/k/v) with flash-attn, so in the global encoder; (q/k/v, head, dimension) elsewhere.
- The grid of positions is inferred for each slide. Upstream keeps the one of the first slide that it ever saw.
- The convolution over that grid is evaluated where spots are, and nowhere else: upstream makes the whole grid, which
  may be far larger than the slide has spots, and reads nothing but the cells of spots from it. (Its mask of occupied
  cells is clamped to 1 before it is compared with 0, so all cells count as occupied; the cells that are read are.)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from genrag_cli.backbones.checkpoints import Checkpoint
from genrag_cli.errors import BackboneError

SIDE = 5
"""Tiles along a side of the neighbourhood."""
MASKED = -65504.0
"""What upstream puts in place of a masked score: the lowest number of half precision."""
ROUNDING_PX = 20.0
"""Two coordinates that round to the same multiple are one column or row of the grid."""
RESNET_DIM = 512


@dataclass(frozen=True)
class Heads:
    """Numbers of attention heads, which no tensor but the neighbour encoder's biases tells."""

    fusion: int
    whole: int
    """Of the global encoder."""
    neighbour: int


@dataclass(frozen=True)
class Sizes:
    """What the tensors of a checkpoint say."""

    genes: int
    dim: int
    depths: tuple[int, int, int]
    """Fusion, global (its first layer included), neighbour."""
    widths: tuple[int, int, int]
    """Hidden units of the feed-forward networks, in the same order."""
    kernel: tuple[int, int]

    @staticmethod
    def of(checkpoint: Checkpoint) -> "Sizes":
        """Reads them.

        Raises:
            BackboneError: where tensors are missing.
        """
        genes, dim = checkpoint.shape("fc.weight")
        stacks = (
            "fusion_encoder.fusion_layer.layers.",
            "global_encoder.layer2.layers.",
            "neighbor_encoder.layer.layers.",
        )
        fusion, later, neighbour = (checkpoint.count(stack) for stack in stacks)
        wide = [checkpoint.shape(f"{stack}0.1.fn.net.0.weight")[0] for stack in stacks]
        kernel = checkpoint.shape("global_encoder.pos_layer.proj.weight")[2:]
        return Sizes(genes, dim, (fusion, later + 1, neighbour), (wide[0], wide[1], wide[2]), (kernel[0], kernel[1]))


class TriplexNetwork(nn.Module):
    """All branches. `fc_target`, `fc_neighbor` and `fc_global` serve training only: they are loaded and not used."""

    def __init__(self, sizes: Sizes, heads: Heads) -> None:
        super().__init__()
        import timm

        dim = sizes.dim
        for name, n in vars(heads).items():
            if n < 1 or dim % n:
                raise BackboneError(f"triplex: {n} heads ({name}) do not divide the width {dim}")
        resnet = timm.create_model("resnet18", num_classes=0)
        self.target_encoder = nn.Sequential(
            resnet.conv1, resnet.bn1, resnet.act1, resnet.maxpool,
            resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4,
        )  # fmt: skip
        self.target_linear = nn.Linear(RESNET_DIM, dim)
        self.neighbor_encoder = _NeighbourEncoder(dim, sizes.depths[2], heads.neighbour, sizes.widths[2])
        self.global_encoder = _GlobalEncoder(dim, sizes.depths[1], heads.whole, sizes.widths[1], sizes.kernel)
        self.fusion_encoder = _FusionEncoder(dim, sizes.depths[0], heads.fusion, sizes.widths[0])
        self.fc = nn.Linear(dim, sizes.genes)
        self.fc_target, self.fc_neighbor, self.fc_global = (nn.Linear(dim, sizes.genes) for _ in range(3))

    def look_globally(self, features: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
        """Global tokens of all spots of a slide.

        Args:
            features: (n, dim) by the extractor.
            corners: (n, 2) x, y of the tiles' top-left corners in level-0 px.

        Returns:
            (n, dim)
        """
        tokens: torch.Tensor = self.global_encoder(features, corners)
        return tokens

    def fuse_target(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The spots' own tiles (b, 3, 224, 224), normalised, seen by their global tokens (b, dim): (b, dim)."""
        seen = self.target_linear(self.target_encoder(images).flatten(2).transpose(1, 2))
        fused: torch.Tensor = self.fusion_encoder.fusion_layer(tokens[:, None], None, seen)[:, 0]
        return fused

    def fuse_neighbours(self, features: torch.Tensor, outside: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The spots' neighbourhoods seen by their global tokens.

        Args:
            features: (b, 25, dim) by the extractor, row by row.
            outside: (b, 25) True for tiles that nothing may attend to; what `features` holds for them is not seen.
            tokens: (b, dim)

        Returns:
            (b, dim)
        """
        seen = self.neighbor_encoder(features, outside)
        fused: torch.Tensor = self.fusion_encoder.fusion_layer(tokens[:, None], outside, seen)[:, 0]
        return fused

    def decode(self, fused: torch.Tensor) -> torch.Tensor:
        """Genes (b, G) from the sum of both fusions (b, dim), never below 0."""
        values: torch.Tensor = self.fc(self.fusion_encoder.norm(fused)).clamp(min=0)
        return values


class _Normed(nn.Module):
    """A module behind a LayerNorm; what is seen goes through the same one."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(
        self, x: torch.Tensor, outside: torch.Tensor | None = None, seen: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = self.norm(x)
        out: torch.Tensor = self.fn(x, outside) if seen is None else self.fn(x, outside, self.norm(seen))
        return out


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, dim))

    def forward(self, x: torch.Tensor, _: torch.Tensor | None = None) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out


class _SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int, *, interleaved: bool, biased: bool) -> None:
        super().__init__()
        self.heads, self.interleaved = heads, interleaved
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = _projection(dim, heads)
        if biased:
            self.attention_biases = nn.Parameter(torch.zeros(heads, SIDE * SIDE))

    def forward(self, x: torch.Tensor, outside: torch.Tensor | None) -> torch.Tensor:
        b, n, dim = x.shape
        if self.interleaved:
            packed = self.to_qkv(x).view(b, n, self.heads, dim // self.heads, 3).permute(4, 0, 2, 1, 3)
        else:
            packed = self.to_qkv(x).view(b, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.attention_biases[:, _offsets(x.device)] if hasattr(self, "attention_biases") else None
        out: torch.Tensor = self.to_out(_attend(packed[0], packed[1], packed[2], bias, outside))
        return out


class _CrossAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = _projection(dim, heads)

    def forward(self, x: torch.Tensor, outside: torch.Tensor | None, seen: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x), *self.to_kv(seen).chunk(2, -1))
        )
        out: torch.Tensor = self.to_out(_attend(q, k, v, None, outside))
        return out


class _Layer(nn.ModuleList):
    """Attention, then a feed-forward network, each added to what went in."""

    def forward(self, x: torch.Tensor, outside: torch.Tensor | None, seen: torch.Tensor | None) -> torch.Tensor:
        x = x + self[0](x, outside, seen)
        out: torch.Tensor = x + self[1](x)
        return out


class _Encoder(nn.Module):
    """Layers; with `seen`, every one attends to that instead of to its own input."""

    def __init__(self, dim: int, hidden: int, attentions: Iterator[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _Layer([_Normed(dim, attention), _Normed(dim, _FeedForward(dim, hidden))]) for attention in attentions
        )

    def forward(
        self, x: torch.Tensor, outside: torch.Tensor | None = None, seen: torch.Tensor | None = None
    ) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, outside, seen)
        return x


class _NeighbourEncoder(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        attentions = (_SelfAttention(dim, heads, interleaved=False, biased=True) for _ in range(depth))
        self.layer, self.norm = _Encoder(dim, hidden, attentions), nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.layer(x, outside))
        return out


class _FusionEncoder(nn.Module):
    """One stack of layers for both sights; the norm comes after their sum."""

    def __init__(self, dim: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.fusion_layer = _Encoder(dim, hidden, (_CrossAttention(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)


class _GlobalEncoder(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, hidden: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        parts = ((_SelfAttention(dim, heads, interleaved=True, biased=False) for _ in range(n)) for n in (1, depth - 1))
        self.layer1, self.layer2 = (_Encoder(dim, hidden, attentions) for attentions in parts)
        self.pos_layer = _Positions(dim, kernel)
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
        x = self.layer1(features[None])
        x = self.pos_layer(x[0], corners)[None]
        out: torch.Tensor = self.norm(self.layer2(x))[0]
        return out


class _Positions(nn.Module):
    """APEG: spots on a grid, those of one cell averaged, and a depthwise convolution in place of what went in."""

    def __init__(self, dim: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, kernel, groups=dim)

    def forward(self, x: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
        cells, width, height = grid_cells(corners)
        keys, cell_of, count = torch.unique(cells[:, 1] * width + cells[:, 0], return_inverse=True, return_counts=True)
        means = torch.zeros(len(keys), x.shape[1], device=x.device).index_add_(0, cell_of, x) / count[:, None]
        column, row = keys % width, keys // width
        out = torch.zeros_like(means)
        rows, columns = self.proj.weight.shape[2:]
        for i in range(rows):
            for j in range(columns):
                there_x, there_y = column + j - columns // 2, row + i - rows // 2
                inside = (there_x >= 0) & (there_x < width) & (there_y >= 0) & (there_y < height)
                wanted = there_y * width + there_x
                at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
                held = (inside & (keys[at] == wanted))[:, None]
                out += torch.where(held, means[at] * self.proj.weight[:, 0, i, j], 0)
        if self.proj.bias is not None:
            out += self.proj.bias
        return out[cell_of]


def grid_cells(corners: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """The cells that spots fall into, by upstream's arithmetic in float32.

    Args:
        corners: (n, 2) x, y in level-0 px, n > 0.

    Returns:
        (n, 2) int64 column and row, and how many columns and rows there are.
    """
    corners = corners.float()
    rounded = (corners / ROUNDING_PX).round() * ROUNDING_PX
    width, height = (len(torch.unique(rounded[:, axis])) for axis in (0, 1))
    low, high = corners.min(dim=0, keepdim=True)[0], corners.max(dim=0, keepdim=True)[0]
    shares = (corners - low) / (high - low + 1e-5)
    cells = (shares * torch.tensor([width - 1, height - 1], device=corners.device)).round().long()
    return cells, width, height


def _projection(dim: int, heads: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, dim)) if heads > 1 else nn.Identity()


def _offsets(device: torch.device) -> torch.Tensor:
    """(25, 25): which of the 25 biases two tiles have, by how many rows and columns they are apart."""
    at = torch.arange(SIDE, device=device)
    row, column = torch.meshgrid(at, at, indexing="ij")
    row, column = row.flatten(), column.flatten()
    return (row[:, None] - row).abs() * SIDE + (column[:, None] - column).abs()


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, outside: torch.Tensor | None
) -> torch.Tensor:
    """Heads (b, h, n, d) attend to (b, h, m, d); outside (b, m) True for what is masked. Returns (b, n, h d)."""
    if bias is None and outside is None:  # a whole slide: the scores of all pairs would not fit
        out = nn.functional.scaled_dot_product_attention(q, k, v)
    else:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if bias is not None:
            scores = scores + bias
        if outside is not None:
            scores = scores.masked_fill(outside[:, None, None], MASKED)
        out = scores.softmax(dim=-1) @ v
    return out.transpose(1, 2).flatten(2)
