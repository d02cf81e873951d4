"""Keskar's epsilon-sharpness: the worst case in a box of the size of the weights, in percent of 1 + L."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from landscape.ball.scaling import Scaling
from landscape.errors import InputError
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.sharpness.checks import normalized
from landscape.sharpness.options import BallOptions
from landscape.sharpness.sharpness import Sharpness, ball_sharpness


@dataclass(frozen=True, kw_only=True)
class KeskarSharpness(Sharpness):
    """Sharpness in percent of 1 + L.

    Attributes:
        unit: of `value`, `sharpness`, `groups`, `subsets` and `interval`; the other rises are those of
            the loss itself.
    """

    unit: str = "percent of 1 + loss"

    def summary(self) -> dict[str, Any]:
        """As for every sharpness, with the unit."""
        return {**super().summary(), "unit": self.unit}


@measure(
    "keskar_sharpness",
    label="Keskar's ε-sharpness",
    meaning="Largest rise of the loss in a small box around the weights, in percent of 1 + loss. Smaller is flatter.",
    unit="percent of 1 + loss",
    flat="small",
)
def keskar_sharpness(
    problem: Problem,
    *,
    rho: float | tuple[float, ...] = 0.001,
    steps: int = 20,
    restarts: int = 2,
    m: int | None = None,
    logit_normalization: bool = False,
    subsets: int = 0,
    seed: int = 0,
) -> KeskarSharpness:
    """Largest relative rise of the loss, in percent, within the box |epsilon_i| <= rho (|w_i| + 1).

    S = 100 (max L(w + epsilon) - L(w)) / (1 + L(w)): the worst case for p = inf, element-wise T with eta = 1, biases
    scaled, through the same ascent as `worst_case_sharpness`. `value`, `groups`, `subsets`, `interval` and
    `error_bound` are percents; `worst_case`, `one_step` and `restarts` are the rises of the loss themselves. The 1 in
    the box spoils the invariance under rescaling.

    Args:
        rho: Keskar's epsilon, one or several; 1e-3 and 5e-4 in the paper.
        steps: points that each ascent evaluates.
        restarts: ascents at each radius, the first from the one-step point, the next from where short ascents led
            highest, of those at which one output is above the others and of a random point. They differ where the loss
            has several maxima in the ball.
        m: the maximum is taken for each group of m consecutive examples and averaged.
        logit_normalization: center the outputs of each example and scale them to unit length before the loss, so that
            the scale of the last layer does not matter.
        subsets: 95% confidence interval from this many disjoint random subsets of the examples; 0 for none.
        seed: seed of the random starts and of the division into subsets.

    Returns:
        KeskarSharpness.

    Raises:
        InputError: as `worst_case_sharpness`, and a loss of -1 or below, relative to which nothing can be stated.

    Cost: that of `worst_case_sharpness` (for ten classes and one radius 73 forward + 57 backward passes); twice that
    with subsets.
    Source: Keskar 2017 (arXiv 1609.04836), eq. 3 and 4 with A = I. Differs: projected ascent instead of 10 iterations
    of L-BFGS-B.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> round(landscape.keskar_sharpness(problem, rho=0.001).value, 4)  # percent of 1 + L
        0.2002
    """
    setting = BallOptions(rho, math.inf, Scaling("elementwise", eta=1.0), m, subsets, steps, restarts, seed)
    rises = ball_sharpness(normalized(problem, logit_normalization), setting, value="worst_case")
    if not 1 + rises.loss > 0:
        raise InputError(f"the loss is {rises.loss:g}: relative sharpness needs 1 + loss > 0; use worst_case_sharpness")
    percent = 100 / (1 + rises.loss)
    fields = {f.name: getattr(rises, f.name) for f in dataclasses.fields(rises)}
    for name in ("sharpness", "groups", "subsets", "interval", "error_bound"):
        fields[name] = None if fields[name] is None else percent * fields[name]
    return KeskarSharpness(**fields)
