"""The curvature of a loss along a line from its values alone.

phi(eta) = L(w - eta d) - L(w) = -slope eta + phi'' eta^2 / 2 + ...: D(h) = (phi(h) + phi(-h)) / h^2 is phi'' up to
terms of h^2, and (4 D(h/2) - D(h)) / 3 up to those of h^4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from landscape.errors import InputError

Loss = Callable[[float], float]
_COLD = 0.1
"""A cold search starts where the slope alone would lower the loss by this part of it."""
_LEAST, _MOST = 1 / 32, 1 / 2
"""Part of the slope's fall that curvature takes away at the step: above rounding, and where phi is still a parabola."""
_TRIES, _HALVINGS = 30, 8
_ENOUGH = 0.01
"""Relative truncation at which the step is short enough."""


@dataclass(frozen=True)
class SecondDifference:
    """The second derivative of phi at 0, phi''.

    Attributes:
        value: phi''.
        error: estimate of truncation and rounding.
        step: h.
        forwards: evaluations of the loss, that at w included.
    """

    value: float
    error: float
    step: float
    forwards: int


def second_difference(
    loss: Loss, start: float, slope: float, *, rounding: float, guess: float | None, bound: float
) -> SecondDifference:
    """The second derivative of phi at 0, phi''.

    The step at which curvature takes away between 1/32 and 1/2 of the fall that the slope alone would make is found by
    factors of 4, then halved until truncation, a third of what D(h) and D(h/2) differ by, is 1% or below rounding.

    Args:
        loss: eta -> L(w - eta d).
        start: L(w).
        slope: d'g > 0.
        rounding: of a difference of losses.
        guess: a step of the right length, as it was nearby; None for a cold search.
        bound: largest step that is tried.

    Raises:
        InputError: no step is finite on both sides.
    """
    tried = {0.0: 0.0}

    def rise(eta: float) -> float:
        if eta not in tried:
            tried[eta] = loss(eta) - start
        return tried[eta]

    def quotient(h: float) -> float:
        return (rise(h) + rise(-h)) / h**2

    h, best = _step(rise, start, slope, rounding, guess, bound), (math.nan, math.inf, math.nan)
    for _ in range(_HALVINGS):
        wide, narrow = quotient(h), quotient(h / 2)
        value, truncation, rounded = (4 * narrow - wide) / 3, abs(wide - narrow) / 3, 12 * rounding / h**2
        if truncation + rounded < best[1]:
            best = value, truncation + rounded, h
        if truncation <= max(_ENOUGH * abs(value), rounded):
            break
        h /= 2
    if not math.isfinite(best[0]):
        raise InputError(
            f"steps down to {h:.3g} along the direction have losses that are nan or inf on one side: look at the "
            "inputs and targets, or give another direction"
        )
    return SecondDifference(*best, forwards=len(tried))


def _step(rise: Loss, start: float, slope: float, rounding: float, guess: float | None, bound: float) -> float:
    h = min(guess or max(_COLD * abs(start), 100 * rounding) / slope, bound)
    grown = False
    for _ in range(_TRIES):
        part = abs(rise(h) + slope * h)
        if not part <= _MOST * slope * h:  # nan too
            if grown:
                return h / 4
            h /= 4
        elif part < max(_LEAST * slope * h, 20 * rounding) and 4 * h <= bound:
            h, grown = 4 * h, True
        else:
            break
    return h
