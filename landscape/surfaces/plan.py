"""What a surface's arguments come to: ranges, axes, and how its points are evaluated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from landscape.errors import InputError
from landscape.problem.problem import Problem
from landscape.surfaces.directions.directions import RADII, Directions
from landscape.surfaces.grid.axes import axes as axes_of
from landscape.surfaces.grid.axes import check_points
from landscape.surfaces.grid.choice import choose

FEWEST_DRAWS = 19
"""Of the noise: the largest of 19 is the 95% quantile."""


def check(arguments: Mapping[str, Any]) -> None:
    """Raise InputError for arguments that no surface can have."""
    dimensions, radius = arguments["dimensions"], arguments["radius"]
    if dimensions not in (1, 2):
        raise InputError(f"a surface has 1 or 2 dimensions, received {dimensions}")
    if radius is not None and not (radius > 0 and math.isfinite(radius)):
        raise InputError(f"radius must be a positive number, received {radius}")
    check_draws(arguments.get("noise_draws", 0))
    grid = arguments["grid"]
    check_points([grid] * dimensions if isinstance(grid, int) else grid)
    if radius is not None and arguments["ranges"] is not None:
        raise InputError("radius and ranges were both given: give one of them")


def check_draws(draws: int) -> None:
    """Raise InputError for a number of draws that has no 95% quantile."""
    if draws != 0 and draws < FEWEST_DRAWS:
        raise InputError(f"noise_draws={draws}: a 95% quantile needs at least {FEWEST_DRAWS} draws; 0 for none")


def check_axes(arguments: Mapping[str, Any]) -> None:
    """Raise InputError for axes that no directions can have; those through checkpoints bring ranges of their own."""
    ranges, dimensions = arguments["ranges"], arguments["dimensions"]
    if ranges is None and arguments["directions"] in ("trajectory", "checkpoints"):
        return
    if ranges is not None and len(ranges) != dimensions:
        raise InputError(f"{len(ranges)} ranges for {dimensions} directions: give (low, high) for each")
    suggested = ranges or [(-1.0, 1.0)] * dimensions
    axes_of(arguments["grid"], suggested, spacing=arguments["spacing"], center=arguments["center"])


def spans(plane: Directions, arguments: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(low, high) of every axis."""
    ranges, radius = arguments["ranges"], arguments["radius"]
    if ranges is not None:
        if len(ranges) != len(plane):
            raise InputError(f"{len(ranges)} ranges for {len(plane)} directions: give (low, high) for each")
        return [(float(low), float(high)) for low, high in ranges]
    if radius is None and plane.ranges is not None:
        return list(plane.ranges)
    radius = float(RADII.get(plane.unit, 1.0) if radius is None else radius)
    return [(-radius, radius)] * len(plane)


def header(
    problems: Mapping[str, Problem],
    plane: Directions,
    arguments: Mapping[str, Any],
    batch_size: int | None,
    points_per_launch: int | None,
    loss: float,
) -> dict[str, Any]:
    """Axes and choice, by the loss at the center: what a resumed run keeps."""
    axes = axes_of(arguments["grid"], spans(plane, arguments), spacing=arguments["spacing"], center=arguments["center"])
    choice = choose(
        problems,
        plane.center,
        plane.vectors,
        math.prod(len(a) for a in axes),
        batch_size=batch_size,
        points_per_launch=points_per_launch,
        precision=arguments["precision"],
        loss=loss,
    )
    return {"axes": [a.tolist() for a in axes], "choice": asdict(choice)}
