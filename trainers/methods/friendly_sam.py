"""Friendly SAM (F-SAM): SAM along the gradient's noise.

Paper: Li, Zhou, He, Cheng, Huang 2024, arXiv 2403.12350. Official implementation: nblt/F-SAM.
As there: the running mean that is subtracted is that of the steps before, and starts with the first gradient, where the
perturbation is SAM's. (One port updates the mean with the gradient that has the mean subtracted: not inherited.)
Deviations from it: weights are restored by copying; no element-wise radii.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from landscape.ball.perturbation import ascent
from landscape.registry import register
from trainers.method.method import Context, Method, Pass, State, Step, Task, require


@register(
    "friendly-sam",
    source="sigma 1, lmbda 0.9: class of nblt/F-SAM, arXiv 2403.12350 (its scripts: 0.95, 0.6); rho 0.05: SAM's",
    cost="2 forward + 2 backward",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class FriendlySAM(Method):
    """SAM that perturbs along d = g - sigma m, the part of the gradient that a running mean m does not explain.

    epsilon = rho d / ||d||; then m <- lmbda m + (1 - lmbda) g. m stands for the full gradient.

    Memory of one gradient, saved with the checkpoint.

    Args:
        rho: radius of the ball.
        sigma: share of the running mean that is taken out; 0 is SAM.
        lmbda: decay of the running mean.
    """

    rho: float = 0.05
    sigma: float = 1.0
    lmbda: float = 0.9

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}")
        require(self.sigma >= 0, f"sigma must be >= 0, received {self.sigma}: the authors' value is 1, 0 is SAM")
        require(0 <= self.lmbda < 1, f"lmbda must be in [0, 1), received {self.lmbda}: the authors' value is 0.9")

    def init(self, task: Task, context: Context) -> State:
        """No mean yet."""
        return {"mean": None}

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient at w, then the gradient at w + epsilon."""
        clean = step.backward()
        gradient, mean = step.gradients(), state["mean"]
        if mean is None:
            direction, state["mean"] = gradient, gradient
        else:
            direction = list(torch._foreach_sub(gradient, mean, alpha=self.sigma))
            state["mean"] = list(torch._foreach_lerp(gradient, mean, self.lmbda))
        with step.perturbed(ascent(direction, self.rho)):
            step.backward()
        return clean
