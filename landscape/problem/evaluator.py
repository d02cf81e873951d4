"""Evaluating a user's model at other weights while leaving it exactly as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from landscape.errors import InputError
from landscape.problem.parameters import Parameters

POLICIES = ("frozen", "batch", "recalibrate")
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


class Evaluator:
    """Binds flat-vector views to a model's parameters for the length of a context.

    The model's own tensors are never written: its parameter slots hold our tensors within the context, its buffers
    copies, its training flags those of the BatchNorm policy. Everything is put back afterwards, also after an
    exception. A tensor that is shared by several layers is bound in all of them.

    Args:
        model: any module.
        parameters: which tensors are bound.
        batch_norm: "frozen" (running statistics), "batch" (statistics of each batch) or "recalibrate" (running
            statistics estimated anew at the weights in question, see `recalibrated`).
        evaluation_mode: False keeps the model's own training flags (then dropout stays as random as it was).
    """

    def __init__(
        self, model: nn.Module, parameters: Parameters, batch_norm: str = "frozen", *, evaluation_mode: bool = True
    ) -> None:
        if batch_norm not in POLICIES:
            raise InputError(f"batch_norm must be one of {', '.join(POLICIES)}, received {batch_norm!r}")
        self.model, self.policy, self.evaluation_mode = model, batch_norm, evaluation_mode
        self.batch_norms = [m for m in model.modules() if isinstance(m, _BATCH_NORM)]
        owners: dict[int, list[tuple[dict, str]]] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    owners.setdefault(id(parameter), []).append((module._parameters, name))
        named = dict(model.named_parameters())
        self._places = [owners[id(named[s.name])] for s in parameters]
        self._buffers: list[tuple[dict[str, Any], str]] = [
            (m._buffers, n) for m in model.modules() for n, b in m._buffers.items() if b is not None
        ]

    @contextlib.contextmanager
    def bound(self, tensors: Sequence[Tensor], statistics: Sequence[Tensor] | None = None) -> Iterator[None]:
        """Within the context the model computes with `tensors` (in the layout's order).

        Args:
            tensors: parameters in the layout's order.
            statistics: buffers to use instead of the model's, as `recalibrated` returns them.
        """
        modules = list(self.model.modules())
        flags = [m.training for m in modules]
        saved = [(d, n, d[n]) for places in self._places for d, n in places] + [(d, n, d[n]) for d, n in self._buffers]
        try:
            for places, tensor in zip(self._places, tensors, strict=True):
                for slots, name in places:
                    slots[name] = tensor
            for i, (buffers, name) in enumerate(self._buffers):
                buffers[name] = buffers[name].clone() if statistics is None else statistics[i]
            self._set_flags(modules)
            with _reentrant_checkpoints_refused():
                yield
        finally:
            for slots, name, original in saved:
                slots[name] = original
            for module, flag in zip(modules, flags, strict=True):
                module.training = flag

    def _set_flags(self, modules: Sequence[nn.Module]) -> None:
        if self.evaluation_mode:
            for module in modules:
                module.training = False
        if self.policy == "batch":
            for norm in self.batch_norms:
                norm.training = True

    def recalibrated(self, tensors: Sequence[Tensor], forward: Iterator[None]) -> list[Tensor]:
        """Buffers whose BatchNorm statistics are averaged over the forward passes that `forward` makes.

        Every running mean and variance is the cumulative average over the batches (momentum None), from scratch.
        """
        momenta = [norm.momentum for norm in self.batch_norms]
        try:
            with torch.no_grad(), self.bound(tensors):
                for norm in self.batch_norms:
                    norm.momentum, norm.training = None, True
                    norm.reset_running_stats()
                for _ in forward:
                    pass
                return [buffers[name] for buffers, name in self._buffers]
        finally:
            for norm, momentum in zip(self.batch_norms, momenta, strict=True):
                norm.momentum = momentum


class _Refused:
    """In the place of re-entrant checkpointing, whose backward knows the model's tensors and not those bound here.

    Torch tells in some places only: where no input of the block needs a gradient, its weights silently get none.
    """

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *arguments: Any) -> Any:
        if torch.is_grad_enabled():
            raise InputError(
                "the model checkpoints activations re-entrantly, which loses derivatives here: call "
                "torch.utils.checkpoint.checkpoint with use_reentrant=False"
            )
        return function(*arguments)


@contextlib.contextmanager
def _reentrant_checkpoints_refused() -> Iterator[None]:
    original = checkpoint.CheckpointFunction
    checkpoint.CheckpointFunction = _Refused  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        checkpoint.CheckpointFunction = original  # type: ignore[misc]
