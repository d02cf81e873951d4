"""WSAM: sharpness as a weighted regularizer.

Paper: Yue, Jiang, Ye, Gao, Liu, Zhang 2023, arXiv 2305.15817. Official implementation: intelligent-machine-learning/
dlrover. As there: the sharpness term is decoupled, a plain gradient step after the base optimizer's.
Deviations from it: BatchNorm statistics are kept in the second pass without changing momenta; weights are restored by
copying; a step that fp16 skips has no second update either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from landscape.ball.perturbation import ascent
from landscape.registry import register
from trainers.method.method import Context, Method, Pass, State, Step, Task, require
from trainers.method.mixing import leave_mixture


@register(
    "wsam",
    source="rho 0.05, gamma 0.9: class of the authors' code in dlrover, arXiv 2305.15817",
    cost="2 forward + 2 backward",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class WSAM(Method):
    """Minimize L + gamma / (1 - gamma) (L(w + epsilon) - L(w)), the second term by a step of its own.

    The base optimizer gets g1; then w <- w - lr gamma / (1 - gamma) (g2 - g1). gamma = 1/2 is SAM for plain SGD.

    Args:
        rho: radius of the ball.
        gamma: weight of sharpness, in [0, 1); its factor is gamma / (1 - gamma).
        decoupled: sharpness has its own step; otherwise the base optimizer gets (1 - a) g1 + a g2 with a = gamma /
            (1 - gamma), as GNP has it.
    """

    rho: float = 0.05
    gamma: float = 0.9
    decoupled: bool = True

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}: the authors' radius is 0.05")
        require(0 <= self.gamma < 1, f"gamma must be in [0, 1), received {self.gamma}: the authors' value is 0.9")

    @property
    def factor(self) -> float:
        """Weight of the sharpness term, gamma / (1 - gamma)."""
        return self.gamma / (1 - self.gamma)

    def init(self, task: Task, context: Context) -> State:
        """Nothing is remembered; the second step needs a learning rate."""
        known = task.optimizer is not None or context.lr > 0
        require(
            known or not self.decoupled,
            "wsam takes a step of its own and knows no learning rate: give Task the optimizer, or Context the lr",
        )
        return {}

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient at w, which is left, and the gradient at w + epsilon, for `after_step`."""
        clean = step.backward()
        gradient = step.gradients()
        with step.perturbed(ascent(gradient, self.rho)):
            step.backward()
        if self.decoupled:
            step.memory["sharpness"] = list(torch._foreach_sub(step.gradients(), gradient))
            step.leave(gradient)
        else:
            leave_mixture(step, gradient, self.factor)
        return clean

    def after_step(self, step: Step, state: State) -> None:
        """Take the second step, w <- w - lr gamma / (1 - gamma) (g2 - g1)."""
        if not self.decoupled:
            return
        rates = _rates(step)
        with torch.no_grad():
            for parameter, gradient in zip(step.parameters, step.memory["sharpness"], strict=True):
                rate = rates.get(id(parameter), 0.0 if rates else step.context.lr)
                parameter.sub_(gradient * (rate * self.factor))


def _rates(step: Step) -> dict[int, float]:
    """The optimizer's learning rate of each parameter, by identity; empty without an optimizer."""
    groups = [] if step.task.optimizer is None else step.task.optimizer.param_groups
    return {id(p): group["lr"] for group in groups for p in group["params"]}
