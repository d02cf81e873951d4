"""Worst-case sharpness by projected ascent."""

from __future__ import annotations

from landscape.ball.scaling import Scaling
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.sharpness.checks import normalized
from landscape.sharpness.options import BallOptions
from landscape.sharpness.sharpness import Sharpness, ball_sharpness, rise


@measure(
    "worst_case_sharpness",
    label="Worst-case sharpness",
    meaning="Largest rise of the loss found anywhere within distance ρ of the weights. Smaller is flatter.",
    unit="loss",
    flat="small",
    says=rise("The worst move found within distance {rho}"),
    plain_radius=True,
)
def worst_case_sharpness(
    problem: Problem,
    *,
    rho: float | tuple[float, ...] = 0.05,
    p: float = 2.0,
    scaling: str = "identity",
    biases: str = "scaled",
    eta: float | None = None,
    steps: int = 20,
    restarts: int = 2,
    m: int | None = None,
    logit_normalization: bool = False,
    subsets: int = 0,
    seed: int = 0,
) -> Sharpness:
    """Largest rise of the loss within a ball, found by projected gradient ascent.

    S = max over ||T^-1 epsilon||_p <= rho of L(w + epsilon) - L(w), solved in u = T^-1 epsilon (see
    `landscape.ball.ascent.maximize`); exactly invariant under rescaling for the element-wise T. Never below the
    one-step value nor below 0, and monotone in rho: the maximizer at a smaller radius is a candidate at the larger
    ones and starts an ascent of its own there. It is a lower bound of the true maximum: in 162 balls of six networks
    (four T, p = 2 and inf, Keskar's box, rises from 0.001 to 40) it was at least 0.96 of the best of four ascents of
    120 steps, in the median 1.00; one ascent alone (restarts=1) reached 0.55 (docs/benchmarks/worst_case.md). Where
    maxima of several heights were found `restart_spread` shows it.

    Args:
        rho: radius of the ball, one or several (a curve, monotone by construction).
        p: order of the norm, 2 or inf.
        scaling: T: identity, elementwise, filterwise, layerwise or asam-official.
        biases: scaled (like weights), unscaled (T = 1) or fixed (not perturbed).
        eta: added to the norms in T; by default 0.01 for asam-official, else 0.
        steps: points that each ascent evaluates.
        restarts: ascents at each radius, the first from the one-step point, the next from where short ascents led
            highest, of those at which one output is above the others and of a random point. They differ where the loss
            has several maxima in the ball.
        m: the maximum is taken for each group of m consecutive examples and averaged (m-sharpness).
        logit_normalization: center the outputs of each example and scale them to unit length before the loss, so that
            the scale of the last layer does not matter.
        subsets: 95% confidence interval from this many disjoint random subsets of the examples; 0 for none.
        seed: seed of the random starts and of the division into subsets.

    Returns:
        Sharpness with `value`, `sharpness` (rho,), `one_step`, `restarts`, `restart_spread`, `non_finite`.

    Raises:
        InputError: rho not positive, p not 2 or inf, steps or restarts below 1, m or subsets larger than the number of
            examples, weights or loss at w not finite.

    Cost: 1 forward + 1 backward pass; with restarts, 1 forward + 1 backward for each output of the model (at most ten)
    and 1 forward for each at every radius (2 of at most five outputs); then `steps` forward + (`steps` - 1) backward
    for each of the restarts at every radius and once more at every radius but the smallest, and a fifth of that for
    each of up to restarts + 2 candidates, whose steps the ascents that go on are spared; twice that with subsets.
    For ten classes and one radius 73 forward + 57 backward passes; restarts=1: 21 + 20.
    Source: Andriushchenko 2023 (arXiv 2302.07011), section 3, with APGD (arXiv 2003.01690). Differs from their code:
    projects in u, where a zero weight is harmless and p = 2 is invariant.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> round(landscape.worst_case_sharpness(problem, rho=0.05).value, 4)
        0.1025
    """
    setting = BallOptions(rho, p, Scaling.of(scaling, biases, eta), m, subsets, steps, restarts, seed)
    return ball_sharpness(normalized(problem, logit_normalization), setting, value="worst_case")
