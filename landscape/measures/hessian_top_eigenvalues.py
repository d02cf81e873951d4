"""Extreme eigenvalues of the Hessian (or GGN, Fisher, T H T), each with a bound on its error."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from landscape import random
from landscape.curvature import krylov, operators
from landscape.problem.problem import Problem
from landscape.registry import register
from landscape.results.result import Result, array, plain


@dataclass(frozen=True, kw_only=True)
class TopEigenvalues(Result):
    """Eigenpairs of the Hessian.

    Attributes:
        values: (k,) float64, largest first ("LM": largest magnitude first).
        error_bounds: (k,) float64: an eigenvalue lies within this distance of each value (residual norm).
        vectors: (k, d), eigenvectors of unit length in the rows.
        hvps: Hessian-vector products spent.
        converged: whether every bound met tol |lambda|.
        verified: whether a second run in the complement found nothing that was missed; None: not asked.
    """

    values: np.ndarray = array("index")
    error_bounds: np.ndarray = array("index")
    vectors: Tensor | None = array("index", "parameter")
    hvps: int
    converged: bool
    verified: bool | None = None

    def summary(self) -> dict[str, Any]:
        """What was asked for, values, error_bounds and hvps; without the vectors."""
        names = ("values", "error_bounds", "hvps", "converged", "verified", "cost", "seconds")
        return plain({**self.arguments, **{name: getattr(self, name) for name in names}})


@register("hessian_top_eigenvalues")
def top_eigenvalues(
    problem: Problem,
    w: Tensor | None = None,
    start: Tensor | None = None,
    *,
    k: int = 5,
    tol: float = 1e-3,
    which: str = "LA",
    verify: bool = False,
    matrix: str = "hessian",
    scaling: str = "identity",
    biases: str = "scaled",
    parameters: str | None = None,
    hvp: str = "double-backward",
    max_hvps: int = 500,
    basis: int | None = None,
    chunk_size: int | None = None,
    seed: int = 0,
) -> TopEigenvalues:
    """Extreme eigenvalues of the Hessian of L, with error bounds.

    Lanczos with full reorthogonalization; stops when the residual ||H v - lambda v|| of every wanted pair is below
    tol |lambda|. The residual proves that an eigenvalue lies within that distance; it does not prove that none further
    out was missed (a second copy of a repeated eigenvalue, two that nearly coincide). `verify` looks for such ones from
    a fresh start vector in the complement of those found. See `landscape.curvature.krylov.lanczos`.

    Cost: k + 6 to k + 15 Hessian-vector products in most networks, each about half of a product that builds its graph
    anew, as long as the graphs fit in memory.

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
        start: (d,) or (m, d): eigenvectors of a neighboring checkpoint, from which the process starts.
        k: number of eigenvalues (at each end for "BE").
        tol: residual allowed, relative to each |lambda|.
        which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "BE" both ends.
        verify: spend some more products on looking for missed eigenvalues.
        matrix: "hessian", "ggn", "fisher", "mc-fisher" or "empirical-fisher".
        scaling: T of T H T: identity, elementwise, filterwise, layerwise or asam-official.
        biases: of T: scaled, unscaled or fixed.
        parameters: shell pattern: the block of these parameters alone.
        hvp: "double-backward", "compiled" (torch.compile: a minute once, then faster), or "differences" for models
            without second derivative; their relative error is estimated and kept in the provenance, the bounds do not
            cover it.
        max_hvps: products allowed; then converged is False.
        basis: vectors kept at once; None is as many as fit in a quarter of the free memory (then thick restart).
        chunk_size: examples differentiated at once; None chooses.
        seed: draws the start vector.

    Raises:
        InputError: k < 1 or k > d, tol <= 0, an unknown `which`, a pattern that matches nothing, a loss that is not
            finite, a model without second derivative.

    Source: Lanczos 1950; Paige 1980 (reorthogonalization); Wu and Simon 2000 (thick restart).
    """
    arguments = {"k": k, "tol": tol, "which": which, "verify": verify, "matrix": matrix, "scaling": scaling}
    arguments |= {"biases": biases, "parameters": parameters, "seed": seed}
    begin = time.perf_counter()
    with problem.counting() as cost:
        operator = operators.build(
            problem, matrix, w, parameters=parameters, scaling=(scaling, biases), hvp=hvp, chunk_size=chunk_size
        )
        found = krylov.lanczos(
            operator.matvec,
            operator.like,
            k,
            which=which,
            tol=tol,
            start=start,
            hint=operator.hint(),
            generator=random.stream(seed, "lanczos"),
            max_products=max_hvps,
            capacity=basis,
            verify=verify,
        )
    return TopEigenvalues(
        values=found.values,
        error_bounds=found.residuals,
        vectors=found.vectors,
        hvps=found.products,
        converged=found.converged,
        verified=found.verified,
        arguments=arguments,
        cost=cost,
        seconds=time.perf_counter() - begin,
        provenance={**problem.provenance(), **operator.facts()},
    )
