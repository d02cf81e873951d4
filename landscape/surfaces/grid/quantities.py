"""What is computed at the points of a grid: the loss, the gradient's norm, the extreme eigenvalues of the Hessian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape import random
from landscape.ball.vectors import norm
from landscape.errors import InputError
from landscape.problem.problem import Problem
from landscape.surfaces.grid.evaluation import GridEvaluation, Point

NO_EXAMPLES = (InputError, RuntimeError, TypeError, IndexError)
"""What a loss raises that gives no value per example."""
TOLERANCE = 1e-3
"""Residual allowed, relative to the largest |lambda|."""


@dataclass(frozen=True)
class Quantity:
    """One or several numbers at every point.

    Attributes:
        number: in the journal.
        name: on the progress bar.
        columns: what the numbers are called; numbers of one name are draws of one quantity.
        tile: points that are computed together, always the same ones.
        evaluate: points -> (points, columns), on any device.
        opened: context in which `evaluate` is called.
    """

    number: int
    name: str
    columns: tuple[str, ...]
    tile: int
    evaluate: Callable[[Sequence[Point]], Tensor]
    opened: Callable[[], AbstractContextManager[None]] = nullcontext


def loss(evaluation: GridEvaluation, name: str = "surface") -> Quantity:
    """L and accuracy on every dataset. Cost: one forward pass per point and dataset."""
    columns = ("loss", "accuracy") * len(evaluation.problems)
    return Quantity(0, name, columns, evaluation.choice.points_per_launch, evaluation, evaluation.opened)


def gradient_norm(problem: Problem, evaluation: GridEvaluation) -> Quantity:
    """||grad L|| at every point. Cost: one forward and one backward pass per point."""

    def evaluate(points: Sequence[Point]) -> Tensor:
        return torch.stack([norm(problem.gradient(evaluation.at(p))) for p in points])

    return Quantity(1, "gradient norm", ("gradient_norm",), 1, evaluate)


def curvature(problem: Problem, evaluation: GridEvaluation, seed: int) -> Quantity:
    """lambda_min, lambda_max and the larger residual bound at every point, by Lanczos to 1e-3 of the largest |lambda|.

    The start vector of every point is drawn from the seed alone, so that neither the order of the points nor an
    interruption changes a value. nan where the loss or its Hessian is not finite.

    Cost: 20 to 60 Hessian-vector products per point, up to 150 where the first process took an inner eigenvalue for the
    smallest one.
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
            pairs = lanczos(operator, 1, **options)  # type: ignore[arg-type]
        except InputError:
            return [float("nan")] * 3
        return [float(min(pairs.values)), float(max(pairs.values)), float(max(pairs.residuals))]

    def evaluate(points: Sequence[Point]) -> Tensor:
        return torch.tensor([extremes(p) for p in points], dtype=torch.float64)

    return Quantity(2, "curvature", ("lambda_min", "lambda_max", "lambda_error"), 1, evaluate)


def sampling_noise(problem: Problem, evaluation: GridEvaluation, draws: int, seed: int) -> Quantity:
    """Errors of L - L(center) by the choice of examples: draws of one field over all points.

    e(p) = 1/n sum_i g_i (l_i(p) - l_i(0) - their mean), g_i standard normal and the same at all points: a Gaussian
    field with the covariance between points that the mean over n examples has (the multiplier bootstrap of
    Chernozhukov, Chetverikov and Kato 2013). nan where the loss gives no value per example, or the processes divide the
    examples.

    Cost: one forward pass per point.
    """
    multipliers = torch.randn(problem.examples, draws, generator=random.stream(seed, "other samples")).to(
        problem.weights.device
    )
    center: list[Tensor] = []

    def errors(point: Point) -> Tensor:
        if problem.distributed:
            raise InputError("the processes divide the examples")
        if not center:
            center.append(problem.losses(evaluation.at((0.0,) * len(point))))
        differences = problem.losses(evaluation.at(point)) - center[0]
        return (differences - differences.mean()) @ multipliers.double() / problem.examples

    def evaluate(points: Sequence[Point]) -> Tensor:
        try:
            return torch.stack([errors(p) for p in points])
        except NO_EXAMPLES:
            return torch.full((len(points), draws), torch.nan, dtype=torch.float64)

    return Quantity(3, "sampling noise", ("sampling_noise",) * draws, 1, evaluate)
