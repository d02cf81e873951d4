"""Radius of the basin around the weights: in most directions, and in the worst."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.ball import vectors
from landscape.ball.ascent import Ball, maximize
from landscape.errors import InputError
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.progress import Bar
from landscape.random import normal, stream
from landscape.results.result import Result, array, plain
from landscape.sharpness.checks import check_loss, check_weights, require_resolved
from landscape.sharpness.subsets import positive
from landscape.statistics import LEVEL

_REACH, _HALVINGS = 1e4, 60


@dataclass(frozen=True, kw_only=True)
class BasinRadius(Result):
    """How far the weights can move until the loss has risen by `rise`.

    Attributes:
        value: most-case radius: within it, along at least `share` of the directions the loss stays below; inf
            where it does up to 10^4 max(||w||, 1), the end of the search.
        interval: (bound,) 95% confidence interval of it over directions, from order statistics; an end that so few
            directions do not give is 0 or inf.
        worst_case: radius of the ball in which a rise of `rise` is first found: the worst direction's is at most
            this. inf where none does up to there; nan where it was not asked for.
        radii: (direction,) of each direction, inf likewise.
        relative: value / ||w||; nan for w = 0.
        sigma: value / sqrt(d): the Gaussian noise of every weight that has this norm.
        loss: L(w).
        evaluations: losses along directions that were computed.
    """

    value: float
    interval: np.ndarray = array("bound")
    worst_case: float
    radii: np.ndarray = array("direction")
    relative: float
    sigma: float
    loss: float
    evaluations: int

    def summary(self) -> dict[str, Any]:
        """Arguments, every number, and the ends of the interval as `low` and `high`."""
        entry = {k: v for k, v in super().summary().items() if k != "interval"}
        entry["worst_case"] = self.worst_case
        return plain(entry | {"low": self.interval[0], "high": self.interval[1]})


@measure(
    "basin_radius",
    label="Basin radius",
    meaning="How far the weights move along most random directions until the loss has risen by {rise}; the worst case "
    "is the nearest such point that an ascent finds. Larger is flatter.",
    unit="weight",
    flat="large",
)
def basin_radius(
    problem: Problem,
    *,
    rise: float = 0.1,
    share: float = 0.75,
    directions: int = 20,
    tol: float = 0.05,
    worst_case: bool = True,
    steps: int = 10,
    seed: int = 0,
) -> BasinRadius:
    """Radius of the basin around w: the largest r with L(w + r u) - L(w) < rise for most random directions u.

    u is uniform on the unit sphere (a normalized Gaussian vector). Along each direction the radius is doubled from a
    hundredth of ||w|| on until the loss has risen by `rise` or is nan or inf, so that the first crossing is known to a
    factor of 2, and bisected in log r; the search ends at 10^4 max(||w||, 1), and the radius is inf where the loss has
    not risen by then. The most-case radius is the (1 - share) quantile of these. The worst-case radius, looked for in
    the same way, is that of the smallest ball in which one of these directions or one of two projected ascents, from
    the gradient's point and from a random one, finds such a point. In a bowl the radius along u is sqrt(2 rise / u'Hu),
    about sqrt(2 rise d / tr H), and the worst one sqrt(2 rise / lambda_max).

    Args:
        rise: the rise of the loss that ends the basin.
        share: of the directions that stay inside, in (0, 1).
        directions: random ones.
        tol: relative width at which a bisection stops.
        worst_case: whether the worst case is looked for.
        steps: points of an ascent.
        seed: draws the directions.

    Returns:
        BasinRadius with `value`, `interval`, `worst_case`, `radii`.

    Raises:
        InputError: a number out of range, a `rise` below the rounding of the loss, weights or loss at w not finite.

    Cost: for each direction about 4 + log2(1 / tol) forward passes; for the worst case as often twice `steps` forward
    and `steps` - 1 backward passes.
    Source: Chen et al. 2025 (arXiv 2505.17646), most-case and worst-case landscapes. Differs: a rise of the loss
    instead of a fall of a benchmark's score, which is a step function of r; the share of directions is stated.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.constant_(line.weight, 2.0)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 2
        >>> basin = landscape.basin_radius(problem, rise=0.09, tol=1e-6)
        >>> round(basin.value, 4), round(basin.worst_case, 4)  # sqrt(rise)
        (0.3, 0.3)
    """
    _check(rise, share, tol)
    positive("directions", directions)
    positive("steps", steps)
    check_weights(problem)
    loss, gradient = problem.loss_and_gradient()
    check_loss(loss)
    require_resolved(problem, rise, float(loss))
    w, size = problem.weights, float(vectors.norm(problem.weights))
    first, bound = 0.01 * (size or 1.0), _REACH * max(size, 1.0)
    evaluations = 0
    with Bar("basin", None) as bar:

        def along(u: Tensor) -> Callable[[float], bool]:
            def outside(radius: float) -> bool:
                nonlocal evaluations
                evaluations += 1
                bar.advance()
                return not -math.inf < float(problem.loss(w + radius * u) - loss) < rise  # nan and inf lie outside

            return outside

        radii = np.array([crossing(along(_direction(w, seed, i)), first, bound, tol) for i in range(directions)])
        worst = math.nan
        if worst_case:
            ball, center = Ball(2.0), torch.where(vectors.finite(gradient), gradient, 0.0)

            def reached(radius: float) -> bool:
                # At a minimum or a kink the gradient points nowhere: a random start finds the steepest direction.
                starts = (ball.steepest(center, radius), ball.random(w, radius, stream(seed, "basin ascent")))
                tops = [maximize(problem, ball, radius, u, center, steps, bar=bar) for u in starts]
                return any(float(top.loss - loss) >= rise or bool(top.non_finite_losses) for top in tops)

            worst = min(crossing(reached, first, bound, tol), float(radii.min()))
    value = float(np.quantile(radii, 1 - share, method="inverted_cdf"))
    return BasinRadius(
        value=value,
        interval=_quantile_interval(radii, 1 - share),
        worst_case=worst,
        radii=radii,
        relative=value / size if size else math.nan,
        sigma=value / math.sqrt(problem.dimension),
        loss=float(loss),
        evaluations=evaluations,
    )


def crossing(outside: Callable[[float], bool], first: float, bound: float, tol: float) -> float:
    """Radius at which `outside` first becomes true, by doubling or halving from `first` on, then bisection in log r.

    inf where it is not up to `bound`, which is looked at last; 0 where it is down to 2^-60 times `first`.
    """
    low, high = 0.0, math.inf
    radius = first
    while radius >= first * 2.0**-_HALVINGS and low < bound and not (low and math.isfinite(high)):
        if outside(radius):
            high = radius
            radius = high / 2
        else:
            low = radius
            radius = min(low * 2, bound)
    if not low:
        return 0.0
    while math.isfinite(high) and high / low - 1 > tol and low < (middle := math.sqrt(low * high)) < high:
        low, high = (low, middle) if outside(middle) else (middle, high)
    return math.sqrt(low * high) if math.isfinite(high) else math.inf


def _direction(like: Tensor, seed: int, i: int) -> Tensor:
    u = normal(like, stream(seed, f"basin {i}"))
    return u / vectors.norm(u).to(u)


def _quantile_interval(values: np.ndarray, q: float) -> np.ndarray:
    """95% interval of the q quantile from order statistics: the number of values below it is binomial."""
    from scipy import stats

    n, tail = len(values), (1 - LEVEL) / 2
    ordered = np.concatenate([[0.0], np.sort(values), [math.inf]])
    low = int(stats.binom.ppf(tail, n, q))  # P(fewer than `low` below) <= tail
    high = int(stats.binom.ppf(1 - tail, n, q)) + 1  # P(`high` or more below) <= tail
    return np.array([ordered[low], ordered[high]])


def _check(rise: float, share: float, tol: float) -> None:
    for name, value in (("rise", rise), ("tol", tol)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name}={value:g}: a positive finite number is needed")
    if not 0 < share < 1:
        raise InputError(f"share={share:g}: a share between 0 and 1 is needed")
