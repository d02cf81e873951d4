"""Loss and hits of single examples, where an example is a class, or a sequence of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.problem.objective import IGNORED


def cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each example, (n,); of a sequence the mean over its targets that are not -100.

    Args:
        outputs: logits (n, classes) or (n, classes, length).
        targets: class indices (n,) or (n, length), or probabilities in the shape of the outputs.
        label_smoothing: share of the target spread evenly over the classes.
    """
    values = F.cross_entropy(outputs, targets, reduction="none", label_smoothing=label_smoothing)
    return mean_over_positions(values, targets)


def hits(outputs: Tensor, target: Any) -> Tensor | None:
    """Of each example whether its class is named, of a sequence the share of its targets that are named: (n,) float64.

    None where targets are not class indices that fit the outputs.
    """
    classes = isinstance(target, Tensor) and not target.is_floating_point() and outputs.dim() >= 2
    if not classes or target.shape != outputs.shape[:1] + outputs.shape[2:]:
        return None
    return mean_over_positions((outputs.argmax(dim=1) == target).double(), target)


def mean_over_positions(values: Tensor, targets: Tensor) -> Tensor:
    """(n, ...) -> (n,): the mean over an example's positions whose target counts; 0 where none does."""
    if values.dim() == 1:
        return values
    counts = (targets != IGNORED) if targets.shape == values.shape else torch.ones_like(values, dtype=torch.bool)
    return (values * counts).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp(min=1)
