"""Fisher-Rao norm of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.ball.vectors import dot
from landscape.curvature import operators
from landscape.errors import InputError
from landscape.formatting import number
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.results.result import Result, array, plain
from landscape.sharpness.checks import check_loss, check_weights
from landscape.sharpness.subsets import check_division, disjoint_subsets
from landscape.statistics import interval_around

MATRICES = ("fisher", "mc-fisher", "empirical-fisher", "ggn")


@dataclass(frozen=True, kw_only=True)
class FisherRaoNorm(Result):
    """Length of the weights in the Fisher metric.

    Attributes:
        value: sqrt(w'Fw).
        square: w'Fw.
        matrix: which F.
        subsets: (subset,) the value on each disjoint subset of the examples; None where not asked for.
        interval: (bound,) 95% confidence interval over samples of as many examples; None likewise.
    """

    value: float
    square: float
    matrix: str
    subsets: np.ndarray | None = array("subset", default=None)
    interval: np.ndarray | None = array("bound", default=None)

    def summary(self) -> dict[str, Any]:
        """Every field but what only repeats the arguments."""
        entry = {k: v for k, v in super().summary().items() if k != "interval"}
        entry["subsets"] = self.arguments.get("subsets")
        return plain(entry | ({} if self.interval is None else {"low": self.interval[0], "high": self.interval[1]}))


def _says(summary: Mapping[str, Any], loss: float) -> str:
    value = summary.get("value")
    if summary.get("matrix") != "fisher" or not isinstance(value, int | float):
        return ""
    return (
        f"Where all weights grow by a small fraction t, the outputs move by {number(value, 3)}·t, in units of their "
        "uncertainty. Every rescaling of the network has the same."
    )


@measure(
    "fisher_rao_norm",
    label="Fisher-Rao norm",
    meaning="Length of the weights in the metric of what the network computes. The same for every rescaling of it.",
    unit="sqrt(loss)",
    says=_says,
)
def fisher_rao_norm(
    problem: Problem,
    *,
    matrix: str = "fisher",
    subsets: int = 0,
    chunk_size: int | None = None,
    seed: int = 0,
) -> FisherRaoNorm:
    """Norm of the weights in the Fisher metric: sqrt(w'Fw), the same for every rescaling of the network.

    F is the mean over examples of E[s s'], s the gradient of -log p(y | x), y as the model expects it ("fisher"), drawn
    from the model ("mc-fisher") or the label itself ("empirical-fisher", a mean of <grad l_i, w>^2). The loss is taken
    for -log p as it stands: a squared error for a Gaussian of variance 1/2.
    For a network of depth D without biases, homogeneous in the weights of each layer (ReLU, LeakyReLU, linear), J w =
    D f(x), so that w'Fw = D^2 mean_i f_i'B_i f_i, B_i the loss's Hessian at the outputs, and for the labels D^2 mean_i
    <dl_i/df, f_i>^2.
    A rescaling w -> T w that keeps the function turns F into T^-1 F T^-1: w'Fw stays, with biases too.

    Args:
        matrix: "fisher", "mc-fisher", "empirical-fisher", or "ggn" for a loss that is no -log p.
        subsets: 95% confidence interval from this many disjoint random subsets of the examples; 0 for none.
        chunk_size: examples differentiated at once; None chooses.
        seed: draws the labels of "mc-fisher" and the division into subsets.

    Returns:
        FisherRaoNorm with `value`, `square`, `matrix`.

    Raises:
        InputError: outputs that are no (examples, outputs) matrix; a loss whose Hessian at the outputs depends on the
            targets, or is zero (log-probabilities as outputs), for "fisher"; a negative form of "ggn"; subsets larger
            than the number of examples.

    Cost: 1 forward + 1 backward pass and 1 Gauss-Newton product (about a Hessian-vector product); twice that with
    subsets.
    Source: Liang, Poggio, Rakhlin and Stokes 2019 (arXiv 1711.01530), Definition 2 and Theorem 3.1. Their Theorem is
    for D = L + 1 layers and for the labels; for the model's own F it reads as above.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> round(landscape.fisher_rao_norm(problem).square, 6)  # w^2 H
        2.0
    """
    if matrix not in MATRICES:
        raise InputError(f"matrix={matrix!r}: one of {', '.join(MATRICES)} is needed")
    check_division(problem, None, subsets)
    check_weights(problem)
    square, facts = _square(problem, matrix, chunk_size, seed)
    value, parts = math.sqrt(square), None
    if subsets:
        divided = disjoint_subsets(problem, subsets, seed)
        parts = np.sqrt([_square(s, matrix, chunk_size, seed)[0] for s in divided])
    return FisherRaoNorm(
        value=value,
        square=square,
        matrix=matrix,
        subsets=parts,
        interval=None if parts is None else interval_around(np.array(value), parts),
        provenance=facts,
    )


def _square(problem: Problem, matrix: str, chunk_size: int | None, seed: int) -> tuple[float, dict[str, Any]]:
    operator = operators.gauss_newton(problem, matrix=matrix, seed=seed, chunk_size=chunk_size)
    form = dot(problem.weights, operator.matvec(problem.weights))
    check_loss(form, "Fisher-Rao norm")
    square = float(form)
    if square < 0:
        raise InputError(
            "the loss is not convex in the outputs, so that w'Gw is below 0: it is not a norm; take "
            'matrix="empirical-fisher"'
        )
    if square == 0 and matrix != "empirical-fisher" and bool(problem.weights.any()) and bool(problem.gradient().any()):
        raise InputError(
            "the loss is linear in the outputs (log-probabilities?), so that its Hessian there is no Fisher matrix: "
            'return logits and take their cross-entropy, or take matrix="empirical-fisher"'
        )
    return square, operator.facts()
