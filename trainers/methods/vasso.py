"""VaSSO: SAM along a running mean of the gradients.

Paper: Li and Giannakis 2023, arXiv 2309.15639. Official implementation: BingcongLi/VaSSO.
As there: the mean starts with the first gradient, and takes in the gradient of a step before it is perturbed along.
Deviations from it: weights are restored by copying (there the perturbation is subtracted); BatchNorm statistics move
once a step (there: twice); no epsilon in the norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from landscape.ball.perturbation import ascent
from landscape.registry import register
from trainers.method.method import Context, Method, Pass, State, Step, Task, require


@register(
    "vasso",
    source="theta 0.9: configuration of BingcongLi/VaSSO, arXiv 2309.15639; rho 0.05: likewise (0.2 for WRN-28-10)",
    cost="2 forward + 2 backward",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class VaSSO(Method):
    """SAM along d <- (1 - theta) d + theta g, which varies less from batch to batch: epsilon = rho d / ||d||.

    Memory of one gradient, saved with the checkpoint.

    Args:
        rho: radius of the ball.
        theta: weight of the newest gradient in the running mean; 1 is SAM.
    """

    rho: float = 0.05
    theta: float = 0.9

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}")
        require(0 < self.theta <= 1, f"theta must be in (0, 1], received {self.theta}: the code has 0.9, 1 is SAM")

    def init(self, task: Task, context: Context) -> State:
        """No mean yet."""
        return {"mean": None}

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient at w, then the gradient at w + epsilon."""
        clean = step.backward()
        gradient, mean = step.gradients(), state["mean"]
        state["mean"] = gradient if mean is None else list(torch._foreach_lerp(mean, gradient, self.theta))
        with step.perturbed(ascent(state["mean"], self.rho)):
            step.backward()
        return clean
