"""Networks with rescaling symmetries, and without, from one description; built twice alike: once for each side."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

CLASSES = 3
SIZE = 5
"""Side of an image, length of a sequence."""


class Statistics(nn.Module):
    """BatchNorm in evaluation mode by its formula, differentiable in the statistics too; names as torch's."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), 1e-5
        for name, value in (("running_mean", torch.zeros(width)), ("running_var", torch.ones(width))):
            self.register_buffer(name, value)
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance, scale, shift = (
            t.view(-1, *[1] * (x.dim() - 2)) for t in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        return (x - mean) / (variance + self.eps).sqrt() * scale + shift


class RootMeanSquare(nn.Module):
    """A norm of your own, over the channels, without an epsilon: exactly blind to the length of what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * torch.rsqrt(x.square().mean(1, keepdim=True))
        return scaled * self.weight.view(-1, *[1] * (x.dim() - 2))


class Unit(nn.Module):
    """x / ||x|| over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


class Around(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Recurrent(nn.Module):
    def __init__(self, kept: dict[str, Any]) -> None:
        super().__init__()
        options = {"bias": kept["bias"], "bidirectional": kept["residual"], "batch_first": True}
        layers = min(kept["depth"], 2)
        kind = "relu" if kept["activation"] in ("relu", "leaky", "prelu", "identity") else "tanh"
        self.inner = nn.RNN(3, kept["width"], layers, nonlinearity=kind, **options)
        self.outer = nn.Linear(kept["width"] * (1 + kept["residual"]), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x)[0][:, -1])


class Attention(nn.Module):
    """Queries, keys and values of your own or torch's layer; the mean over the places, a linear layer."""

    def __init__(self, kept: dict[str, Any]) -> None:
        super().__init__()
        self.width, self.heads = 2 * min(kept["width"], 3), 2
        self.torch = kept["weight_norm"] == "none"
        self.embed = nn.Linear(3, self.width)
        if self.torch:
            self.inner: nn.Module = nn.MultiheadAttention(self.width, self.heads, bias=kept["bias"], batch_first=True)
        else:
            self.inner = nn.Linear(self.width, 3 * self.width, bias=kept["bias"])
        self.outer = nn.Linear(self.width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.torch:
            return self.outer(self.inner(x, x, x, need_weights=False)[0].mean(1))
        split = self.inner(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2])
        return self.outer(mixed.transpose(1, 2).flatten(2).mean(1))


class Branching(nn.Module):
    """Takes a path that depends on the values of its input: nothing can be said of it from one example."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.mean() < 1e3 else self.inner(-x)


def built(kept: dict[str, Any], reference: bool = False, draw: int = 0) -> nn.Module:
    """The network in float64 at the draw's weights and statistics; for the reference with `Statistics`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(kept["seed"])
        family = {"rnn": Recurrent, "attention": Attention}.get(kept["family"])
        model = family(kept) if family else _stack(kept, reference)
    generator = torch.Generator().manual_seed(100 * kept["seed"] + draw)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.data = torch.rand(tensor.shape, generator=generator).double() * 1.4 + 0.3
        elif tensor.is_floating_point():
            tensor.data = torch.randn(tensor.shape, generator=generator).double() / max(1, tensor.dim() - 1)
    return model.double().eval()


def inputs(kept: dict[str, Any], n: int) -> Tensor:
    """(n, ...) standard normal."""
    shape = {"mlp": (3,), "branching": (3,), "cnn": (2, SIZE, SIZE)}.get(kept["family"], (SIZE, 3))
    generator = torch.Generator().manual_seed(kept["seed"] + 1)
    return torch.randn(n, *shape, generator=generator, dtype=torch.float64)


def _stack(kept: dict[str, Any], reference: bool) -> nn.Module:
    """Layers with norms and activations, some around which x is added, a pooling, the last layer."""
    images, width = kept["family"] == "cnn", kept["width"]
    layers: list[nn.Module] = []
    before = 2 if images else 3
    for i in range(kept["depth"]):
        wanted: list[nn.Module] = [_layer(kept, before, width, images)]
        wanted += _norm(kept["norm"], width, images, reference)
        wanted += [] if kept["activation"] == "identity" else [_activation(kept["activation"], width)]
        block: nn.Module = nn.Sequential(*wanted)
        layers.append(Around(block) if kept["residual"] and i else block)
        before = width
    if images:
        layers += [nn.MaxPool2d(2) if kept["bias"] else nn.AvgPool2d(2), nn.Flatten()]
        before *= (SIZE // 2) ** 2
    layers.append(nn.Linear(before, CLASSES, bias=kept["bias"]))
    model = nn.Sequential(*layers)
    return Branching(model) if kept["family"] == "branching" else model


def _layer(kept: dict[str, Any], before: int, after: int, images: bool) -> nn.Module:
    # Without biases a factor that differs from example to example passes from one norm without an epsilon to the next:
    # a symmetry that no rule of landscape speaks of.
    bias = kept["bias"] or kept["norm"] in ("root mean square", "unit")
    layer = nn.Conv2d(before, after, 3, padding=1, bias=bias) if images else nn.Linear(before, after, bias=bias)
    if kept["weight_norm"] == "parametrization":
        return parametrizations.weight_norm(layer)
    if kept["weight_norm"] == "hook":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return nn.utils.weight_norm(layer, dim=kept["seed"] % 2)
    return layer


def _norm(name: str, width: int, images: bool, reference: bool) -> list[nn.Module]:
    if name == "batch":
        return [Statistics(width) if reference else (nn.BatchNorm2d if images else nn.BatchNorm1d)(width)]
    if name == "group":
        return [nn.GroupNorm(1, width)]
    if name == "root mean square":
        return [RootMeanSquare(width)]
    return [Unit()] if name == "unit" else []


def _activation(name: str, width: int) -> nn.Module:
    if name == "prelu":
        return nn.PReLU(width)
    return nn.LeakyReLU(0.1) if name == "leaky" else {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}[name]()


ACTIVATIONS = ("relu", "leaky", "prelu", "identity", "tanh", "gelu")
NORMS = ("none", "none", "batch", "group", "root mean square", "unit")
WEIGHT_NORMS = ("none", "none", "parametrization", "hook")
FAMILIES = ("mlp", "mlp", "mlp", "cnn", "cnn", "rnn", "attention", "branching")
