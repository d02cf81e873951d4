"""Vision transformers: Dosovitskiy et al. 2020, arXiv 2010.11929."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.errors import InputError
from landscape.registry import register
from trainers.models import require_images


class Attention(nn.Module):
    """Multi-head self-attention with separate linear layers for queries, keys, values and output.

    Args:
        dim: width of a token.
        heads: number of heads, a divisor of it.
        causal: a token attends to those before it and to itself alone.
    """

    def __init__(self, dim: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """softmax(q k^T / sqrt(dim / heads)) v for (n, tokens, dim), heads side by side.

        Where `mask`, broadcast to (n, heads, tokens, tokens), is False a key is left out.
        """
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, mlp: int, *, causal: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads, causal=causal)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.linear1 = nn.Linear(dim, mlp)
        self.gelu = nn.GELU()
        self.linear2 = nn.Linear(mlp, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(n, tokens, dim) -> the same; `mask` as `Attention` takes it."""
        x = x + self.attention(self.norm1(x), mask)
        return x + self.linear2(self.gelu(self.linear1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Linear patches, a learned class token and positions, pre-norm blocks, a linear head on the class token.

    Linear weights, class token and positions are normal with standard deviation .02 cut at 2 deviations, the patch
    projection with 1/sqrt(fan in); biases 0, norms 1 and 0.
    """

    def __init__(
        self, image: tuple[int, ...], patch: int, dim: int, depth: int, heads: int, mlp: int, classes: int
    ) -> None:
        super().__init__()
        channels, height, width = image
        tokens = (height // patch) * (width // patch)
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.flatten = nn.Flatten(2)
        self.cls = nn.Parameter(torch.empty(1, 1, dim))
        self.position = nn.Parameter(torch.empty(1, tokens + 1, dim))
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, mlp) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                truncated_normal(module.weight, 0.02)
                nn.init.zeros_(module.bias)
        truncated_normal(self.patches.weight, self.patches.weight[0].numel() ** -0.5)
        assert self.patches.bias is not None
        nn.init.zeros_(self.patches.bias)
        truncated_normal(self.cls, 0.02)
        truncated_normal(self.position, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) -> logits (n, classes)."""
        tokens = self.flatten(self.patches(x)).transpose(1, 2)
        cls = self.cls.expand(tokens.shape[0], -1, -1)
        tokens = self.blocks(torch.cat((cls, tokens), 1) + self.position)
        return self.head(self.norm(tokens[:, 0]))


def truncated_normal(weight: Tensor, deviation: float) -> None:
    """Draw a normal tensor of that standard deviation, cut at two deviations."""
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


@register("vit-s32", small={"input_shape": (3, 64, 64)})
def vit_s32(classes: int, input_shape: tuple[int, ...]) -> VisionTransformer:
    """ViT-S/32: patches of 32, width 384, 12 blocks, 6 heads; 22,878,952 parameters at 224 pixels and 1000 classes."""
    return _transformer("vit-s32", input_shape, 32, 384, 12, 6, 1536, classes)


@register(
    "vit-tiny",
    small={"input_shape": (1, 8, 8), "depth": 2},
    same_weights={"heads": (1, 2, 3, 4, 6, 8, 12, 16)},
)
def vit_tiny(
    classes: int,
    input_shape: tuple[int, ...],
    *,
    patch: int | None = None,
    dim: int = 96,
    depth: int = 6,
    heads: int = 3,
) -> VisionTransformer:
    """Small vision transformer for images of 8 to 64 pixels; the inner layer is twice as wide as `dim`.

    Args:
        patch: side of a patch, a divisor of the image's sides; none: the largest that leaves at least 16 patches.
        dim: width of a token, a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
    """
    require_images("vit-tiny", input_shape, 4)
    if patch is None:
        height, width = input_shape[1:]
        sides = range(1, min(height, width) // 4 + 1)
        patch = max(side for side in sides if height % side == 0 and width % side == 0)
    return _transformer("vit-tiny", input_shape, patch, dim, depth, heads, 2 * dim, classes)


def _transformer(
    name: str, shape: tuple[int, ...], patch: int, dim: int, depth: int, heads: int, mlp: int, classes: int
) -> VisionTransformer:
    require_images(name, shape, 1)
    if min(patch, dim, depth, heads) < 1 or dim % heads:
        raise InputError(
            f"patch={patch}, dim={dim}, depth={depth}, heads={heads}: all >= 1 and dim a multiple of heads"
        )
    if shape[1] % patch or shape[2] % patch:
        raise InputError(
            f"{name} cuts patches of {patch} pixels, the image is {shape}: its sides must be multiples of {patch}"
        )
    return VisionTransformer(shape, patch, dim, depth, heads, mlp, classes)
