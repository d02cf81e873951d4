"""AMP: adversarial model perturbation.

Paper: Zheng, Zhang, Mao 2021, arXiv 2010.04925. Official implementation: hiyouga/AMP-Regularizer.
As there: each tensor has its own ball, steps are not normalized, and every gradient is clipped to norm 50 before it is
used. Deviations from it: BatchNorm statistics move once a step (there: in every pass); weights are restored by copying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.ball.vectors import norm, norms, ratio
from landscape.registry import register
from trainers.method.method import Method, Pass, State, Step, require


@register(
    "amp",
    source="radius 0.5, inner_lr 1, 1 inner step, gradients clipped at 50: hiyouga/AMP-Regularizer, arXiv 2010.04925",
    cost="(1 + inner_steps) forward + (1 + inner_steps) backward",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class AMP(Method):
    """Descend along the gradient at w + delta; delta ascends with plain steps, each tensor in a ball of its own.

    delta_p <- projection of delta_p + inner_lr g_p onto ||delta_p|| <= radius, inner_steps times. The step is not
    normalized: the perturbation fades with the gradient, and the global radius is at most radius sqrt(#tensors).

    Args:
        radius: radius of the ball of every tensor, the paper's epsilon.
        inner_lr: step size of the ascent, the paper's zeta.
        inner_steps: ascent steps.
        inner_clip: largest norm of any gradient, that of the descent too.
    """

    radius: float = 0.5
    inner_lr: float = 1.0
    inner_steps: int = 1
    inner_clip: float = 50.0

    def __post_init__(self) -> None:
        require(self.radius >= 0, f"radius must be >= 0, received {self.radius}: the authors' value is 0.5")
        require(self.inner_lr >= 0, f"inner-lr must be >= 0, received {self.inner_lr}: the authors' value is 1")
        require(self.inner_steps >= 1, f"inner-steps must be at least 1, received {self.inner_steps}")
        require(self.inner_clip > 0, f"inner-clip must be above 0, received {self.inner_clip}: the authors' is 50")

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient at w, then one at w + delta for every ascent step."""
        clean = step.backward()
        delta = [torch.zeros_like(p) for p in step.parameters]
        for _ in range(self.inner_steps):
            moved = torch._foreach_add(delta, self._clipped(step.gradients()), alpha=self.inner_lr)
            delta = self._projected(moved)
            with step.perturbed(delta):
                step.backward()
        step.leave(self._clipped(step.gradients()))
        return clean

    def _clipped(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        factor = _shrinking(self.inner_clip, norm(gradients))
        return list(torch._foreach_mul(list(gradients), factor))

    def _projected(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        factors = _shrinking(self.radius, norms(tensors)).unbind()
        return [t * f.to(t.dtype) for t, f in zip(tensors, factors, strict=True)]


def _shrinking(limit: float, norm: Tensor) -> Tensor:
    """min(1, limit / norm), 1 for a norm of zero."""
    return torch.where(norm > limit, ratio(limit, norm), torch.ones_like(norm))
