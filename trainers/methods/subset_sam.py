"""Subset SAM: the perturbation of a random part of the batch.

Paper: Bahri, Mobahi, Tay 2021, arXiv 2110.08529. Official implementation: none found.
Deviations: BatchNorm statistics move in the full pass, which is at w + epsilon, unless s = 1: a clean full pass is not
paid for their sake; the reported training loss is that of the same pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from landscape.ball.perturbation import ascent
from landscape.registry import register
from trainers.method.method import Method, Pass, State, Step, require


@register(
    "subset-sam",
    source="s 0.25, rho 0.15: Bahri 2021, arXiv 2110.08529 (T5 1.1; 0.05 is SAM's radius for small vision networks)",
    cost="(1 + s) forward + (1 + s) backward",
    statistics="the full pass, at w + epsilon (at s = 1 the first pass)",
)
@dataclass(frozen=True)
class SubsetSAM(Method):
    """SAM whose perturbation is the gradient of s B random examples; the descent gradient is that of the whole batch.

    Args:
        rho: radius of the ball.
        s: share of the batch that the perturbation is computed from.
    """

    rho: float = 0.15
    s: float = 0.25

    needs_batch = True

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}: the paper's radius is 0.15")
        require(0 < self.s <= 1, f"s is a share of the batch, above 0 and at most 1, received {self.s}")

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient of a random part at w, then that of the whole batch at w + epsilon."""
        k = max(1, round(self.s * step.size))
        whole = k == step.size
        first = step.backward(rows=None if whole else step.sample(k, "subset-sam"), statistics=whole)
        with step.perturbed(ascent(step.gradients(), self.rho)):
            full = step.backward()
        return first if whole else full
