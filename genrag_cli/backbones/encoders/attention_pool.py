"""Attention pooling: learned queries that look at all tokens of a ViT, in the two layouts that CoCas are saved in.

Knows the published equations and tensor names (mahmoodlab/CONCH `open_clip_custom/transformer.py`, open_clip
`transformer.py`, mahmoodlab/TRIDENT `model_zoo/conchv1_5`). Knows no sizes and no checkpoint. Imports torch, so
adapters import it only when they build a network.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class AttentionPool(nn.Module):
    """The first query of a CoCa pooler, with the tensors of `nn.MultiheadAttention`.

    Queries do not see each other, so where a checkpoint has more than one (open_clip's CoCa has 256, of which the
    first is the image and the others are for captions), the first alone gives the same numbers.
    """

    def __init__(self, dim: int, context_dim: int, heads: int, queries: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(queries, dim))
        # With kdim other than dim, torch keeps q_proj_weight, k_proj_weight and v_proj_weight apart, as the files do.
        self.attn = nn.MultiheadAttention(dim, heads, kdim=context_dim, vdim=context_dim, batch_first=True)
        self.ln_q = nn.LayerNorm(dim)
        self.ln_k = nn.LayerNorm(context_dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (b, t, context_dim) to (b, dim)."""
        context = self.ln_k(tokens)
        query = self.ln_q(self.query[:1]).expand(len(tokens), 1, -1)
        pooled: torch.Tensor = self.attn(query, context, context, need_weights=False)[0][:, 0]
        return pooled


class PlainAttentionPool(nn.Module):
    """The pooler of CONCH v1.5: one query, keys and values from one matrix, no biases."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.ln_q = nn.LayerNorm(dim)
        self.ln_k = nn.LayerNorm(context_dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (b, t, context_dim) to (b, dim)."""
        b, t = tokens.shape[:2]
        query = self.to_q(self.ln_q(self.query)).view(1, 1, self._heads, -1).expand(b, -1, -1, -1)
        keys, values = self.to_kv(self.ln_k(tokens)).view(b, t, 2, self._heads, -1).unbind(2)
        seen = functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, keys, values)))
        pooled: torch.Tensor = self.to_out(seen.transpose(1, 2).reshape(b, -1))
        return pooled


class PooledTrunk(nn.Module):
    """A timm ViT, a pooler over all its tokens after the final norm (CLS among them), and the norm behind the pooler.

    Its tensors are named as in both CONCH files.
    """

    def __init__(self, trunk: Any, pool: nn.Module, dim: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = pool
        self.ln_contrast = nn.LayerNorm(dim)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs (b, 3, t, t) to (b, dim)."""
        pooled: torch.Tensor = self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(inputs)))
        return pooled
