"""What is measured of a checkpoint where nothing else is asked for, and the surface beside the measures."""

from __future__ import annotations

from trainers.requests import MeasureRequest

SURFACE = "surface"
DEFAULT_MEASURES = ("sam_sharpness", "adaptive_sharpness", "hessian_top_eigenvalues")


def surface_request(grid: int, radius: float, seed: int, directions: str = "gaussian") -> MeasureRequest:
    """The loss surface as one of the things that are wanted."""
    arguments = {"directions": directions, "radius": radius, "grid": grid, "seed": seed}
    return MeasureRequest(SURFACE, SURFACE, arguments)
