"""Curvature from forward passes: the first step along an update at which the loss exceeds its start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from landscape.ball.vectors import norm
from landscape.errors import InputError
from landscape.formatting import number
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.problem.widened import is_half, widened
from landscape.results.result import Result
from landscape.sharpness.checks import check_loss, displacement_error, resolution
from landscape.sharpness.crossing import Crossing, first_crossing
from landscape.sharpness.half_precision import gradient_error, start_loss
from landscape.sharpness.updates import Direction, described, slope_of, update_direction


@dataclass(frozen=True, kw_only=True)
class CriticalSharpness(Result):
    """Critical sharpness.

    Attributes:
        value: lambda_c = 2 / eta_c; 0 where no step up to the bound raises the loss.
        step: eta_c, the smallest step at which the loss exceeds its start; inf where none up to the bound does.
        crossed: whether one does.
        below: largest step tried before the crossing; it does not raise the loss.
        above: smallest step tried that raises it; inf where none does. eta_c lies between these two.
        first: step that the doubling starts from, which lowers the loss by more than rounding. Its multiples by powers
            of two up to `below` do not raise it: that no crossing lies in between is known at that resolution.
        forwards: evaluations of the loss, the one at w included.
        slope: d'g.
        loss: L(w).
        error_bound: estimate of what half precision has moved the value by; None where nothing is computed in it, and
            where no step raises the loss.
        evaluated_in: dtype that the losses were computed in; that of the gradient may be narrower.
    """

    value: float
    step: float
    crossed: bool
    below: float
    above: float
    first: float
    forwards: int
    slope: float
    loss: float
    error_bound: float | None = None
    evaluated_in: str = ""

    @property
    def neighboring_start(self) -> float | None:
        """The step: half of it is the first one tried at neighboring weights."""
        return self.step if self.crossed else None


def crossing_says(summary: Mapping[str, Any], loss: float) -> str:
    """A sentence on the first step that raises the loss."""
    if not summary.get("crossed"):
        return f"No step up to {number(summary.get('below'), 3)} along the update raises the loss."
    return f"The first step along the update that raises the loss is {number(summary.get('step'), 3)}."


@measure(
    "critical_sharpness",
    label="Critical sharpness",
    meaning="2 / the smallest step along the update that raises the loss: the largest stable learning rate turned into "
    "a curvature, from forward passes alone.",
    unit="1 / step",
    flat="small",
    says=crossing_says,
)
def critical_sharpness(
    problem: Problem,
    start: float | None = None,
    *,
    direction: Direction = "gradient",
    bound: float = 1e4,
    tol: float = 0.05,
    seed: int = 0,
) -> CriticalSharpness:
    """Critical sharpness: 2 / the first step along an update at which the loss exceeds its start.

    lambda_c = 2 / eta_c, eta_c = min {eta > 0: L(w - eta d) > L(w)}, d'g > 0.

    On a quadratic it is d'Hd / d'g (`directional_sharpness`): at most lambda_max(H) for d = g, and at most
    lambda_max(P^-1 H) for d = P^-1 g. Losses that are nan or infinite count as above. Steps are doubled from one that
    lowers the loss by at least an eighth of eta d'g, so that the first crossing is known at the resolution of a factor
    of two; it is then narrowed to `tol` and interpolated by a curve that is exact on a quadratic. Two things stay
    possible: a peak narrower than that factor is stepped over, and so is one before the first step where the valley
    behind it is so deep that even there an eighth of eta d'g is won (a `start` far too large, or L far from zero).

    Args:
        problem: L.
        start: eta_c at neighboring weights: the search starts at half of it, or less where that is not a fair descent.
        direction: d: "gradient", a flat vector (d,), or a torch optimizer (or a list of several that share the
            parameters out): the update that it would make from its state with the gradient of L, over its largest
            learning rate, so that eta is a learning rate. Of a checkpoint or a Monitor "optimizer" is the one of the
            training. Model and optimizer stay bit for bit as they are.
        bound: the search ends where ||eta d|| exceeds this many times max(||w||, 1); then `crossed` is False.
        tol: width of the bracket of eta_c, relative to it; at neighboring float64 numbers the search ends anyway.
        seed: draws nothing; for uniformity.

    Returns:
        CriticalSharpness with `value`, `step`, `below` and `above`, `forwards`.

    Raises:
        InputError: d'g <= 0, weights, loss or gradient not finite, a direction of another shape or out of range, an
            optimizer of other parameters or of sparse gradients, an effect below rounding, `bound` or `tol` out of
            range.

    In bfloat16 and float16 (weights, or autocast) losses are computed in float32 where that is possible, as
    `evaluated_in` says, and the gradient as the network does; `error_bound` says what its rounding may change.

    Cost: 5 to 7 forward passes with a `start` within a factor of two, 9 to 18 without, and 1 backward pass; in half
    precision one forward pass and two gradients over up to 64 examples more.
    Source: Kalra 2026 (arXiv 2601.16979), definition 1. Differs from the official code: there a nan compares as no
    crossing, and the search ends at any crossing, not at the first.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> result = landscape.critical_sharpness(problem)  # 1 - 2 eta: from w = 1 to the other side at eta = 1
        >>> round(result.value, 6), round(result.step, 6), result.crossed
        (2.0, 1.0, True)
    """
    loss, gradient = problem.loss_and_gradient()
    check_loss(loss)
    d = update_direction(problem, direction, gradient)
    slope = slope_of(problem, d, gradient)
    with widened(problem) as wide:
        turned = 0.0 if isinstance(direction, Tensor) else gradient_error(problem, wide, gradient)
        at_w = float(start_loss(problem, wide, loss))
        crossing = crossing_along(wide, d, at_w, slope, start, bound, tol)
        return critical_sharpness_of(crossing, problem, wide, d, at_w, slope, turned, described(direction))


def crossing_along(
    problem: Problem, d: Tensor, loss: float, slope: float, start: float | None, bound: float, tol: float
) -> Crossing:
    """The first crossing of L along w - eta d, from L(w) and d'g > 0; `start`, `bound`, `tol` as of the measure."""
    if not (bound > 0 and math.isfinite(bound)):
        raise InputError(f"bound={bound:g}: a positive multiple of the weights' norm is needed")
    if not 0 < tol < 1:
        raise InputError(f"tol={tol:g}: the width of the bracket relative to the step is between 0 and 1")
    if start is not None and not (start > 0 and math.isfinite(start)):
        raise InputError(f"start={start:g}: a positive step is needed, or None")
    w, d = problem.weights, d.to(problem.weights)
    return first_crossing(
        lambda eta: float(problem.loss(w - eta * d)),
        loss,
        slope,
        rounding=resolution(problem, loss),
        guess=start,
        bound=bound * max(float(norm(w)), 1.0) / float(norm(d)),
        tol=tol,
    )


def critical_sharpness_of(
    crossing: Crossing,
    problem: Problem,
    wide: Problem,
    d: Tensor,
    loss: float,
    slope: float,
    turned: float,
    whose: str,
) -> CriticalSharpness:
    """The result of a crossing that was found by losses of `wide` along the d of `problem`.

    Args:
        crossing: of L along w - eta d.
        problem: L as it is computed.
        wide: what `widened` made of it.
        d: the direction (d,).
        loss: L(w).
        slope: d'g.
        turned: relative error of d.
        whose: d in words.
    """
    crossed = math.isfinite(crossing.step)
    error = None
    if is_half(problem) and crossed:
        lost = float(displacement_error(wide.weights, -crossing.step * d.to(wide.weights)))
        # On a parabola L rises at the crossing as fast as it falls at w.
        rounding = resolution(wide, loss) / (slope * crossing.step)
        error = 2 * (turned + lost + rounding) * 2 / crossing.step
    return CriticalSharpness(
        value=2 / crossing.step,
        step=crossing.step,
        crossed=crossed,
        below=crossing.below,
        above=crossing.above,
        first=crossing.first,
        forwards=crossing.forwards,
        slope=slope,
        loss=loss,
        error_bound=error,
        evaluated_in=str(wide.computed_in).removeprefix("torch."),
        arguments={"direction": whose},
    )
