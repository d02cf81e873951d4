"""The direction of an update: a gradient's, a vector's, or the one that an optimizer would take from its state.

A step is w - eta d. Of an optimizer d = (w - w') / lr, w' where its step would lead: eta is then its learning rate,
with the rates of all groups in proportion to the largest of them.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from landscape.ball.spread import spread_of
from landscape.ball.vectors import any_entry, dot, finite, norm
from landscape.errors import InputError
from landscape.problem.problem import Problem
from landscape.random import undisturbed
from landscape.results import digest
from landscape.sharpness.checks import check_loss, check_weights

Direction = str | Tensor | Optimizer | Sequence[Optimizer]
_LEAST, _MOST = 1e-70, 1e70
"""Range of a direction's largest entry: float64 holds its fourth power, which the search for a crossing computes."""


def update_direction(problem: Problem, direction: Direction, gradient: Tensor) -> Tensor:
    """The vector d (d,) of the step w - eta d.

    Args:
        problem: L.
        direction: "gradient", a flat vector, an optimizer, or several that share the parameters out.
        gradient: of L at the weights.

    Raises:
        InputError: another name, a vector of another shape or that is not finite, an optimizer that holds none of the
            parameters or whose step needs more than gradients.
    """
    if isinstance(direction, str):
        if direction == "gradient":
            return gradient
        if direction == "optimizer":
            raise InputError(
                "direction='optimizer' stands for the one beside a checkpoint or a Monitor: give the optimizer itself, "
                "direction=optimizer, or Monitor(problem, optimizer=optimizer)"
            )
        raise InputError(f"direction {direction!r}: 'gradient', a flat vector (d,) or an optimizer is needed")
    if isinstance(direction, Tensor):
        d = direction.detach()
        if spread_of(problem.weights) is not None:
            d = problem.at(d)
        if d.shape != problem.weights.shape:
            raise InputError(
                f"direction must be a flat vector of shape ({problem.dimension},), received {tuple(d.shape)}"
            )
        d = d.to(_at_least_float32(problem))
    else:
        d = optimizer_direction(problem, direction, gradient)
    if not bool(finite(d)):
        raise InputError("the direction is not finite: look for nan in the vector, or in the optimizer's state")
    return d


def described(direction: Direction) -> str:
    """A direction as it is recorded: its name, the optimizer's, or what tells one vector from another."""
    if isinstance(direction, str):
        return direction
    if isinstance(direction, Tensor):
        return f"vector, sha256 {digest.of_tensors([direction.detach()])[:16]}"
    return " and ".join(type(o).__name__ for o in _several(direction))


def slope_of(problem: Problem, d: Tensor, gradient: Tensor, whose: str = "the loss") -> float:
    """d'g, the rate at which the loss falls along -d.

    Raises:
        InputError: weights or gradient not finite; d'g not positive: there is no step that lowers the loss first; d too
            short or too long to compute with.
    """
    check_weights(problem)
    check_loss(gradient, "gradient")
    slope = float(dot(d, gradient))
    if not slope > 0:
        at = "the gradient is zero" if not any_entry(gradient) else f"d'g = {slope:.3g}"
        raise InputError(
            f"{at}: a step w - eta d has to lower {whose} at first (d'g > 0); give another direction, the gradient for "
            "one, or other weights"
        )
    largest = float(norm(d, math.inf))
    if not _LEAST <= largest <= _MOST:
        raise InputError(
            f"the largest entry of the direction is {largest:.3g}: between {_LEAST:g} and {_MOST:g} float64 computes "
            "with it; scale the direction (the step scales inversely)"
        )
    return slope


def optimizer_direction(problem: Problem, optimizers: Optimizer | Sequence[Optimizer], gradient: Tensor) -> Tensor:
    """The vector d = (w - w') / lr, w' after one step with this gradient, in float64 copies: the optimizer stays.

    Parameters that the optimizer does not hold, and those that are not part of w, stay. With all learning rates zero (a
    warm-up's first step) they are taken as one.
    """
    tensors, several = problem.parameters.own_tensors(problem.model), _several(optimizers)
    groups = [group for optimizer in several for group in optimizer.param_groups]
    if not {id(p) for group in groups for p in group["params"]} & {id(p) for p in tensors}:
        raise InputError(
            f"the {described(several)} holds none of the parameters of this Problem: build it from the parameters of "
            "the very model that the Problem has"
        )
    stand_ins: dict[int, Any] = {}
    for p, w, g in zip(tensors, *map(problem.parameters.unflatten, (problem.weights, gradient)), strict=True):
        stand_ins[id(p)] = copied = w.detach().double().clone()
        copied.grad = g.detach().double()
    before = [stand_ins[id(p)].clone() for p in tensors]
    rate = max(float(group["lr"]) for group in groups)
    with undisturbed(), torch.no_grad():
        for optimizer in several:
            _step(_shadow(optimizer, dict(stand_ins)), unit=rate == 0)
    moved = [(w - stand_ins[id(p)]) / (rate or 1.0) for w, p in zip(before, tensors, strict=True)]
    return problem.parameters.flatten(moved).to(_at_least_float32(problem))


def _at_least_float32(problem: Problem) -> Tensor:
    """A tensor on the device of the weights whose dtype holds an update: theirs, not half precision."""
    dtype = torch.promote_types(problem.weights.dtype, torch.float32)
    return torch.empty(0, dtype=dtype, device=problem.weights.device)


def _several(optimizers: Any) -> list[Optimizer]:
    several = list(optimizers) if isinstance(optimizers, list | tuple) else [optimizers]
    wrong = next((o for o in several if not isinstance(o, Optimizer)), None)
    if wrong is not None or not several:
        kind = type(wrong).__name__ if several else "nothing"
        raise InputError(f"direction is of type {kind}: 'gradient', a flat vector (d,) or an optimizer is needed")
    return [unwrapped(optimizer) for optimizer in several]


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside a wrapper that holds it as `.optimizer` (Accelerate's).

    Raises:
        InputError: a wrapper that computes gradients of its own (this toolkit's MethodOptimizer).
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if isinstance(getattr(optimizer, "base", None), Optimizer):
        raise InputError(
            f"{type(optimizer).__name__} steps along gradients of its own, not along that of L: give its base optimizer"
        )
    return optimizer


def _shadow(optimizer: Optimizer, stand_ins: dict[int, Any]) -> Optimizer:
    """A copy of the optimizer over the stand-ins of its parameters, without the hooks and the scheduler on it.

    A parameter that has none is not part of w: its copy has no gradient and stays. Moments are brought to the dtype of
    their parameter's stand-in.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            stand_ins.setdefault(id(p), p.detach().clone())
    attributes = {k: v for k, v in vars(optimizer).items() if k != "step" and not k.endswith("_hooks")}
    shadow = object.__new__(type(optimizer))
    shadow.__dict__.update(copy.deepcopy(attributes, stand_ins))
    for p, state in shadow.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.is_floating_point() and name != "step":
                state[name] = value.to(p.dtype)
    return shadow


def _step(shadow: Optimizer, *, unit: bool) -> None:
    """Its step, without the hooks on all optimizers; `unit` sets the learning rates to one."""
    if isinstance(shadow, torch.optim.SparseAdam):
        raise InputError(
            "SparseAdam steps along sparse gradients alone, and that of L is dense: give torch.optim.Adam, or another "
            "optimizer of dense gradients"
        )
    step = type(shadow).step
    step = step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[attr-defined]
    closure = inspect.signature(step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(
            f"{type(shadow).__name__} calls the closure itself: its update takes more than one gradient; choose an "
            "optimizer whose step() needs none (SGD, Adam, AdamW, RMSprop, Muon, ...)"
        )
    for group in shadow.param_groups if unit else ():
        group["lr"] = torch.ones_like(group["lr"]) if isinstance(group["lr"], Tensor) else 1.0
    step(shadow)
