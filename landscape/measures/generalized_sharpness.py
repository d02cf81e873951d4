"""The largest d'Hd over the unit ball of a norm: the curvature that steepest descent in that norm meets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from landscape import random
from landscape.ball.norms import NormBall
from landscape.curvature import operators
from landscape.curvature.norm_maximum import MOST_SIGNS, ascend, best_of_signs, highest
from landscape.measure import measure
from landscape.measures.hessian_top_eigenvalues import extreme_pairs
from landscape.problem.problem import Problem
from landscape.progress import Bar
from landscape.results.result import Result, array
from landscape.sharpness.checks import check_loss, check_weights
from landscape.sharpness.subsets import positive


@dataclass(frozen=True, kw_only=True)
class GeneralizedSharpness(Result):
    """Generalized sharpness.

    Attributes:
        value: the largest d'Hd found in the ball, at least 0 (d = 0); a lower bound of the maximum unless `exact`.
        exact: whether it is the maximum: for linf where all signs were tried and no diagonal entry of H is negative.
        error_bound: of l2: an eigenvalue lies within this distance; None for the others.
        searches: (search,) what each search reached; None for l2.
        gaps: (search,) its distance from a stationary point, relative to its value (1 where only that is 0); None for
            l2.
        dual_norm: ||g||_*: steepest descent w - eta ||g||_* d* has the line 2 / eta, the plain step w - eta d* (sign
            descent, Muon without momentum) the line 2 ||g||_* / eta.
        vectors: (1, d) where the largest value was found.
        hvps: Hessian-vector products spent.
        converged: whether the best search ended at a stationary point above 0. A value of 0 is one of every H (d = 0)
            and says nothing: then whether H is zero. For l2 as in `hessian_top_eigenvalues`.
    """

    value: float
    exact: bool
    error_bound: float | None = None
    searches: np.ndarray | None = array("search", default=None)
    gaps: np.ndarray | None = array("search", default=None)
    dual_norm: float
    vectors: Tensor | None = array("index", "parameter")
    hvps: int
    converged: bool

    @property
    def restart_spread(self) -> float | None:
        """(largest - smallest) / largest over the searches; None for a single one. Near 0: they agree."""
        if self.searches is None or len(self.searches) < 2:
            return None
        high, low = float(self.searches.max()), float(self.searches.min())
        return (high - low) / high if high > 0 else 0.0

    def summary(self) -> dict[str, Any]:
        """Everything but where the maximum lies."""
        names = ("value", "exact", "error_bound", "searches", "gaps", "dual_norm", "hvps", "converged")
        spread = {} if self.restart_spread is None else {"restart_spread": self.restart_spread}
        return self.summary_of({name: getattr(self, name) for name in names} | spread)


@measure(
    "generalized_sharpness",
    label="Generalized sharpness, {norm}",
    meaning="Largest curvature of a step of unit length, as a norm measures it: what the learning rate of sign descent "
    "(l∞) or Muon (spectral norm) has to stay below.",
    unit="loss / length²",
    flat="small",
)
def generalized_sharpness(
    problem: Problem,
    start: Tensor | None = None,
    *,
    norm: str = "linf",
    vector_norm: str = "l2",
    restarts: int = 4,
    steps: int = 50,
    tol: float = 1e-3,
    hvp: str = "double-backward",
    seed: int = 0,
) -> GeneralizedSharpness:
    """Largest curvature over the unit ball of a norm.

    S = max {d'Hd: ||d|| <= 1}. Steepest descent in the norm, w - eta ||g||_* d* with d* furthest along g in the ball,
    lowers a quadratic while S < 2 / eta; the plain step w - eta d* is the same with eta / ||g||_* for eta: its line is
    2 ||g||_* / eta, for sign descent 2 ||g||_1 / eta.
    "l2": lambda_max (0 where that is negative). "linf": the box; all signs are tried for d <= 16, else Frank-Wolfe
    searches give a lower bound. "spectral": the maximum over tensors of the largest singular value of each matrix
    (tensors of two and more dimensions, flattened to shape[0] rows) and of the norm `vector_norm` of each vector.

    Args:
        problem: L.
        start: (1, d): `vectors` of a neighboring checkpoint: one more search starts there.
        norm: "l2", "linf" or "spectral".
        vector_norm: of biases and scales in "spectral": "l2" or "linf".
        restarts: searches: the first from the step along the gradient, the others from random points of the ball.
        steps: products that each search may take.
        tol: gap to a stationary point at which a search ends, relative to its value; of l2, of the residual.
        hvp: "double-backward", or "differences" for models without second derivative.
        seed: draws the starts.

    Returns:
        GeneralizedSharpness with `value`, `searches`, `dual_norm`.

    Raises:
        InputError: an unknown norm, restarts or steps below 1; weights, loss or gradient not finite; a model without
            second derivative.

    Cost: 3 to 15 Hessian-vector products a search; for l2 as `hessian_top_eigenvalues`; a singular value decomposition
    of every matrix for each product in "spectral".
    Source: Islamov 2026 (arXiv 2603.05002), generalized sharpness.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 2, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, x[:, :1])])  # (w1 + w2 - 1)^2
        >>> # d'Hd = 2 (d1 + d2)^2: 4 for d = (1, 1) / sqrt(2), 8 for d = (1, 1)
        >>> [round(landscape.generalized_sharpness(problem, norm=n).value, 6) for n in ("l2", "linf", "spectral")]
        [4.0, 8.0, 4.0]
    """
    check_weights(problem)
    ball = NormBall(norm, problem.parameters, vector_norm)
    positive("restarts", restarts)
    operator = operators.hessian(problem, hvp=hvp)
    gradient = operator.hint()
    assert gradient is not None
    check_loss(gradient, "gradient")
    dual = float(ball.furthest_and_dual(gradient)[1])
    if norm == "l2":
        top = extreme_pairs(operator, 1, seed, start=start, tol=tol)
        value = max(float(top.values[0]), 0.0)
        facts: dict[str, Any] = {"error_bound": float(top.error_bounds[0]), "vectors": top.vectors, "hvps": top.hvps}
        facts |= {"converged": top.converged, "dual_norm": dual, "provenance": operator.facts()}
        return GeneralizedSharpness(value=value, exact=False, **facts)
    few = norm == "linf" and operator.dimension <= MOST_SIGNS
    dense = operator.dense() if few else None
    starts = [best_of_signs(dense)] if dense is not None else list(_starts(ball, gradient, start, restarts, seed))
    with Bar(f"{norm} sharpness", None) as bar:
        ascents = [ascend(operator.matvec, ball, s, positive("steps", steps), tol, bar) for s in starts]
    best = highest(ascents)
    converged, products = best.gap <= tol, sum(a.products for a in ascents) + (operator.dimension if few else 0)
    if converged and best.value <= 0:
        converged, products = _vanishes(operator, gradient, seed), products + 1
    return GeneralizedSharpness(
        value=max(best.value, 0.0),
        exact=dense is not None and bool((dense.diagonal() >= 0).all()),
        searches=np.array([a.value for a in ascents]),
        gaps=np.array([a.gap for a in ascents]),
        dual_norm=dual,
        vectors=best.point[None],
        hvps=products,
        converged=converged,
        provenance=operator.facts(),
    )


def _vanishes(operator: operators.Operator, like: Tensor, seed: int) -> bool:
    """Whether H is zero: along a random vector, where any other H shows."""
    return not bool(operator.matvec(random.normal(like, random.stream(seed, "another direction"))).any())


def _starts(ball: NormBall, gradient: Tensor, start: Tensor | None, restarts: int, seed: int) -> Iterator[Tensor]:
    """Points of the ball: where a neighbor ended, the furthest along the gradient and along random vectors."""
    if start is not None:
        yield ball.furthest(start.reshape(-1).to(gradient))
    for i in range(restarts):
        along = (
            gradient if i == 0 and bool(gradient.any()) else random.normal(gradient, random.stream(seed, f"start {i}"))
        )
        yield ball.furthest(along)
