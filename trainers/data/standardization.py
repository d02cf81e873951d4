"""Mean 0 and variance 1 over the training set: the moments of arrays of any size, and what they make of examples."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from landscape.errors import InputError

CHUNK_BYTES = 64 << 20


def standardized(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x - mean) / std in float32, uint8 in units of 255."""
    unit = x.to(torch.float32)
    if x.dtype == torch.uint8:
        unit = unit / 255
    return (unit - mean) / std


def moments(name: str, key: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in float64, by the chunk; exact integer counts for uint8 images.

    Raises:
        InputError: for a NaN or an infinity.
    """
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    if x.dtype == torch.uint8 and x.ndim == 4:
        mean, variance = _byte_moments(x)
    else:
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        total, squares = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        scale = 255 if x.dtype == torch.uint8 else 1
        origin = x[:1].double().mean(axes, keepdim=True) / scale  # sums of squares around it cancel less
        for chunk in _chunks(x):
            deviation = chunk.double() / scale - origin
            total += deviation.sum(axes, keepdim=True)
            squares += deviation.square().sum(axes, keepdim=True)
        count = math.prod(x.shape[axis] for axis in axes)
        mean = (origin + total / count).squeeze(0)
        variance = (squares / count - (total / count).square()).squeeze(0)
    if not bool(torch.isfinite(variance).all()):
        raise InputError(f"{name}: {key} holds NaN or infinity: clean it first")
    # What rounding leaves of a constant feature's variance is not a scale.
    std = torch.where(variance > 1e-12 * mean.square(), variance, 1).sqrt()
    return mean.float(), std.float()


def _byte_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    counts = torch.zeros(x.shape[1], 256, dtype=torch.int64)
    for chunk in _chunks(x):
        for channel in range(x.shape[1]):
            counts[channel] += torch.bincount(chunk[:, channel].flatten().int(), minlength=256)
    weights = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = weights @ values
    variance = (weights * (values - mean[:, None]).square()).sum(1)
    return mean[:, None, None], variance[:, None, None]


def _chunks(x: Tensor) -> Iterator[Tensor]:
    rows = max(1, CHUNK_BYTES // max(1, 8 * math.prod(x.shape[1:])))
    for start in range(0, len(x), rows):
        yield x[start : start + rows]
