"""RST: randomized sharpness-aware training.

Paper: Zhao, Zhang, Hu 2022, arXiv 2203.09962. Official implementation: JustNobody0204/Submission-AAAI2023 (JAX).
The six scheduling functions are those of the official code; "trigonometric" is ours (version 1 of the paper names such
a family, its formula was not recovered). As there: the draw depends on the seed and the step alone, equal on all
processes; steps of the learning rate's warm-up are SGD steps.
As there too: piecewise schedules switch at the first t > p T, t counted from 0, so that the first piece has the step at
p T as well.
Deviations from it: t / T is the share of the budget that is spent; a zero gradient gives a zero perturbation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from landscape.ball.perturbation import ascent
from landscape.errors import unknown
from landscape.registry import register
from trainers.method.method import Context, Method, Pass, State, Step, Task, require

SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda p, t: p,
    "piecewise1": lambda p, t: 0.0 if t <= p else 1.0,
    "piecewise2": lambda p, t: 1.0 if t <= p else 0.0,
    "piecewise3": lambda p, t: p if t <= 0.5 else 1 - p,
    "linear1": lambda p, t: 2 * p * t if p <= 0.5 else 2 * p - 1 + 2 * (1 - p) * t,
    "linear2": lambda p, t: p + (1 - 2 * p) * t,
    "trigonometric": lambda p, t: p + (1 - 2 * p) * (1 - math.cos(math.pi * t)) / 2,
}
"""Probability of a SAM step as a function of the parameter p and of t / T."""

MEANS: dict[str, Callable[[float], float]] = {
    "constant": lambda p: p,
    "piecewise1": lambda p: 1 - p,
    "piecewise2": lambda p: p,
    "piecewise3": lambda p: 0.5,
    "linear1": lambda p: p,
    "linear2": lambda p: 0.5,
    "trigonometric": lambda p: 0.5,
}
"""Mean of the probability over the run: the expected passes per step are one more."""


@register(
    "rst",
    source="rho 0.05: Zhao 2022, arXiv 2203.09962; linear1 with p 0.5: ours (half of SAM's extra cost, SAM late)",
    cost="(1 + mean_probability) forward + (1 + mean_probability) backward; 1 of each in the learning rate's warm-up",
    statistics="the first pass, at the unperturbed weights",
    revision=2,
)
@dataclass(frozen=True)
class RST(Method):
    """A SAM step with probability p(t), else an SGD step, both through the same base optimizer.

    Args:
        rho: radius of the ball.
        p: parameter of the schedule, in [0, 1].
        p_schedule: p(t): constant (p), piecewise1 (0, then 1 after pT), piecewise2 (1, then 0 after pT),
            piecewise3 (p, then 1 - p after T/2), linear1 (rising, mean p), linear2 (from p to 1 - p), trigonometric
            (from p to 1 - p along half a cosine).
    """

    rho: float = 0.05
    p: float = 0.5
    p_schedule: str = "linear1"

    needs_progress = True

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}: the paper's radius is 0.05")
        require(0 <= self.p <= 1, f"p is a probability, from 0 (SGD) to 1 (SAM), received {self.p}")
        if self.p_schedule not in SCHEDULES:
            raise unknown("p-schedule", self.p_schedule, SCHEDULES)

    def probability(self, context: Context) -> float:
        """p(t), 0 during the learning rate's warm-up."""
        if context.warming:
            return 0.0
        return min(max(SCHEDULES[self.p_schedule](self.p, context.progress), 0.0), 1.0)

    @property
    def mean_probability(self) -> float:
        """Mean of p(t) over the run, without warm-up."""
        return MEANS[self.p_schedule](self.p)

    def init(self, task: Task, context: Context) -> State:
        """No SAM step yet."""
        return {"sam_steps": 0}

    def columns(self, state: State) -> dict[str, float]:
        """Number of SAM steps so far."""
        return {"sam_steps": state["sam_steps"]}

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient at w; where the draw says so, the one at w + epsilon."""
        clean = step.backward()
        # A draw on the CPU: no device is waited for.
        if float(torch.rand((), generator=step.generator("rst"), dtype=torch.float32)) < self.probability(step.context):
            self._ascend(step)
            state["sam_steps"] += 1
        return clean

    def _ascend(self, step: Step) -> None:
        with step.perturbed(ascent(step.gradients(), self.rho)):
            step.backward()
