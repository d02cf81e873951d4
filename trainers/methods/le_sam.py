"""LE-SAM (loss-equated SAM): the radius that raises the linearized loss by a fixed amount.

Paper: Wang, Liu, Xie, Gao 2026, arXiv 2605.10183. Official implementation: smithgun2005/LE-SAM-ICML2026.
As there: the radius is bounded, without which it grows without end as the gradient vanishes; the budget rises from 0
over 10 of 200 epochs and falls along half a cosine to 0 over the last 40.
Deviations from it: the schedule moves with every step (there: every epoch) and is a share of the run; no element-wise
radii, no selection of examples and no subtraction of the clean gradient, which the code offers and leaves off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from landscape.ball.perturbation import ascent
from landscape.ball.vectors import norm, ratio
from landscape.registry import register
from trainers.method.method import Method, Pass, State, Step, require


@register(
    "le-sam",
    source="sigma 0.35, rho_max 0.3, rise 10 and fall from 160 of 200 epochs: code of smithgun2005/LE-SAM-ICML2026 "
    "(its README takes rho_max 999, no bound)",
    cost="2 forward + 2 backward",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class LESAM(Method):
    """SAM with the radius rho = min(sigma / ||g||, rho_max): epsilon = rho g / ||g|| raises the loss by sigma.

    To first order, that is: SAM's rise of rho ||g|| is constant, and what varies is the curvature.

    Args:
        sigma: budget: the rise of the linearized loss.
        rho_max: largest radius.
        rise: share of the run over which sigma grows linearly from 0.
        fall: share of the run from which on sigma falls to 0, along half a cosine; 1 keeps it.
    """

    sigma: float = 0.35
    rho_max: float = 0.3
    rise: float = 0.05
    fall: float = 0.8

    needs_progress = True

    def __post_init__(self) -> None:
        require(self.sigma >= 0, f"sigma must be >= 0, received {self.sigma}: the authors' value is 0.35")
        require(self.rho_max > 0, f"rho_max must be above 0, received {self.rho_max}: the authors' value is 0.3")
        need = "0.05 and 0.8 are the authors'"
        require(
            0 <= self.rise <= self.fall <= 1,
            f"0 <= rise <= fall <= 1 is needed, received rise {self.rise} and fall {self.fall}: {need}",
        )

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient at w, then the gradient at w + epsilon."""
        clean = step.backward()
        gradient = step.gradients()
        radius = ratio(self.sigma * self.share(step.context.progress), norm(gradient)).clamp(max=self.rho_max)
        with step.perturbed(ascent(gradient, radius)):
            step.backward()
        return clean

    def share(self, progress: float) -> float:
        """Share of sigma at this share of the run."""
        if progress < self.rise:
            return progress / self.rise
        if progress <= self.fall:
            return 1.0
        return (1 + math.cos(math.pi * (progress - self.fall) / (1 - self.fall))) / 2
