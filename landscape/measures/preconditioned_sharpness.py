"""The largest eigenvalue of P^-1 H, and the edge of stability of the optimizer whose preconditioner P is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from landscape.curvature import operators
from landscape.curvature.frozen_step import frozen_step
from landscape.errors import InputError
from landscape.formatting import number
from landscape.measure import measure
from landscape.measures.hessian_top_eigenvalues import extreme_pairs
from landscape.problem.problem import Problem
from landscape.results.result import Result, array
from landscape.sharpness.updates import unwrapped


@dataclass(frozen=True, kw_only=True)
class PreconditionedSharpness(Result):
    """Preconditioned sharpness.

    Attributes:
        value: lambda_max(P^-1 H), the symmetric P^-1/2 H P^-1/2 having the same eigenvalues.
        error_bound: an eigenvalue of that lies within this distance of `value`.
        edge: the value up to which the optimizer is stable, 2 kappa / eta less what weight decay takes from it.
        decayed: lambda_max of P^-1 H with the weight decay in it, whose edge is 2 kappa / eta; `value` without decay.
        ratio: decayed eta / (2 kappa): above 1, which is where `value` is above `edge`, the iteration with this H and P
            grows.
        kappa: of the momentum, see `landscape.curvature.frozen_step`.
        learning_rate: eta, the largest of the groups.
        optimizer: what it is called.
        vectors: (1, d) P^1/2 times the eigenvector of P^-1 H, of unit length.
        hvps: Hessian-vector products spent.
        converged: whether the bounds met the tolerance, and no eigenvalue was seen to be missed.
    """

    value: float
    error_bound: float
    edge: float
    decayed: float
    ratio: float
    kappa: float
    learning_rate: float
    optimizer: str
    vectors: Tensor | None = array("index", "parameter")
    hvps: int
    converged: bool

    def summary(self) -> dict[str, Any]:
        """Value, error bound, edge and what makes it; without the vector."""
        names = ("value", "error_bound", "edge", "decayed", "ratio", "kappa", "learning_rate", "optimizer")
        return self.summary_of({name: getattr(self, name) for name in (*names, "hvps", "converged")})


def _says(summary: Mapping[str, Any], loss: float) -> str:
    edge = summary.get("edge")
    if not isinstance(edge, int | float):
        return ""
    if summary.get("decayed", summary["value"]) < 0:
        return f"Negative: the steps of {summary['optimizer']} grow along negative curvature at every learning rate."
    side = "above" if summary["value"] > edge else "below"
    return f"{side.capitalize()} {number(edge, 3)}, up to which {summary['optimizer']} is stable in its present state."


@measure(
    "preconditioned_sharpness",
    label="Preconditioned sharpness",
    meaning="Curvature in the sharpest direction as the optimizer's preconditioner scales the weights; beyond the edge "
    "of stability of that optimizer its steps grow.",
    unit="1 / learning rate",
    flat="small",
    says=_says,
)
def preconditioned_sharpness(
    problem: Problem,
    optimizer: Optimizer | None = None,
    start: Tensor | None = None,
    *,
    tol: float = 1e-3,
    hvp: str = "double-backward",
    max_hvps: int = 500,
    seed: int = 0,
) -> PreconditionedSharpness:
    """Largest eigenvalue of P^-1 H, P the diagonal preconditioner in an optimizer's state, and that optimizer's edge.

    P = 1 for SGD, (1 - beta1^t) (sqrt(v / (1 - beta2^t)) + eps) for Adam and AdamW, sqrt(v) + eps for RMSprop,
    (1 + (t - 1) lr_decay) (sqrt(sum g^2) + eps) for Adagrad. The iteration with H and P held fixed is unstable where

        lambda_max(P^-1 H) > edge = 2 kappa / eta - (what weight decay takes),

    kappa = 1 + beta with momentum beta (RMSprop's too), (1 + beta) / (1 + 2 beta) with Nesterov's, (1 + beta1) /
    (1 - beta1) for Adam (38 / eta at 0.9): see `landscape.curvature.frozen_step`. Decay takes gamma from SGD's edge,
    kappa gamma from that of AdamW; for Adam, RMSprop and Adagrad it is part of the matrix, P^-1 (H + gamma), and takes
    the difference of the two largest eigenvalues. Learning rates and decays of groups may differ (a group's P is then
    larger by the ratio of the rates), momenta may not.

    Args:
        problem: L.
        optimizer: of torch: SGD, Adam, AdamW, RMSprop or Adagrad over parameters of the Problem's model. Parameters
            that it does not hold stay where they are. Of a checkpoint or a Monitor the one of the training.
        start: (d,) or (m, d): `vectors` of a neighboring checkpoint, from which the process starts.
        tol: residual allowed, relative to |lambda|.
        hvp: "double-backward", or "differences" for models without second derivative.
        max_hvps: products allowed, the look for missed eigenvalues included; then converged is False.
        seed: draws the start vectors.

    Returns:
        PreconditionedSharpness with `value`, `edge`, `ratio`, `error_bound`.

    Raises:
        InputError: another optimizer, no state, none of the parameters, groups that differ in momentum; a loss that is
            not finite, a model without second derivative.

    Cost: 6 to 40 Hessian-vector products; as many again where decay is neither zero nor the same for all parameters.
    Source: Cohen 2022 (arXiv 2207.14484), for Adam; the edges with weight decay are derived in
    `landscape.curvature.frozen_step` and tested against spectral radii. Differs from Kalra 2026 (arXiv 2601.16979),
    result 3, whose edge of AdamW is 2 kappa / eta - gamma.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> optimizer = torch.optim.SGD(line.parameters(), lr=0.1, momentum=0.9)
        >>> result = landscape.preconditioned_sharpness(problem, optimizer)
        >>> round(result.value, 6), round(result.edge, 6)  # (2 + 2 * 0.9) / 0.1
        (2.0, 38.0)
    """
    if optimizer is None:
        raise InputError(
            "preconditioned_sharpness needs the optimizer of the training, whose P is meant: give optimizer"
        )
    optimizer = unwrapped(optimizer)
    step = frozen_step(problem, optimizer)
    half = step.inverse.sqrt()
    operator = operators.scaled(operators.hessian(problem, hvp=hvp), half, "preconditioned hessian")
    lanczos = {"which": "LA", "tol": tol, "max_products": max_hvps}
    plain = extreme_pairs(operator, 1, seed, start=start, **lanczos)
    value, decayed, hvps, converged = float(plain.values[0]), float(plain.values[0]), plain.hvps, plain.converged
    if bool((step.decay == step.decay[0]).all()):
        decayed += float(step.decay[0])
    else:
        matrix = dataclasses.replace(
            operator, name="decayed hessian", matvec=lambda v: operator.matvec(v) + step.decay * v, add=None
        )
        other = extreme_pairs(matrix, 1, seed, start=plain.vectors, **lanczos)
        decayed, hvps, converged = float(other.values[0]), hvps + other.hvps, converged and other.converged
    return PreconditionedSharpness(
        value=value,
        error_bound=float(plain.error_bounds[0]),
        edge=step.edge - (decayed - value),
        decayed=decayed,
        ratio=decayed / step.edge,
        kappa=step.kappa,
        learning_rate=step.rate,
        optimizer=type(optimizer).__name__,
        vectors=plain.vectors,
        hvps=hvps,
        converged=converged,
        provenance=operator.facts(),
    )
