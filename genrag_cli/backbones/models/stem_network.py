"""Stem's network: a diffusion transformer whose tokens are genes.

Written from the published facts (Zhu et al. 2025, arXiv 2501.15598; SichenZhu/Stem; blocks as DiT's with adaLN-Zero,
Peebles and Xie 2023): a token is an MLP of the gene's value plus the gene's learned vector, without positions;
LayerNorms without weights (eps 1e-6); GELU in its tanh form. Names of modules are those of the checkpoint.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from genrag_cli.backbones.checkpoints import Checkpoint

_MAX_PERIOD = 10_000.0


@dataclass(frozen=True)
class Sizes:
    """What a checkpoint's shapes say."""

    genes: int
    width: int
    condition: int
    """Length of a spot's condition."""
    frequencies: int
    """Length of the sinusoidal embedding of a timestep."""
    hidden: int
    """Width of a block's MLP."""
    depth: int

    @staticmethod
    def of(checkpoint: Checkpoint) -> "Sizes":
        """Reads them.

        Raises:
            BackboneError: where a tensor that tells one is missing.
        """
        genes, width = checkpoint.shape("gene_joint_embed.gene_name_ebd")
        return Sizes(
            genes=genes,
            width=width,
            condition=checkpoint.shape("label_embed.0.weight")[1],
            frequencies=checkpoint.shape("time_embed.mlp.0.weight")[1],
            hidden=checkpoint.shape("blocks.0.mlp.fc1.weight")[0],
            depth=checkpoint.count("blocks."),
        )


class StemNetwork(nn.Module):
    """Predicts the noise in an expression vector, and how large the next step's variance is."""

    def __init__(self, sizes: Sizes, heads: int) -> None:
        super().__init__()
        width = sizes.width
        self.gene_joint_embed = _Genes(sizes.genes, width)
        self.time_embed = _Time(sizes.frequencies, width)
        self.label_embed = nn.Sequential(
            nn.Linear(sizes.condition, sizes.condition), nn.SiLU(), nn.Linear(sizes.condition, width)
        )
        self.blocks = nn.ModuleList(_Block(width, sizes.hidden, heads) for _ in range(sizes.depth))
        self.final_layer = _Final(width)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One pass.

        Args:
            x: (b, G) noisy expression.
            t: (b,) timesteps of the process that was trained, 0 to 999.
            y: (b, c) conditions.

        Returns:
            (b, 2, G): the noise, then the logits of the variance.
        """
        tokens = self.gene_joint_embed(x)
        condition = self.time_embed(t) + self.label_embed(y)
        for block in self.blocks:
            tokens = block(tokens, condition)
        out: torch.Tensor = self.final_layer(tokens, condition)
        return out


class _Genes(nn.Module):
    def __init__(self, genes: int, width: int) -> None:
        super().__init__()
        self.gene_name_ebd = nn.Parameter(torch.empty(genes, width))
        self.gene_count_ebd = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.gene_count_ebd(x.unsqueeze(2)) + self.gene_name_ebd
        return tokens


class _Time(nn.Module):
    def __init__(self, frequencies: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self._half = frequencies // 2

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        powers = torch.arange(self._half, dtype=torch.float32, device=t.device) / self._half
        angles = t[:, None].float() * torch.exp(-math.log(_MAX_PERIOD) * powers)[None]
        embedded: torch.Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))
        return embedded


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self._heads = heads

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        b, n, width = tokens.shape
        q, k, v = self.qkv(tokens).reshape(b, n, 3, self._heads, width // self._heads).permute(2, 0, 3, 1, 4)
        joined = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        out: torch.Tensor = self.proj(joined)
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(functional.gelu(self.fc1(tokens), approximate="tanh"))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.attn = _Attention(width, heads)
        self.mlp = _Mlp(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(condition).unsqueeze(1).chunk(6, 2)
        tokens = tokens + gate_a * self.attn(_modulated(tokens, shift_a, scale_a))
        modulated: torch.Tensor = tokens + gate_m * self.mlp(_modulated(tokens, shift_m, scale_m))
        return modulated


class _Final(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(condition).unsqueeze(1).chunk(2, 2)
        out: torch.Tensor = self.linear(_modulated(tokens, shift, scale))
        return out.transpose(1, 2)


def _modulated(tokens: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift
