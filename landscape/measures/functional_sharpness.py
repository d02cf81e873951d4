"""The two paths of sharpness: through the network's function, and through the loss at its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from landscape.ball.vectors import dot, norm
from landscape.curvature import operators
from landscape.errors import InputError
from landscape.formatting import percent
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.results.result import Result
from landscape.sharpness.checks import check_loss


@dataclass(frozen=True, kw_only=True)
class FunctionalSharpness(Result):
    """The gradient of sharpness along its two paths, g^ = g / ||g||.

    Attributes:
        value: ||(H - G) g^||, the functional path.
        logit: ||G g^||, the logit path.
        share: value / (value + logit); 0 where both are.
        total: ||H g^||; the paths may cancel.
        curvature: g^'(H - G) g^, what the functional path adds to the curvature along the gradient.
        logit_curvature: g^'G g^.
        gradient_norm: ||g||.
        loss: L(w).
    """

    value: float
    logit: float
    share: float
    total: float
    curvature: float
    logit_curvature: float
    gradient_norm: float
    loss: float


def _says(summary: Mapping[str, Any], loss: float) -> str:
    share = summary.get("share")
    if not isinstance(share, int | float):
        return ""
    return (
        f"Of what sharpness-aware minimization follows here, {percent(share)} goes through the network's function, the "
        "rest through the size of its outputs."
    )


@measure(
    "functional_sharpness",
    label="Functional path of sharpness",
    meaning="Gradient of sharpness through the network's function alone, without what the outputs' size does to the "
    "loss.",
    unit="loss / length²",
    flat="small",
    says=_says,
)
def functional_sharpness(
    problem: Problem,
    *,
    hvp: str = "double-backward",
    seed: int = 0,
) -> FunctionalSharpness:
    """The logit path and the functional path of sharpness: ||G g^|| and ||(H - G) g^||.

    The slope that SAM and a penalty on the gradient's norm add to that of the loss is, per unit of radius, the gradient
    of ||g||: H g^. With H = G + (H - G) it has two parts. G = J'BJ, the Gauss-Newton matrix, changes the loss's slope
    at the outputs (J their Jacobian, B the loss's Hessian there): the logit path, which a network can flatten by the
    size of its outputs alone. H - G = sum_k u_k grad^2 f_k, u the loss's slope at output k, bends the function: the
    functional path, which functional SAM follows alone. It is zero where the outputs are linear in the weights.
    g^'G g^ + g^'(H - G) g^ is `directional_sharpness`.

    Args:
        problem: L.
        hvp: "double-backward", or "differences" for models without second derivative.
        seed: draws nothing; for uniformity.

    Returns:
        FunctionalSharpness with `value`, `logit`, `share`, `total`, `curvature`, `logit_curvature`.

    Raises:
        InputError: a gradient of zero or not finite; a model without second derivative.

    Cost: 1 forward + 1 backward pass, 1 Hessian-vector and 1 Gauss-Newton product.
    Source: Singh, Mobahi, Agarwala and Dauphin 2025 (arXiv 2502.02407).

    Example:
        >>> import landscape, torch
        >>> product = torch.nn.Sequential(*(torch.nn.Linear(1, 1, bias=False) for _ in range(2))).double()
        >>> for weight, value in zip(product.parameters(), (2.0, 1.0)):  # a = 2, b = 1
        ...     _ = torch.nn.init.constant_(weight, value)
        >>> x = torch.ones(4, 1, dtype=torch.float64)
        >>> problem = landscape.Problem(product, torch.nn.MSELoss(), [(x, 5 * x)])  # L = (a b - 5)^2
        >>> found = landscape.functional_sharpness(problem)
        >>> round(found.value, 6), round(found.logit, 6)  # 2 |a b - 5| and 2 (a^2 + b^2)
        (6.0, 10.0)
    """
    loss, gradient = problem.loss_and_gradient()
    check_loss(loss)
    length = norm(gradient)
    check_loss(length, "gradient")
    if not length > 0:
        raise InputError("the gradient is zero: SAM has no direction here; look at hessian_top_eigenvalues instead")
    unit = gradient / length.to(gradient)
    hessian = operators.hessian(problem, hvp=hvp)
    whole, logit = hessian.matvec(unit), operators.gauss_newton(problem).matvec(unit)
    functional = whole - logit
    norms = [float(norm(v)) for v in (functional, logit, whole)]
    return FunctionalSharpness(
        value=norms[0],
        logit=norms[1],
        share=norms[0] / (norms[0] + norms[1]) if norms[0] + norms[1] else 0.0,
        total=norms[2],
        curvature=float(dot(unit, functional)),
        logit_curvature=float(dot(unit, logit)),
        gradient_norm=float(length),
        loss=float(loss),
        provenance=hessian.facts(),
    )
