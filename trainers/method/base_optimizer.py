"""What a base optimizer must be, and hold, for a method to step through it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from landscape.errors import InputError
from trainers.method.method import Method
from trainers.method.task import Task


def require_plain_step(base: torch.optim.Optimizer, adapter: type) -> None:
    """Raise InputError for an optimizer that evaluates the closure itself, at points of its own (LBFGS)."""
    closure = inspect.signature(base.step).parameters.get("closure")
    required = closure is not None and closure.default is inspect.Parameter.empty
    if required or isinstance(base, adapter):
        raise InputError(
            f"{type(base).__name__} calls the closure itself and cannot step along a method's gradient: "
            "choose a base optimizer whose step() needs no closure (SGD, Adam, AdamW, ...)"
        )


def require_settings(method: Method, base: torch.optim.Optimizer, groups: Sequence[dict[str, Any]]) -> None:
    """Raise InputError for settings of groups that the method would not follow.

    Groups may differ in what the base optimizer reads; nobody would read another rho of theirs.
    """
    for group in groups:
        ignored = sorted({*group} & {*method.arguments} - {*base.defaults})
        if ignored:
            raise InputError(
                f"a parameter group has {ignored[0]}={group[ignored[0]]}, and {method.name} has one "
                f"{ignored[0]} for all parameters: give it to the method and leave it out of the group"
            )
        if group.get("maximize"):
            raise InputError(
                f"a parameter group has maximize=True, and {method.name} takes what the closure returns for a loss to "
                "be made small: return the negative objective and leave maximize out"
            )


def require_all_parameters(task: Task, base: torch.optim.Optimizer) -> None:
    """Raise InputError for a trainable parameter that the base optimizer does not hold."""
    held = {id(p) for g in base.param_groups for p in g["params"]}
    absent = [s.name for s, p in zip(task.layout, task.parameters, strict=True) if id(p) not in held]
    if absent:
        when = " before the first pass, which leaves gathered ones behind" if task.sharded else ""
        raise InputError(
            f"the base optimizer does not hold {absent[0]}: build it from model.parameters(){when}, or set "
            "requires_grad=False on what is not trained"
        )


def require_no_others(task: Task, base: torch.optim.Optimizer) -> None:
    """Raise InputError if the base optimizer is to move a tensor of which the method knows nothing.

    What is frozen, or was taken out of the model, has no gradient and stays where it is.
    """
    known = {id(p) for p in task.parameters}
    others: list[Tensor] = [p for g in base.param_groups for p in g["params"] if id(p) not in known]
    moved = next((p for p in others if p.grad is not None), None)
    if moved is not None:
        raise InputError(
            f"the base optimizer holds a tensor of shape {tuple(moved.shape)} that has a gradient and is no trainable "
            "parameter of the model, so that the method would not see it: give a model that holds it too, as "
            "nn.ModuleList([model, loss])"
        )
