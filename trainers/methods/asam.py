"""ASAM: adaptive sharpness-aware minimization.

Paper: Kwon, Kim, Park, Choi 2021, arXiv 2102.11600. Official implementation: SamsungLabs/ASAM.
Deviations from it: eta is 0.01 (its class; its example script uses 0); BatchNorm statistics move once a step (there:
twice); gradients are not overwritten by T g; weights are restored by copying; a zero gradient gives a zero
perturbation.
"""

from __future__ import annotations

from dataclasses import dataclass

from landscape.ball.perturbation import ascent
from landscape.ball.scaling import Scaling
from landscape.errors import unknown
from landscape.registry import register
from trainers.method.method import Method, Pass, State, Step, require

NORMALIZED = ("weights", "all", "unperturbed-biases")


@register(
    "asam",
    source="rho 0.5, eta 0.01: Kwon 2021, arXiv 2102.11600 (CIFAR-10; rho 1 for CIFAR-100 and ImageNet)",
    cost="2 forward + 2 backward",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class ASAM(Method):
    """SAM in a ball that scales with the weights: epsilon = rho T^2 g / ||T g||, T = diag(|w| + eta).

    The radius means something else in each variant: about 2.0 with normalize="all" corresponds to 0.5 with "weights".

    Args:
        rho: radius of the ellipsoid.
        eta: added to every |w| that is part of T; any value above 0 makes the invariance under rescaling approximate.
        normalize: "weights" (the authors' code: tensors whose name contains "weight", norm scales included; T = 1 on
            everything else), "all" (T = |w| + eta everywhere: invariant at eta = 0) or "unperturbed-biases" (biases
            stay where they are: invariant at eta = 0 too).
    """

    rho: float = 0.5
    eta: float = 0.01
    normalize: str = "weights"

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}: the paper's radius is 0.5")
        require(self.eta >= 0, f"eta must be >= 0, received {self.eta}: the paper's value is 0.01")
        if self.normalize not in NORMALIZED:
            raise unknown("choice of normalize", self.normalize, NORMALIZED)

    @property
    def scaling(self) -> Scaling:
        """T_w, as the measures of adaptive sharpness take it."""
        if self.normalize == "weights":
            return Scaling("asam-official", eta=self.eta)
        return Scaling("elementwise", "scaled" if self.normalize == "all" else "fixed", self.eta)

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient at w, then the gradient at w + epsilon."""
        clean = step.backward()
        scales = self.scaling.tensors(step.layout, step.parameters)
        with step.perturbed(ascent(step.gradients(), self.rho, scales)):
            step.backward()
        return clean
