"""One-step SAM sharpness."""

from __future__ import annotations

from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.sharpness.checks import normalized
from landscape.sharpness.options import BallOptions
from landscape.sharpness.sharpness import Sharpness, ball_sharpness, rise


@measure(
    "sam_sharpness",
    label="SAM sharpness",
    meaning="Rise of the loss after SAM's single step uphill, of length ρ along the gradient. Smaller is flatter.",
    unit="loss",
    flat="small",
    says=rise("One step of length {rho} straight uphill"),
    plain_radius=True,
)
def sam_sharpness(
    problem: Problem,
    *,
    rho: float | tuple[float, ...] = 0.05,
    p: float = 2.0,
    m: int | None = None,
    logit_normalization: bool = False,
    subsets: int = 0,
    seed: int = 0,
) -> Sharpness:
    """Rise of the loss after the one ascent step that SAM takes.

    S = L(w + epsilon) - L(w), epsilon = argmax of <g, epsilon> over ||epsilon||_p <= rho: rho g / ||g||_2 for p = 2,
    rho sign(g) for p = inf. A lower bound of the worst case; negative where the step jumps over a ridge. 0 for g = 0.
    Not invariant under rescaling of the network: see `adaptive_sharpness`.

    Args:
        rho: radius of the ball, one or several (a curve; the gradient at w is computed once).
        p: order of the norm, in [1, inf].
        m: the step is taken for each group of m consecutive examples and the rises are averaged (m-sharpness); all
            examples form one group by default.
        logit_normalization: center the outputs of each example and scale them to unit length before the loss, so that
            the scale of the last layer does not matter.
        subsets: 95% confidence interval from this many disjoint random subsets of the examples; 0 for none.
        seed: seed of the division into subsets.

    Returns:
        Sharpness with `value`, `sharpness` (rho,), `first_order`, `interval`, `error_bound`.

    Raises:
        InputError: rho not positive, p < 1, m or subsets larger than the number of examples, weights or loss at w not
            finite.

    In bfloat16 and float16 (weights, or autocast) the losses at w and at w + epsilon are computed in float32 where that
    is possible, as `evaluated_in` says; `error_bound` is what the rounding of the gradient may change.

    Cost: 1 forward + 1 backward pass, then 1 forward a radius; twice that with subsets. In half precision 1 forward
    pass and two gradients over up to 64 examples more.
    Source: Foret 2020 (arXiv 2010.01412), eq. 2; m-sharpness: section 4.1 there.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> round(landscape.sam_sharpness(problem, rho=0.05).value, 4)  # (w - 0.05 - 2)^2 - 1
        0.1025
    """
    setting = BallOptions(rho, p=p, m=m, subsets=subsets, seed=seed)
    return ball_sharpness(normalized(problem, logit_normalization), setting, value="one_step")
