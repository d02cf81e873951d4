"""What a sharpness measure is asked for: radii, norm, scaling, groups, subsets, ascents."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from landscape.ball.scaling import Scaling
from landscape.errors import InputError
from landscape.sharpness.starts import MOST_OUTPUTS, trial_steps, trials
from landscape.sharpness.subsets import positive


@dataclass(frozen=True)
class BallOptions:
    """What is asked of a sharpness measure; wrong values raise InputError.

    Attributes:
        rho: one radius or several.
        p: order of the norm of the ball.
        scaling: T.
        m: examples in a group; None for one group of all.
        subsets: number of disjoint subsets for the confidence interval; 0 for none.
        steps: points that each ascent evaluates; None for the one-step value alone.
        restarts: ascents at each radius, see `landscape.sharpness.starts`.
        seed: seed of the random starts and of the division into subsets.
    """

    rho: float | Sequence[float]
    p: float = 2.0
    scaling: Scaling = dataclasses.field(default_factory=Scaling)
    m: int | None = None
    subsets: int = 0
    steps: int | None = None
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rho", radii(self.rho))
        object.__setattr__(self, "p", order(self.p, multi_step=self.steps is not None))
        if self.steps is not None:
            positive("steps", self.steps)
        positive("restarts", self.restarts)

    @property
    def radii(self) -> list[float]:
        """The radii as a list, in the order in which they were given."""
        return list(self.rho)  # type: ignore[arg-type]

    @property
    def ascents(self) -> int:
        """Number of ascents in a group: restarts at every radius, and a warm start at all radii but the smallest."""
        return len(self.radii) * (self.restarts + 1) - 1

    def work(self, examples: int) -> int:
        """Number of evaluations that a progress bar counts, for a problem of so many examples and its subsets."""
        each = len(self.radii)
        if self.steps is not None:
            tried = MOST_OUTPUTS * (1 + len(self.radii)) if self.restarts > 1 else 0
            tried += len(self.radii) * trials(self.restarts - 1) * trial_steps(self.steps)
            each = self.ascents * self.steps + tried
        groups = math.ceil(examples / (self.m or examples))
        return each * (groups + (self.subsets and self.subsets * math.ceil(groups / self.subsets)))


def radii(rho: float | Sequence[float]) -> tuple[float, ...]:
    """One or several radii as a tuple of floats.

    Raises:
        InputError: none, or one that is not a positive finite number.
    """
    values = tuple(float(r) for r in np.atleast_1d(np.asarray(rho, dtype=np.float64)))
    for r in values:
        if not (math.isfinite(r) and r > 0):
            raise InputError(f"rho={r:g}: a radius is a positive finite number; give rho > 0")
    if not values:
        raise InputError("no radius was given: give rho one number or several")
    return values


def order(p: float, *, multi_step: bool) -> float:
    """The order of the norm, checked: [1, inf] for one step, 2 or inf for the ascent in several steps."""
    p = float(p)
    if not p >= 1:
        raise InputError(f"p={p:g}: the order of a norm lies in [1, inf]; 2 and inf are the usual ones")
    if multi_step and p not in (2.0, math.inf):
        raise InputError(f"p={p:g}: the ascent in several steps needs p=2 or p=inf (one step takes any p in [1, inf])")
    return p
