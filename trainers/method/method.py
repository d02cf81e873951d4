"""The seam between methods and everything else.

A method is a frozen record of hyperparameters. In a loop of your own::

    task = Task(model, nn.CrossEntropyLoss(reduction="none"))
    method = METHODS["sam"](rho=0.05)
    state = method.init(task, Context())
    for i, (inputs, targets) in enumerate(loader):
        step = task.step((inputs, targets), Context(step=i))
        method.gradient(step, state)      # leaves the gradient in .grad
        optimizer.step()                  # a plain torch optimizer
        method.after_step(step, state)

A new method is one file in ``trainers/methods/``: a frozen dataclass that extends `Method` and implements `compute`
with the passes that `trainers.method.step.Step` offers.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from landscape.errors import InputError
from trainers.method.averages import joined, mean, mean_over_processes
from trainers.method.context import Context, Examples, Pass, Rows
from trainers.method.step import Step
from trainers.method.task import Task
from trainers.names import convert_fields

__all__ = ["Context", "Examples", "Method", "Pass", "Rows", "State", "Step", "Task", "require"]

State = dict[str, Any]
"""What a method remembers between steps: tensors, numbers, text, lists and dicts (with text keys) of them."""


@dataclass(frozen=True)
class Method(abc.ABC):
    """A training method: a frozen record of hyperparameters whose `compute` makes the passes of a step.

    Subclasses are frozen dataclasses with ``@register("name", source=..., cost=..., statistics=...)``: where the
    defaults come from, the passes of a step, and in which of them the BatchNorm statistics move. They check their
    hyperparameters in ``__post_init__`` (see `require`).

    The cost is the mean over a run in units of the batch, "(1 + s) forward + (1 + s) backward": arithmetic in the
    method's hyperparameters and properties, `batch` (examples that share a perturbation), `examples` (of the training
    set) and `epoch` (its steps); what else is to be said follows a semicolon. A contract test holds the counted passes
    to it.
    """

    base: ClassVar[str | None] = None
    """The base optimizer that the method is (adam, adamw, lion, muon); None leaves the choice to the user."""

    needs_batch: ClassVar[bool] = False
    """Whether `compute` looks at the batch itself (single examples, another forward pass): a closure hides it."""

    needs_indices: ClassVar[bool] = False
    """Whether `compute` reads `step.indices`."""

    needs_progress: ClassVar[bool] = False
    """Whether `compute` follows a schedule over the run (`context.progress`, `epoch`)."""

    needs_whole_tensors: ClassVar[str | None] = None
    """Why `compute` needs more of the weights than their shards and sums over them; None where these are enough."""

    def init(self, task: Task, context: Context) -> State:
        """The state before the first step. It is kept in the checkpoint; on resuming, the kept one replaces it."""
        return {}

    def announcement(self, task: Task, context: Context) -> str | None:
        """A line to print before training (the size of a store); None for nothing to say."""
        return None

    @abc.abstractmethod
    def compute(self, step: Step, state: State) -> Pass:
        """Make the passes of one step, leave the gradient in `.grad`, return the pass whose loss is reported.

        New values are assigned to `state`; old ones are never changed in place, but for stores keyed by example: the
        state of a step that fp16 skips, or of the next m-group, starts from the old values.
        """

    def after_step(self, step: Step, state: State) -> None:  # noqa: B027 (most methods need none)
        """Called after the optimizer's step, unless fp16 skipped it; may change weights and state."""

    def columns(self, state: State) -> dict[str, float]:
        """The method's own columns of history.csv: the same names at every epoch, from the first state on."""
        return {}

    def __post_init__(self) -> None:
        convert_fields(self)

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Have the fields converted to their declared types before a subclass checks them."""
        super().__init_subclass__(**arguments)
        check = vars(cls).get("__post_init__")
        if check is None:
            return

        @functools.wraps(check)
        def converted_and_checked(self: Method) -> None:
            convert_fields(self)
            check(self)

        cls.__post_init__ = converted_and_checked  # type: ignore[method-assign]

    @property
    def name(self) -> str:
        """Name in the registry."""
        return self.registered_name  # type: ignore[attr-defined]

    @property
    def arguments(self) -> dict[str, Any]:
        """The hyperparameters by name."""
        return dataclasses.asdict(self)

    def gradient(self, step: Step, state: State) -> Pass:
        """Leave this step's gradient in `.grad`; returns the pass whose loss and accuracy are reported.

        With m-groups, gradients, states and BatchNorm statistics are averaged over the groups; with a perturbation a
        process, gradients and states are averaged over the processes at the end.
        """
        task, before = step.task, dict(state)
        result = self.compute(step, state) if task.group_size is None else self._grouped(step, state)
        if task.world > 1 and not step.shared:
            share = step.batch.size / sum(step.sizes)
            step.reach_everywhere()
            step.leave(mean_over_processes(step.gradients(), share))
            state.update({k: mean_over_processes(v, share) for k, v in state.items() if v is not before.get(k)})
            step.memory.update({k: mean_over_processes(v, share) for k, v in step.memory.items()})
            if step.overflow is not None:  # a step is skipped by all processes or by none
                torch.distributed.all_reduce(step.overflow, torch.distributed.ReduceOp.MAX)
        if step.overflow is not None:
            # What overflowed in any pass must reach scaler.step, whatever the method made of it.
            ones = torch.ones_like(step.overflow)
            factor = task.scale() * torch.where(step.overflow > 0, ones * torch.nan, ones)
            torch._foreach_mul_([p.grad for p in step.parameters if p.grad is not None], factor)
        return result

    def _grouped(self, step: Step, state: State) -> Pass:
        buffers = [b for layer in step.task.norms for b in layer._buffers.values() if b is not None]
        start = [b.clone() for b in buffers]
        weights: list[float] = []
        passes: list[Pass] = []
        ends: list[dict[str, Any]] = []
        gradients: list[Tensor] = []
        for group in step.groups():
            for buffer, value in zip(buffers, start, strict=True):
                buffer.copy_(value)
            end = dict(state)
            passes.append(self.compute(group, end))
            weights.append(group.batch.size / step.batch.size)
            step.reached |= group.reached
            scaled = list(torch._foreach_mul(group.gradients(), weights[-1]))
            gradients = list(torch._foreach_add(gradients, scaled)) if gradients else scaled
            ends.append({"state": end, "memory": group.memory, "buffers": [b.clone() for b in buffers]})
            if step.overflow is not None and group.overflow is not None:
                step.overflow += group.overflow
        step.leave(gradients)
        merged = mean(ends, weights)
        state.update(merged["state"])
        step.memory.update(merged["memory"])
        for buffer, value in zip(buffers, merged["buffers"], strict=True):
            buffer.copy_(value)
        return joined(passes)


def require(holds: bool, message: str) -> None:
    """Raise InputError unless the condition holds; the message says what was received and what is needed."""
    if not holds:
        raise InputError(message)
