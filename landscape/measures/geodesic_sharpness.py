"""Geodesic sharpness: the worst case in a ball on the quotient of the weights by the symmetries of attention."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from landscape.errors import InputError
from landscape.invariance import rescaling
from landscape.invariance.geodesics import geodesic_ball
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.sharpness.checks import check_weights, normalized
from landscape.sharpness.options import BallOptions
from landscape.sharpness.sharpness import Sharpness, ball_sharpness
from landscape.sharpness.subsets import positive


@dataclass(frozen=True, kw_only=True)
class GeodesicSharpness(Sharpness):
    """Largest rise of the loss found within a geodesic ball around w, for one or several radii.

    Attributes:
        heads: of attention through which invertible matrices pass unseen, found and verified: pairs of queries and
            keys, and of values and the layer that reads them. With 0 the ball is that of the other parameters alone.
        refused: heads that the network did not confirm: their parameters are treated as the others.
        head_parameters: number of parameters in `heads`.
    """

    heads: int
    refused: int
    head_parameters: int

    def summary(self) -> dict[str, Any]:
        """As for every sharpness, with what was found of attention."""
        counts = {"heads": self.heads, "refused": self.refused, "head_parameters": self.head_parameters}
        return {**super().summary(), **counts}


@measure(
    "geodesic_sharpness",
    label="Geodesic sharpness ({metric})",
    meaning="Largest rise of the loss found within geodesic distance ρ, where networks that differ by a matrix between "
    "queries and keys, or between values and outputs, of an attention head count as one. Smaller is flatter.",
    unit="loss",
    flat="small",
)
def geodesic_sharpness(
    problem: Problem,
    *,
    rho: float | tuple[float, ...] = 0.5,
    metric: str = "inv",
    scaling: str = "elementwise",
    steps: int = 20,
    restarts: int = 2,
    m: int | None = None,
    logit_normalization: bool = False,
    subsets: int = 0,
    hints: str = "",
    seed: int = 0,
) -> GeodesicSharpness:
    """Largest rise of the loss within geodesic distance rho, where networks that attention cannot tell apart are one.

    S = max over ||xi||_w <= rho of L(Exp_w(xi)) - L(w), xi horizontal. A head depends on the layers of its queries and
    keys G, H (inputs x size, biases as one more row) through G H' alone, and so on those of its values and outputs:
    G -> G A, H -> H A^-T changes nothing. Two metrics know of no such A:
    inv: ||(x, y)||^2 = tr (G'G)^-1 x'x + tr (H'H)^-1 y'y, without unit; mix: tr H'H x'x + tr G'G y'y.
    Parameters outside of such heads have the metric dw^2 / w^2 (their geodesics, w exp(t), keep every sign) or dw^2.
    `first_order` is the rise of the linearized loss; where there are no heads it is that of `adaptive_sharpness` (or
    `sam_sharpness`). Geodesics are not cut off: those of inv and of the other parameters are in closed form, those of
    mix integrated. Nothing is added to G'G; where it is singular its null directions do not move.

    Invariant, exactly: invertible maps of heads, permutations, and where no head is touched positive rescaling. Not
    invariant: a gain of RMSNorm or LayerNorm moved into the layer of queries, keys or values, and keys' biases, which
    softmax does not see (docs/invariance.md).

    Args:
        rho: radius, one or several (a curve, monotone by construction).
        metric: "inv" or "mix".
        scaling: of parameters outside of heads: "elementwise" (dw^2 / w^2) or "identity" (dw^2).
        steps: points that each ascent evaluates.
        restarts: ascents at each radius, as in `worst_case_sharpness`; all start and step in the metric.
        m: the maximum is taken for each group of m consecutive examples and averaged (m-sharpness).
        logit_normalization: center the outputs of each example and scale them to unit length before the loss, so that
            the scale of the last layer does not matter.
        subsets: 95% confidence interval from this many disjoint random subsets of the examples; 0 for none.
        hints: for a model that cannot be traced, "MODULE=opaque,..." (see `landscape.rescaling.find`).
        seed: seed of the random starts and of the division into subsets.

    Returns:
        GeodesicSharpness with `value`, `sharpness` (rho,), `first_order`, `one_step`, `worst_case`, `heads`.

    Raises:
        InputError: rho not positive, an unknown metric or scaling, steps or restarts below 1, m or subsets larger than
            the number of examples; a model that cannot be traced, an objective that hides the model's inputs; heads of
            lower rank with mix; weights or loss at w not finite.

    Cost: the passes of `worst_case_sharpness` (of one radius and ten classes 73 forward + 57 backward) and 3 forward
    passes over 8 examples; with every pass exponentials of matrices of twice the size of a head, in float64 (as much
    time as the pass over some dozens of images in a small vision transformer with inv, three times that with mix), and
    in memory an index of 8 bytes for each parameter of a head.
    Source: da Silva, Dangel and Oore 2025 (arXiv 2505.05409). Differs: geodesics are not approximated to second order,
    nothing is added to G'G, biases belong to G and H. For ||X (u v) - y||^2 with X'X = 1 their eq. 8 says a first order
    of 4 rho ||b (b - b*)||; their metric gives 2 sqrt(2) rho ||b (b - b*)||, which is adaptive sharpness.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> round(landscape.geodesic_sharpness(problem, rho=0.5).value, 4)  # at w exp(-0.5)
        0.9418
    """
    setting = BallOptions(rho, m=m, subsets=subsets, steps=positive("steps", steps), restarts=restarts, seed=seed)
    check_weights(problem)
    symmetries = _symmetries(problem, hints)
    ball = geodesic_ball(problem.parameters, problem.weights, symmetries.heads, metric=metric, scaling=scaling)
    result = ball_sharpness(normalized(problem, logit_normalization), setting, value="worst_case", ball=ball)
    return GeodesicSharpness(
        **{f.name: getattr(result, f.name) for f in dataclasses.fields(result)},
        heads=len(symmetries.heads),
        refused=len(symmetries.rejected_heads),
        head_parameters=sum(places.numel() for pair in ball.pairs for places in pair.places),
    )


def _symmetries(problem: Problem, hints: str) -> rescaling.Symmetries:
    """What the model's own computation shows of its attention."""
    if problem.objective.function is not None:
        raise InputError(
            "geodesic_sharpness looks for attention by running the model on its inputs, which an objective function "
            "hides: give Problem a loss(outputs, targets) or the model's own loss"
        )
    pairs = [hint.split("=") for hint in hints.split(",") if hint]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError(f"hints={hints!r}: MODULE=KIND is needed, for example layers.3=opaque")
    example = problem.few_examples(8)
    return rescaling.find(
        problem.model,
        example,
        parameters=problem.parameters,
        hints=dict(pairs),
        batch_norm=problem.batch_norm,
    )
