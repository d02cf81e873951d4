"""What else is known at a point of a surface: the gradient's norm, the extreme eigenvalues of the Hessian."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from landscape import random
from landscape.ball.vectors import norm
from landscape.errors import InputError
from landscape.problem.problem import Problem
from landscape.surfaces.grid.evaluation import GridEvaluation, Point
from landscape.surfaces.grid.run import Phase

TOLERANCE = 1e-3
"""Residual allowed, relative to the largest |lambda|. At 1e-2 Lanczos took an inner eigenvalue for the smallest one."""


def gradient_phase(problem: Problem, evaluation: GridEvaluation) -> Phase:
    """||grad L|| at every point. Cost: one forward and one backward pass a point."""

    def evaluate(points: Sequence[Point]) -> Tensor:
        return torch.stack([norm(problem.gradient(evaluation.at(p))) for p in points])

    return Phase(1, "gradient norm", 1, 1, evaluate)


def curvature_phase(problem: Problem, evaluation: GridEvaluation, seed: int) -> Phase:
    """lambda_min, lambda_max and the larger residual bound at every point, by Lanczos to 1e-3 of the largest |lambda|.

    The start vector of every point is drawn from the seed alone, so that neither the order of the points nor an
    interruption changes a value. nan where the loss or its Hessian is not finite.

    Cost: 15 to 60 Hessian-vector products a point.
    """
    from landscape.curvature.krylov import lanczos
    from landscape.curvature.operators import hessian

    def extremes(point: Point) -> list[float]:
        w = evaluation.at(point)
        if not problem.loss(w).isfinite():
            return [float("nan")] * 3
        operator = hessian(problem, w)
        generator = random.stream(seed, "curvature of a point")
        options = {"which": "BE", "tol": TOLERANCE, "relative_to": "spectrum", "generator": generator}
        try:
            found = lanczos(operator.matvec, operator.like, 1, **options)  # type: ignore[arg-type]
        except InputError:
            return [float("nan")] * 3
        return [float(min(found.values)), float(max(found.values)), float(max(found.residuals))]

    def evaluate(points: Sequence[Point]) -> Tensor:
        return torch.tensor([extremes(p) for p in points], dtype=torch.float64)

    return Phase(2, "curvature", 3, 1, evaluate)
