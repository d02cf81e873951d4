"""Norm of the gradient, in total and by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from landscape.ball.scaling import Scaling
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.results.result import Result, array
from landscape.sharpness.checks import check_loss, check_weights, normalized
from landscape.sharpness.options import order
from landscape.sharpness.subsets import check_division, disjoint_subsets, in_groups
from landscape.statistics import interval_around


@dataclass(frozen=True, kw_only=True)
class GradientNorm(Result):
    """Norm of the gradient.

    Attributes:
        value: ||T g||_p over all parameters.
        per_layer: (layer,) the same over each parameter tensor.
        layers: dotted names of the tensors.
        loss: L(w).
        norms: the total norm for p = 1, 2 and inf.
        subsets: (subset,) the value on each disjoint subset of the examples; None where not asked for.
        interval: (bound,) 95% confidence interval from the subsets; None where not asked for. Noise of the sample
            raises a norm: the gradient of fewer examples is longer on average.
    """

    value: float
    per_layer: np.ndarray = array("layer")
    layers: list[str]
    loss: float
    norms: dict[str, float]
    subsets: np.ndarray | None = array("subset", default=None)
    interval: np.ndarray | None = array("bound", default=None)

    def summary(self) -> dict[str, Any]:
        """Arguments, the norm, the layers by name."""
        layers = dict(zip(self.layers, self.per_layer.tolist(), strict=True))
        values = {"value": self.value, "norms": self.norms, "loss": self.loss, "layers": layers}
        return self.summary_of(
            values | ({} if self.interval is None else {"low": self.interval[0], "high": self.interval[1]})
        )


@measure(
    "gradient_norm",
    label="Gradient norm",
    meaning="Length of the gradient at the weights: 0 at a true minimum.",
    unit="loss / weight",
)
def gradient_norm(
    problem: Problem,
    *,
    p: float = 2.0,
    scaling: str = "identity",
    biases: str = "scaled",
    eta: float | None = None,
    m: int | None = None,
    logit_normalization: bool = False,
    subsets: int = 0,
    seed: int = 0,
) -> GradientNorm:
    """Norm of the gradient at w: the slope of the loss in the steepest direction.

    ||T g||_p with g the gradient of L. The order p is that of the norm of the gradient: sharpness in the ball of order
    q grows with slope ||T g||_p, 1/p + 1/q = 1. With the element-wise T it is invariant under rescaling.

    Args:
        p: order of the norm, in [1, inf].
        scaling: T: identity, elementwise, filterwise, layerwise or asam-official.
        biases: scaled (like weights), unscaled (T = 1) or fixed (left out).
        eta: added to the norms in T; by default 0.01 for asam-official, else 0.
        m: the norms of the gradients of each group of m consecutive examples are averaged.
        logit_normalization: center the outputs of each example and scale them to unit length before the loss, so that
            the scale of the last layer does not matter.
        subsets: 95% confidence interval from this many disjoint random subsets of the examples; 0 for none.
        seed: seed of the division into subsets.

    Returns:
        GradientNorm with `value`, `per_layer` (layer,), `layers`.

    Raises:
        InputError: p < 1, m or subsets larger than the number of examples, weights or loss at w not finite.

    Cost: 1 forward + 1 backward pass; twice that with subsets.
    Source: as a penalty in Zhao 2022 (arXiv 2202.03599); by layer as in Cockpit (arXiv 2102.06604).

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> landscape.gradient_norm(problem).value
        2.0
    """
    p, chosen = order(p, multi_step=False), Scaling.of(scaling, biases, eta)
    problem = normalized(problem, logit_normalization)
    check_division(problem, m, subsets)
    check_weights(problem)
    scale = chosen.diagonal(problem.parameters, problem.weights)
    loss, table = _norms(problem, scale, (p, 1.0, 2.0, math.inf), m)
    parts = None
    if subsets:
        divided = disjoint_subsets(problem, subsets, seed)
        parts = np.array([_norms(s, scale, (p,), m)[1][0, 0] for s in divided])
    center = table[:1, 0]
    return GradientNorm(
        value=float(center[0]),
        per_layer=table[0, 1:],
        layers=list(problem.parameters.names),
        loss=loss,
        norms=dict(zip(("1", "2", "inf"), table[1:, 0].tolist(), strict=True)),
        subsets=parts,
        interval=None if parts is None else interval_around(center, parts[:, None])[:, 0],
        provenance={"logit_normalization": problem.logit_normalization},
    )


def _norms(
    problem: Problem, scale: torch.Tensor | None, orders: tuple[float, ...], m: int | None
) -> tuple[float, np.ndarray]:
    """Loss, and norms (order, 1 + layer), the total first, averaged over the groups."""
    total, table = 0.0, np.zeros((len(orders), 1 + len(problem.parameters)))
    for group in in_groups(problem, m):
        loss, g = group.loss_and_gradient()
        check_loss(loss)
        check_loss(g, "gradient")
        h = (g if scale is None else g * scale).double()
        pieces = [h, *problem.parameters.unflatten(h)]
        norms = torch.stack([torch.stack([torch.linalg.vector_norm(t, p) for t in pieces]) for p in orders])
        share = group.weight / problem.weight
        total, table = total + share * float(loss), table + share * norms.cpu().numpy()
    return total, table
