"""Eigenvalues of the Hessian in the metric of the weights: curvature without a scale."""

from __future__ import annotations

from torch import Tensor

from landscape.curvature import operators
from landscape.measure import measure
from landscape.measures.hessian_top_eigenvalues import TopEigenvalues, extreme_pairs
from landscape.problem.problem import Problem


@measure(
    "adaptive_hessian",
    label="{which} scale-free eigenvalue",
    meaning="Curvature in the sharpest direction when every weight moves in proportion to its size; unlike λ₁ it "
    "cannot be changed by rescaling the network. Smaller is flatter.",
    unit="loss",
    flat="small",
    plural="{which} scale-free eigenvalues",
)
def adaptive_top_eigenvalues(
    problem: Problem,
    w: Tensor | None = None,
    *,
    k: int = 1,
    tol: float = 1e-3,
    which: str = "LA",
    scaling: str = "elementwise",
    biases: str = "scaled",
    verify: bool = False,
    hvp: str = "double-backward",
    max_hvps: int = 500,
    seed: int = 0,
) -> TopEigenvalues:
    """Extreme eigenvalues of T H T, T the diagonal of adaptive sharpness, with error bounds.

    For T = |w| they stay the same under every rescaling of units that leaves the network's function as it is (a
    positive factor into a ReLU unit, its inverse out of it); the eigenvalues of H do not.
    Second order of adaptive sharpness: max over ||T^-1 epsilon|| <= rho of epsilon' H epsilon = rho^2 lambda_max(THT).
    Cost: about 13 to 35 Hessian-vector products, with the guarantees of `hessian_top_eigenvalues`.
    Source: T as in Kwon 2021 (arXiv 2102.11600); the eigenvalues by Lanczos as in `hessian_top_eigenvalues`.

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
        k: number of eigenvalues (at each end for "BE").
        tol: residual allowed, relative to each |lambda|.
        which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "BE" both ends.
        scaling: elementwise, filterwise, layerwise or asam-official.
        biases: scaled, unscaled or fixed.
        verify: keep looking for missed eigenvalues until the probability of one is below 1e-5.
        hvp: "double-backward", or "differences" for models without second derivative.
        max_hvps: products allowed, the look included; then converged is False.
        seed: draws the start vector.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> [round(v, 6) for v in landscape.adaptive_top_eigenvalues(problem).values.tolist()]  # |w| 2 |w|
        [2.0]
    """
    operator = operators.build(problem, "hessian", w, scaling=(scaling, biases), hvp=hvp)
    return extreme_pairs(operator, k, seed, which=which, tol=tol, max_products=max_hvps, verify=verify)
