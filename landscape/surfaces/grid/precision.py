"""What a lower precision does to the values of a grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from landscape.problem.problem import Problem
from landscape.problem.widened import widened
from landscape.surfaces.directions.directions import Directions
from landscape.surfaces.grid.evaluation import GridEvaluation


def precision_errors(
    problem: Problem, evaluation: GridEvaluation, plane: Directions, axes: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Loss as the surface has it beside the native one: at the center, beside it, at the axes' ends and the corners.

    Native is the dtype of the network; of one that computes in half precision float32 where that is possible. Nothing
    where the surface itself is native, and not in half precision.
    """
    choice = replace(evaluation.choice, precision="native", points_per_launch=1)
    with widened(problem) as wide:
        if wide is problem and evaluation.choice.precision == "native":
            return []
        center, vectors = plane.center.to(wide.weights), [v.to(wide.weights) for v in plane.vectors]
        native = GridEvaluation({"": wide}, center, vectors, choice)
        points = _points(axes)
        pairs = zip(points, _losses(evaluation, points), _losses(native, points), strict=True)
        return [
            {"point": list(p), "loss": a, "native": b, "relative_error": abs(a - b) / max(abs(b), 1e-12)}
            for p, a, b in pairs
        ]


def _points(axes: Sequence[np.ndarray]) -> list[tuple[float, ...]]:
    center = (0.0,) * len(axes)
    along = []
    for i, axis in enumerate(axes):
        middle = int(np.argmin(np.abs(axis)))
        for j in sorted({0, max(middle - 1, 0), min(middle + 1, len(axis) - 1), len(axis) - 1}):
            along.append((*center[:i], float(axis[j]), *center[i + 1 :]))
    corners = itertools.product(*((float(a[0]), float(a[-1])) for a in axes))
    return list(dict.fromkeys([center, *corners, *along]))


def _losses(evaluation: GridEvaluation, points: Sequence[Sequence[float]]) -> list[float]:
    with evaluation.opened():
        return evaluation(points)[:, 0, 0].tolist()
