"""The first step along a direction at which the loss exceeds its start.

phi(eta) = L(w - eta d) - L(w) falls from 0 with the slope -d'g and comes back to 0 at eta_c. Steps are doubled from one
that lowers the loss by a fair part of its slope until one raises it; nan and inf count as raised. Between the two the
search goes on with psi(eta) = phi(eta) / eta, which starts at -d'g and is a straight line on a quadratic: a parabola
through three of its points hits eta_c of every cubic.
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
_STEEP = 0.125
"""Part of its slope by which the first step has to lower the loss: on a quadratic all steps up to 7/8 of the crossing
do, those in a valley behind it mostly do not."""
_FINER = 16.0
"""A first step that is refused is halved once, then divided by this: crossings in between are seen on the way back."""


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
        """phi(eta) / eta; inf where the loss is not finite. A step that was tried is not computed again."""
        if eta in self.tried:
            return self.tried[eta]
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
        tol: (above - below) / above at which the search ends; at neighboring numbers it ends anyway.

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
    """A step that lowers the loss by an eighth of its slope: half of the guess or less, else a small one.

    Where none does that (a kink at w), the smallest whose effect is above rounding, if it lowers the loss.
    """
    least = _MARGIN * rounding / search.slope
    cold = max(_COLD * abs(search.start) / search.slope, 2 * least)
    eta = min(cold if guess is None else max(guess / 2, least), bound)
    divisor = 2.0
    while search.psi(eta) >= -max(_STEEP * search.slope, rounding / eta) and eta > least:
        eta, divisor = max(eta / divisor, least), _FINER
    if search.psi(eta) * eta < -rounding:
        return eta
    seen = min((x for x, y in search.tried.items() if abs(x * y) > rounding), default=None)
    if seen is None or search.tried[seen] > 0:
        raise InputError(
            f"steps down to {eta:.3g} along the direction do not lower the loss by more than its rounding "
            f"({rounding:.1g}): compute in float64, or give another direction"
        )
    return seen


def _narrowed(search: _Bracket, below: float, above: float, tol: float) -> tuple[float, float]:
    """The bracket, narrowed to (above - below) / above <= tol.

    A step a little beyond the interpolated crossing, then one a little before it: on a smooth curve these two are the
    ends of the bracket. Every fourth step halves it, whatever the curve.
    """
    tries = 0
    while above - below > tol * above and below < _middle(below, above) < above:
        tries += 1
        root = _root(search, below, above)
        if above <= root * (1 + tol / 2):
            aim = above * (1 - 0.95 * tol)
        elif below >= root * (1 - tol / 2):
            aim = below / (1 - 0.95 * tol)
        else:
            aim = root * (1 + 0.45 * tol)
        if tries % 4 == 0 or not below < aim < above or not math.isfinite(search.tried[above]):
            aim = _middle(below, above)
        below, above = (below, aim) if search.psi(aim) > 0 else (aim, above)
    return below, above


def _root(search: _Bracket, below: float, above: float) -> float:
    """Where the parabola through psi at both steps and at the nearest other one crosses zero between them.

    Their geometric mean where psi is infinite, or the parabola out of range.
    """
    known = {0.0: -search.slope, **search.tried}
    low, high = known[below], known[above]
    if not math.isfinite(high):
        return _middle(below, above)
    others = [x for x, y in known.items() if x not in (below, above) and math.isfinite(y)]
    third = min(others, key=lambda x: min(abs(x - below), abs(x - above)))
    width, first = above - below, (high - low) / (above - below)
    second = ((known[third] - high) / (third - above) - first) / (third - below)
    linear = first - second * width
    spread = math.sqrt(max(linear * linear - 4 * second * low, 0.0))
    if linear > 0:
        root = below - 2 * low / (linear + spread)
    else:
        root = below + (spread - linear) / (2 * second) if second > 0 else math.nan
    return root if math.isfinite(root) else _middle(below, above)


def _middle(below: float, above: float) -> float:
    """The geometric mean."""
    return math.sqrt(below) * math.sqrt(above)
