"""The first step along a direction at which the loss exceeds its start.

phi(eta) = L(w - eta d) - L(w) falls from 0 with the slope -d'g and comes back to 0 at eta_c. Steps are doubled from one
that lowers the loss by more than rounding until one raises it; nan and inf count as raised. Between the two the search
goes on with psi(eta) = phi(eta) / eta, which starts at -d'g and is a straight line on a quadratic: a parabola through
three of its points hits eta_c of every cubic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from landscape.errors import InputError

Loss = Callable[[float], float]
_COLD = 1e-3
"""A cold search starts where the slope alone would lower the loss by this part of it: at most 12 doublings below the
crossing of a non-negative quadratic."""
_MARGIN = 4.0
"""Roundings by which the first step has to lower the loss by its slope."""
_FINER = 16.0
"""A first step that does not lower the loss is divided by this: crossings between it and the next are then seen."""


@dataclass(frozen=True)
class Crossing:
    """Where the loss exceeds its start.

    Attributes:
        step: eta_c, inf where no step up to the bound raises the loss.
        below: largest step tried, of those before the crossing, that does not raise the loss.
        above: smallest step tried that does; inf where none does.
        first: smallest step tried: multiples of it by powers of two up to `below` do not raise the loss.
        forwards: evaluations of the loss, that at w included.
    """

    step: float
    below: float
    above: float
    first: float
    forwards: int


@dataclass
class _Bracket:
    """psi at the steps that were tried."""

    loss: Loss
    start: float
    slope: float
    forwards: int = 1
    tried: dict[float, float] = field(default_factory=dict)

    def psi(self, eta: float) -> float:
        """phi(eta) / eta; inf where the loss is not finite."""
        value = self.loss(eta)
        self.forwards += 1
        self.tried[eta] = (value - self.start) / eta if math.isfinite(value) else math.inf
        return self.tried[eta]


def first_crossing(
    loss: Loss, start: float, slope: float, *, rounding: float, guess: float | None, bound: float, tol: float
) -> Crossing:
    """eta_c of a direction.

    Args:
        loss: eta -> L(w - eta d).
        start: L(w).
        slope: d'g > 0.
        rounding: of a difference of losses.
        guess: eta_c as it was nearby; None for a cold search.
        bound: largest step that is tried.
        tol: (above - below) / above at which the search ends.

    Raises:
        InputError: no step whose effect is above rounding lowers the loss.
    """
    search = _Bracket(loss, start, slope)
    below = _first_below(search, guess, rounding, bound)
    first, above = below, 2 * below
    while above <= bound and search.psi(above) <= 0:
        below, above = above, 2 * above
    if above > bound:
        return Crossing(math.inf, below, math.inf, first, search.forwards)
    below, above = _narrowed(search, below, above, tol)
    step = min(max(_root(search, below, above), below), above)
    return Crossing(step, below, above, first, search.forwards)


def _first_below(search: _Bracket, guess: float | None, rounding: float, bound: float) -> float:
    """A step that lowers the loss by more than rounding: half of the guess, else a small one."""
    least = _MARGIN * rounding / search.slope
    cold = max(_COLD * abs(search.start) / search.slope, 2 * least)
    eta = min(cold if guess is None else max(guess / 2, least), bound)
    while search.psi(eta) * eta >= -rounding:
        if eta <= least:
            raise InputError(
                f"steps down to {eta:.3g} along the direction do not lower the loss by more than its rounding "
                f"({rounding:.1g}): compute in float64, or give another direction"
            )
        eta = max(eta / _FINER, least)
    return eta


def _narrowed(search: _Bracket, below: float, above: float, tol: float) -> tuple[float, float]:
    """The bracket, narrowed to (above - below) / above <= tol.

    A step a little beyond the interpolated crossing, then one a little before it: on a smooth curve these two are the
    ends of the bracket. Every fourth step halves it, whatever the curve.
    """
    tries = 0
    while above - below > tol * above:
        tries += 1
        root = _root(search, below, above)
        if above <= root * (1 + tol / 2):
            aim = above * (1 - 0.95 * tol)
        elif below >= root * (1 - tol / 2):
            aim = below / (1 - 0.95 * tol)
        else:
            aim = root * (1 + 0.45 * tol)
        if tries % 4 == 0 or not below < aim < above or not math.isfinite(search.tried[above]):
            aim = math.sqrt(below * above)
        below, above = (below, aim) if search.psi(aim) > 0 else (aim, above)
    return below, above


def _root(search: _Bracket, below: float, above: float) -> float:
    """Where the parabola through psi at both steps and at the nearest other one crosses zero between them.

    Their geometric mean where psi is infinite.
    """
    known = {0.0: -search.slope, **search.tried}
    low, high = known[below], known[above]
    if not math.isfinite(high):
        return math.sqrt(below * above)
    others = [x for x, y in known.items() if x not in (below, above) and math.isfinite(y)]
    third = min(others, key=lambda x: min(abs(x - below), abs(x - above)))
    width, first = above - below, (high - low) / (above - below)
    second = ((known[third] - high) / (third - above) - first) / (third - below)
    linear = first - second * width
    return below - 2 * low / (linear + math.sqrt(max(linear**2 - 4 * second * low, 0.0)))
