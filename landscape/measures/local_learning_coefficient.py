"""Local learning coefficient, by Langevin dynamics around the weights."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.errors import InputError
from landscape.formatting import number
from landscape.langevin import Langevin
from landscape.measure import measure
from landscape.measures.hessian_top_eigenvalues import top_eigenvalues
from landscape.problem.problem import Problem
from landscape.progress import Bar
from landscape.results.result import Result, array
from landscape.sharpness.checks import check_loss, check_weights
from landscape.sharpness.subsets import RandomBatches, positive

R_HAT, LEAST_DRAWS = 1.05, 100
"""Largest R-hat, and smallest effective number of draws, that a verdict accepts."""
_PILOT, _TRIES = 20, 10
_VIRIAL = 0.15
"""How far the virial may be from 1."""
_RELAXED = 4.0
"""Tether x step x burn-in: the energies of the flattest directions then lack exp(-4) of their share."""


@dataclass(frozen=True, kw_only=True)
class LocalLearningCoefficient(Result):
    """The local learning coefficient with what its chains say of themselves.

    Attributes:
        value: lambda, the mean over the draws of beta n (L(w_t) - L(w*)); nan where a chain was not finite.
        stderr: its Monte Carlo standard error, of correlated draws.
        refused: why the number is not to be trusted; None where nothing speaks against it.
        r_hat: rank-normalized split R-hat over the chains: 1 where they agree.
        effective_draws: effective number of independent draws.
        virial: mean of <w_t - w*, grad U> / d: 1 in equilibrium, whatever the loss; more where the step is too long,
            less where flat directions are not filled yet.
        energies: (chain, draw) beta n (L(w_t) - L(w*)) after the burn-in.
        chain_values: (chain,) their means.
        beta: inverse temperature.
        tether: gamma, of the pull towards w*.
        tethered: mean of gamma ||w_t - w*||^2 / 2: for a sum of powers lambda without the pull lies between `value` and
            `value` + `tethered`. Directions without any curvature add 1/2 each to it.
        step: of the dynamics.
        dimension: d; lambda is at most d / 2 at a minimum.
        loss: L(w*).
    """

    value: float
    stderr: float
    refused: str | None = None
    r_hat: float
    effective_draws: float
    virial: float
    energies: np.ndarray = array("chain", "draw")
    chain_values: np.ndarray = array("chain")
    beta: float
    tether: float
    tethered: float
    step: float
    dimension: int
    loss: float


def _says(summary: Mapping[str, Any], loss: float) -> str:
    value, refused = summary.get("value"), summary.get("refused")
    if not isinstance(value, int | float):
        return ""
    if refused:
        return f"Not to be trusted: {refused}."
    return f"At this temperature the loss has as much freedom as a bowl of {number(2 * value, 3)} directions."


@measure(
    "local_learning_coefficient",
    label="Local learning coefficient",
    meaning="Half of the number of directions that the loss determines, flatter than quadratic ones counting less. "
    "Smaller is flatter.",
    unit="half directions",
    flat="small",
    says=_says,
)
def local_learning_coefficient(
    problem: Problem,
    *,
    chains: int = 4,
    burn_in: int = 200,
    draws: int = 200,
    step: float | None = None,
    beta: float | None = None,
    localization: float | None = None,
    batch_size: int | None = 256,
    seed: int = 0,
) -> LocalLearningCoefficient:
    """Local learning coefficient: beta n (E L(w) - L(w*)) under exp(-beta n L(w) - gamma ||w - w*||^2 / 2).

    It measures how the volume of {L <= L(w*) + e} shrinks with e, as e^lambda: lambda = d / 2 in a bowl, sum_i 1 / p_i
    for L = sum_i w_i^(p_i) / 2 (p_i even), and never more than d / 2 at a minimum. The mean is exact for these at every
    temperature where gamma = 0; in a bowl of curvatures h_i it is half of a soft rank, sum_i beta n h_i / (beta n h_i +
    gamma) / 2: directions flatter than gamma / (beta n) do not count.
    Several chains start at w* and take noisy gradient steps (see `landscape.langevin`). The verdict is refused where
    they disagree (R-hat above 1.05), hold fewer than 100 independent draws, meet a loss that is not finite, leave the
    basin (a mean loss below L(w*), so that w* is not a minimum, or above what any minimum of d weights allows), or are
    not in equilibrium: there E <w - w*, grad U> = d, whatever the loss (by parts), which steps that are too long and
    directions that are not filled yet miss (by more than 15%: refused).
    To compare networks, fix `localization`, `beta` and the number of examples.
    n is the number of examples that have a part in L: those whose labels are all ignored, or of weight 0, have none.
    An objective function shows no labels: with one all examples count.

    Args:
        chains: independent ones, at least 2.
        burn_in: steps of each that are dropped.
        draws: steps of each that count.
        step: of the dynamics; None: 1 / (beta n lambda_max + gamma), lambda_max the largest curvature that a pilot
            chain of 20 steps meets.
        beta: inverse temperature; None is 1 / log n, the temperature at which a free energy is a mean (WBIC).
        localization: gamma >= 0; None is the weakest that the burn-in suffices for, 4 / (step x burn_in).
        batch_size: random examples of each step; None for all of them.
        seed: of the noise and of the batches.

    Returns:
        LocalLearningCoefficient with `value`, `stderr`, `refused`, `r_hat`, `effective_draws`, `energies`.

    Raises:
        InputError: arviz-stats is not installed; fewer than 2 chains, 4 draws or 12 steps of burn-in, a number out of
            range, one example without `beta`, weights or loss at w not finite; batches that cannot be divided where
            `batch_size` asks for it, a draw without a label that counts; labels of -100 under a loss that does not
            show whether it ignores them.

    Cost: 1 forward pass, and chains x (burn_in + draws) steps of 1 forward + 1 backward pass over `batch_size`
    examples (2 forward where these are not all). Without `step` 10 to 20 Hessian-vector products and 20 steps more, 2
    to 4 times.
    Source: Lau, Furman, Wang, Murfet and Wei 2023 (arXiv 2308.12108); Watanabe 2013 (WBIC); R-hat: Vehtari 2021 (arXiv
    1903.08008). Differs: the loss at w* is that of the step's own examples, whose noise cancels; steps of Leimkuhler
    and Matthews, without the bias of SGLD in the step's length; a step and a tether that are chosen.

    Example:
        >>> import landscape, torch
        >>> plane = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
        >>> plane.weight.data.zero_()
        tensor([[0., 0.]], dtype=torch.float64)
        >>> x = torch.eye(2, dtype=torch.float64).repeat(500, 1)
        >>> problem = landscape.Problem(plane, torch.nn.MSELoss(), [(x, 0 * x[:, :1])])  # L(w) = ||w||^2 / 2 at 0
        >>> learned = landscape.local_learning_coefficient(problem, localization=0.0, batch_size=None)
        >>> abs(learned.value - 1) < 4 * learned.stderr  # d / 2
        True
    """
    _check(chains, burn_in, draws, step, beta, localization)
    diagnose = _diagnostics()
    RandomBatches(problem, batch_size, seed)  # refuses what cannot be divided before any work
    check_weights(problem)
    n = problem.contributing()
    if beta is None and n < 2:
        raise InputError("the temperature 1 / log n needs more than one example: give beta")
    beta = 1 / math.log(n) if beta is None else beta
    step, tether = _step(problem, beta * n, burn_in, batch_size, seed, step, localization)
    langevin = Langevin(problem, heat=beta * n, tether=tether, batch_size=batch_size, seed=seed)
    check_loss(langevin.center)
    with Bar("Langevin chains", chains * (burn_in + draws)) as bar:
        met = np.stack([langevin.chain(str(c), step, burn_in + draws, bar)[0][:, burn_in:] for c in range(chains)])
    energies, squares, virials = beta * n * met[:, 0], met[:, 1], met[:, 2] / problem.dimension
    r_hat, effective, stderr = diagnose(energies)
    value, virial = float(energies.mean()), float(virials.mean())
    return LocalLearningCoefficient(
        value=value,
        stderr=stderr,
        refused=_refused(energies, stderr, r_hat, effective, virial, problem.dimension),
        r_hat=r_hat,
        effective_draws=effective,
        virial=virial,
        energies=energies,
        chain_values=energies.mean(axis=1),
        beta=beta,
        tether=tether,
        tethered=tether * float(squares.mean()) / 2,
        step=step,
        dimension=problem.dimension,
        loss=float(langevin.center),
    )


def _step(
    problem: Problem,
    heat: float,
    burn_in: int,
    batch_size: int | None,
    seed: int,
    step: float | None,
    localization: float | None,
) -> tuple[float, float]:
    """Step and tether, as asked for or as the curvature that a pilot chain meets allows."""

    def chosen(curvature: float) -> tuple[float, float]:
        tether = localization
        if tether is None:  # step x (heat x curvature + tether) = 1, with tether = 4 / (step x burn_in)
            tether = _RELAXED / (step * burn_in) if step else heat * curvature * _RELAXED / (burn_in - _RELAXED)
        return step or 1 / (heat * curvature + tether), tether

    if step is not None:
        return chosen(0.0)

    def curvature_at(w: Any) -> float:
        return float(top_eigenvalues(problem, w, k=1, tol=0.1, max_hvps=60, seed=seed).values[0])

    # At a singular minimum there is no curvature at w* itself: the pilot finds that of where the chains will be.
    least = max(curvature_at(None), 0.0)
    curvature = max(least, 1.0)
    for _ in range(_TRIES):
        length, tether = chosen(curvature)
        langevin = Langevin(problem, heat=heat, tether=tether, batch_size=batch_size, seed=seed)
        met, end = langevin.chain("pilot", length, _PILOT)
        now = max(curvature_at(end), least) if np.isfinite(met).all() else 30 * curvature
        if curvature / 4 <= now <= 1.5 * curvature or not now:
            break
        curvature = now
    return chosen(curvature)


def _refused(
    energies: np.ndarray,
    stderr: float,
    r_hat: float,
    effective: float,
    virial: float,
    dimension: int,
) -> str | None:
    if not np.isfinite(energies).all():
        return "a chain met a loss that is not finite: take a smaller step or a larger localization"
    value = float(energies.mean())
    if value < 0:
        return "the mean loss lies below that at the weights, which are no minimum: train longer, or localize more"
    if value - 3 * stderr > dimension / 2:
        return f"it is above d / 2 = {dimension / 2:g}, so the chains have left the basin: localize more"
    if not r_hat <= R_HAT:
        return f"the chains disagree (R-hat {r_hat:.3g}): take a longer burn-in and more draws, or localize more"
    if not effective >= LEAST_DRAWS:
        return f"the draws are worth {effective:.0f} independent ones: take more, or localize more"
    if not abs(virial - 1) <= _VIRIAL:
        how = "their steps are too long" if virial > 1 else "flat directions are not filled: localize more"
        return f"the chains are not in equilibrium (virial {virial:.3g} instead of 1): {how}"
    return None


def _diagnostics() -> Any:
    """Function (chain, draw) -> R-hat, effective draws, standard error of the mean.

    Raises:
        InputError: the library is not installed.
    """
    try:
        stats = importlib.import_module("arviz_stats.base").array_stats
    except ImportError:
        raise InputError(
            "the local learning coefficient needs arviz-stats for R-hat: pip install 'loss-landscape-toolkit[llc]'"
        ) from None

    def diagnose(energies: np.ndarray) -> tuple[float, float, float]:
        if not np.isfinite(energies).all():
            return math.nan, math.nan, math.nan
        axes = {"chain_axis": 0, "draw_axis": 1}
        values = (stats.rhat(energies, **axes), stats.ess(energies, **axes), stats.mcse(energies, **axes))
        r_hat, effective, stderr = (float(v) for v in values)
        return r_hat, effective, stderr

    return diagnose


def _check(
    chains: int,
    burn_in: int,
    draws: int,
    step: float | None,
    beta: float | None,
    localization: float | None,
) -> None:
    for name, count, least in (("chains", chains, 2), ("burn_in", burn_in, 12), ("draws", draws, 4)):
        if positive(name, count) < least:
            raise InputError(f"{name}={count}: at least {least} are needed")
    for name, value in (("step", step), ("beta", beta)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{name}={value:g}: a positive finite number is needed")
    if localization is not None and not (math.isfinite(localization) and localization >= 0):
        raise InputError(f"localization={localization:g}: a finite number of at least 0 is needed")
