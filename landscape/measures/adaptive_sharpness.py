"""Adaptive sharpness: one step, with the worst case beside it."""

from __future__ import annotations

import math

from landscape.ball.scaling import Scaling
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.sharpness.checks import normalized
from landscape.sharpness.options import BallOptions
from landscape.sharpness.sharpness import Sharpness, ball_sharpness, rise
from landscape.sharpness.subsets import positive


@measure(
    "adaptive_sharpness",
    label="Adaptive sharpness (ASAM)",
    meaning="Like SAM sharpness, but every weight moves in proportion to its size; worst case: the largest rise found "
    "in that ball. Smaller is flatter.",
    unit="loss",
    flat="small",
    says=rise("One uphill step that moves every weight in proportion to its size (radius {rho})", "elementwise"),
)
def adaptive_sharpness(
    problem: Problem,
    *,
    rho: float | tuple[float, ...] = 0.5,
    p: float = 2.0,
    scaling: str = "elementwise",
    biases: str = "scaled",
    eta: float | None = None,
    one_step_only: bool = False,
    steps: int = 20,
    restarts: int = 2,
    m: int | None = None,
    logit_normalization: bool = False,
    subsets: int = 0,
    seed: int = 0,
) -> Sharpness:
    """Rise of the loss after one ascent step in a ball whose shape follows the weights; the worst case beside it.

    S = L(w + epsilon) - L(w), epsilon = rho T^2 g / ||T g||_2 for p = 2, rho T sign(g) for p = inf. `value` is this
    one-step rise, `worst_case` the largest one that projected ascent finds in the same ball (p = 2 or inf).
    With the element-wise T and biases scaled or fixed, both are invariant under positive diagonal rescaling of the
    network, exactly; filter-wise and layer-wise T and asam-official (its eta and its unscaled biases) are not.

    Args:
        rho: radius of the ball, one or several (a curve; the gradient at w is computed once).
        p: order of the norm, in [1, inf].
        scaling: T: elementwise |w|, filterwise, layerwise, or asam-official (the ASAM authors' code).
        biases: scaled (like weights), unscaled (T = 1) or fixed (not perturbed).
        eta: added to the norms in T; by default 0.01 for asam-official, else 0.
        one_step_only: leave the worst case out.
        steps: points that each ascent evaluates.
        restarts: ascents at each radius, the first from the one-step point, the next from where short ascents led
            highest, of those at which one output is above the others and of a random point. They differ where the loss
            has several maxima in the ball.
        m: the step is taken for each group of m consecutive examples and the rises are averaged (m-sharpness).
        logit_normalization: center the outputs of each example and scale them to unit length before the loss, so that
            the scale of the last layer does not matter.
        subsets: 95% confidence interval of `value` from this many disjoint random subsets; 0 for none.
        seed: seed of the random starts and of the division into subsets.

    Returns:
        Sharpness with `value`, `sharpness` (rho,), `worst_case` (None for other p), `restarts`, `restart_spread`.

    Raises:
        InputError: rho not positive, p < 1, unknown scaling, steps or restarts below 1, m or subsets larger than the
            number of examples, weights or loss at w not finite.

    Cost: 1 forward + 1 backward pass, then 1 forward a radius; with the worst case instead that of
    `worst_case_sharpness` (for ten classes and one radius 73 forward + 57 backward); twice that with subsets.
    Source: Kwon 2021 (arXiv 2102.11600), eq. 2. Differs from its official code except with asam-official.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> round(landscape.adaptive_sharpness(problem, rho=0.5).value, 4)  # at w - 0.5 |w|
        1.25
    """
    ascents = positive("steps", steps) if not one_step_only and float(p) in (2.0, math.inf) else None
    setting = BallOptions(rho, p, Scaling.of(scaling, biases, eta), m, subsets, ascents, restarts, seed)
    return ball_sharpness(normalized(problem, logit_normalization), setting, value="one_step")
