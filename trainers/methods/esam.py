"""ESAM: efficient sharpness-aware minimization.

Paper: Du, Yan, Feng, Zhou, Zhen, Goh, Tan 2021, arXiv 2110.03141. Official implementation: dydjw9/Efficient_SAM.
As there: the random subset of weights consists of whole tensors, and the perturbation has norm rho / beta.
Deviations from it: at least one tensor is perturbed and at least one example selected (there a cutoff by ">" selects
one example too few, none for batches of 2 or 3, which gives nan); the subset is drawn from a named stream for this step
(there: after a step for the next, from Python's global stream); the ranking forward is left out where gamma selects
every example; BatchNorm statistics move once a step (there: three times); weights are restored by copying.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.ball.perturbation import ascent
from landscape.registry import register
from trainers.method.method import Method, Pass, State, Step, require


@register(
    "esam",
    source="rho 0.05, beta 0.6, gamma 0.5: Du 2021, arXiv 2110.03141, and its run.sh for ResNet-18 (class: 1 and 1)",
    cost="(2 + gamma) forward + (1 + gamma) backward; the first backward without the weight gradients outside S, no "
    "ranking forward at gamma = 1",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class ESAM(Method):
    """SAM that perturbs a random subset of the tensors and descends on the examples that the perturbation hurts most.

    epsilon = (rho / beta) g_S / ||g_S|| with each tensor in S with probability beta; the gradient at w + epsilon is
    that of the gamma B examples with the largest l(w + epsilon) - l(w).

    Args:
        rho: radius of the ball; the perturbation's norm is rho / beta.
        beta: probability of a tensor to be perturbed.
        gamma: share of the batch that the gradient is taken of.
    """

    rho: float = 0.05
    beta: float = 0.6
    gamma: float = 0.5

    needs_batch = True

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}: the paper's radius is 0.05")
        require(0 < self.beta <= 1, f"beta must be in (0, 1], received {self.beta}: 1 perturbs every tensor")
        require(0 < self.gamma <= 1, f"gamma must be in (0, 1], received {self.gamma}: 1 takes the whole batch")

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient of a subset of tensors at w, a ranking at w + epsilon, the gradient there of the top part."""
        clean = step.backward(inputs=self._tensors(step))
        k = max(1, math.floor(self.gamma * step.size + 1e-9))
        with step.perturbed(ascent(step.gradients(), self.rho / self.beta)):
            rows = None
            if k < step.size:
                moved = step.forward()
                rows = step.largest(moved.losses - clean.losses, k)
            step.backward(rows=rows)
        return clean

    def _tensors(self, step: Step) -> list[Tensor]:
        generator = step.generator("esam")
        draws = torch.rand(len(step.parameters), generator=generator, dtype=torch.float32)
        keep = draws < self.beta if bool((draws < self.beta).any()) else draws == draws.min()
        return [p for p, kept in zip(step.parameters, keep.tolist(), strict=True) if kept]
