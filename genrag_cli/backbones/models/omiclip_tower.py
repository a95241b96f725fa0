"""OmiCLIP's image tower: that of open_clip's `coca_ViT-L-14`, in plain torch, with its tensor names.

Facts from mlfoundations/open_clip, `model_configs/coca_ViT-L-14.json` and `transformer.py`: a pre-norm ViT-L/14
(GELU, LayerNorm eps 1e-5, heads of 64) without a norm behind its blocks, a pooler of 256 queries over all tokens, a
norm, and a projection of the first query. Knows no checkpoint container and no text. Imports torch.
"""

import torch
from torch import nn
from torch.nn import functional

from genrag_cli.backbones.encoders.attention_pool import AttentionPool

DIM, WIDTH, PATCH_PX, TOKENS = 768, 1024, 14, 257
HEADS, POOL_HEADS, QUERIES = 16, 8, 256


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        seen = self.ln_1(tokens)
        tokens = tokens + self.attn(seen, seen, seen, need_weights=False)[0]
        inner = functional.gelu(self.mlp["c_fc"](self.ln_2(tokens)))
        after: torch.Tensor = tokens + self.mlp["c_proj"](inner)
        return after


class ImageTower(nn.Module):
    """Inputs (b, 3, 224, 224) to image embeddings (b, 768) of length 1."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH_PX, PATCH_PX, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(WIDTH))
        self.positional_embedding = nn.Parameter(torch.zeros(TOKENS, WIDTH))
        self.ln_pre = nn.LayerNorm(WIDTH)
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(*(_Block() for _ in range(depth)))})
        self.attn_pool = AttentionPool(DIM, WIDTH, POOL_HEADS, QUERIES)
        self.ln_post = nn.LayerNorm(DIM)
        self.proj = nn.Parameter(torch.zeros(DIM, DIM))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Embeds inputs, normalised as tiles are."""
        patches = self.conv1(inputs).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        tokens = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        pooled = self.ln_post(self.attn_pool(self.transformer["resblocks"](tokens)))
        return functional.normalize((pooled @ self.proj).float(), dim=-1)
