"""Functional SAM: SAM without the part that changes the loss's slope at the logits.

Paper: Singh, Mobahi, Agarwala, Dauphin 2025, arXiv 2502.02407. Official implementation: none that is public.
The gradient of SAM is J(w + epsilon)' u(w + epsilon), J the Jacobian of the logits of the batch and u the slope of the
loss at them: the perturbation moves both. Here u stays that of w. To first order the step follows (H - G) g, the
Hessian without its Gauss-Newton part G: see the measure `functional_sharpness`.
Deviations: none known; the paper's second variant, whose perturbation is preconditioned by Adam's second moment, is not
here, since its normalization could not be read for certain.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.ball.perturbation import ascent
from landscape.registry import register
from trainers.method.method import Method, Pass, State, Step, require


@register(
    "functional-sam",
    source="rho 0.05: SAM's (arXiv 2502.02407 chooses it by network)",
    cost="2 forward + 2 backward",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class FunctionalSAM(Method):
    """SAM whose perturbation acts on the network's Jacobian alone: J(w + epsilon)' u(w), epsilon = rho g / ||g||.

    J is the Jacobian of the logits, u the slope of the loss at the logits. A network whose logits are linear in its
    weights is trained as by SGD.

    Args:
        rho: radius of the ball.
    """

    rho: float = 0.05

    needs_batch = True

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}")

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient at w, which leaves the slopes u; then that of <u, logits> at w + epsilon."""
        slopes: list[Tensor] = []

        def loss(result: Pass) -> Tensor:
            value = result.loss if result.example_losses is None else result.example_losses
            slope = torch.autograd.grad(value.sum(), result.logits, retain_graph=True, allow_unused=True)[0]
            if slope is None:
                require(False, "functional-sam takes the loss's slope at the logits: give Task a loss of the outputs")
            slopes.append(slope)
            return value

        def function(result: Pass) -> Tensor:
            products = slopes[0] * result.logits
            if result.example_losses is None:
                return products.sum()
            return products.flatten(1).sum(1) if products.dim() > 1 else products

        clean = step.backward(objective=loss)
        with step.perturbed(ascent(step.gradients(), self.rho)):
            step.backward(objective=function)
        return clean
