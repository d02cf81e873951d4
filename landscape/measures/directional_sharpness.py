"""Curvature along an update, relative to the slope along it."""

from __future__ import annotations

from dataclasses import dataclass

from landscape.ball.vectors import dot, norm
from landscape.curvature import operators
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.results.result import Result
from landscape.sharpness.checks import check_loss
from landscape.sharpness.updates import Direction, described, slope_of, update_direction


@dataclass(frozen=True, kw_only=True)
class DirectionalSharpness(Result):
    """Directional sharpness.

    Attributes:
        value: d'Hd / d'g; negative where the loss bends down along d.
        curvature: d'Hd / d'd.
        slope: d'g.
        length: ||d||.
        loss: L(w).
    """

    value: float
    curvature: float
    slope: float
    length: float
    loss: float


@measure(
    "directional_sharpness",
    label="Directional sharpness",
    meaning="Curvature along the update over the slope along it: to second order, steps beyond 2 / this raise "
    "the loss.",
    unit="1 / step",
    flat="small",
)
def directional_sharpness(
    problem: Problem,
    *,
    direction: Direction = "gradient",
    hvp: str = "double-backward",
    seed: int = 0,
) -> DirectionalSharpness:
    """Curvature along an update over the slope along it.

    lambda_dir = d'Hd / d'g: L(w - eta d) = L(w) - eta d'g + eta^2 / 2 d'Hd + O(eta^3) exceeds L(w) beyond 2 /
    lambda_dir. For d = g a mean of the eigenvalues, weighed by the squared components of g: at most lambda_max(H); for
    d = P^-1 g at most lambda_max(P^-1 H). For other directions (momentum) neither bounds it, since d'g may be small.

    Args:
        problem: L.
        direction: d: "gradient", a flat vector (d,), or a torch optimizer (or a list of several), see
            `critical_sharpness`.
        hvp: "double-backward", or "differences" for models without second derivative.
        seed: draws nothing; for uniformity.

    Returns:
        DirectionalSharpness with `value`, `slope`, `curvature`.

    Raises:
        InputError: d'g <= 0, weights, loss or gradient not finite, a direction of another shape, an optimizer of other
            parameters, a model without second derivative.

    Cost: 2 forward passes, 2 backward passes and 1 Hessian-vector product.
    Source: Pan 2022 (arXiv 2306.00204); Roulet 2024 (arXiv 2407.06183); Kalra 2026 (arXiv 2601.16979), definition 2.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> round(landscape.directional_sharpness(problem).value, 6)
        2.0
    """
    loss, gradient = problem.loss_and_gradient()
    check_loss(loss)
    d = update_direction(problem, direction, gradient)
    slope, length = slope_of(problem, d, gradient), norm(d)
    unit = d / length.to(d)
    operator = operators.hessian(problem, hvp=hvp)
    curvature = float(dot(unit, operator.matvec(unit)))
    return DirectionalSharpness(
        value=curvature * float(length) ** 2 / slope,
        curvature=curvature,
        slope=slope,
        length=float(length),
        loss=float(loss),
        arguments={"direction": described(direction)},
        provenance=operator.facts(),
    )
