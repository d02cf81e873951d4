"""Small transformers that tests of alignment share: ViT and GPT shaped, with the norms and heads that are in use."""

import torch
from attention_cases import rotary
from torch import nn
from torch.nn import functional as F

from landscape import Problem
from trainers.models.vit import Attention, TransformerBlock, VisionTransformer


class CausalAttention(Attention):
    """Every position sees those before it."""

    def forward(self, x, *_):
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class GPT(nn.Module):
    """Token and position embeddings, pre-norm blocks with causal attention, a head that may be the embedding."""

    def __init__(self, tied=False, norm=nn.LayerNorm, width=8, heads=2, depth=2, words=13, length=6):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, 2 * width) for _ in range(depth))
        for block in self.blocks:
            block.norm1, block.norm2 = norm(width), norm(width)
            block.attention = CausalAttention(width, heads)
        self.norm, self.head = norm(width), nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)


class Llama(nn.Module):
    """RMSNorm, rotary embeddings, grouped heads of keys and values, SwiGLU, no biases."""

    def __init__(self, width=12, heads=4, key_heads=2, size=4, inner=10, depth=2):
        super().__init__()
        self.size = size
        self.tokens = nn.Embedding(13, width)
        linear = lambda n, m: nn.Linear(n, m, bias=False)  # noqa: E731
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.RMSNorm(width), "q": linear(width, heads * size), "k": linear(width, key_heads * size),
                    "v": linear(width, key_heads * size), "o": linear(heads * size, width), "norm2": nn.RMSNorm(width),
                    "gate": linear(width, inner), "up": linear(width, inner), "down": linear(inner, width),
                }
            )
            for _ in range(depth)
        )  # fmt: skip
        self.norm, self.head = nn.RMSNorm(width), linear(width, 13)

    def forward(self, tokens):
        x = self.tokens(tokens)
        for layer in self.layers:
            h = layer["norm1"](x)
            q, k, v = (layer[n](h).unflatten(-1, (-1, self.size)).transpose(1, 2) for n in "qkv")
            q, k = rotary(q, self.size), rotary(k, self.size)
            k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + layer["o"](mixed.transpose(1, 2).flatten(2))
            h = layer["norm2"](x)
            x = x + layer["down"](F.silu(layer["gate"](h)) * layer["up"](h))
        return self.head(self.norm(x)).transpose(1, 2)


def vit():
    return VisionTransformer((1, 8, 8), 4, 12, 2, 3, 20, 5)


def problem(make, seed=0, dtype=torch.float64):
    """A network with weights, gains and biases that no initialization leaves at 0 or 1."""
    torch.manual_seed(seed)
    model = make()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.rand_like(p) + 0.5 if "norm" in name and "weight" in name else 0.4 * torch.randn_like(p))
    generator = torch.Generator().manual_seed(9)
    if isinstance(model, VisionTransformer):
        inputs = torch.randn(24, 1, 8, 8, generator=generator).to(dtype)
    else:
        inputs = torch.randint(0, 13, (12, 6), generator=generator)
    model = model.to(dtype)
    with torch.no_grad():  # what the network says is the truth, so that its loss is low and a mixture's is not
        targets = model(inputs).argmax(1)
    return Problem(model, nn.CrossEntropyLoss(), [(inputs, targets)])
