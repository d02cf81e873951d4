"""How a parameter or a buffer scales, and what follows where it takes part in two roles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.invariance.rescaling.units import ANY, Units

LARGEST_TIED = 100_000
"""Entries of a tensor up to which each of them may get a label, where it is a layer's weight and used otherwise too."""


@dataclass
class Use:
    """How one parameter or buffer scales: tensor' = tensor * product of factor ** exponent, labels broadcast to it.

    Attributes:
        factors: (labels, exponent), labels broadcastable to the tensor.
        epsilon: None, or that of a BatchNorm whose running variance this is: var' = c^2 (var + eps) - eps.
        raw: the parameter takes part as a tensor of its own, not as the weight of a layer.
    """

    factors: list[tuple[Tensor, int]]
    epsilon: float | None = None
    raw: bool = False

    def signed_units(self) -> np.ndarray:
        """Every unit that scales a part of the tensor, negative where it divides."""
        parts = [torch.unique(labels[labels != ANY]) * exponent for labels, exponent in self.factors]
        return torch.cat([p[p != 0] for p in parts]).numpy() if parts else np.zeros(0, dtype=np.int64)


def entries(units: Units, use: Use) -> Tensor:
    """Labels of every entry of a tensor that scales so, broadcastable to it."""
    whole = torch.zeros((), dtype=torch.int64)
    for labels, exponent in use.factors:
        whole = units.product(whole, _power(labels, exponent))
    return whole


def agree(units: Units, one: Use, other: Use, shape: torch.Size) -> bool:
    """Make a tensor scale alike in two roles, such as an embedding's table that is the last layer's weight too.

    Where every factor belongs to one axis, r_i c_j = r'_i c'_j for all i and j says that r_i / r'_i is the same for
    all i, c'_j / c_j for all j, and that both are equal. Where one takes part entry by entry, so does the other.

    Returns:
        False where it cannot be said: nothing is tied then.
    """
    if one.epsilon is not None or other.epsilon is not None:
        return False
    if one.raw or other.raw:
        if shape.numel() > LARGEST_TIED:
            return False
        units.tie(entries(units, one), entries(units, other))
        return True
    factors = [
        (_axis(labels, len(shape)), _power(labels, sign * e))
        for u, sign in ((one, 1), (other, -1))
        for labels, e in u.factors
    ]
    if any(axis is None for axis, _ in factors):
        return False
    whole = torch.zeros((), dtype=torch.int64)
    for axis in range(max(len(shape), 1)):
        ratio = torch.zeros((), dtype=torch.int64)
        for labels in (labels.reshape(-1) for there, labels in factors if there == axis):
            ratio = units.product(ratio, labels)
        whole = units.product(whole, units.reduce(ratio, range(ratio.dim())).reshape(()))
    units.fix(whole)
    return True


def _power(labels: Tensor, exponent: int) -> Tensor:
    return torch.where(labels == ANY, ANY, labels * exponent)


def _axis(labels: Tensor, dims: int) -> int | None:
    """The axis of a tensor of so many along which the labels differ; None where there are several."""
    long = [dims - labels.dim() + i for i, size in enumerate(labels.shape) if size > 1]
    return None if len(long) > 1 else (long or [0])[0]
