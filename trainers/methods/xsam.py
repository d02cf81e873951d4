"""XSAM (explicit SAM): descend from the highest point that a search between two gradients finds.

Paper: Chen and Zhou 2026, arXiv 2603.10048 (not X-SAM, arXiv 2601.10251). Official implementation: Cccjl219/XSAM.
As there: the angle is searched for on the first batch of an epoch, among alpha_max / alpha_step + 1 candidates at
distance rho_max, and kept for its other steps; the descent direction has the length of the last gradient.
Deviations from it: a cosine that rounding takes above 1 is that of parallel vectors (there: nan); what m-groups, or
processes with a perturbation each, find is averaged at the end of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.ball.perturbation import ascent
from landscape.ball.vectors import dot, norm
from landscape.registry import register
from trainers.method.method import Context, Method, Pass, State, Step, Task, require

PARALLEL = 1e-8
"""Sine below which two directions are one."""


@register(
    "xsam",
    source="rho 0.15, rho_max 0.3, alpha_max 2, alpha_step 0.1: README and train.py of Cccjl219/XSAM (CIFAR-100)",
    cost="(1 + steps + candidates / epoch) forward + (1 + steps) backward",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class XSAM(Method):
    """Descend along the great circle from v0 (the ascent's direction) over v1 (the gradient's at its end).

    v(alpha) = (sin((1 - alpha) theta) v0 + sin(alpha theta) v1) / sin(theta), theta the angle between v0 and v1. Once
    an epoch alpha is the candidate in 0, alpha_step, ..., alpha_max with the largest loss at w + rho_max v(alpha);
    every step descends along ||g1|| v(alpha), g1 the gradient at the end of the ascent. alpha = 1 is SAM.

    Args:
        rho: length of the whole ascent.
        rho_max: distance at which the candidates are compared.
        steps: of the ascent, each of length rho / steps.
        alpha: fixed, instead of searched for.
        alpha_max: largest candidate; beyond 1 the direction turns further than v1.
        alpha_step: distance of two candidates.
    """

    rho: float = 0.15
    rho_max: float = 0.3
    steps: int = 1
    alpha: float | None = None
    alpha_max: float = 2.0
    alpha_step: float = 0.1

    needs_batch = True

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}: the authors' value is 0.15")
        require(self.rho_max > 0, f"rho_max must be above 0, received {self.rho_max}: the authors' value is 0.3")
        require(self.steps >= 1, f"steps must be at least 1, received {self.steps}")
        require(self.alpha is None or self.alpha >= 0, f"alpha must be >= 0, received {self.alpha}: 1 is SAM")
        require(
            0 < self.alpha_step <= self.alpha_max,
            f"0 < alpha_step <= alpha_max is needed, received {self.alpha_step} and {self.alpha_max}",
        )

    @property
    def candidates(self) -> int:
        """Number of values of alpha that are compared once an epoch."""
        return 0 if self.alpha is not None else int(self.alpha_max / self.alpha_step + 1e-9) + 1

    def init(self, task: Task, context: Context) -> State:
        """SAM's direction, until the first step has searched."""
        alpha = torch.tensor(1.0 if self.alpha is None else self.alpha, dtype=torch.float64, device=task.device)
        return {"alpha": [alpha], "epoch": None}

    def compute(self, step: Step, state: State) -> Pass:
        """The ascent, the gradient at its end, the search where it is due, the direction."""
        clean = step.backward()
        path = ascent(step.gradients(), 1 / self.steps)
        for _ in range(self.steps - 1):
            with step.perturbed(torch._foreach_mul(path, self.rho)):
                step.backward()
            path = list(torch._foreach_add(path, ascent(step.gradients(), 1 / self.steps)))
        with step.perturbed(torch._foreach_mul(path, self.rho)):
            step.backward()
        last = step.gradients()
        arc = _Arc(ascent(path, 1.0), ascent(last, 1.0))
        if self.alpha is None and state["epoch"] != step.context.epoch:
            state["alpha"], state["epoch"] = [self._search(step, arc)], step.context.epoch
        step.leave(arc.at(state["alpha"][0], norm(last)))
        return clean

    def _search(self, step: Step, arc: _Arc) -> Tensor:
        """The candidate with the largest loss, 0-dim; without a host synchronization."""
        losses = []
        for i in range(self.candidates):
            with step.perturbed(arc.at(i * self.alpha_step, self.rho_max)):
                result = step.forward(statistics=False)
            losses.append(step.everywhere(result.losses).mean() if step.shared else result.loss)
        return torch.stack(losses).argmax().double() * self.alpha_step


class _Arc:
    """The great circle through two unit vectors."""

    def __init__(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        self.first, self.second = first, second
        self.theta = torch.arccos(dot(first, second))  # nan where rounding exceeds 1, and then not apart

    def at(self, alpha: float | Tensor, length: float | Tensor) -> list[Tensor]:
        """The point at this share of the angle, with this length; the mean where the two vectors are parallel."""
        sine = torch.sin(self.theta)
        apart = sine > PARALLEL
        sine = torch.where(apart, sine, torch.ones_like(sine))
        shares = [torch.sin((1 - alpha) * self.theta) / sine, torch.sin(alpha * self.theta) / sine]
        a, b = (torch.where(apart, share, torch.full_like(share, 0.5)) * length for share in shares)
        return [a.to(x) * x + b.to(x) * y for x, y in zip(self.first, self.second, strict=True)]
