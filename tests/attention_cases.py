"""Small networks with attention of every kind, and heads mapped by hand."""

import torch
import torch.nn.functional as F
from torch import nn


def rotate_half(x):
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def rotary(x, width):
    """Rotary embeddings of the first `width` dimensions of (batch, heads, positions, size)."""
    rates = 0.7 ** torch.arange(width // 2, dtype=x.dtype)
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * torch.cat([rates, rates])
    turned, rest = x[..., :width], x[..., width:]
    return torch.cat([turned * angles.cos() + rotate_half(turned) * angles.sin(), rest], -1)


def interleaved(x, width):
    """The same between neighboring dimensions."""
    rates = 0.7 ** torch.arange(width // 2, dtype=x.dtype)
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * rates
    even, odd = x[..., ::2], x[..., 1::2]
    turned = torch.stack([even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()], -1)
    return turned.flatten(-2)


class Attention(nn.Module):
    """A user's own attention: embedding with tanh, one block with a residual, a head."""

    def __init__(
        self, size=4, heads=2, key_heads=None, width=6, bias=True, form="sdpa", position=None, norm=None, fused=False
    ):
        super().__init__()
        self.size, self.heads, self.key_heads, self.form, self.fused = size, heads, key_heads or heads, form, fused
        self.position, self.norm = position, norm and norm(size)
        self.embed, self.head = nn.Linear(3, width), nn.Linear(width, 2)
        inner, shared = heads * size, self.key_heads * size
        if fused:
            self.qkv = nn.Linear(width, inner + 2 * shared, bias=bias)
        else:
            self.q = nn.Linear(width, inner, bias=bias)
            self.k, self.v = nn.Linear(width, shared, bias=bias), nn.Linear(width, shared, bias=bias)
        self.o = nn.Linear(inner, width, bias=bias)

    def split(self, x):
        return x.unflatten(-1, (-1, self.size)).transpose(-2, -3)

    def forward(self, x):
        h = torch.tanh(self.embed(x))
        inner, shared = self.heads * self.size, self.key_heads * self.size
        q, k, v = self.qkv(h).split([inner, shared, shared], -1) if self.fused else (self.q(h), self.k(h), self.v(h))
        q, k, v = self.split(q), self.split(k), self.split(v)
        if self.norm:
            q, k = self.norm(q), self.norm(k)
        if self.position:
            q, k = self.position(q), self.position(k)
        if self.key_heads < self.heads and self.form != "gqa":
            k, v = (t.repeat_interleave(self.heads // self.key_heads, -3) for t in (k, v))
        mixed = getattr(self, self.form)(q, k, v).transpose(-2, -3).flatten(-2)
        return self.head(torch.tanh(h + self.o(mixed))).mean(1)

    def sdpa(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def gqa(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    def written(self, q, k, v):
        return torch.softmax(q @ k.mT / self.size**0.5, -1) @ v

    def einsum(self, q, k, v):
        return torch.einsum("bhij,bhjd->bhid", torch.softmax(torch.einsum("bhid,bhjd->bhij", q, k), -1), v)

    def linear(self, q, k, v):
        """Linear attention: a function of every query and key comes before the product."""
        return F.elu(q) @ (F.elu(k).mT @ v)

    def cosine(self, q, k, v):
        return torch.softmax(F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT, -1) @ v

    def gated(self, q, k, v):
        return self.written(q, k, v) * torch.sigmoid(v)


class Encoder(nn.Module):
    """torch's own layers."""

    def __init__(self, layer):
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(3, 8), layer, nn.Linear(8, 2)

    def forward(self, x):
        h = torch.tanh(self.embed(x))
        h = (
            self.layer(h, h, h, need_weights=False)[0]
            if isinstance(self.layer, nn.MultiheadAttention)
            else self.layer(h)
        )
        return self.head(torch.tanh(h)).mean(1)


def network(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Attention(**options).double()


def tokens(n=5, positions=4, seed=1):
    return torch.randn(n, positions, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mapped_by_hand(model, seed=0):
    """Every head of an unfused `Attention` under random matrices, with loops over heads and torch's own arithmetic."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size, group = model.size, model.heads // model.key_heads
    for one in range(model.key_heads):
        a, b = torch.randn(2, size, size, generator=generator, dtype=torch.float64) + 2 * torch.eye(size).double()
        keys = slice(one * size, (one + 1) * size)
        queries = slice(one * group * size, (one + 1) * group * size)
        for name in ("weight", "bias"):
            if f"q.{name}" in state:
                rows = state[f"q.{name}"][queries].unflatten(0, (group, size))
                state[f"q.{name}"][queries] = torch.einsum("ij,gj...->gi...", a, rows).flatten(0, 1)
                state[f"k.{name}"][keys] = torch.linalg.inv(a).T @ state[f"k.{name}"][keys]
                state[f"v.{name}"][keys] = b @ state[f"v.{name}"][keys]
        columns = state["o.weight"][:, queries].unflatten(1, (group, size))
        state["o.weight"][:, queries] = torch.einsum("ogi,ij->ogj", columns, torch.linalg.inv(b)).flatten(1)
    return state
