"""SAM: sharpness-aware minimization.

Paper: Foret, Kleiner, Mobahi, Neyshabur 2020, arXiv 2010.01412. Official implementation: google-research/sam (JAX).
Deviations from it: a zero gradient gives a zero perturbation instead of nan; weight decay is outside the perturbed loss
unless chosen otherwise; one perturbation for the whole batch unless m-groups or one per process are chosen (there: one
per device).
"""

from __future__ import annotations

from dataclasses import dataclass

from landscape.ball.perturbation import ascent
from landscape.registry import register
from trainers.method.method import Method, Pass, State, Step, require


@register(
    "sam",
    source="rho 0.05: Foret 2020, arXiv 2010.01412 (CIFAR and ImageNet ResNets; 0.1 to 0.2 for ViT)",
    cost="2 forward + 2 backward",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class SAM(Method):
    """Descend along the gradient at the worst point of a ball: epsilon = rho g / ||g||, then grad L(w + epsilon).

    The norm runs over all parameters.

    Args:
        rho: radius of the ball.
    """

    rho: float = 0.05

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}: the paper's radius is 0.05")

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient at w, then the gradient at w + epsilon."""
        clean = step.backward()
        with step.perturbed(ascent(step.gradients(), self.rho)):
            step.backward()
        return clean
