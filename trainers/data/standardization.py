"""Mean 0 and variance 1 over the training set: the moments of arrays of any size, and what they make of examples.

Networks of others were trained on images that were normalized with other moments, which `normalization` names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from landscape.errors import InputError, unknown
from trainers.data import Arrays

CHUNK_BYTES = 64 << 20

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "mnist": ((0.1307,), (0.3081,)),
    "half": ((0.5,), (0.5,)),
    "as-is": ((0.0,), (1.0,)),
    "none": ((0.0,), (1.0,)),
}
"""Means and deviations, of values in [0, 1], that public networks were trained with; one number is for all channels.

imagenet is torchvision's, cifar10 that of kuangliu/pytorch-cifar and its many descendants (whose deviations are means
over images, not those of the set), cifar100 that of weiaicunzai/pytorch-cifar100, mnist that of PyTorch's examples.
half takes [0, 1] to [-1, 1], as timm's inception models do; as-is, or none, takes examples as they are (uint8
in units of 255).
"""
NORMALIZING = ("normalization", "mean", "std")
"""Options of every data set."""


def standardized(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x - mean) / std in float32, uint8 in units of 255."""
    unit = x.to(torch.float32)
    if x.dtype == torch.uint8:
        unit = unit / 255
    return (unit - mean) / std


def normalization(
    arrays: Arrays, normalization: str | None = None, mean: Any = None, std: Any = None
) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation that were asked for, shaped for the examples; None where none were.

    Args:
        arrays: the examples.
        normalization: of ``NORMALIZATIONS``.
        mean: one number, or one a channel (or feature), in place of a name.
        std: likewise.

    Raises:
        InputError: an unknown name, a name and numbers, one of two, numbers that are none or of another count.
    """
    if normalization is None and mean is None and std is None:
        return None
    if (normalization is not None) == (mean is not None or std is not None) or (mean is None) != (std is None):
        raise InputError(
            "examples are normalized with normalization=NAME, or with mean=... and std=...: give one of both"
        )
    if normalization is not None:
        if normalization not in NORMALIZATIONS:
            raise unknown("normalization", str(normalization), NORMALIZATIONS)
        mean, std = NORMALIZATIONS[normalization]
    channels = arrays.x_train.shape[1]
    shape = (channels, 1, 1) if arrays.x_train.ndim == 4 else (channels,)
    return _shaped("mean", mean, shape), _shaped("std", std, shape)


def _shaped(name: str, values: Any, shape: tuple[int, ...]) -> Tensor:
    try:
        numbers = torch.tensor(values, dtype=torch.float32).flatten()
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}={values!r}: a number, or one a channel as (0.5,0.5,0.5), is needed") from error
    if len(numbers) not in (1, shape[0]) or not numbers.isfinite().all() or (name == "std" and not (numbers > 0).all()):
        raise InputError(f"{name}={values!r}: one finite number or {shape[0]}, one a channel, are needed; std above 0")
    return numbers.expand(shape[0]).reshape(shape).clone()


def require_unit_range(name: str, key: str, x: Any) -> None:
    """Raise InputError for images of other values than a `normalization` is meant for, those in [0, 1]."""
    if not isinstance(x, Tensor) or x.dtype == torch.uint8 or x.ndim != 4:
        return
    ends = [(float(chunk.min()), float(chunk.max())) for chunk in _chunks(x)]
    low, high = min((e[0] for e in ends), default=0.0), max((e[1] for e in ends), default=0.0)
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"{name}: {key} has values from {low:.4g} to {high:.4g}, and a normalization is of uint8 or of values in "
            "[0, 1]: divide them by 255, or take them as they are, normalization=as-is"
        )


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
