"""A small vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ViT"]


class Attention(nn.Module):
    """Self-attention over tokens ``(N, L, width)``, written out so that every head is a unit of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over tokens; the result has the shape of ``x``."""
        samples, length, _ = x.shape
        query, key, value = self.qkv(x).reshape(samples, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    """Transformer block: attention and two dense layers, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.dense1, self.dense2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens; the result has the shape of ``x``."""
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.dense2(F.gelu(self.dense1(self.norm2(x))))
        return result


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al., ICLR 2021), small enough for 32×32 images on a CPU.

    Args:
        input_shape: shape of one sample, ``(channels, height, width)``.
        patch: side of a patch, which divides height and width.
        width: length of a token, a multiple of ``heads``.
        depth: number of blocks.
        heads: attention heads per block.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        patch: int = 4,
        width: int = 192,
        depth: int = 4,
        heads: int = 6,
    ) -> None:
        super().__init__()
        channels, height, wide = input_shape
        tokens = 1 + (height // patch) * (wide // patch)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Compute features ``(N, width)``: the class token after the last block."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        features: Tensor = self.norm(self.blocks(x))[:, 0]
        return features
