"""Language models with random weights for the benchmarks: GPT-2's and Llama's shape in plain torch, no library."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Language(nn.Module):
    """Ids to logits, and their loss: shifted cross-entropy over labels that are not -100."""

    def logits(self, input_ids: Tensor) -> Tensor:
        """(n, tokens) -> (n, tokens, words)."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor, labels: Tensor) -> SimpleNamespace:
        """Logits and loss."""
        logits = self.logits(input_ids)
        return SimpleNamespace(
            logits=logits, loss=F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        )


class GPT(Language):
    """Pre-norm causal transformer with learned positions; of GPT-2's small size by default: 124 million parameters."""

    def __init__(
        self,
        words: int = 50257,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        tokens: int = 1024,
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(words, width), nn.Parameter(0.02 * torch.randn(tokens, width))
        self.inner = nn.ModuleList([_Layer(width, heads) for _ in range(layers)])
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, words, bias=not tied)
        if tied:
            nn.init.normal_(self.embedding.weight, std=0.02)
            self.out.weight = self.embedding.weight

    def logits(self, input_ids: Tensor) -> Tensor:
        """(n, tokens) -> (n, tokens, words)."""
        x = self.embedding(input_ids) + self.position[: input_ids.shape[1]]
        for layer in self.inner:
            x = layer(x)
        return self.out(self.norm(x))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.first, self.second = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (z.view(n, t, self.heads, -1).transpose(1, 2) for z in self.qkv(self.first(x)).chunk(3, dim=-1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, d))
        return x + self.wide(self.second(x))


class Llama(Language):
    """RMSNorm, rotary positions, grouped queries, gated layers; of the 1B model's size by default: 1.24e9 weights."""

    def __init__(
        self,
        words: int = 128256,
        width: int = 2048,
        layers: int = 16,
        heads: int = 32,
        groups: int = 8,
        hidden: int = 8192,
    ) -> None:
        super().__init__()
        self.side = width // heads
        self.embedding = nn.Embedding(words, width)
        self.inner = nn.ModuleList([_GatedLayer(width, heads, groups, hidden) for _ in range(layers)])
        self.norm, self.out = RMSNorm(width), nn.Linear(width, words, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.out.weight = self.embedding.weight

    def logits(self, input_ids: Tensor) -> Tensor:
        """(n, tokens) -> (n, tokens, words)."""
        x = self.embedding(input_ids)
        rates = 500_000.0 ** (-torch.arange(0, self.side, 2, device=x.device) / self.side)
        angles = torch.outer(torch.arange(x.shape[1], device=x.device), rates)
        turn = torch.cat([angles, angles], -1)
        for layer in self.inner:
            x = layer(x, turn.cos().to(x.dtype), turn.sin().to(x.dtype))
        return self.out(self.norm(x))


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2) times a gain; written out, since torch's fused kernel has no second derivative everywhere."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Of the last dimension."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class _GatedLayer(nn.Module):
    def __init__(self, width: int, heads: int, groups: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.groups, inner = heads, groups, width // heads * groups
        self.first, self.second = RMSNorm(width), RMSNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, size, bias=False) for size in (width, inner, inner))
        self.o = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, t, d = x.shape
        normed = self.first(x)
        q, k, v = (p(normed).view(n, t, -1, d // self.heads).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        k, v = (z.repeat_interleave(self.heads // self.groups, dim=1) for z in (k, v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, d))
        normed = self.second(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of (n, heads, tokens, side)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], -1) * sin
