"""A network by its formulas, its gradients by autograd, and the base optimizers' steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Tree = dict[str, Tensor]
"""One tensor a parameter, by its name. A parameter that a loss does not reach has none in a gradient."""
Layers = list[tuple[Any, ...]]
EPS, MOMENTUM = 1e-5, 0.1


class WithSpare(nn.Sequential):
    """The last layer is never called."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


def module(layers: Layers) -> nn.Module:
    """The layers as torch has them, in float64."""
    kinds: dict[str, Callable[..., nn.Module]] = {
        "linear": nn.Linear,
        "spare": nn.Linear,
        "convolution": nn.Conv2d,
        "batch norm": nn.BatchNorm1d,
        "batch norm of images": nn.BatchNorm2d,
        "layer norm": nn.LayerNorm,
        "relu": nn.ReLU,
        "tanh": nn.Tanh,
        "flatten": nn.Flatten,
    }
    stack = WithSpare if layers[-1][0] == "spare" else nn.Sequential
    return stack(*(kinds[kind](*arguments) for kind, *arguments in layers)).double().train()


class Handwritten:
    """The same network by its formulas.

    Args:
        layers: what it is made of.
        model: whose weights and statistics it starts from.
        decay: coefficient of half the squared weights in every loss, for parameters of this name in their name.
    """

    def __init__(self, layers: Layers, model: nn.Module, decay: tuple[float, str] = (0.0, "")) -> None:
        self.layers, self.decay = layers, decay
        self.p: Tree = {n: t.detach().clone() for n, t in model.named_parameters()}
        self.running: Tree = {n: t.clone() for n, t in model.named_buffers() if t.is_floating_point()}

    def logits(self, p: Tree, x: Tensor, moves: bool = False, running: Tree | None = None) -> Tensor:
        """Outputs at p; with the statistics of the batch, which move the running ones, or with `running` ones."""
        for i, (kind, *_) in enumerate(self.layers):
            w, b = (p.get(f"{i}.{name}", torch.zeros(())) for name in ("weight", "bias"))
            if kind == "linear":
                x = x @ w.t() + b
            elif kind == "convolution":
                x = F.conv2d(x, w) + b.view(-1, 1, 1)
            elif kind == "relu":
                x = x.clamp(min=0)
            elif kind == "tanh":
                x = x.tanh()
            elif kind == "flatten":
                x = x.flatten(1)
            elif kind == "layer norm":
                centered = x - x.mean(1, keepdim=True)
                x = centered / (centered.square().mean(1, keepdim=True) + EPS).sqrt() * w + b
            elif "batch norm" in kind:
                mean, variance = self._statistics(i, x, moves, running)
                shape = (-1, *[1] * (x.dim() - 2))
                scaled = (x - mean.view(shape)) / (variance.view(shape) + EPS).sqrt()
                x = scaled * w.view(shape) + b.view(shape)
        return x

    def _statistics(self, i: int, x: Tensor, moves: bool, running: Tree | None) -> tuple[Tensor, Tensor]:
        names = f"{i}.running_mean", f"{i}.running_var"
        if running is not None:
            return running[names[0]], running[names[1]]
        axes = [0, *range(2, x.dim())]
        mean, variance = x.mean(axes), x.var(axes, unbiased=False)
        n = x.numel() / x.shape[1]
        if moves:
            for name, now in zip(names, (mean, variance * n / (n - 1)), strict=True):
                self.running[name] = (1 - MOMENTUM) * self.running[name] + MOMENTUM * now.detach()
        return mean, variance

    def gradient(
        self,
        p: Tree,
        x: Tensor,
        y: Tensor,
        moves: bool = False,
        only: Iterable[str] | None = None,
        term: Callable[[Tensor], Tensor] | None = None,
        running: Tree | None = None,
        decayed: bool = True,
    ) -> tuple[Tree, Tensor, Tensor]:
        """Gradient of the mean loss (and of a `term` of the logits) at p, the single losses, the logits."""
        leaves = {n: t.detach().clone().requires_grad_() for n, t in p.items()}
        logits = self.logits(leaves, x, moves, running)
        losses = F.cross_entropy(logits, y, reduction="none")
        value = losses.mean() if term is None else (losses + term(logits)).mean()
        names = list(leaves) if only is None else list(only)
        slopes = torch.autograd.grad(value, [leaves[n] for n in names], allow_unused=True)
        kept = {n: g for n, g in zip(names, slopes, strict=True) if g is not None}
        coefficient, kind = self.decay if decayed else (0.0, "")
        return (
            {n: g + coefficient * p[n] * (kind in n) for n, g in kept.items()},
            losses.detach(),
            logits.detach(),
        )


# -- trees -------------------------------------------------------------------------------------------------------------


def plus(a: Tree, b: Tree, factor: float | Tensor = 1.0) -> Tree:
    """Sum a + factor b; what one of them lacks is 0."""
    return {n: a[n] + factor * b[n] if n in a and n in b else a[n] if n in a else factor * b[n] for n in {**a, **b}}


def times(a: Tree, factor: float | Tensor) -> Tree:
    """Product factor a."""
    return {n: t * factor for n, t in a.items()}


def dot(a: Tree, b: Tree) -> Tensor:
    """<a, b>."""
    return sum(((a[n] * b[n]).sum() for n in a if n in b), torch.zeros((), dtype=torch.float64))


def norm(a: Tree) -> Tensor:
    """Over all entries of all tensors."""
    return dot(a, a).sqrt()


def ascent(g: Tree, rho: float, scale: Tree | None = None) -> Tree:
    """Rho T^2 g / ||T g||."""
    h = g if scale is None else {n: scale[n] * t for n, t in g.items()}
    length = norm(h)
    u = times(h, rho / length if length > 0 else 0.0)
    return u if scale is None else {n: scale[n] * t for n, t in u.items()}


def across(g: Tree, along: Tree) -> Tree:
    """The part of g that is orthogonal to `along`."""
    square = dot(along, along)
    return plus(g, along, -dot(g, along) / square) if square > 0 else g


# -- base optimizers ---------------------------------------------------------------------------------------------------


class Base:
    """SGD, Adam, AdamW, Lion or Muon by their formulas.

    Args:
        name: which.
        options: as torch's optimizer takes them.
    """

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.name, self.options = name, options
        self.first: Tree = {}
        self.second: Tree = {}
        self.count: dict[str, int] = {}

    def step(self, p: Tree, gradient: Tree, lr: float) -> Tree:
        """The weights after a step along the gradient; parameters without one stay."""
        decay = self.options.get("weight_decay", 0.0)
        after = dict(p)
        matrices = [n for n in p if p[n].dim() > 1][:-1] if self.name == "muon" else []
        for n, g in gradient.items():
            self.count[n] = t = self.count.get(n, 0) + 1
            if n in matrices or self.name == "lion":
                direction = self._matrix(n, g) if n in matrices else self._lion(n, g)
                after[n] = p[n] * (1 - lr * decay) - lr * direction
                continue
            if self.name in ("adamw", "muon"):
                after[n] = p[n] * (1 - lr * decay)
            else:
                g = g + decay * p[n]
            after[n] = after[n] - lr * (self._momentum(n, g) if self.name == "sgd" else self._adam(n, g, t))
        return after

    def _momentum(self, n: str, g: Tensor) -> Tensor:
        momentum, dampening = self.options["momentum"], self.options.get("dampening", 0.0)
        if not momentum:
            return g
        self.first[n] = momentum * self.first[n] + (1 - dampening) * g if n in self.first else g
        return g + momentum * self.first[n] if self.options.get("nesterov") else self.first[n]

    def _adam(self, n: str, g: Tensor, t: int) -> Tensor:
        self.first[n] = 0.9 * self.first.get(n, torch.zeros_like(g)) + 0.1 * g
        self.second[n] = 0.999 * self.second.get(n, torch.zeros_like(g)) + 0.001 * g * g
        return (self.first[n] / (1 - 0.9**t)) / ((self.second[n] / (1 - 0.999**t)).sqrt() + 1e-8)

    def _lion(self, n: str, g: Tensor) -> Tensor:
        m = self.first.get(n, torch.zeros_like(g))
        self.first[n] = 0.99 * m + 0.01 * g
        return (0.9 * m + 0.1 * g).sign()

    def _matrix(self, n: str, g: Tensor) -> Tensor:
        """Muon's: the singular values of a matrix through five polynomials."""
        self.first[n] = 0.95 * self.first.get(n, torch.zeros_like(g)) + 0.05 * g
        ahead = (0.95 * self.first[n] + 0.05 * g).flatten(1)
        u, s, v = torch.linalg.svd(ahead, full_matrices=False)
        s = s / s.norm().clamp(min=1e-7)
        for _ in range(5):
            s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
        return 0.2 * max(ahead.shape) ** 0.5 * (u * s @ v).view(g.shape)
