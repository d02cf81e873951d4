"""Curvature along an update, relative to the slope along it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from landscape.ball.vectors import dot, norm
from landscape.curvature import operators
from landscape.curvature.products.differences import Operations
from landscape.errors import InputError
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.problem.widened import is_half, widened
from landscape.results.result import Result
from landscape.sharpness.checks import check_loss, displacement_error, resolution
from landscape.sharpness.half_precision import gradient_error, product_error, start_loss
from landscape.sharpness.second_difference import second_difference
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
        error_bound: of `value`: by truncation and rounding where it is made of losses; by half precision where a
            product is computed in it; None elsewhere.
        step: h of the second difference; nan where a product was computed.
        forwards: evaluations of the loss for it, that at w included; 0 where a product was computed.
        evaluated_in: dtype that the losses, or the product, were computed in; that of the gradient may be narrower.
    """

    value: float
    curvature: float
    slope: float
    length: float
    loss: float
    error_bound: float | None = None
    step: float = math.nan
    forwards: int = 0
    evaluated_in: str = ""

    @property
    def neighboring_start(self) -> float | None:
        """The step of the second difference."""
        return self.step if self.forwards else None


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
    start: float | None = None,
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
        start: with losses, `step` at neighboring weights.
        direction: d: "gradient", a flat vector (d,), or a torch optimizer (or a list of several), see
            `critical_sharpness`.
        hvp: "double-backward", "differences" (of gradients) for models without second derivative, or "losses": second
            differences along d from forward passes alone, for models where a product is too dear.
        seed: draws nothing; for uniformity.

    Returns:
        DirectionalSharpness with `value`, `slope`, `curvature`.

    Raises:
        InputError: d'g <= 0, weights, loss or gradient not finite, a direction of another shape, an optimizer of other
            parameters, a model without second derivative, a `start` that is not positive.

    With losses it is the curvature over the steps -h to h, to which kinks (ReLU, max pooling; `provenance` lists them)
    belong: 1 to 10% more than d'Hd of small ReLU networks, which knows no kinks, and more than `error_bound`.

    In bfloat16 and float16 losses are computed in float32 where that is possible, products as the network does.

    Cost: 2 forward passes, 2 backward passes and 1 Hessian-vector product. With losses 1 forward and 1 backward pass,
    and 5 to 7 forward passes, up to 14 where the first step is far off. In half precision one forward pass and two
    gradients (and products) over up to 64 examples more.
    Source: Pan 2022 (arXiv 2306.00204); Roulet 2024 (arXiv 2407.06183); Kalra 2026 (arXiv 2601.16979), definition 2.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> round(landscape.directional_sharpness(problem).value, 6)
        2.0
    """
    if start is not None and not (start > 0 and math.isfinite(start)):
        raise InputError(f"start={start:g}: a positive step is needed, or None")
    loss, gradient = problem.loss_and_gradient()
    check_loss(loss)
    d = update_direction(problem, direction, gradient)
    slope, length = slope_of(problem, d, gradient), float(norm(d))
    with widened(problem) as wide:
        turned = 0.0 if isinstance(direction, Tensor) else gradient_error(problem, wide, gradient)
        if hvp == "losses":
            found = _by_losses(problem, wide, loss, d, slope, start)
        else:
            found = _by_product(problem, wide, d, hvp)
        half = is_half(problem)
    value = found.curvature * length**2 / slope
    error = found.error * length**2 / slope + 2 * turned * abs(value)
    return DirectionalSharpness(
        value=value,
        curvature=found.curvature,
        slope=slope,
        length=length,
        loss=found.loss if found.forwards else float(loss),
        error_bound=error if half or found.forwards else None,
        step=found.step,
        forwards=found.forwards,
        evaluated_in=found.dtype,
        arguments={"direction": described(direction)},
        provenance=found.facts,
    )


@dataclass(frozen=True)
class _Curvature:
    """d'Hd / d'd, its error, and how it was computed."""

    curvature: float
    error: float
    dtype: str
    facts: dict[str, Any]
    loss: float = math.nan
    step: float = math.nan
    forwards: int = 0


def _by_product(problem: Problem, wide: Problem, d: Tensor, hvp: str) -> _Curvature:
    unit = d / norm(d).to(d)
    operator = operators.hessian(problem, hvp=hvp)
    curvature = float(dot(unit, operator.matvec(unit)))
    facts = operator.facts()
    if (relative := facts.get("hvp_relative_error")) is not None:  # of differences of gradients
        error = relative * abs(curvature)
    else:
        error = product_error(problem, wide, unit, curvature)
    return _Curvature(curvature, error, str(problem.computed_in).removeprefix("torch."), facts)


def _by_losses(
    problem: Problem, wide: Problem, loss: Tensor, d: Tensor, slope: float, start: float | None
) -> _Curvature:
    at_w, w, length = float(start_loss(problem, wide, loss)), wide.weights, float(norm(d))
    with Operations() as seen:
        found = second_difference(
            lambda eta: float(wide.loss(w - eta * d.to(w))),
            at_w,
            slope,
            rounding=resolution(wide, at_w),
            guess=start,
            bound=max(float(norm(w)), 1.0) / length,
        )
    lost = float(displacement_error(w, found.step * d.to(w))) if is_half(wide) else 0.0
    error = (found.error + 2 * lost * abs(found.value)) / length**2
    dtype = str(wide.computed_in).removeprefix("torch.")
    facts = {"hvp": "losses", "kinks": seen.kinks}
    return _Curvature(found.value / length**2, error, dtype, facts, at_w, found.step, found.forwards)
