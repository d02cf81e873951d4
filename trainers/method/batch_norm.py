"""BatchNorm whose statistics are those of the batch on all processes together.

torch.nn.SyncBatchNorm does this on GPUs alone; this one is made of differentiable sums over the processes and runs on
CPUs too, so that two processes can be shown to equal one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from landscape import processes
from landscape.errors import InputError

_BatchNorm = nn.modules.batchnorm._BatchNorm
MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
ONE_VALUE = (
    "a pass of one example through BatchNorm, which needs more than one value per channel to normalize with: "
    "give a larger part of the batch (--k, --s, --gamma, --m) or a larger --batch-size"
)


class SynchronizedBatchNorm(_BatchNorm):
    """Takes the place of a BatchNorm layer: the same parameters and buffers, under the same names.

    In training mode within a group of processes: mean and variance over the examples of all of them, whose numbers may
    differ and be zero; every process must make the pass. Otherwise it is the layer that it replaces.

    Args:
        layer: a BatchNorm layer.

    Raises:
        InputError: one value per channel on all processes together.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        self._parameters, self._buffers, self.training = layer._parameters, layer._buffers, layer.training

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions: the replaced layer's own check is gone with it."""

    def forward(self, input: Tensor) -> Tensor:
        """(n, channels, ...) -> the same shape and dtype."""
        if not self.training or processes.world() == 1:
            return super().forward(input)
        shape = (1, -1, *[1] * (input.dim() - 2))
        axes = [0, *range(2, input.dim())]
        x = input if input.dtype == torch.float64 else input.float()
        here = torch.full((1,), input.numel() / input.shape[1], dtype=x.dtype, device=x.device)
        total = _everywhere(torch.cat([x.sum(axes), here]))
        mean, count = total[:-1] / total[-1], total[-1].detach()
        # With two values here there is nothing to ask the device. All processes come to the same answer.
        if input.numel() <= input.shape[1] and bool(count <= 1):
            raise InputError(ONE_VALUE)
        centered = x - mean.view(shape)
        # Around the common mean: the difference of two large sums would cancel.
        variance = _everywhere(centered.square().sum(axes)) / count
        self._move(mean.detach(), variance.detach(), count)
        normalized = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            normalized = normalized * self.weight.view(shape)
        if self.bias is not None:
            normalized = normalized + self.bias.view(shape)
        return normalized.to(input.dtype)

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        moved = self.num_batches_tracked.to(mean.dtype)
        share = 1 / moved if self.momentum is None else torch.full_like(moved, self.momentum)
        for running, now in ((self.running_mean, mean), (self.running_var, variance * count / (count - 1))):
            running.lerp_(now.to(running.dtype), share.to(running))


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm layer of the model, in place; returns the model, or its replacement if it is one.

    Raises:
        InputError: the model has no such layer, or one of a class that cannot be replaced.
    """
    replaced = _replaced(model)
    others = [
        f"{name or 'the model'} ({type(layer).__name__})"
        for name, layer in _modules_of(replaced).items()
        if isinstance(layer, _BatchNorm) and not isinstance(layer, SynchronizedBatchNorm | nn.SyncBatchNorm)
    ]
    if others:
        raise InputError(
            f"--sync-batch-norm replaces torch's BatchNorm layers where a module holds them, not {others[0]}: "
            "use BatchNorm1d, 2d or 3d (a list of layers as nn.ModuleList), or leave the option out"
        )
    if not any(isinstance(layer, SynchronizedBatchNorm | nn.SyncBatchNorm) for layer in replaced.modules()):
        raise InputError("--sync-batch-norm needs a network with BatchNorm, this one has none: leave the option out")
    return replaced


def _replaced(model: nn.Module) -> nn.Module:
    if type(model) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        assert isinstance(model, _BatchNorm)
        return SynchronizedBatchNorm(model)
    for name, child in list(model._modules.items()):
        if child is not None:
            model._modules[name] = _replaced(child)
    return model


def _modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by name, with those that a module holds in a plain list, tuple or dict, unregistered."""
    modules: dict[str, nn.Module] = {}
    waiting, seen = [("", model)], set()
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        modules[name] = module
        start = f"{name}." if name else ""
        waiting += [(start + child, held) for child, held in module.named_children()]
        for attribute, value in vars(module).items():
            if attribute not in MODULE_ATTRIBUTES and isinstance(value, list | tuple | dict):
                items = value.items() if isinstance(value, dict) else enumerate(value)
                waiting += [(f"{start}{attribute}[{k!r}]", held) for k, held in items if isinstance(held, nn.Module)]
    return modules


class _Sum(torch.autograd.Function):
    """Sum over the processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.apply(*gradients)  # itself, so that a second derivative exists


def _everywhere(values: Tensor) -> Tensor:
    return _Sum.apply(values)
