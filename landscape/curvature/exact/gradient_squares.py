"""Sums of squared per-example gradients of one layer, in closed form from its inputs and the gradients at its outputs.

An accumulator is made from the layer and its input a (n, ...); the gradients at its output (n, ...) are added column by
column; its result is, for each of the layer's own parameters, sum_{c,i} ||dw||^2 (0-dim float64), or with `diagonal`
sum_{c,i} dw^2 in the parameter's shape. dw is the gradient of one example: batch gradients would mix the examples.

Source of the norms of products of two vectors: Goodfellow 2015 (arXiv 1510.01799); of sequences: Li 2021
(arXiv 2110.05679); of convolutions by unfolding: Rochette 2019 (arXiv 1912.06015).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BATCH_NORM = nn.modules.batchnorm._BatchNorm


class Accumulator(Protocol):
    """Sums over the columns."""

    def add(self, g: Tensor) -> None:
        """Take the gradients of one column at the layer's output, (n, ...)."""

    def result(self) -> dict[str, Tensor]:
        """The sums, by the names of the layer's own parameters."""


def accumulator(module: nn.Module, a: Tensor, diagonal: bool = False) -> Accumulator:
    """The closed form for a layer; per-example gradients of the layer alone where there is none."""
    if isinstance(module, nn.Linear):
        return _Once(module, a, diagonal) if a.dim() == 2 else _Stack(module, a, diagonal, _sequence)
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return _Stack(module, a, diagonal, _convolution)
    if isinstance(module, _BATCH_NORM) and module.running_mean is not None and not module.training:
        return _Affine(module, _batch_normalized(module, a), tuple(range(2, a.dim())), diagonal)
    if isinstance(module, nn.LayerNorm):
        places = tuple(range(1, a.dim() - len(module.normalized_shape)))
        return _Affine(module, F.layer_norm(a, module.normalized_shape, eps=module.eps), places, diagonal)
    if isinstance(module, nn.PReLU):
        slopes = a.clamp(max=0)
        slopes = slopes.flatten(1).unsqueeze(1) if module.num_parameters == 1 else slopes
        return _Affine(module, slopes, tuple(range(2, slopes.dim())), diagonal)
    return _Stack(module, a, diagonal, _any_layer)


class _Once:
    """Linear layer applied once an example: ||dW||^2 = ||g||^2 ||a||^2, ||db||^2 = ||g||^2."""

    def __init__(self, module: nn.Linear, a: Tensor, diagonal: bool) -> None:
        self._module, self._a, self._diagonal = module, a, diagonal
        self._squares: Tensor | None = None

    def add(self, g: Tensor) -> None:
        if self._squares is None:
            self._squares = g.square()
        else:
            self._squares.addcmul_(g, g)

    def result(self) -> dict[str, Tensor]:
        assert self._squares is not None
        if self._diagonal:
            weight = (self._squares.mT @ self._a.square()).double()
            return _own(self._module, {"weight": weight, "bias": _sum(self._squares, 0)})
        rows = _sum(self._squares, 1)
        return _own(self._module, {"weight": rows @ _sum(self._a.square(), 1), "bias": rows.sum()})


class _Affine:
    """Scale and shift of fixed values xhat (frozen norms, slopes): d scale sums g xhat over places, d shift g."""

    def __init__(self, module: nn.Module, normalized: Tensor, places: tuple[int, ...], diagonal: bool) -> None:
        self._module, self._normalized, self._places, self._diagonal = module, normalized, places, diagonal
        self._scale: Tensor | float = 0.0
        self._shift: Tensor | float = 0.0

    def add(self, g: Tensor) -> None:
        g = g.reshape(self._normalized.shape)
        scale, shift = g * self._normalized, g
        if self._places:
            scale, shift = scale.sum(self._places), shift.sum(self._places)
        self._scale, self._shift = scale.square() + self._scale, shift.square() + self._shift

    def result(self) -> dict[str, Tensor]:
        assert isinstance(self._scale, Tensor)
        assert isinstance(self._shift, Tensor)
        dim = 0 if self._diagonal else None
        return _own(self._module, {"weight": _sum(self._scale, dim), "bias": _sum(self._shift, dim)})


class _Stack:
    """All columns together, for forms that are faster (or only possible) so."""

    def __init__(
        self,
        module: nn.Module,
        a: Tensor,
        diagonal: bool,
        form: Callable[[nn.Module, Tensor, Tensor, bool], dict[str, Tensor]],
    ) -> None:
        self._module, self._a, self._diagonal, self._form = module, a, diagonal, form
        self._columns: list[Tensor] = []

    def add(self, g: Tensor) -> None:
        self._columns.append(g)

    def result(self) -> dict[str, Tensor]:
        g = torch.stack(self._columns)
        self._columns.clear()
        return _own(self._module, self._form(self._module, self._a, g, self._diagonal))


def _sequence(module: nn.Module, a: Tensor, g: Tensor, diagonal: bool) -> dict[str, Tensor]:
    a, g = a.flatten(1, -2), g.flatten(2, -2)  # (n, t, in), (C, n, t, out)
    return {"weight": _outer(g.mT, a.mT, diagonal), "bias": _total(g.sum(2), diagonal)}


def _convolution(module: nn.Module, a: Tensor, g: Tensor, diagonal: bool) -> dict[str, Tensor]:
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    patches = _unfolded(module, a)  # (n, groups, in * kernel, places)
    g = g.flatten(3)  # (C, n, out, places)
    parts = g.unflatten(2, (module.groups, -1))
    weights = [_outer(parts[:, :, i], patches[:, i], diagonal) for i in range(module.groups)]
    weight = torch.cat(weights).view(module.weight.shape) if diagonal else torch.stack(weights).sum()
    return {"weight": weight, "bias": _total(g.sum(3), diagonal)}


def _any_layer(module: nn.Module, a: Tensor, g: Tensor, diagonal: bool) -> dict[str, Tensor]:
    parameters = {n: p.detach() for n, p in module._parameters.items() if p is not None}

    def gradient(example: Tensor, column: Tensor) -> dict[str, Tensor]:
        def layer(values: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(module, values, (example.unsqueeze(0),))

        return torch.func.vjp(layer, parameters)[1](column.unsqueeze(0))[0]

    every = torch.func.vmap(gradient, in_dims=(None, 0))
    gradients = torch.func.vmap(every, in_dims=(0, 1), randomness="same")(a, g)
    return {n: _total(t, diagonal) for n, t in gradients.items()}


def _batch_normalized(module: _BATCH_NORM, a: Tensor) -> Tensor:
    assert module.running_mean is not None
    assert module.running_var is not None
    shape = (1, -1, *(1,) * (a.dim() - 2))
    return (a - module.running_mean.view(shape)) * torch.rsqrt(module.running_var + module.eps).view(shape)


def _outer(g: Tensor, a: Tensor, diagonal: bool) -> Tensor:
    """Sum over c, i of ||g a'||^2 (or of its entries squared) for g (C, n, out, t) and a (n, in, t).

    The gradient itself costs C t out in, by its Gram matrices t^2 (in + C out): the smaller is taken.
    """
    count, examples, out, t = g.shape
    inputs = a.shape[1]
    if diagonal or count * out * inputs <= t * (inputs + count * out):
        stacked = g.transpose(0, 1).reshape(examples, count * out, t)
        product = torch.bmm(stacked, a.mT).view(examples, count, out, inputs)
        return _total(product.transpose(0, 1), diagonal)
    return _sum((g.mT @ g).mul_(a.mT @ a), None)


def _unfolded(module: nn.Conv1d | nn.Conv2d, a: Tensor) -> Tensor:
    """Input columns of a convolution: (n, groups, in / groups * kernel, places)."""
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    padding = module._reversed_padding_repeated_twice
    if any(padding):
        a = F.pad(a, padding, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
    if a.dim() == 3:  # one dimension is two with a height of one
        a, kernel, stride, dilation = a.unsqueeze(2), (1, *kernel), (1, *stride), (1, *dilation)
    columns = F.unfold(a, kernel, dilation=dilation, stride=stride)
    return columns.view(len(a), module.groups, -1, columns.shape[-1])


def _own(module: nn.Module, sums: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t for n, t in sums.items() if module._parameters.get(n) is not None}


def _total(gradients: Tensor, diagonal: bool) -> Tensor:
    """Squared sum over all of (C, n, ...), or over (C, n) alone with `diagonal`."""
    return _sum(gradients.square(), (0, 1) if diagonal else None)


def _sum(squares: Tensor, dim: int | tuple[int, ...] | None) -> Tensor:
    return squares.sum(dtype=torch.float64) if dim is None else squares.sum(dim, dtype=torch.float64)
