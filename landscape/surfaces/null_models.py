"""What minima a surface would have by chance: by the choice of examples, by rounding, by its mere roughness."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from landscape import random

if TYPE_CHECKING:
    from landscape.surfaces.merge_tree import MergeTree
    from landscape.surfaces.paths import LossPath
    from landscape.surfaces.result import Surface

LEVEL = 0.95
_ROUNDING = 20
"""Units in the last place, as in `landscape.surfaces.picture_checks`."""


def upper(draws: np.ndarray) -> np.ndarray:
    """The 95% quantile over the first axis as an order statistic, the k-th of n with k / (n + 1) >= 0.95."""
    ordered = np.sort(draws, axis=0)
    return ordered[min(math.ceil(LEVEL * (len(draws) + 1)), len(draws)) - 1]


def sampling(loss: np.ndarray, noise: np.ndarray | None, levels: np.ndarray) -> np.ndarray:
    """(level,) 95% quantile over draws e of 2 max |e| where L or L + e is at most the level; nan where unknown.

    Args:
        loss: (x,) or (x, y).
        noise: (draw, x) or (draw, x, y): errors of L by the choice of examples.
        levels: at which the minima die.
    """
    if noise is None or not np.isfinite(noise).any():
        return np.full(len(levels), np.nan)
    flat, errors = loss.reshape(-1), np.nan_to_num(noise.reshape(len(noise), -1))
    flat = np.where(np.isfinite(flat), flat, np.inf)
    lower, size = np.minimum(flat, flat + errors), np.abs(errors)
    # For each draw the points in the order of their lower value: the largest error up to a level is a running maximum.
    bounds = np.empty((len(noise), len(levels)))
    for row, (values, sizes) in enumerate(zip(lower, size, strict=True)):
        order = np.argsort(values)
        up_to = np.searchsorted(values[order], levels, side="right")
        bounds[row] = 2 * np.maximum.accumulate(sizes[order])[np.maximum(up_to, 1) - 1]
    return upper(bounds)


def rounding(result: Surface | LossPath, tree: MergeTree) -> np.ndarray:
    """(minimum,) persistence that rounding can make: what was measured of it, else 20 units in the last place.

    Those of the loss at the saddle, in the dtype of the weights or of the surface.
    """
    dtype = torch.finfo(getattr(torch, result.provenance.get("dtype", "float32")))
    heights = np.abs(np.where(np.isfinite(tree.death), tree.death, tree.birth))
    measured = getattr(result, "rounding", None)
    if measured is not None:
        return np.full_like(heights, measured)
    precision = getattr(result, "choice", {}).get("precision", "native")
    return _ROUNDING * {"tf32": 2.0**-10, "bfloat16": 2.0**-7}.get(precision, dtype.eps) * heights


def surrogates(loss: np.ndarray, count: int, seed: int) -> tuple[list[np.ndarray], float]:
    """Random surfaces of the same spectrum, and the share of the variance that lies around the trend.

    The trend, a quadratic function fitted by least squares, stays. The rest is reflected at its edges, so that no jump
    between opposite edges adds roughness, gets random phases in its Fourier transform, and is cut back: a stationary
    field with the power of the rest at every wavelength, whose directions are those of the axes. None where a loss is
    not finite: there is no spectrum.
    """
    if not np.isfinite(loss).all() or not count:
        return [], math.nan
    trend = _trend(loss)
    rest = loss - trend
    share = float(rest.var() / loss.var()) if loss.var() > 0 else 0.0
    reflected = rest
    for axis in range(loss.ndim):
        reflected = np.concatenate([reflected, np.flip(reflected, axis)], axis)
    power, generator = np.abs(np.fft.fftn(reflected)), random.stream(seed, "surfaces of the same spectrum")
    drawn = []
    for _ in range(count):
        # The phases of white noise have the symmetry that makes the field real.
        white = torch.randn(reflected.shape, generator=generator, dtype=torch.float64).numpy()
        turned = power * np.exp(1j * np.angle(np.fft.fftn(white)))
        field = np.fft.ifftn(turned).real[tuple(slice(n) for n in loss.shape)]
        drawn.append(trend + field)
    return drawn, share


def _trend(loss: np.ndarray) -> np.ndarray:
    """The quadratic function of the grid's indices that is nearest to the loss."""
    steps = [np.linspace(-1, 1, n) for n in loss.shape]
    grid = [g.reshape(-1) for g in np.meshgrid(*steps, indexing="ij")]
    columns = [np.ones(loss.size), *grid, *(a * b for i, a in enumerate(grid) for b in grid[i:])]
    basis = np.stack(columns, -1)
    return (basis @ np.linalg.lstsq(basis, loss.reshape(-1), rcond=None)[0]).reshape(loss.shape)
