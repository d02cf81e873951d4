"""What a lower precision does to the values of a grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from landscape.problem.problem import Problem
from landscape.surfaces.directions.directions import Directions
from landscape.surfaces.grid.evaluation import GridEvaluation


def precision_errors(
    problem: Problem, evaluation: GridEvaluation, plane: Directions, axes: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Loss in the native precision beside the surface's, at the center and at the corners."""
    points = [(0.0,) * len(axes), *itertools.product(*((float(a[0]), float(a[-1])) for a in axes))]
    choice = replace(evaluation.choice, precision="native", points_per_launch=1)
    native = GridEvaluation({"": problem}, plane.center, plane.vectors, choice)
    rows = []
    for point, here, there in zip(points, _losses(evaluation, points), _losses(native, points), strict=True):
        error = abs(here - there) / max(abs(there), 1e-12)
        rows.append({"point": list(point), "loss": here, "native": there, "relative_error": error})
    return rows


def _losses(evaluation: GridEvaluation, points: Sequence[Sequence[float]]) -> list[float]:
    with evaluation.opened():
        return evaluation(points)[:, 0, 0].tolist()
