"""Loss surfaces as figures need them: finite values, named axes, one scale for all, and checks of the picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.formatting import number
from landscape.surfaces.profiles import Profiles
from landscape.surfaces.result import Surface

if TYPE_CHECKING:
    from figures.page.analysis import Analysis

RISE = "rise of the loss"
"""What a view of rises shows."""
LEVELS = 14
"""Contour levels that a picture should have, about."""

_AXES = {"hessian": "eigenvector {}", "trajectory": "principal component {}"}
"""Names of the axes; what kind of directions the others are is said in the caption."""
_FINE = 100
"""Points an axis that the eye takes for a smooth surface."""


@dataclass(frozen=True)
class Remark:
    """One question about the picture: `good` says whether the answer is reassuring."""

    good: bool
    text: str


@dataclass(frozen=True)
class Grid:
    """One surface, ready to be drawn.

    Attributes:
        label: of the checkpoint.
        axes: coordinates (n,), one or two of them.
        loss: (n,) or (n, m), indexed as the axes; nan where not computed or not finite.
        names: of the axes, with the unit.
        unit: of both axes.
        center: loss at the trained weights (nan where it is unknown).
        caption: what was computed.
        checks: whether the picture is to be trusted.
        marks: (checkpoint, axis) coordinates of checkpoints, or None.
        joined: whether they are stations of one way (a trajectory).
        maps: what else was computed at every point, by its title.
        quantity: what `loss` holds: the loss, or its rise above the center's.
        rounding: what differences owe to rounding, where that was measured.
    """

    label: str
    axes: tuple[np.ndarray, ...]
    loss: np.ndarray
    names: tuple[str, ...]
    unit: str
    center: float
    caption: str
    checks: tuple[Remark, ...] = ()
    marks: np.ndarray | None = None
    joined: bool = False
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    quantity: str = "loss"
    rounding: float = 0.0

    def cuts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(coordinates, loss) along each axis through the grid point nearest to the center."""
        middle = [int(np.argmin(np.abs(a))) for a in self.axes]
        for i, axis in enumerate(self.axes):
            index: list[Any] = list(middle)
            index[i] = slice(None)
            yield axis, self.loss[tuple(index)]


@dataclass(frozen=True)
class Scale:
    """Range, contour levels and ticks that several surfaces share, on a linear or a logarithmic axis of the loss."""

    low: float
    high: float
    center: float = field(default=math.nan)
    rounding: float = 0.0

    @property
    def wide_range(self) -> bool:
        """Whether a linear scale would show the rim and hide the middle."""
        return self.low > 0 and self.high > 50 * max(self.center if math.isfinite(self.center) else self.low, 1e-12)

    def limits(self, log: bool) -> tuple[float, float]:
        """Color range; of log10(loss) where `log`."""
        if log:
            return math.log10(self.low), math.log10(self.high)
        return self.low, self.high

    def padded(self, log: bool) -> list[float]:
        """Range of the z axis."""
        low, high = self.limits(log)
        margin = 0.03 * (high - low)
        return [low - margin, high + margin]

    def levels(self, log: bool) -> np.ndarray:
        """Contour levels, evenly spaced on the scale (log10 of the loss where `log`), no closer than rounding."""
        low, high = self.limits(log)
        least = self.rounding / (self.low * math.log(10)) if log else self.rounding
        step = nice_step(max((high - low) / LEVELS, least), (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 7.5))
        first = math.floor(low / step) + 1
        return step * np.arange(first, math.ceil(high / step))

    def ticks(self, log: bool) -> tuple[list[float], list[str]]:
        """Positions on the scale, and the losses written there."""
        low, high = self.limits(log)
        if not log:
            step = nice_step((high - low) / 5)
            values = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
            return values, tick_labels(values)
        decades = range(math.floor(low), math.ceil(high) + 1)
        factors = (1,) if high - low > 3 else (1, 3) if high - low > 1.5 else (1, 2, 5)
        losses = [m * 10.0**d for d in decades for m in factors if self.low <= m * 10.0**d <= self.high]
        if len(losses) < 3:
            losses = [v for v in self.ticks(False)[0] if v > 0]
        if len(losses) > 8:
            losses = losses[:: math.ceil(len(losses) / 8)]
        return [math.log10(v) for v in losses], tick_labels(losses)


@dataclass(frozen=True)
class View:
    """One way to look at planes, all on one scale: `mode` is rise, linear or log (of the loss)."""

    mode: str
    drawn: list[Grid]
    scale: Scale

    @property
    def log(self) -> bool:
        """Whether heights and colors are log10 of the loss."""
        return self.mode == "log"


def views(planes: Sequence[Grid]) -> list[View]:
    """Every way to look at these planes, first the one to open with.

    Networks of different losses on one scale are plane, each at its height: several are compared by how far the loss
    rises above each network's own at its trained weights.
    """
    scale = shared_scale(planes)
    modes = ["linear", "log"] if scale.low > 0 else ["linear"]
    shown = [View(m, list(planes), scale) for m in (reversed(modes) if scale.wide_range else modes)]
    if len(planes) > 1 and all(math.isfinite(g.center) for g in planes):
        rises = [replace(g, loss=g.loss - g.center, center=0.0, quantity=RISE) for g in planes]
        shown.insert(0, View("rise", rises, shared_scale(rises)))
    return shown


def fineness(values: np.ndarray) -> int:
    """Into how many parts every cell is divided for the eye; 1 where a value is missing or the grid is fine enough."""
    if not np.isfinite(values).all() or min(values.shape) < 4:
        return 1
    return max(1, round(_FINE / max(values.shape)))


def refined(values: np.ndarray, parts: int) -> np.ndarray:
    """Cubic interpolation (Keys 1981, exact for parabolas) along the first axis: `parts` steps from point to point.

    For the eye only: no number is taken from it, and it stays within a hundredth of the values' range.
    """
    if parts == 1:
        return values
    slack = 0.01 * np.ptp(values)
    first, last = 3 * values[0] - 3 * values[1] + values[2], 3 * values[-1] - 3 * values[-2] + values[-3]
    padded = np.concatenate([[first], values, [last]])
    before, left, right, after = (padded[i : i + len(values) - 1, None] for i in range(4))
    t = (np.arange(parts) / parts).reshape(1, -1, *[1] * (values.ndim - 1))
    between = left + t / 2 * (
        right - before
        + t * (2 * before - 5 * left + 4 * right - after + t * (3 * (left - right) + after - before))
    )  # fmt: skip
    between = between.reshape(-1, *values.shape[1:])
    return np.concatenate([between, values[-1:]]).clip(values.min() - slack, values.max() + slack)


def tick_labels(values: Sequence[float], least: int = 3, most: int = 15) -> list[str]:
    """The values with as many digits as leave each within a twentieth of the distance to the nearest other."""
    gap = min((b - a for a, b in itertools.pairwise(sorted(values))), default=math.inf)
    digits = (d for d in range(least, most) if all(abs(float(f"{v:.{d - 1}e}") - v) <= gap / 20 for v in values))
    shown = next(digits, most)
    return [number(v, shown) for v in values]


def nice_step(size: float, factors: Sequence[float] = (1, 2, 2.5, 5)) -> float:
    """The smallest of `factors` times a power of ten that is at least `size`."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(m * power for m in (*factors, 10) if m * power >= size * (1 - 1e-9))


def grids(analyses: Sequence[Analysis]) -> list[Grid]:
    """The surfaces of the analyses that have one."""
    return [grid(a.surface, a.label) for a in analyses if a.surface is not None]


def grid(surface: Surface | Profiles, label: str = "") -> Grid:
    """A result as a `Grid`."""
    axes = tuple(np.asarray(axis, dtype=float) for axis in surface.axes)
    unit = surface.unit.replace("||", "‖")
    pattern = _AXES.get(surface.directions, "direction {}")
    if len(axes) == 1:
        pattern = pattern.replace(" {}", "")
    names = tuple(pattern.format(i + 1) + (f" (× {unit})" if unit else "") for i in range(len(axes)))
    marks = getattr(surface, "marks", None)
    return Grid(
        label,
        axes,
        np.where(np.isfinite(surface.loss) & surface.done, np.asarray(surface.loss, dtype=float), np.nan),
        names,
        unit,
        surface.center_loss,
        surface.caption().replace("||", "‖"),
        checks=tuple(_checks(surface)),
        marks=None if marks is None or len(marks) == 0 else np.asarray(marks, dtype=float),
        joined=getattr(surface, "directions", "") == "trajectory",
        maps=_maps(surface) if isinstance(surface, Surface) else {},
        rounding=getattr(surface, "rounding", None) or 0.0,
    )


def _maps(surface: Surface) -> dict[str, np.ndarray]:
    """Gradient norm and the honesty map (Li 2018, section 5): how much of the curvature the picture cannot show."""
    maps = {}
    if surface.gradient_norm is not None:
        maps["Gradient norm"] = np.asarray(surface.gradient_norm, dtype=float)
    if surface.lambda_min is not None and surface.lambda_max is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            maps["Negative against positive curvature"] = np.maximum(0.0, -surface.lambda_min) / np.abs(
                surface.lambda_max
            )
    return maps


def shared_scale(drawn: Sequence[Grid]) -> Scale:
    """One scale for all; a constant surface gets a sliver of range so that it can be drawn."""
    finite = np.concatenate([g.loss[np.isfinite(g.loss)] for g in drawn])
    if not finite.size:
        return Scale(0.0, 1.0)
    rounding = max(g.rounding for g in drawn)
    low, high = float(finite.min()), float(finite.max())
    if not high - low > 1e-12 * max(abs(low), abs(high), 1e-300):
        low, high = low - 0.5 * abs(low or 1.0), high + 0.5 * abs(high or 1.0)
    centers = [g.center for g in drawn if math.isfinite(g.center)]
    return Scale(low, high, float(np.median(centers)) if centers else math.nan, rounding)


def _checks(surface: Surface | Profiles) -> Iterator[Remark]:
    """What the surface says of itself, and how much of it is there."""
    pending = int(np.size(surface.done) - np.sum(surface.done))
    blank = int(np.sum(~np.isfinite(surface.loss))) - pending
    if pending:
        yield Remark(False, f"{pending} of {np.size(surface.done):,} points are not computed yet: finish with --resume")
    if blank > 0:
        yield Remark(False, f"{blank} points have a loss of nan or infinity and are left blank")
    for check in surface.checks:
        yield Remark(bool(check["ok"]), str(check["text"]))
