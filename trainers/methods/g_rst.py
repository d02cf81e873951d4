"""G-RST: RST with an adjustable degree of regularization.

Paper: Zhao, Zhang, Hu 2022, arXiv 2203.09962. Official implementation: JustNobody0204/Submission-AAAI2023 (JAX).
Deviations from it: gradients are mixed as in the paper of GNP unless `normalized` (see trainers/methods/gnp.py; it
decides what G-RST means, as alpha differs from 1), and those listed in trainers/methods/rst.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from landscape.ball.perturbation import ascent
from landscape.registry import register
from trainers.method.method import Step, require
from trainers.method.mixing import leave_mixture
from trainers.methods.rst import RST


@register(
    "g-rst",
    source="rho 0.05: Zhao 2022, arXiv 2203.09962; alpha 1 / mean p: derived from its equation of the expected step",
    cost="(1 + mean_probability) forward + (1 + mean_probability) backward; 1 of each in the learning rate's warm-up",
    statistics="the first pass, at the unperturbed weights",
    revision=2,
)
@dataclass(frozen=True)
class GRST(RST):
    """RST whose SAM steps descend along (1 - alpha) g1 + alpha g2.

    To first order the expected step penalizes the gradient's norm with p alpha rho: RST (alpha = 1) is SAM weakened by
    p, and alpha = 1 / mean p regularizes as SAM does. The gradient's variance grows with alpha.

    Args:
        rho: distance of the finite difference, the paper's r.
        alpha: weight of the perturbed gradient, gamma / r; default 1 / mean p.
        p: parameter of the schedule, in [0, 1].
        p_schedule: p(t): constant, piecewise1, piecewise2, piecewise3, linear1, linear2, trigonometric (see rst).
        normalized: mix the normalized first gradient, as the authors' code does.
    """

    rho: float = 0.05
    alpha: float | None = None
    p: float = 0.5
    p_schedule: str = "linear1"
    normalized: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None:
            require(self.alpha >= 0, f"alpha must be >= 0, received {self.alpha}: 1 is RST, 1 / p regularizes as SAM")

    @property
    def weight(self) -> float:
        """alpha, or 1 / mean p."""
        if self.alpha is not None:
            return self.alpha
        return 1 / self.mean_probability if self.mean_probability else 1.0

    def _ascend(self, step: Step) -> None:
        gradient = step.gradients()
        with step.perturbed(ascent(gradient, self.rho)):
            step.backward()
        leave_mixture(step, gradient, self.weight, self.normalized)
