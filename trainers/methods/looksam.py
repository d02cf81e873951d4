"""LookSAM: a SAM step every k steps, whose sharpness direction is reused in between.

Paper: Liu, Mai, Chen, Hsieh, You 2022, arXiv 2203.02714. Official implementation: none (yong-6/LookSAM holds a README).
As in the paper: projections and norms run over all parameters together. Third-party ports project tensor by tensor
(rollovd, kozistr), decompose along the weights (Leminhbinh0209), or run both passes at every step and double the
gradient (kozistr): none of this is inherited. Deviations: none known; a direction of zero adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from landscape.ball.perturbation import ascent
from landscape.ball.vectors import norm, ratio, rejection
from landscape.registry import register
from trainers.method.method import Context, Method, Pass, State, Step, Task, require


@register(
    "looksam",
    source="k 5, alpha 0.7: Liu 2022, arXiv 2203.02714; rho 0.1: two third-party ports for CIFAR",
    cost="(1 + 1 / k) forward + (1 + 1 / k) backward",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class LookSAM(Method):
    """SAM at steps 0, k, 2k, ...; in between one pass: g + alpha (||g|| / ||g_v||) g_v.

    g_v = g2 - <g2, g> g / ||g||^2 is the part of the last SAM gradient g2 orthogonal to the gradient g of that step.

    Memory of one gradient. Saved with the checkpoint: g_v and its age.

    Args:
        rho: radius of the ball.
        k: steps between two SAM steps.
        alpha: strength of the reused direction, relative to the gradient.
    """

    rho: float = 0.1
    k: int = 5
    alpha: float = 0.7

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}")
        require(self.k >= 1, f"k must be at least 1 step, received {self.k}: 1 is SAM, the paper's value is 5")
        require(self.alpha >= 0, f"alpha must be >= 0, received {self.alpha}: the paper's value is 0.7")

    def init(self, task: Task, context: Context) -> State:
        """No direction yet: the first step is a SAM step."""
        return {"direction": None, "age": 0}

    def compute(self, step: Step, state: State) -> Pass:
        """A SAM step that stores g_v, or one pass that reuses it."""
        clean = step.backward()
        gradient = step.gradients()
        if state["direction"] is None or state["age"] >= self.k:
            with step.perturbed(ascent(gradient, self.rho)):
                step.backward()
            state["direction"], state["age"] = rejection(step.gradients(), gradient), 1
            return clean
        direction = state["direction"]
        factor = self.alpha * ratio(norm(gradient), norm(direction))
        step.leave(torch._foreach_add(gradient, torch._foreach_mul(direction, factor)))
        state["age"] += 1
        return clean
