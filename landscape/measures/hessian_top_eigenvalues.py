"""Extreme eigenvalues of the Hessian (or GGN, Fisher, T H T), each with a bound on its error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from landscape import random
from landscape.curvature import krylov, operators
from landscape.curvature.missed import CHANCE
from landscape.formatting import number
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.results.result import Result, array


@dataclass(frozen=True, kw_only=True)
class TopEigenvalues(Result):
    """Eigenpairs of the Hessian.

    Attributes:
        values: (k,) float64, largest first ("LM": largest magnitude first).
        error_bounds: (k,) float64: an eigenvalue of the matrix, as the dtype of the weights computes it, lies within
            this distance of each value (residual norm). What the dtype itself moves is not all in it: on a public
            ResNet-20 float32 moved the largest by 3e-6 of it at L = 0.002 (bound 2e-6, converged) and by 6e-4 at
            L = 3e-6 (bound 2e-4, not converged); float64 tells.
        vectors: (k, d), eigenvectors of unit length in the rows.
        hvps: Hessian-vector products spent.
        converged: whether every bound is at most tol |lambda|, or `rounding` where that is more, and the look for
            missed eigenvalues saw no more, with a `missed_probability` of at most 20%.
        rounding: an eigenvalue is not known better than that in the dtype of the weights (20 roundings of the largest).
        missed_probability: that the look overlooked an eigenvalue further out than the values by more than the
            tolerance, or by sqrt(d) / 20 `rounding` where that is more, if there is one (over its random start
            vectors); 0: the whole space was seen.
        verified: whether that is at most 1e-5; None: not asked.
    """

    values: np.ndarray = array("index")
    error_bounds: np.ndarray = array("index")
    vectors: Tensor | None = array("index", "parameter")
    hvps: int
    converged: bool
    rounding: float | None = None
    missed_probability: float | None = None
    verified: bool | None = None

    def summary(self) -> dict[str, Any]:
        """What was asked for, values, error_bounds and hvps; without the vectors."""
        names = ("values", "error_bounds", "hvps", "converged", "rounding", "missed_probability", "verified")
        return self.summary_of({name: getattr(self, name) for name in names})


def _says(summary: Mapping[str, Any], loss: float) -> str:
    values = [v for v in summary.get("values") or [] if isinstance(v, int | float)]
    plain = {"matrix": "hessian", "which": "LA", "scaling": "identity", "parameters": None}
    if not values or values[0] <= 0 or any(summary.get(k, v) != v for k, v in plain.items()):
        return ""
    return (
        f"In the sharpest direction the loss bends like ½·{number(values[0], 3)}·t²; gradient descent with steps above "
        f"2/λ = {number(2 / values[0], 3)} is unstable there."
    )


@measure(
    "hessian_top_eigenvalues",
    label="{which} {matrix} eigenvalue {index}",
    meaning="Curvature of the loss in its sharpest direction. Smaller is flatter.",
    unit="loss / weight²",
    flat="small",
    plural="{which} {matrix} eigenvalues",
    says=_says,
)
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
    tol |lambda|. The residual proves that an eigenvalue lies within that distance, not that none further out was missed
    (a second copy of a repeated eigenvalue, two that nearly coincide, what an exhausted Krylov space does not hold). A
    second process from an independent start vector looks for such ones in the complement, adds them, and says how
    probably it would have overlooked one: at most 20%, and below 1e-5 where something was missed, in matrices of at
    most 500 rows or of few different eigenvalues, and with `verify`. See `landscape.curvature.krylov.lanczos`.

    Cost: k + 9 to k + 20 Hessian-vector products in most networks, 20 to 170 for "SA" and "BE" (small eigenvalues lie
    dense), each about half of a product that rebuilds its graph, as long as the graphs fit in memory.

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
        start: (d,) or (m, d): eigenvectors of a neighboring checkpoint, from which the process starts.
        k: number of eigenvalues (at each end for "BE").
        tol: residual allowed, relative to each |lambda|.
        which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "BE" both ends.
        verify: keep looking for missed eigenvalues until the probability of one is below 1e-5 (5 to 10 products).
        matrix: "hessian", "ggn", "fisher", "mc-fisher" or "empirical-fisher".
        scaling: T of T H T: identity, elementwise, filterwise, layerwise or asam-official.
        biases: of T: scaled, unscaled or fixed.
        parameters: shell pattern: the block of these parameters alone.
        hvp: "double-backward", or "differences" for models without second derivative; their relative error is
            estimated and kept in the provenance, the bounds do not cover it. Above 1% they are refused.
        max_hvps: products allowed, the look included; then converged is False.
        basis: vectors kept at once; None is as many as fit in a quarter of the free memory (then thick restart). 0
            keeps none: each eigenvalue takes two passes, k + 3 vectors in all and about 2 k times the products. None
            becomes 0, and the provenance says so, where fewer than 3 (k + 8) vectors fit in what is free; on a GPU the
            basis for k > 1 goes to the host first, if that can hold it.
        chunk_size: examples differentiated at once; None chooses.
        seed: draws the start vectors.

    Raises:
        InputError: k < 1 or k > d, tol <= 0, an unknown `which`, a pattern that matches nothing, a loss that is not
            finite, a model without second derivative.

    Source: Lanczos 1950; Paige 1980 (reorthogonalization); Wu and Simon 2000 (thick restart).

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> [round(v, 6) for v in landscape.top_eigenvalues(problem, k=1).values.tolist()]
        [2.0]
    """
    operator = operators.build(
        problem, matrix, w, parameters=parameters, scaling=(scaling, biases), hvp=hvp, chunk_size=chunk_size
    )
    lanczos = {"which": which, "tol": tol, "max_products": max_hvps, "capacity": basis, "verify": verify}
    return extreme_pairs(operator, k, seed, start=start, **lanczos)


def extreme_pairs(operator: operators.Operator, k: int, seed: int, **lanczos: Any) -> TopEigenvalues:
    """Eigenpairs of an operator; `lanczos` are arguments of `landscape.curvature.krylov.lanczos`."""
    generator = random.stream(seed, "lanczos")
    pairs = krylov.lanczos(operator, k, hint=operator.hint(), generator=generator, **lanczos)
    missed = pairs.missed_probability
    return TopEigenvalues(
        values=pairs.values,
        error_bounds=pairs.residuals,
        vectors=pairs.vectors,
        hvps=pairs.products,
        converged=pairs.converged,
        rounding=pairs.rounding,
        missed_probability=missed,
        verified=missed is not None and missed <= CHANCE if lanczos.get("verify") else None,
        provenance=operator.facts() if pairs.basis else {**operator.facts(), "basis": 0},
    )
