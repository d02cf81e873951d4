"""Eigenvalues of the Hessian in the metric of the weights: curvature without a scale."""

from __future__ import annotations

from torch import Tensor

from landscape.measures.hessian_top_eigenvalues import TopEigenvalues, top_eigenvalues
from landscape.problem.problem import Problem
from landscape.registry import register


@register("adaptive_hessian")
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
    Cost: about 10 to 30 Hessian-vector products, with the guarantees of `hessian_top_eigenvalues`.
    Source: T as in Kwon 2021 (arXiv 2102.11600); the eigenvalues by Lanczos as in `hessian_top_eigenvalues`.

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
        k: number of eigenvalues (at each end for "BE").
        tol: residual allowed, relative to each |lambda|.
        which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "BE" both ends.
        scaling: elementwise, filterwise, layerwise or asam-official.
        biases: scaled, unscaled or fixed.
        verify: spend some more products on looking for missed eigenvalues.
        hvp: "double-backward", "compiled" (torch.compile), or "differences" for models without second derivative.
        max_hvps: products allowed; then converged is False.
        seed: draws the start vector.
    """
    return top_eigenvalues(
        problem,
        w,
        k=k,
        tol=tol,
        which=which,
        verify=verify,
        scaling=scaling,
        biases=biases,
        hvp=hvp,
        max_hvps=max_hvps,
        seed=seed,
    )
