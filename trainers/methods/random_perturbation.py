"""Random weight perturbation (RWP): the gradient at randomly perturbed weights.

Papers: Bisla, Wang, Choromanska 2022, arXiv 2201.08025 (LPF-SGD); Li, Tao, Yang, Huang, He 2022, arXiv 2211.11489
(RWP). Official implementation: nblt/RWP.
As there: the noise of an entry is Gaussian with standard deviation sigma times the norm of its filter.
Deviations from it: an entry of a bias or of a norm's scale is its own filter (there: the norm of the whole tensor); the
mixture with the clean gradient uses one batch (there: two, on two devices).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.ball.scaling import Scaling
from landscape.registry import register
from trainers.method.method import Method, Pass, State, Step, require
from trainers.method.mixing import leave_mixture
from trainers.method.sharded import normal_like


@register(
    "random-perturbation",
    source="sigma 0.01: nblt/RWP, arXiv 2211.11489; alpha 1 (its mixture: 0.5)",
    cost="1 forward + 1 backward; 2 of each with alpha below 1",
    statistics="the first pass: at alpha = 1 the only one, at the perturbed weights",
)
@dataclass(frozen=True)
class RandomPerturbation(Method):
    """Descend along the gradient at w + epsilon, epsilon_i = sigma T_i z_i with standard normal z.

    With alpha < 1: along (1 - alpha) g(w) + alpha g(w + epsilon).

    Args:
        sigma: standard deviation of the noise, in units of T.
        alpha: weight of the gradient at the perturbed weights.
        scaling: T: filterwise (norm of the filter), elementwise (|w|), layerwise (norm of the tensor) or identity.
    """

    sigma: float = 0.01
    alpha: float = 1.0
    scaling: str = "filterwise"

    def __post_init__(self) -> None:
        require(self.sigma >= 0, f"sigma must be >= 0, received {self.sigma}: the authors' value is 0.01")
        require(0 <= self.alpha <= 1, f"alpha must be in [0, 1], received {self.alpha}: 1 is the pure method")
        Scaling.of(self.scaling)

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient at w where it is mixed in, then the gradient at w + epsilon."""
        clean = gradient = None
        if self.alpha < 1:
            clean = step.backward()
            gradient = step.gradients()
        with step.perturbed(self._noise(step)):
            perturbed = step.backward()
        if clean is None or gradient is None:
            return perturbed
        leave_mixture(step, gradient, self.alpha)
        return clean

    def _noise(self, step: Step) -> list[Tensor]:
        generator = step.generator("random-perturbation", step.task.device)
        noise = [normal_like(p, generator).mul_(self.sigma) for p in step.parameters]
        scales = Scaling.of(self.scaling).tensors(step.layout, step.parameters)
        return noise if scales is None else list(torch._foreach_mul(noise, scales))
