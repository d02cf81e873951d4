"""The diagonal of the Hessian, exact where that is possible."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from landscape import random
from landscape.curvature import operators, stochastic
from landscape.curvature.exact.trace import squares_by
from landscape.errors import unknown
from landscape.problem.problem import Problem
from landscape.results.result import Result, array

METHODS = ("auto", "exact", "hutch++", "hutchinson")


@dataclass(frozen=True, kw_only=True)
class Diagonal(Result):
    """Diagonal of a d x d matrix.

    Attributes:
        values: (d,).
        exact: whether it is computed in closed form, without Hessian-vector products.
        matrix: "hessian" or "ggn": of which matrix.
        method: "exact", "hutch++", "hutchinson", or "unit vectors" where the products suffice for one with each.
        obstacle: what keeps the GGN's diagonal from being the Hessian's; None where nothing does.
        hvps: Hessian-vector products spent.
    """

    values: Tensor = array("parameter")
    exact: bool
    matrix: str
    method: str
    obstacle: str | None = None
    hvps: int


def hessian_diagonal(
    problem: Problem,
    w: Tensor | None = None,
    *,
    method: str = "auto",
    probes: int = 100,
    chunk_size: int | None = None,
    seed: int = 0,
) -> Diagonal:
    """Diagonal of the Hessian: for T H T, and for perturbations that follow the magnitude of the weights.

    "exact" is the GGN's, in about one backward pass per class; it is the Hessian's for piecewise-linear networks with
    frozen BatchNorm (see `hessian_trace`). "auto" takes it there, else "hutch++".

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
        method: "auto", "exact", "hutch++" or "hutchinson".
        probes: Hessian-vector products allowed for the estimates.
        chunk_size: examples differentiated at once; None chooses.
        seed: draws the probes.

    Source of the estimate: Bekas, Kokiopoulou and Saad 2007.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    begin = time.perf_counter()
    with problem.counting() as cost:
        squares = squares_by(method, problem, w, diagonal=True, chunk_size=chunk_size)
        if squares is not None:
            values, products, method = problem.parameters.flatten(squares.tensors).to(problem.weights), 0, "exact"
        else:
            operator = operators.hessian(problem, w, chunk_size=chunk_size)
            estimate = stochastic.trace(
                operator.matvec,
                operator.like,
                probes=probes,
                sketch=method != "hutchinson",
                diagonal=True,
                generator=random.stream(seed, "diagonal"),
            )
            assert estimate.diagonal is not None
            values, products = estimate.diagonal, estimate.products
            method = estimate.method
    obstacle = squares.obstacle if squares is not None else None
    return Diagonal(
        values=values,
        exact=squares is not None,
        matrix="hessian" if obstacle is None else "ggn",
        method=method,
        obstacle=obstacle,
        hvps=products,
        arguments={"probes": probes, "seed": seed},
        cost=cost,
        seconds=time.perf_counter() - begin,
        provenance=problem.provenance(),
    )
