"""Eigen-SAM: SAM whose perturbation is turned towards the top eigenvector of the Hessian.

Paper: Luo, Truong, Pham, Harandi, Phung, Le 2024, arXiv 2501.12666. Official implementation: RitianLuo/EigenSAM.
As there: the perturbation is not normalized again after the turn, so that it is a little longer than rho; the
eigenvector is that of the batch at hand, by a few power iterations from the one before.
Deviations from it: a product with the Hessian is a difference of gradients over a distance of 0.01, one more pass each
(there: double backward over a graph of the batch, in evaluation mode; here BatchNorm normalizes with the batch, as in
the passes that are perturbed); the eigenvector is there from the first step on (there: after `every` steps of an epoch,
never in a shorter one, and until then the perturbation is rho g, without its norm).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.ball.perturbation import ascent
from landscape.ball.vectors import dot, norm, rejection
from landscape.registry import register
from trainers.method.method import Context, Method, Pass, State, Step, Task, require
from trainers.method.sharded import normal_like

DISTANCE = 0.01
"""Of the difference of gradients along a unit vector: small beside the radii, large beside float32's rounding."""


@register(
    "eigen-sam",
    source="rho 0.1, alpha 0.2, every 100 steps: README of RitianLuo/EigenSAM; power_steps 5: its code",
    cost="(2 + power_steps / every) forward + (2 + power_steps / every) backward",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class EigenSAM(Method):
    """SAM along the gradient turned towards the top eigenvector v: epsilon = rho (g^ + alpha sign(<g, v>) v_perp).

    g^ = g / ||g||, v_perp = v - <v, g^> g^. Every so many steps v comes from power iterations on the batch's Hessian:
    the eigenvalue of largest absolute value is found, whatever its sign.

    Memory of one gradient, saved with the checkpoint.

    Args:
        rho: radius of the ball.
        alpha: strength of the turn; 0 is SAM, at more cost.
        every: steps between two estimates of the eigenvector.
        power_steps: power iterations of an estimate.
    """

    rho: float = 0.1
    alpha: float = 0.2
    every: int = 100
    power_steps: int = 5

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}")
        require(self.alpha >= 0, f"alpha must be >= 0, received {self.alpha}: the authors' value is 0.2, 0 is SAM")
        require(self.every >= 1, f"every must be at least 1 step, received {self.every}: the authors' value is 100")
        require(self.power_steps >= 1, f"power_steps must be at least 1, received {self.power_steps}")

    def init(self, task: Task, context: Context) -> State:
        """No eigenvector yet: the first step finds one."""
        return {"eigenvector": None, "age": 0}

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient at w, power iterations where they are due, the gradient at w + epsilon."""
        clean = step.backward()
        gradient = step.gradients()
        if state["eigenvector"] is None or state["age"] >= self.every:
            state["eigenvector"], state["age"] = self._eigenvector(step, state["eigenvector"], gradient), 0
        state["age"] += 1
        vector = ascent(state["eigenvector"], 1.0)  # a mean over groups or processes is shorter than 1
        turn = torch._foreach_mul(rejection(vector, gradient), self.alpha * torch.sign(dot(gradient, vector)))
        direction = torch._foreach_add(ascent(gradient, 1.0), turn)
        with step.perturbed(torch._foreach_mul(direction, self.rho)):
            step.backward()
        return clean

    def _eigenvector(self, step: Step, before: list[Tensor] | None, gradient: list[Tensor]) -> list[Tensor]:
        """Power iterations from the eigenvector before, or from a random vector where there is none.

        A parameter without a gradient has no part in it.
        """
        generator = step.generator("eigen-sam", step.task.device)
        vector = [normal_like(p, generator) if id(p) in step.reached else torch.zeros_like(p) for p in step.parameters]
        if before is not None:
            there = norm(before) > 0  # without curvature the last one was zero
            vector = [torch.where(there, b, v) for b, v in zip(before, vector, strict=True)]
        for _ in range(self.power_steps):
            with step.perturbed(ascent(vector, DISTANCE)):
                step.backward()
            vector = list(torch._foreach_sub(step.gradients(), gradient))
        return ascent(vector, 1.0)
