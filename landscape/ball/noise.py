"""The expected rise of the loss under random perturbations of a scaled ball: average sharpness, PAC-Bayes sigma."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.ball.ascent import Ball
from landscape.ball.vectors import norm
from landscape.errors import InputError
from landscape.problem.problem import Problem
from landscape.progress import Bar
from landscape.random import normal, stream, uniform
from landscape.sharpness.subsets import positive


@dataclass(frozen=True)
class Noise:
    """Draws of xi, the same whenever they are asked for: N(0, I) for p = 2, uniform in [-1, 1)^d for p = inf.

    Attributes:
        ball: p and T; the perturbation of radius rho is rho T xi.
        draws: number of perturbations.
        antithetic: they come in pairs xi, -xi, which cancels the linear part of the loss exactly.
        seed: seed of the draws; draw i does not depend on how many there are.
    """

    ball: Ball
    draws: int
    antithetic: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ball.p not in (2.0, math.inf):
            raise InputError(f"p={self.ball.p:g}: the noise is Gaussian (p=2) or uniform (p=inf)")
        least = 4 if self.antithetic else 2
        if positive("draws", self.draws) < least or (self.antithetic and self.draws % 2):
            kind = "an even number" if self.antithetic else "a number"
            raise InputError(f"draws={self.draws}: {kind} of at least {least} is needed for a standard error")

    def rms_norm(self, dimension: int) -> float:
        """sqrt(E ||T xi||^2): norm of the perturbation at radius 1; sqrt(d) for T = 1 and p = 2."""
        scale = self.ball.scale
        total = dimension if scale is None else float(norm(scale)) ** 2
        return math.sqrt(total / (3 if math.isinf(self.ball.p) else 1))

    def perturbations(self, like: Tensor, purpose: str) -> Iterator[tuple[Tensor, ...]]:
        """T xi, (d,), in independent units: pairs of opposite signs or single draws."""
        draw = uniform if math.isinf(self.ball.p) else normal
        for i in range(self.draws // 2 if self.antithetic else self.draws):
            epsilon = self.ball.epsilon(draw(like, stream(self.seed, f"{purpose} {i}")))
            yield (epsilon, -epsilon) if self.antithetic else (epsilon,)

    def rises(self, problem: Problem, radii: Sequence[float], purpose: str, bar: Bar) -> tuple[Tensor, Tensor]:
        """L(w + rho T xi) of every independent unit, averaged within the unit.

        Returns:
            Losses (units, rho) in float64 on the device, and the number of perturbed losses at each radius that were
            not finite, (rho,). A unit that holds one is not finite either.

        Cost: `draws` forward passes a radius.
        """
        rows, failed = [], torch.zeros(len(radii), dtype=torch.float64, device=problem.weights.device)
        for unit in self.perturbations(problem.weights, purpose):
            losses = [[problem.loss(problem.weights + rho * epsilon) for rho in radii] for epsilon in unit]
            table = torch.stack([torch.stack(row) for row in losses])
            failed = failed + (~torch.isfinite(table)).sum(dim=0)
            rows.append(table.mean(dim=0))
            bar.advance(len(unit) * len(radii))
        return torch.stack(rows), failed
