"""HisToGene's network: a linear patch embedding, two tables of positions, and a transformer over all spots of a slide.

Written from the published facts (Pang, Su and Li 2021, doi 10.1101/2021.11.28.470212; maxpmx/HisToGene): no class
token, norm before each half of a block (eps 1e-5), attention of 16 heads of 64 without bias scaled by 64 ** -0.5,
exact GELU, LayerNorm and Linear to the genes. Dropout is left out: it does nothing at inference. Names of modules are
those of the checkpoint.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from genrag_cli.backbones.checkpoints import Checkpoint

HEADS, HEAD_DIM = 16, 64
"""Fixed in the published code, and in no tensor's shape by themselves."""
_QUERIES = 512
"""Spots that attend at a time: where no fused kernel is to be had, 5,000 spots then take 0.2 GB instead of 1.6."""


@dataclass(frozen=True)
class Sizes:
    """What a checkpoint's shapes say."""

    pixels: int
    """Numbers in a patch: 3 * side * side."""
    dim: int
    n_x: int
    """Rows of the table of x positions."""
    n_y: int
    hidden: int
    """Width of the feed-forward half."""
    depth: int
    genes: int

    @staticmethod
    def of(checkpoint: Checkpoint) -> "Sizes":
        """Reads them.

        Raises:
            BackboneError: where a tensor that tells one is missing.
        """
        dim, pixels = checkpoint.shape("patch_embedding.weight")
        return Sizes(
            pixels=pixels,
            dim=dim,
            n_x=checkpoint.shape("x_embed.weight")[0],
            n_y=checkpoint.shape("y_embed.weight")[0],
            hidden=checkpoint.shape("vit.transformer.layers.0.1.fn.net.0.weight")[0],
            depth=checkpoint.count("vit.transformer.layers."),
            genes=checkpoint.shape("gene_head.1.weight")[0],
        )


class HisToGeneNetwork(nn.Module):
    """The whole model."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(sizes.pixels, sizes.dim)
        self.x_embed = nn.Embedding(sizes.n_x, sizes.dim)
        self.y_embed = nn.Embedding(sizes.n_y, sizes.dim)
        self.vit = _Vit(sizes)
        self.gene_head = nn.Sequential(nn.LayerNorm(sizes.dim), nn.Linear(sizes.dim, sizes.genes))

    def embed(self, tiles: torch.Tensor) -> torch.Tensor:
        """Patch embeddings.

        The published code transposes the image to (width, height, channel) before it cuts and flattens patches, so x
        runs slowest and the channel fastest; values stay 0..255.

        Args:
            tiles: (b, side, side, 3) RGB, rows first.

        Returns:
            (b, dim).
        """
        flat = tiles.transpose(1, 2).reshape(len(tiles), -1).to(torch.float32)
        embedded: torch.Tensor = self.patch_embedding(flat)
        return embedded

    def forward(self, embedded: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Genes of all spots of a slide at once.

        Args:
            embedded: (n, dim) patch embeddings.
            x: (n,) array columns.
            y: (n,) array rows.

        Returns:
            (n, genes).
        """
        hidden = embedded + self.x_embed(x) + self.y_embed(y)
        predicted: torch.Tensor = self.gene_head(self.vit(hidden))
        return predicted


class _Vit(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.transformer = _Transformer(sizes)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.transformer(hidden)
        return out


class _Transformer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([_Normed(sizes.dim, _Attention(sizes.dim)), _Normed(sizes.dim, _FeedForward(sizes))])
            for _ in range(sizes.depth)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            attend, feed = layer.children()
            hidden = hidden + attend(hidden)
            hidden = hidden + feed(hidden)
        return hidden


class _Normed(nn.Module):
    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fn(self.norm(hidden))
        return out


class _Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(dim, 3 * HEADS * HEAD_DIM, bias=False)
        self.to_out = nn.Sequential(nn.Linear(HEADS * HEAD_DIM, dim))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        n = len(hidden)
        q, k, v = self.to_qkv(hidden).reshape(n, 3, HEADS, HEAD_DIM).permute(1, 2, 0, 3).unsqueeze(1)
        parts = [functional.scaled_dot_product_attention(part, k, v) for part in q.split(_QUERIES, dim=2)]
        joined = torch.cat(parts, dim=2)[0].transpose(0, 1).reshape(n, HEADS * HEAD_DIM)
        out: torch.Tensor = self.to_out(joined)
        return out


class _FeedForward(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        # positions 2 and 4 are the dropouts of the published layout
        self.net = nn.Sequential(
            nn.Linear(sizes.dim, sizes.hidden), nn.GELU(), nn.Identity(), nn.Linear(sizes.hidden, sizes.dim)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(hidden)
        return out
