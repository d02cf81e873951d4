"""The step of an optimizer with its preconditioner held fixed: a linear iteration, and where it becomes unstable.

On L = 1/2 w'Hw a step with momentum beta, preconditioner P (a diagonal), learning rate eta and weight decay Gamma (a
diagonal) is linear in (w, m). Its spectral radius passes 1 at the eigenvalue -1, which it has for

    [P^-1 (H + Gamma) or P^-1 H + kappa Gamma] w = (2 kappa / eta) w,

coupled decay (added to the gradient) or decoupled decay (w <- (1 - eta Gamma) w). kappa depends on the momentum alone:

    m <- beta m + (1 - tau) g, w <- w - eta P^-1 m          kappa = (1 + beta) / (1 - tau)       heavy ball, RMSprop
    m <- beta m + g, w <- w - eta (g + beta m)              kappa = (1 + beta) / (1 + 2 beta)    Nesterov
    m <- beta m + (1 - beta) g, w <- w - eta P^-1 m         kappa = (1 + beta) / (1 - beta)      Adam, AdamW

For one decoupled gamma and all parameters the edge of lambda_max(P^-1 H) is 2 kappa / eta - kappa gamma: AdamW's decay
lowers it by gamma (1 + beta1) / (1 - beta1), not by gamma (Kalra 2026, arXiv 2601.16979, result 3, has gamma).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from landscape.errors import InputError
from landscape.problem.problem import Problem

Group = Mapping[str, Any]
Held = Mapping[str, Any]


@dataclass(frozen=True)
class FrozenStep:
    """A step of an optimizer as a linear iteration.

    Attributes:
        inverse: (d,) diagonal of P^-1, learning rates relative to `rate` included; 0 where a parameter is not moved.
        decay: (d,) what weight decay adds to P^-1 H: P^-1 Gamma if it is coupled, kappa Gamma if decoupled.
        kappa: see above.
        rate: eta, the largest learning rate of a group.
    """

    inverse: Tensor
    decay: Tensor
    kappa: float
    rate: float

    @property
    def edge(self) -> float:
        """2 kappa / eta: the largest eigenvalue of P^-1 H + decay at which the iteration is stable."""
        return 2 * self.kappa / self.rate if self.rate else math.inf


def frozen_step(problem: Problem, optimizer: Optimizer) -> FrozenStep:
    """The optimizer's step from its present state, over the parameters of a Problem.

    Raises:
        InputError: another optimizer than SGD, Adam, AdamW, RMSprop or Adagrad of torch; one that holds none of the
            parameters, has no state of one, maximizes, or whose groups differ in momentum.
    """
    kind = _KINDS.get(type(optimizer))
    if kind is None:
        raise InputError(
            f"{type(optimizer).__name__} has no diagonal preconditioner that is known here: give torch's SGD, Adam, "
            "AdamW, RMSprop or Adagrad (for Muon and sign descent see generalized_sharpness)"
        )
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    tensors = problem.parameters.own_tensors(problem.model)
    moved = [groups[id(p)] for p in tensors if id(p) in groups]
    if not moved:
        raise InputError(
            f"the {type(optimizer).__name__} holds none of the parameters of this Problem: build it from the "
            "parameters of the very model that the Problem has"
        )
    kappa, rate = _one_momentum(moved, kind.kappa), max(float(g["lr"]) for g in moved)
    inverses, decays = [], []
    for slot, p in zip(problem.parameters, tensors, strict=True):
        inverse = decay = torch.zeros(p.shape, dtype=torch.float64, device=p.device)
        if (group := groups.get(id(p))) is not None:
            share = float(group["lr"]) / rate if rate else 1.0
            p_inverse = _inverse(kind, optimizer.state.get(p, {}), group, slot.name, decay + 1)
            inverse = share * p_inverse
            gamma = float(group["weight_decay"])
            decoupled = kind.decoupled or bool(group.get("decoupled_weight_decay"))
            decay = decay + share * gamma * kappa if decoupled else inverse * gamma
        inverses.append(inverse)
        decays.append(decay)
    like, flatten = problem.weights, problem.parameters.flatten
    return FrozenStep(flatten(inverses).to(like), flatten(decays).to(like), kappa, rate)


def _one_momentum(groups: Sequence[Group], kappa: Callable[[Group], float]) -> float:
    if any(group.get("maximize") for group in groups):
        raise InputError("the optimizer maximizes: its steps go uphill and have no edge; give maximize=False")
    kappas = {kappa(group) for group in groups}
    if len(kappas) > 1:
        raise InputError(
            "the optimizer's groups differ in momentum: the edge is known for one momentum of all; choose the "
            "parameters of one group (parameters=)"
        )
    return kappas.pop()


def _inverse(kind: _Kind, held: Held, group: Group, name: str, ones: Tensor) -> Tensor:
    if kind.preconditioner is None:
        return ones
    if not held or not float(held.get("step", 1)):
        raise InputError(
            f"the optimizer has no state of {name}: its preconditioner comes with the first step; take steps, or load "
            "its state_dict"
        )
    return 1 / kind.preconditioner(held, group)


def _adam(held: Held, group: Group) -> Tensor:
    """(1 - beta1^t) (sqrt(v / (1 - beta2^t)) + eps): the correction of the mean is part of it."""
    beta1, beta2 = (float(b) for b in group["betas"])
    t = float(held["step"])
    v = held["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].double()
    return (1 - beta1**t) * ((v / (1 - beta2**t)).sqrt() + group["eps"])


def _rmsprop(held: Held, group: Group) -> Tensor:
    """Sqrt(v) + eps, v less the squared mean where it is centered."""
    v = held["square_avg"].double()
    return (v - held["grad_avg"].double().square() if group["centered"] else v).sqrt() + group["eps"]


def _adagrad(held: Held, group: Group) -> Tensor:
    """(1 + (t - 1) lr_decay) (sqrt(sum of g^2) + eps)."""
    slower = 1 + (float(held["step"]) - 1) * group["lr_decay"]
    return slower * (held["sum"].double().sqrt() + group["eps"])


def _sgd_kappa(group: Group) -> float:
    beta = float(group["momentum"])
    if beta == 0:
        return 1.0
    return (1 + beta) / (1 + 2 * beta) if group["nesterov"] else (1 + beta) / (1 - float(group["dampening"]))


def _adam_kappa(group: Group) -> float:
    beta = float(group["betas"][0])
    return (1 + beta) / (1 - beta)


@dataclass(frozen=True)
class _Kind:
    """What is known of a class of optimizers: kappa of a group, P of a parameter from its state (None: P = 1)."""

    kappa: Callable[[Group], float]
    preconditioner: Callable[[Held, Group], Tensor] | None = None
    decoupled: bool = False


_KINDS: dict[type[Optimizer], _Kind] = {
    SGD: _Kind(_sgd_kappa),
    Adam: _Kind(_adam_kappa, _adam),
    AdamW: _Kind(_adam_kappa, _adam, decoupled=True),
    RMSprop: _Kind(lambda group: 1 + float(group["momentum"]), _rmsprop),
    Adagrad: _Kind(lambda group: 1.0, _adagrad),
}
