"""The first step along the update of one loss at which another loss exceeds its start."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from landscape.measure import measure
from landscape.measures.critical_sharpness import (
    CriticalSharpness,
    critical_sharpness_of,
    crossing_along,
    crossing_says,
)
from landscape.problem.problem import Problem
from landscape.problem.widened import widened
from landscape.sharpness.checks import check_loss, check_other
from landscape.sharpness.half_precision import gradient_error, start_loss
from landscape.sharpness.updates import Direction, described, slope_of, update_direction


@measure(
    "relative_critical_sharpness",
    label="Relative critical sharpness",
    meaning="2 / the smallest step along the update of other data that raises this loss: large where training on the "
    "other data soon unlearns these.",
    unit="1 / step",
    says=crossing_says,
)
def relative_critical_sharpness(
    problem: Problem,
    other: Problem | None = None,
    start: float | None = None,
    *,
    direction: Direction = "gradient",
    bound: float = 1e4,
    tol: float = 0.05,
    seed: int = 0,
) -> CriticalSharpness:
    """Critical sharpness of one loss along the update of another.

    lambda_c^(1 -> 2) = 2 / min {eta > 0: L_1(w - eta d_2) > L_1(w)}: L_1 is the loss of `problem`, d_2 the update that
    `other`, the loss of other data, asks for. On a quadratic L_1 it is d_2'H_1 d_2 / d_2'g_1. With `other` the same
    loss it is `critical_sharpness`, whose search, resolution and counting are the same.

    Args:
        problem: L_1, whose rise is looked for.
        other: L_2, the same model and parameters over other data (or by another loss): its gradient is taken at w. Of a
            checkpoint the other split, or what --other-data names; of a Monitor what it was made with.
        start: eta_c at neighboring weights: the search starts at half of it.
        direction: d_2: "gradient", a flat vector, or an optimizer: its update with the gradient of L_2.
        bound: the search ends where ||eta d|| exceeds this many times max(||w||, 1); then `crossed` is False.
        tol: width of the bracket of eta_c, relative to it.
        seed: draws nothing; for uniformity.

    Returns:
        CriticalSharpness, `slope` being d_2'g_1.

    Raises:
        InputError: d_2'g_1 <= 0 (any step along the other update raises this loss), `other` that is no
            Problem of the same model and parameters, and as `critical_sharpness`.

    Cost: 1 forward and 1 backward pass of `other`; of `problem` 5 to 7 forward passes with a `start` within a factor of
    two, 9 to 18 without, and 1 backward pass; in half precision what `critical_sharpness` takes besides.
    Source: Kalra 2026 (arXiv 2601.16979), definition of relative critical sharpness.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> one, other = (landscape.Problem(line, torch.nn.MSELoss(), [(x, y * x)]) for y in (2, 5))
        >>> result = landscape.relative_critical_sharpness(one, other)  # along -g_2 = 8 it returns to L_1 at eta = 1/4
        >>> round(result.value, 6), round(result.step, 6)
        (8.0, 0.25)
    """
    other = check_other(problem, other)
    loss, gradient = problem.loss_and_gradient()
    check_loss(loss)
    theirs = other.gradient(problem.weights)
    check_loss(theirs, "other loss' gradient")
    d = update_direction(problem, direction, theirs)
    slope = slope_of(problem, d, gradient, "the loss of `problem`")
    turned = 0.0
    if not isinstance(direction, Tensor):
        with widened(other) as wide:
            turned = gradient_error(other, wide, theirs)
    with widened(problem) as wide:
        at_w = float(start_loss(problem, wide, loss))
        crossing = crossing_along(wide, d, at_w, slope, start, bound, tol)
        result = critical_sharpness_of(crossing, problem, wide, d, at_w, slope, turned, described(direction))
    facts = {"other_sample_sha256": other.batches.fingerprint(), "other_loss": other.loss_name}
    return dataclasses.replace(result, provenance=facts)
