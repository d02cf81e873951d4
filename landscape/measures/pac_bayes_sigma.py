"""PAC-Bayes sigma: the noise that raises the loss by a given amount."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.ball import vectors
from landscape.ball.noise import Noise
from landscape.ball.scaling import Scaling
from landscape.errors import InputError
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.problem.widened import widened
from landscape.progress import Bar
from landscape.results.result import Result, array, plain
from landscape.sharpness.checks import check_loss, check_weights, normalized, require_resolved, scaled_ball
from landscape.sharpness.subsets import check_division, disjoint_subsets
from landscape.statistics import combined, interaction, interval_around, interval_of_rises, standard_error

# Noise of 1,000 times the weights' norm: beyond it the rise of a loss would be rounding.
_DOUBLINGS, _HALVINGS = 14, 60


@dataclass(frozen=True, kw_only=True)
class PacBayesSigma(Result):
    """The standard deviation of the noise that raises the loss by `rise`.

    Attributes:
        value: sigma, in units of T; inf where noise of 1,000 times the norm of the weights does not raise the loss that
            far, 0 where the smallest noise does.
        bracket: (bound,) the largest sigma found below the rise and the smallest above it.
        tolerance: bracket[1] / bracket[0] - 1, the relative width that the bisection reached.
        converged: whether `tolerance` is what was asked for.
        rise: the rise of the loss that was aimed at.
        stderr: standard error of `value` from the finite number of draws, through the slope of the rise. Of few draws
            +- 2 of it is too narrow: `interval`.
        per_draw: (draw,) `value` as each pair of draws would move it, to first order; their mean is `value`.
        flatness: 1 / sigma^2, the term of the PAC-Bayes bound.
        rms_norm: sqrt(E ||epsilon||^2) at sigma.
        loss: L(w).
        evaluations: number of sigmas tried.
        non_finite: number of perturbed losses that were nan or inf; such a sigma counts as above the rise.
        subsets: (subset,) sigma on each disjoint subset of the examples; None where not asked for.
        interval: (bound,) 95% confidence interval: over the draws, on these examples; with subsets over samples of as
            many examples too. The upper end is inf where the draws do not exclude that the loss never rises that far;
            None where `value` is 0 or inf.
    """

    value: float
    bracket: np.ndarray = array("bound")
    tolerance: float
    converged: bool
    rise: float
    stderr: float
    flatness: float
    rms_norm: float
    loss: float
    evaluations: int
    non_finite: int
    per_draw: np.ndarray | None = array("draw", default=None)
    subsets: np.ndarray | None = array("subset", default=None)
    interval: np.ndarray | None = array("bound", default=None)

    def summary(self) -> dict[str, Any]:
        """Every field but what only repeats the arguments."""
        entry = {k: v for k, v in super().summary().items() if k not in ("interval", "per_draw")}
        entry["subsets"] = self.arguments.get("subsets")
        entry |= {} if self.interval is None else {"low": self.interval[0], "high": self.interval[1]}
        return plain(entry)


@measure(
    "pac_bayes_sigma",
    label="PAC-Bayes σ",
    meaning="Scale of random noise in the weights that raises the loss by {rise}. Larger is flatter.",
    unit="weight",
    flat="large",
)
def pac_bayes_sigma(
    problem: Problem,
    *,
    rise: float = 0.1,
    magnitude_aware: bool = False,
    biases: str = "scaled",
    draws: int = 20,
    tol: float = 0.01,
    logit_normalization: bool = False,
    subsets: int = 0,
    seed: int = 0,
) -> PacBayesSigma:
    """Standard deviation of the Gaussian weight noise that raises the loss by a given amount: large is flat.

    sigma with E L(w + sigma T xi) - L(w) = rise, xi ~ N(0, I), T = 1 or, magnitude-aware, T = |w|; bisection in
    log sigma with the same antithetic draws at every sigma, so that the estimated rise is a smooth function of it.

    Args:
        rise: the rise of the loss that defines sigma.
        magnitude_aware: noise in proportion to each weight: invariant under rescaling.
        biases: scaled (like weights), unscaled (T = 1) or fixed (not perturbed).
        draws: perturbations at each sigma, an even number.
        tol: relative width of the bracket at which the bisection stops.
        logit_normalization: center the outputs of each example and scale them to unit length before the loss, so that
            the scale of the last layer does not matter.
        subsets: the interval speaks of other samples too, from this many disjoint random subsets of the examples; 0: of
            other draws alone.
        seed: seed of the draws and of the division into subsets.

    Returns:
        PacBayesSigma with `value`, `interval`, `bracket`, `tolerance`, `stderr`.

    Raises:
        InputError: rise or tol not positive, draws odd or below 4, no weight that moves, weights or loss at w not
            finite, a rise below the rounding of the loss.

    In bfloat16 and float16 (weights, or autocast) losses are computed in float32 where that is possible.

    Cost: 1 + `draws` x (about 4 + log2(1 / tol)) forward passes, no backward; twice that with subsets.
    Source: Jiang 2020 (arXiv 1912.02178), appendix C; Neyshabur 2017 (arXiv 1706.08947). Differs: a rise of the loss
    instead of a drop of the accuracy, which is a step function of sigma; no floor of 1e-3 under |w|, which would spoil
    the invariance.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> sigma = landscape.pac_bayes_sigma(problem, rise=0.1, draws=1000)
        >>> abs(sigma.value - 0.1**0.5) < 4 * sigma.stderr + 0.01 * sigma.value  # sigma^2 = rise
        True
    """
    for name, number in (("rise", rise), ("tol", tol)):
        if not (math.isfinite(number) and number > 0):
            raise InputError(f"{name}={number:g}: a positive finite number is needed")
    problem = normalized(problem, logit_normalization)
    check_division(problem, None, subsets)
    check_weights(problem)
    chosen = Scaling("elementwise" if magnitude_aware else "identity", biases)
    with widened(problem) as wide, Bar("PAC-Bayes sigma", None) as bar:
        noise = Noise(scaled_ball(wide, 2.0, chosen), draws, True, seed)
        search = _Search(wide, noise, rise, bar).run(tol)
        parts, interval = None, search.interval
        if subsets:
            searches = [_Search(s, noise, rise, bar).run(tol) for s in disjoint_subsets(wide, subsets, seed)]
            parts = np.array([s.sigma for s in searches])
            interval = _of_samples(search, searches)
    sigma = search.sigma
    return PacBayesSigma(
        value=sigma,
        bracket=np.array([search.low, search.high]),
        tolerance=search.width,
        converged=search.width <= tol,
        rise=rise,
        stderr=math.nan if search.per_draw is None else float(standard_error(search.per_draw)),
        per_draw=search.per_draw,
        flatness=1 / sigma**2 if sigma else math.inf,
        rms_norm=sigma * noise.rms_norm(problem.dimension),
        loss=search.loss,
        evaluations=len(search.tried),
        non_finite=search.non_finite,
        subsets=parts,
        interval=interval,
        provenance={"logit_normalization": problem.logit_normalization},
    )


def _of_samples(search: _Search, parts: Sequence[_Search]) -> np.ndarray | None:
    """The interval over draws and samples of the examples; None where a part of them has no sigma."""
    table = [s.per_draw for s in parts if s.per_draw is not None]
    if search.interval is None or len(table) < len(parts):
        return None
    samples = interval_around(np.array(search.sigma), np.array([s.sigma for s in parts]))
    twice = interaction(np.stack(table))
    return combined(np.array(search.sigma), search.interval, samples, counted_twice=twice)


class _Search:
    """Bisection for the sigma at which the mean rise of the loss crosses the wanted one."""

    def __init__(self, problem: Problem, noise: Noise, rise: float, bar: Bar) -> None:
        self.problem, self.noise, self.rise, self.bar = problem, noise, rise, bar
        loss = problem.loss()
        check_loss(loss)
        require_resolved(problem, rise, float(loss))
        self.loss, self.low, self.high = float(loss), 0.0, math.inf
        self.tried: dict[float, np.ndarray] = {}
        self.non_finite = 0

    def run(self, tol: float) -> _Search:
        """Double or halve until the rise is bracketed, then halve the bracket in log sigma."""
        norm = self.noise.rms_norm(self.problem.dimension)
        size = float(vectors.norm(self.problem.weights))
        sigma = 0.1 * (size or 1.0) / norm
        least, most = sigma * 2.0**-_HALVINGS, sigma * 2.0**_DOUBLINGS
        while not self.bracketed and least <= sigma <= most:
            self.attempt(sigma)
            sigma = sigma / 2 if not self.low else sigma * 2
        while self.bracketed and self.width > tol:
            middle = math.sqrt(self.low * self.high)
            if not self.low < middle < self.high:
                break
            self.attempt(middle)
        return self

    def attempt(self, sigma: float) -> None:
        """The rises at sigma; the bracket moves. One host synchronization."""
        losses, failed = self.noise.rises(self.problem, [sigma], "noise", self.bar)
        rises = losses[:, 0].cpu().numpy() - self.loss
        self.tried[sigma] = rises
        self.non_finite += int(failed.sum())
        if float(rises.mean()) < self.rise:
            self.low = max(self.low, sigma)
        else:
            self.high = min(self.high, sigma)

    @property
    def sigma(self) -> float:
        """The middle of the bracket, in log sigma; inf or 0 where one side was never found."""
        return math.sqrt(self.low * self.high) if self.bracketed else (math.inf if self.low else 0.0)

    @property
    def bracketed(self) -> bool:
        """Whether a sigma below and one above the rise are known."""
        return self.low > 0 and math.isfinite(self.high)

    @property
    def width(self) -> float:
        """Relative width of the bracket."""
        return self.high / self.low - 1 if self.low else math.inf

    @property
    def slope(self) -> float:
        """Slope d rise / d log sigma at sigma; nan where the rise does not grow there."""
        if not self.bracketed:
            return math.nan
        # The slope over a few percent: over the final bracket it would be rounding, over the first one curvature.
        rises = {s: float(r.mean()) for s, r in self.tried.items() if np.isfinite(r).all()}
        below = max((s for s in rises if s <= self.low / 1.03), default=min(rises))
        above = min((s for s in rises if s >= self.high * 1.03), default=max(rises))
        slope = (rises[above] - rises[below]) / math.log(above / below) if above > below else 0.0
        return slope if slope > 0 else math.nan

    @property
    def per_draw(self) -> np.ndarray | None:
        """(draw,) sigma - sigma (rise of the draw - their mean) / slope."""
        if math.isnan(slope := self.slope):
            return None
        rises = self.tried[self.low]
        return self.sigma * (1 - (rises - rises.mean()) / slope)

    @property
    def interval(self) -> np.ndarray | None:
        """Where the interval of the rise holds the wanted one, the rise as the power of sigma that it is at sigma."""
        if math.isnan(slope := self.slope):
            return None
        low, high = interval_of_rises(self.tried[self.low])
        power = self.rise / slope
        most = self.low * (self.rise / low) ** power if low > 0 else math.inf
        return np.array([self.low * (self.rise / high) ** power, most])
