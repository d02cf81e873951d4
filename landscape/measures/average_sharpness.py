"""Average-case sharpness under Gaussian or uniform noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from landscape.ball.noise import Noise
from landscape.ball.scaling import Scaling
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.problem.widened import is_half, widened
from landscape.progress import Bar
from landscape.results.result import array
from landscape.sharpness.checks import (
    check_loss,
    check_weights,
    displacement_error,
    normalized,
    resolution,
    scaled_ball,
)
from landscape.sharpness.options import BallOptions
from landscape.sharpness.sharpness import Sharpness, rise
from landscape.sharpness.subsets import check_division, disjoint_subsets, in_groups
from landscape.statistics import combined, interaction, interval_around, interval_of_rises, standard_error

DEFAULT_RHO = {True: 0.01, False: 0.1}  # T = 1 or not


@dataclass(frozen=True, kw_only=True)
class AverageSharpness(Sharpness):
    """Expected rise of the loss under noise, at one or several radii.

    Attributes:
        interval: (bound, rho) 95% confidence interval: over the draws, on these examples; with subsets over samples of
            as many examples too. Few draws cannot exclude that one direction makes most of the rise, and their upper
            end lies far out (4 draws: 54 standard errors, 20: 4, 100: 2.3): take 20 or more.
        stderr: (rho,) standard error of `sharpness` over the draws. Of few draws +- 2 of it is too narrow: `interval`.
        per_draw: (draw, rho) rise under each independent draw or pair; their mean is `sharpness`.
        rms_norm: (rho,) sqrt(E ||epsilon||^2), about rho sqrt(d) for T = 1. A worst case at the same rho has norm rho:
            the two do not belong on one axis.
    """

    stderr: np.ndarray = array("rho")
    rms_norm: np.ndarray = array("rho")
    per_draw: np.ndarray | None = array("draw", "rho", default=None)

    def columns(self) -> dict[str, np.ndarray | None]:
        """As for every sharpness, with the standard error and the norm of the noise."""
        return {**super().columns(), "stderr": self.stderr, "rms_norm": self.rms_norm}


@measure(
    "average_sharpness",
    label="Average sharpness",
    meaning="Mean rise of the loss under random noise of scale ρ in every weight. Smaller is flatter.",
    unit="loss",
    flat="small",
    says=rise("Random noise of scale {rho} in every weight, on average,"),
)
def average_sharpness(
    problem: Problem,
    *,
    rho: float | tuple[float, ...] | None = None,
    p: float = 2.0,
    scaling: str = "identity",
    biases: str = "scaled",
    eta: float | None = None,
    draws: int = 100,
    antithetic: bool = True,
    m: int | None = None,
    logit_normalization: bool = False,
    subsets: int = 0,
    seed: int = 0,
) -> AverageSharpness:
    """Expected rise of the loss under noise in every direction.

    S = E L(w + rho T xi) - L(w), xi ~ N(0, I) for p = 2 or uniform in [-1, 1]^d for p = inf; not projected on a sphere.
    On a bowl S = rho^2 tr(T A T) / 2 (a third of it for uniform noise). Its perturbation has norm rho sqrt(d), not rho:
    the radius is of another kind than that of the other measures, and so is its default. A draw whose loss is not
    finite makes the mean not finite; none is left out.

    Args:
        rho: standard deviation (p = 2) or half width (p = inf) of the noise in units of T, one or several; by default
            0.01 for T = 1 and 0.1 else.
        p: 2 for Gaussian, inf for uniform noise.
        scaling: T: identity, elementwise, filterwise, layerwise or asam-official.
        biases: scaled (like weights), unscaled (T = 1) or fixed (not perturbed).
        eta: added to the norms in T; by default 0.01 for asam-official, else 0.
        draws: perturbations at each radius, the same ones at all radii.
        antithetic: draw pairs xi, -xi: the linear part of the loss cancels exactly.
        m: each group of m consecutive examples gets its own draws; the expectation is the same, its error smaller.
        logit_normalization: center the outputs of each example and scale them to unit length before the loss, so that
            the scale of the last layer does not matter.
        subsets: the interval speaks of other samples too, from this many disjoint random subsets of the examples; 0: of
            other draws alone.
        seed: seed of the draws and of the division into subsets.

    Returns:
        AverageSharpness with `value`, `sharpness` (rho,), `interval` (bound, rho), `stderr`, `rms_norm`.

    Raises:
        InputError: rho not positive, p not 2 or inf, fewer than 4 draws (2 without pairs), m or subsets larger than the
            number of examples, weights or loss at w not finite.

    In bfloat16 and float16 (weights, or autocast) all of it is computed in float32 where that is possible, as
    `evaluated_in` says; `error_bound` is what rounding leaves open, and part of `interval`.

    Cost: 1 + `draws` x radii forward passes, no backward; twice that with subsets.
    Source: Andriushchenko 2023 (arXiv 2302.07011), eq. 1; Tsuzuku 2019 (arXiv 1901.04653) for the scaled form.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> average = landscape.average_sharpness(problem, rho=0.1, draws=1000)
        >>> bool(abs(average.value - 0.1**2) < 4 * average.stderr[0])  # rho^2 tr(H) / 2
        True
    """
    chosen = Scaling.of(scaling, biases, eta)
    rho = DEFAULT_RHO[chosen.is_identity] if rho is None else rho
    setting = BallOptions(rho, p=p, scaling=chosen, m=m, subsets=subsets, seed=seed)
    problem = normalized(problem, logit_normalization)
    check_division(problem, m, subsets)
    check_weights(problem)
    with widened(problem) as wide, Bar("average sharpness", draws * setting.work(problem.examples)) as bar:
        noise = Noise(scaled_ball(wide, setting.p, chosen), draws, antithetic, seed)
        full = _average(wide, noise, setting, bar)
        parts, interval = None, interval_of_rises(full.rises)
        if subsets:
            table = np.stack([_average(s, noise, setting, bar).rises for s in disjoint_subsets(wide, subsets, seed)])
            parts = table.mean(axis=1)
            samples = interval_around(full.value, parts)
            interval = combined(full.value, interval, samples, counted_twice=interaction(table))
        known, computed_in = resolution(wide, full.loss), str(wide.computed_in).removeprefix("torch.")
        error = known + _lost(wide, noise, setting) * np.abs(full.value) if is_half(problem) else None
    if error is not None:
        interval = interval + np.stack([-error, error])
    return AverageSharpness(
        rho=np.array(setting.radii),
        sharpness=full.value,
        stderr=full.stderr,
        rms_norm=np.array(setting.radii) * noise.rms_norm(problem.dimension),
        loss=full.loss,
        per_draw=full.rises,
        subsets=parts,
        interval=interval,
        non_finite=full.non_finite,
        resolution=known,
        error_bound=error,
        evaluated_in=computed_in,
        arguments={"rho": rho},
        provenance={"logit_normalization": problem.logit_normalization},
    )


@dataclass(frozen=True)
class _Average:
    loss: float
    rises: np.ndarray
    """(draw, rho): independent ones, averaged over the groups."""
    non_finite: np.ndarray

    @property
    def value(self) -> np.ndarray:
        return self.rises.mean(axis=0)

    @property
    def stderr(self) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # an infinite rise has no variance: nan says so
            return standard_error(self.rises)


def _average(problem: Problem, noise: Noise, setting: BallOptions, bar: Bar) -> _Average:
    """The rise under every draw: the i-th draws of all groups, which are independent, make one."""
    total, rises, failed = 0.0, np.zeros(()), np.zeros(len(setting.radii))
    for index, group in enumerate(in_groups(problem, setting.m)):
        loss = group.loss()
        check_loss(loss)
        losses, bad = noise.rises(group, setting.radii, f"noise of group {index}", bar)
        share = group.weight / problem.weight
        total += share * float(loss)
        rises = rises + share * (losses - loss).cpu().numpy()
        failed = failed + bad.cpu().numpy()
    return _Average(total, rises, failed.astype(int))


def _lost(problem: Problem, noise: Noise, setting: BallOptions) -> np.ndarray:
    """(rho,) share of a draw that the weights cannot hold, twice: the rise grows with its square."""
    epsilon = next(noise.perturbations(problem.weights, "noise of group 0"))[0]
    return 2 * np.array([float(displacement_error(problem.weights, rho * epsilon)) for rho in setting.radii])
