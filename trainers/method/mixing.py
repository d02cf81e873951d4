"""The mixture of the gradients at w and at w + epsilon that GNP, G-RST, coupled WSAM and RWP descend along."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from landscape.ball.perturbation import ascent
from trainers.method.step import Step


def leave_mixture(step: Step, first: Sequence[Tensor], alpha: float, normalized: bool = False) -> None:
    """Leave (1 - alpha) first + alpha second, `second` being the gradient of the last pass.

    Args:
        step: whose gradient is replaced.
        first: the gradient of an earlier pass.
        alpha: weight of the second; 1 keeps it to the last bit.
        normalized: put first / ||first|| in the place of first.
    """
    if alpha == 1:
        return
    first = ascent(first, 1.0) if normalized else list(first)
    step.leave(list(torch._foreach_lerp(first, step.gradients(), alpha)))
