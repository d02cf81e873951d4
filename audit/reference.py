"""L, its gradient and its Hessian by their definitions: dense, float64, plain torch."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from audit.aims import Aim
from audit.aims.aim import Batch
from audit.networks import Network

_NORMS = nn.modules.batchnorm._BatchNorm
_STEP = 1e-5


@dataclass
class Picked:
    """Stands for outputs that are no tensor."""

    logits: Tensor


class Reference:
    """L(w) of an objective over batches.

    Args:
        network: its model in float64.
        aim: what is minimized.
        batches: the user's batches in float64.
        names: the parameters that make up w.
        policy: of BatchNorm.
    """

    def __init__(self, network: Network, aim: Aim, batches: Sequence[Batch], names: list[str], policy: str) -> None:
        self.network, self.aim, self.batches, self.policy = network, aim, batches, policy
        self.model = network.model.eval()
        named = dict(self.model.named_parameters())
        self.names, self.shapes = names, [named[n].shape for n in names]
        numbers = {id(named[n]): i for i, n in enumerate(names)}
        self.slots = [
            (module, name, numbers[id(p)])
            for module in self.model.modules()
            for name, p in module._parameters.items()
            if id(p) in numbers
        ]
        self.w = torch.cat([named[n].detach().reshape(-1) for n in names])
        for module in self.model.modules():
            if isinstance(module, _NORMS) and policy == "batch":
                module.train()
            # The same function: a sparse gradient has no second derivative, and what is computed anew in the backward
            # pass would be of the module's own weights.
            for flag in {"sparse", "recompute"} & set(dir(module)):
                setattr(module, flag, False)

    def loss(self, w: Tensor, through: Callable[[Any], Any] = lambda outputs: outputs) -> Tensor:
        """L(w), in the graph of w; of `through` of the outputs of each batch."""
        pieces = w.split([s.numel() for s in self.shapes])
        tensors = [p.view(s) for p, s in zip(pieces, self.shapes, strict=True)]
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), self._holding(tensors):
            if self.policy == "recalibrate":
                self._recalibrate()
            return self.aim.value(
                lambda batch: through(self.network.call(self.model, batch.fields, batch.target)), self.batches
            )

    def alone(self) -> Iterator[Tensor | None]:
        """L at the network's weights of each batch by itself; None where torch refuses it."""
        for batch in self.batches:
            one = copy.copy(self)
            one.batches = [batch]
            try:
                yield one.loss(self.w).detach()
            except ValueError:  # BatchNorm of one example
                yield None

    def gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """L and its gradient."""
        w = w.detach().requires_grad_()
        value = self.loss(w)
        return value.detach(), _grad(value, w)

    @cached_property
    def at_weights(self) -> tuple[Tensor, Tensor]:
        """L and its gradient at the network's weights."""
        return self.gradient(self.w)

    @cached_property
    def hessian(self) -> Tensor:
        """The Hessian at the network's weights: (d, d)."""
        if not (self.network.second and self.aim.curved):
            return self.differences()
        w = self.w.clone().requires_grad_()
        gradient = _grad(self.loss(w), w, create_graph=True)
        return torch.stack([_grad(g, w, retain_graph=True) for g in gradient])

    def differences(self) -> Tensor:
        """The Hessian by central differences of gradients."""
        steps = torch.eye(len(self.w), dtype=self.w.dtype) * _STEP
        rows = [(self.gradient(self.w + s)[1] - self.gradient(self.w - s)[1]) / (2 * _STEP) for s in steps]
        hessian = torch.stack(rows)
        return (hessian + hessian.t()) / 2

    @cached_property
    def ggn(self) -> Tensor:
        """J' B J: J the derivative of all outputs, B the Hessian of L as a function of them; outputs are tensors."""
        w = self.w.clone().requires_grad_()
        pick = self.network.pick or (lambda outputs: outputs)
        seen: list[Tensor] = []
        leaves: list[Tensor] = []

        def cut(outputs: Any) -> Any:
            seen.append(pick(outputs))
            leaves.append(seen[-1].detach().requires_grad_())
            return leaves[-1] if self.network.pick is None else Picked(leaves[-1])

        value = self.loss(w, cut)
        slopes = torch.cat([g.reshape(-1) for g in _grads(value, leaves, create_graph=True)])
        rows = [torch.cat([g.reshape(-1) for g in _grads(s, leaves, retain_graph=True)]) for s in slopes]
        jacobian = torch.stack([_grad(o, w, retain_graph=True) for o in torch.cat([o.reshape(-1) for o in seen])])
        return jacobian.t() @ torch.stack(rows) @ jacobian

    def doubt(self) -> str | None:
        """What finite differences say against the gradient, along a direction; None where they agree.

        Statistics that are estimated again are constants to the gradient: no differences then.
        """
        if self.policy == "recalibrate":
            return None
        direction = torch.randn(len(self.w), dtype=self.w.dtype)
        slope = float(self.at_weights[1] @ direction)
        slopes = []
        for step in (1e-5, 1e-6, 1e-4):
            rise = self.loss(self.w + step * direction) - self.loss(self.w - step * direction)
            slopes.append(float(rise.detach()) / (2 * step))
            if abs(slopes[-1] - slope) <= 1e-4 * (1 + abs(slope)):
                return None
        return f"the reference's slope is {slope:g}, by differences {slopes}"

    @contextlib.contextmanager
    def _holding(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """The model computes with these tensors, at every place that shares them; buffers are as before afterwards."""
        before = [(module, name, module._parameters[name]) for module, name, _ in self.slots]
        buffers = [(m, n, b) for m in self.model.modules() for n, b in m._buffers.items() if b is not None]
        try:
            for module, name, number in self.slots:
                module._parameters[name] = tensors[number]  # type: ignore[assignment]
            for module, name, buffer in buffers:
                module._buffers[name] = buffer.clone()
            yield
        finally:
            for module, name, parameter in before:
                module._parameters[name] = parameter
            for module, name, buffer in buffers:
                module._buffers[name] = buffer

    def _recalibrate(self) -> None:
        """Statistics become the average over the batches that are as long as the first; constants to the gradient."""
        norms = [m for m in self.model.modules() if isinstance(m, _NORMS)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for i, batch in enumerate(self.batches):
                if not i or len(batch) >= len(self.batches[0]):
                    self.network.call(self.model, batch.fields, batch.target)
        for norm in norms:
            norm.eval()


def _grad(value: Tensor, w: Tensor, create_graph: bool = False, retain_graph: bool = False) -> Tensor:
    """The derivative, zeros where there is none."""
    return _grads(value, [w], create_graph, retain_graph)[0]


def _grads(
    value: Tensor, tensors: Sequence[Tensor], create_graph: bool = False, retain_graph: bool = False
) -> Sequence[Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(t) for t in tensors]
    return torch.autograd.grad(
        value,
        tensors,
        retain_graph=retain_graph or create_graph,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
