"""Smallest and largest eigenvalue of the Hessian: how convex the loss is at a point."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from landscape import random
from landscape.curvature import krylov, operators
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.results.result import Result


@dataclass(frozen=True, kw_only=True)
class Extremes(Result):
    """Both ends of the Hessian's spectrum.

    Attributes:
        lambda_min: smallest eigenvalue.
        lambda_max: largest eigenvalue.
        ratio: |lambda_min| / |lambda_max| for lambda_min < 0, else 0: near zero, a 2-D picture that shows a convex
            bowl does not hide much; above 1, most of the curvature is negative; inf where lambda_max is 0.
        bound_min: an eigenvalue lies within this distance of lambda_min.
        bound_max: an eigenvalue lies within this distance of lambda_max.
        hvps: Hessian-vector products spent.
        converged: whether both bounds met the tolerance, and the look for missed eigenvalues saw no more, with a
            `missed_probability` of at most 20%.
        missed_probability: that the look overlooked an eigenvalue further out than one of both by more than the
            tolerance, if there is one.
    """

    lambda_min: float
    lambda_max: float
    ratio: float
    bound_min: float
    bound_max: float
    hvps: int
    converged: bool
    missed_probability: float | None = None


@measure(
    "negative_curvature",
    label="Ends of the Hessian's spectrum",
    meaning="A 2-D picture that looks like a bowl is honest where the smallest eigenvalue is small beside the largest.",
    unit="loss / weight²",
    fields={
        "lambda_max": ("Largest eigenvalue", "bound_max", "Curvature in the sharpest direction."),
        "lambda_min": (
            "Smallest eigenvalue",
            "bound_min",
            "Curvature in the direction that bends down most, or up least.",
        ),
        "ratio": (
            "Negative against positive curvature",
            "",
            "|smallest| / |largest| where the smallest is negative: near 0, a picture of a bowl hides little.",
        ),
    },
)
def extreme_eigenvalues(
    problem: Problem,
    w: Tensor | None = None,
    start: Tensor | None = None,
    *,
    tol: float = 1e-2,
    max_hvps: int = 100,
    chunk_size: int | None = None,
    seed: int = 0,
) -> Extremes:
    """lambda_min and lambda_max of the Hessian at w.

    One Lanczos process, and a look for what it missed as in `hessian_top_eigenvalues`: eigenvalues lie dense at the
    lower end, where the process takes an inner one for the smallest.

    The residuals are relative to the largest |lambda|: a lambda_min that is small beside lambda_max is only known to
    be small, which is what the ratio asks. Along a surface it says where a 2-D slice hides negative curvature
    (Li 2018, arXiv 1712.09913, figure 7).

    Cost: 15 to 75 Hessian-vector products.
    Source: Li 2018 (arXiv 1712.09913), section 6: the ratio |lambda_min / lambda_max|.

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
        start: (d,) start vector.
        tol: residual allowed, relative to the largest |lambda|.
        max_hvps: products allowed, the look included; then converged is False.
        chunk_size: examples differentiated at once; None chooses.
        seed: draws the start vector.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> ends = landscape.extreme_eigenvalues(problem)
        >>> round(ends.lambda_max, 6), ends.ratio
        (2.0, 0.0)
    """
    operator = operators.hessian(problem, w, chunk_size=chunk_size)
    pairs = krylov.lanczos(
        operator,
        1,
        which="BE",
        tol=tol,
        relative_to="spectrum",
        start=start,
        hint=operator.hint(),
        generator=random.stream(seed, "lanczos"),
        max_products=max_hvps,
    )
    largest, smallest = float(pairs.values[0]), float(pairs.values[-1])
    return Extremes(
        lambda_min=smallest,
        lambda_max=largest,
        ratio=_ratio(smallest, largest),
        bound_min=float(pairs.residuals[-1]),
        bound_max=float(pairs.residuals[0]),
        hvps=pairs.products,
        converged=pairs.converged,
        missed_probability=pairs.missed_probability,
        provenance=operator.facts(),
    )


def _ratio(smallest: float, largest: float) -> float:
    if smallest >= 0:
        return 0.0
    return abs(smallest / largest) if largest else math.inf
