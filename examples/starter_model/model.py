"""The network: a small Qwen3-shaped decoder (QK-norm, no biases, tied embeddings) that llama.cpp runs as it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """The sizes. All are counts but the last two."""

    vocab: int = 1024
    width: int = 192
    layers: int = 6
    heads: int = 6
    head: int = 32
    ffn: int = 512
    context: int = 1024
    rope_base: float = 10_000.0
    eps: float = 1e-6


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (…, d) scaled to unit mean square over its last axis, times weight (d,); worked out in float32."""
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def rope_tables(length: int, head: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, head / 2) of the NeoX rotary embedding, in radians per position."""
    inverse = base ** (-torch.arange(0, head, 2, dtype=torch.float32) / head)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * inverse
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (batch, heads, length, head) turned by its position: the first half of a head is paired with the second."""
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def look(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of q to k and v, all (batch, heads, length, head); written out for short rows, as that is faster."""
    if mask is None or q.shape[2] > 256:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    scores = (q * q.shape[-1] ** -0.5 @ k.mT).float().masked_fill(~mask, -1e4)
    return torch.softmax(scores, -1).to(v.dtype) @ v


class Block(nn.Module):
    """One layer: attention and a SwiGLU feed-forward, each behind an RMS norm and added to the residual stream."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        inner = c.heads * c.head
        self.q = nn.Parameter(torch.randn(inner, c.width) * c.width**-0.5)
        self.k = nn.Parameter(torch.randn(inner, c.width) * c.width**-0.5)
        self.v = nn.Parameter(torch.randn(inner, c.width) * c.width**-0.5)
        self.o = nn.Parameter(torch.zeros(c.width, inner))
        self.gate = nn.Parameter(torch.randn(c.ffn, c.width) * c.width**-0.5)
        self.up = nn.Parameter(torch.randn(c.ffn, c.width) * c.width**-0.5)
        self.down = nn.Parameter(torch.zeros(c.width, c.ffn))
        self.attn_norm = nn.Parameter(torch.ones(c.width))
        self.ffn_norm = nn.Parameter(torch.ones(c.width))
        self.q_norm = nn.Parameter(torch.ones(c.head))
        self.k_norm = nn.Parameter(torch.ones(c.head))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """x (batch, length, width) in float32 to the same shape; mask (batch, 1, length, length), True = may look."""
        x = x + self.attend(rms_norm(x, self.attn_norm, self.c.eps).to(dtype), cos, sin, mask).float()
        y = rms_norm(x, self.ffn_norm, self.c.eps).to(dtype)
        y = F.silu(F.linear(y, self.gate.to(dtype))) * F.linear(y, self.up.to(dtype))
        return x + F.linear(y, self.down.to(dtype)).float()

    def attend(self, y: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """y (batch, length, width) to what attention adds, the same shape; without a mask it is causal."""
        c, (batch, length, _) = self.c, y.shape
        q, k, v = (
            F.linear(y, w.to(y.dtype)).view(batch, length, c.heads, c.head).transpose(1, 2)
            for w in (self.q, self.k, self.v)
        )
        q = rotate(rms_norm(q, self.q_norm, c.eps), cos, sin)
        k = rotate(rms_norm(k, self.k_norm, c.eps), cos, sin)
        out = look(q, k, v, mask)
        return F.linear(out.transpose(1, 2).reshape(batch, length, -1), self.o.to(y.dtype))


class Model(nn.Module):
    """Token ids in, logits out."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.embed = nn.Parameter(torch.randn(c.vocab, c.width) * c.width**-0.5)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = nn.Parameter(torch.ones(c.width))
        cos, sin = rope_tables(c.context, c.head, c.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor, mask: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """ids (batch, length) to logits (batch, length, vocab) in float32; dtype is that of the matrix products."""
        length = ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = F.embedding(ids, self.embed)
        for block in self.blocks:
            x = block(x, cos, sin, mask, dtype)
        x = rms_norm(x, self.norm, self.c.eps).to(dtype)
        return F.linear(x, self.embed.to(dtype)).float()
