"""A step whose only pass is a closure of the user's."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import InputError
from landscape.problem.batches import Batch
from landscape.problem.fully_shard import abandon_pass, reshard
from trainers.method import network, sharded
from trainers.method.accumulation import require_cleared
from trainers.method.context import Context, Pass
from trainers.method.step import Step
from trainers.method.task import Task

Closure = Callable[[], Any]
"""Clears the gradients, computes the loss, calls backward and returns the loss."""


class ClosureStep(Step):
    """A step whose only pass is the user's closure.

    Args:
        task: what is trained.
        model: the network, wrapped or not.
        closure: see `Closure`.
        context: where training stands.
        probe: a parameter in whose `.grad` lies a gradient that the closure must clear; None where there is none.
    """

    def __init__(
        self, task: Task, model: nn.Module, closure: Closure, context: Context, probe: Tensor | None = None
    ) -> None:
        super().__init__(task, Batch((), {}, None, 1), context, None, (1,) * task.world)
        self._closure, self._probe = closure, probe
        self._returned: Callable[[], Any] = lambda: None
        self._averaged = task.sharded or isinstance(model, nn.parallel.DistributedDataParallel)
        local = self._averaged and not task.synchronized
        self._communication: Any = model.no_sync if local else contextlib.nullcontext

    def forward(self, **_: Any) -> Pass:
        """Refused: a closure makes a whole pass."""
        raise self._unseen()

    def outputs_with(self, tensors: dict[str, Tensor]) -> Tensor:
        """Refused: a closure hides the batch."""
        raise self._unseen()

    def backward(self, *, rows: Any = None, objective: Any = None, inputs: Any = None, statistics: Any = None) -> Pass:
        """Call the closure; parts of the batch and other objectives are refused."""
        if rows is not None or objective is not None:
            raise self._unseen()
        if self.task.sharded:
            sharded.require_reduced(self.task.model, "before the closure")
        for parameter in self.parameters:
            parameter.grad = None
        moves = not self._statistics_moved if statistics is None else statistics
        self._statistics_moved |= moves
        if self.task.same_masks:
            self._align_masks()
        probe, self._probe = self._probe, None
        marker = None if probe is None else torch.full_like(probe, torch.nan)
        if probe is not None:
            probe.grad = marker
        frozen = network.frozen_statistics(() if moves else self.task.norms)
        with frozen, self._communication(), torch.enable_grad():
            try:
                loss = self._closure()
            except BaseException:
                abandon_pass(self.task.model)
                raise
        if self.task.sharded:
            reshard(self.task.model)
            sharded.require_last_backward(self.task.model)
            sharded.require_reduced(self.task.model, "after the closure")
        if not isinstance(loss, Tensor):
            raise InputError(
                f"the closure returned {type(loss).__name__}: it must return the loss it called backward on"
            )
        if loss.grad_fn is not None and loss is self._returned():
            raise InputError(
                "the closure returned the loss of the pass before once more: it must compute the loss itself, at the "
                "weights of each pass"
            )
        self._returned = weakref.ref(loss)
        if probe is not None and marker is not None:
            diverged = self.overflow is not None or not bool(loss.detach().isfinite().all())
            require_cleared(probe, marker, self.parameters, diverged)
        if not self.shared and all(p.grad is None for p in self.parameters):
            raise InputError("the closure leaves no gradient: it must call backward on the loss, and clear before that")
        if inputs is not None:
            kept = {id(p) for p in inputs}
            for parameter in self.parameters:
                parameter.grad = parameter.grad if id(parameter) in kept else None
        self._finish(self.parameters if inputs is None else inputs)
        return Pass(loss.detach(), torch.zeros(0, device=self.task.device), None)

    def _reduce(self, inputs: Any) -> None:
        if not self.shared or self._averaged:
            return
        super()._reduce(inputs)
        torch._foreach_div_([p.grad for p in inputs if p.grad is not None], self.task.world)

    @staticmethod
    def _unseen() -> InputError:
        return InputError("a method that looks at the batch itself must say needs_batch = True: a closure hides it")
