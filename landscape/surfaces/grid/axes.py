"""Axes of a surface: where on a line the loss is evaluated, with the center exactly on the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from landscape.errors import InputError

SPACINGS = ("linear", "log")
MOST_POINTS = 10_000_000
"""Of a grid: each is a pass over the examples, and takes some 300 bytes while they are computed."""
Range = tuple[float, float]


def axes(
    grid: int | Sequence[int],
    ranges: Sequence[Range],
    *,
    spacing: str = "linear",
    center: bool = True,
    decades: float = 3.0,
) -> list[np.ndarray]:
    """One float64 axis a direction.

    Args:
        grid: number of points of every axis, or one number per axis.
        ranges: (low, high) an axis, in the units of its direction.
        spacing: see `axis`.
        center: see `axis`.
        decades: see `axis`.
    """
    counts = [grid] * len(ranges) if isinstance(grid, int) else list(grid)
    if len(counts) != len(ranges):
        raise InputError(f"grid has {len(counts)} numbers for {len(ranges)} directions: give one number, or one each")
    check_points(counts)
    return [axis(n, r, spacing=spacing, center=center, decades=decades) for n, r in zip(counts, ranges, strict=True)]


def check_points(counts: Sequence[int]) -> None:
    """Raise InputError for a grid of more points than can be kept."""
    points = math.prod(counts)
    if points > MOST_POINTS:
        sizes = " x ".join(f"{n:,}" for n in counts)
        raise InputError(
            f"a grid of {sizes} = {points:,} points: at most {MOST_POINTS:,} are possible, each a pass over the "
            "examples; try 41 a side"
        )


def axis(points: int, span: Range, *, spacing: str = "linear", center: bool = True, decades: float = 3.0) -> np.ndarray:
    """Increasing coordinates (points,) from span[0] to span[1], both included.

    With `center`, 0 is one of them exactly: a symmetric range is divided evenly, a range that is longer on one side is
    divided evenly on either side of 0, so that both ends are where they were asked for.

    Args:
        points: how many.
        span: (low, high).
        spacing: "linear", or "log": geometric on either side of 0, over `decades` powers of ten.
        center: require 0 on the axis; False takes an even number of points across 0 as well.
        decades: ratio of the farthest to the nearest point of a log axis, as a power of ten.

    Raises:
        InputError: fewer than 2 points, an empty or unbounded range, an even number of points on a symmetric range
            with `center`, a range without 0 with `center`, an unknown spacing.
    """
    low, high = (float(v) for v in span)
    if isinstance(points, bool) or points != int(points) or points < 2:
        raise InputError(f"grid must be a whole number of at least 2 points, received {points}: try 21 or 41")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"a range must go from a smaller to a larger number, received ({low}, {high})")
    if spacing not in SPACINGS:
        raise InputError(f"spacing must be one of {', '.join(SPACINGS)}, received {spacing!r}")
    if not center and spacing == "linear":
        return np.linspace(low, high, points)
    if not low <= 0 <= high:
        raise InputError(f"the range ({low}, {high}) leaves out 0, the trained weights: widen it or pass center=False")
    if center and low == -high and points % 2 == 0:
        raise InputError(
            f"an even grid ({points}) does not contain the trained weights: use {points + 1}, or pass center=False "
            "(--no-center)"
        )
    below = _points_below(points, low, high)
    above = points - 1 - below if center else points - below
    left, right = _side(-low, below, spacing, decades), _side(high, above, spacing, decades)
    return np.concatenate([-left[::-1], [0.0] if center else [], right])


def _points_below(points: int, low: float, high: float) -> int:
    if low == 0:
        return 0
    if high == 0:
        return points - 1
    if points < 3:
        raise InputError(f"a range on both sides of 0 needs at least 3 points, received {points}")
    return min(max(round((points - 1) * -low / (high - low)), 1), points - 2)


def _side(length: float, points: int, spacing: str, decades: float) -> np.ndarray:
    """Distances from 0, increasing, the last exactly `length`."""
    if points == 0:
        return np.zeros(0)
    if spacing == "linear":
        return np.linspace(0, length, points + 1)[1:]
    return np.append(length * 10 ** np.linspace(-decades, 0, points)[:-1], length)
