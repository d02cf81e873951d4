"""Small transformers over tokens: one that reads a text as a whole (BERT), and one that goes on with it (GPT-2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from landscape.errors import InputError
from landscape.registry import register
from trainers.models.vit import TransformerBlock, truncated_normal

PADDING = 0
"""The token that fills a row up: it is never attended to."""
DEVIATION = 0.02


class Encoder(nn.Module):
    """Tokens and learned positions, blocks in which every token sees every other, a linear head on the first token.

    As BERT's (Devlin et al. 2018, arXiv 1810.04805), with norms before the layers instead of behind them, as in
    `vit-tiny`; without types of segments, pooler and dropout. Padding (token 0) is masked.
    """

    def __init__(self, vocabulary: int, length: int, dim: int, depth: int, heads: int, mlp: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(torch.empty(1, length, dim))
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)
        _initialize(self, self.position)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, length) -> logits (n, classes)."""
        mask = (x != PADDING)[:, None, None, :]
        tokens = self.embedding(x) + self.position[:, : x.shape[1]]
        for block in self.blocks:
            tokens = block(tokens, mask)
        return self.head(self.norm(tokens[:, 0]))


class Decoder(nn.Module):
    """Tokens and learned positions, blocks in which a token sees those before it, and its own embedding as the head.

    As GPT-2 (Radford et al. 2019), without dropout. What fills a row up stands behind every token that counts and is
    seen by none of them.
    """

    def __init__(self, vocabulary: int, length: int, dim: int, depth: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(torch.empty(1, length, dim))
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, mlp, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        _initialize(self, self.position)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, length) -> logits of the next ones (n, vocabulary, length), as torch's cross-entropy has them."""
        tokens = self.embedding(x) + self.position[:, : x.shape[1]]
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens)).transpose(1, 2)


def _initialize(model: nn.Module, position: Tensor) -> None:
    truncated_normal(position, DEVIATION)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            truncated_normal(module.weight, DEVIATION)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


@register(
    "bert-small",
    reads="tokens",
    small={"input_shape": (6,), "vocabulary": 11, "dim": 24, "heads": 3},
    same_weights={"heads": (1, 2, 3, 4, 6, 8)},
)
def bert_small(
    classes: int,
    input_shape: tuple[int, ...],
    *,
    vocabulary: int | None = None,
    dim: int = 64,
    depth: int = 2,
    heads: int = 4,
) -> Encoder:
    """Small BERT-like encoder that classifies texts; the inner layer is four times as wide as `dim`.

    (vocabulary + length + 12 depth dim + 13 depth + 2) dim + (dim + 1) classes parameters, 235,589 for 2,048 tokens,
    texts of 64 and 5 classes.

    Args:
        vocabulary: number of tokens, that of the data.
        dim: width of a token, a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
    """
    if vocabulary is None:
        raise InputError("bert-small reads tokens: say how many there are, vocabulary=2048, or choose mlp for features")
    _require("bert-small", vocabulary, input_shape, dim, depth, heads)
    return Encoder(vocabulary, input_shape[0], dim, depth, heads, 4 * dim, classes)


@register(
    "gpt-small",
    reads="tokens",
    predicts="next tokens",
    small={"input_shape": (6,), "dim": 24, "heads": 3},
    same_weights={"heads": (1, 2, 3, 4, 6, 8)},
)
def gpt_small(classes: int, input_shape: tuple[int, ...], *, dim: int = 64, depth: int = 2, heads: int = 4) -> Decoder:
    """Small GPT-like causal language model; the inner layer is four times as wide as `dim`.

    Its classes are the tokens that may come next, its head is their embedding: (classes + length + 12 depth dim +
    13 depth + 2) dim parameters, 235,264 for 2,048 tokens and texts of 64.

    Args:
        dim: width of a token, a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
    """
    _require("gpt-small", classes, input_shape, dim, depth, heads)
    return Decoder(classes, input_shape[0], dim, depth, heads, 4 * dim)


def _require(name: str, vocabulary: int, input_shape: tuple[int, ...], dim: int, depth: int, heads: int) -> None:
    if len(input_shape) != 1:
        raise InputError(f"{name} takes tokens, input_shape=(length,), not {input_shape}: choose vit-tiny for images")
    if min(vocabulary, dim, depth, heads) < 1 or dim % heads:
        raise InputError(
            f"vocabulary={vocabulary}, dim={dim}, depth={depth}, heads={heads}: all >= 1 and dim a multiple of heads"
        )
