"""The curvature that a picture shows: second differences of its losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def lowest_shown(loss: np.ndarray, axes: Sequence[np.ndarray], gram: np.ndarray) -> np.ndarray:
    """Smallest curvature of the picture among the unit directions of its line or plane, at every point.

    The second differences H of the loss with respect to the coordinates, at an edge those of the point beside it; see
    `lowest_curvature`.

    Args:
        loss: (x,) or (x, y).
        axes: coordinates of every axis.
        gram: inner products G of the directions, (axes, axes).

    Returns:
        The shape of `loss`; nan beside losses that are not finite, on axes of fewer than three points, and where the
        directions are parallel.
    """
    hessian = np.empty((*loss.shape, len(axes), len(axes)))
    with np.errstate(invalid="ignore", over="ignore"):
        for i, axis in enumerate(axes):
            hessian[..., i, i] = _second(loss, axis, i)
        if len(axes) == 2:
            mixed = np.full(loss.shape, np.nan)
            if min(loss.shape) > 1:
                mixed = np.gradient(np.gradient(loss, axes[0], axis=0), axes[1], axis=1)
            hessian[..., 0, 1] = hessian[..., 1, 0] = mixed
    return lowest_curvature(hessian, gram)


def lowest_curvature(hessian: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Smallest eigenvalue of G^(-1/2) H G^(-1/2), nan where H is not finite or G is singular: (..., k, k) -> (...)."""
    values, basis = np.linalg.eigh(gram)
    known = np.asarray(np.isfinite(hessian).all((-2, -1)))
    if values[0] <= 1e-12 * values[-1] or not known.any():
        return np.full(known.shape, np.nan)
    root = (basis / np.sqrt(values)) @ basis.T
    whitened = root @ np.where(known[..., None, None], hessian, 0) @ root
    return np.where(known, np.linalg.eigvalsh(whitened)[..., 0], np.nan)


def _second(loss: np.ndarray, axis: np.ndarray, number: int) -> np.ndarray:
    """Second difference along an axis of unequal steps."""
    if len(axis) < 3:
        return np.full(loss.shape, np.nan)
    along, steps = np.moveaxis(loss, number, -1), np.diff(axis)
    slopes = np.diff(along) / steps
    inner = 2 * np.diff(slopes) / (steps[1:] + steps[:-1])
    whole = np.concatenate([inner[..., :1], inner, inner[..., -1:]], -1)
    return np.moveaxis(whole, -1, number)
