"""What the measures of the ball share: the result, and how it is computed over groups and subsets of the examples.

S(w) = sum_g n_g/n [max over ||T^-1 epsilon||_p <= rho of L_g(w + epsilon) - L_g(w)] over groups g of m examples (one
group of all n by default). One-step sharpness replaces the maximizer by that of the linearized loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.ball.ascent import Ball, maximize
from landscape.ball.vectors import any_entry
from landscape.formatting import number
from landscape.problem.problem import Problem
from landscape.problem.widened import is_half, widened
from landscape.progress import Bar
from landscape.random import stream
from landscape.results.result import Result, array
from landscape.sharpness.checks import check_loss, check_weights, displacement_error, resolution, scaled_ball
from landscape.sharpness.half_precision import error_of_rise, gradient_error, start_loss
from landscape.sharpness.options import BallOptions
from landscape.sharpness.starts import SPARE, best_outputs, first_start, other_starts
from landscape.sharpness.subsets import both, check_division, disjoint_subsets, in_groups, positive
from landscape.statistics import interval_around


@dataclass(frozen=True, kw_only=True)
class Sharpness(Result):
    """Rise of the loss within a ball around w, for one or several radii.

    Attributes:
        rho: radii, in the order in which they were asked for.
        sharpness: the measure at each radius.
        loss: L(w).
        first_order: rho ||T g||_q, the rise of the linearized loss; averaged over the groups.
        one_step: rise at the maximizer of the linearized loss.
        worst_case: largest rise that the ascents found; None where none was run.
        late_gain: share of the worst case that its ascent gained in the last quarter of its steps: near 0 where more
            steps would find no more (of this maximum; `restart_spread` looks for others).
        restarts: (restart, rho) largest rise that each ascent found; the first starts at the one-step point, the next
            ones where one output is above the others or at random (see `landscape.sharpness.starts`), best first.
        groups: (group, rho) the measure of each group of m examples; None for one group.
        subsets: (subset, rho) the measure on each disjoint subset of the examples; None where not asked for.
        interval: (bound, rho) 95% confidence interval of the measure over samples of as many examples, from the spread
            over the subsets or else over the groups (Student's t); None where there is neither. A perturbation fits the
            sample that it is computed on: samples of more examples have a smaller sharpness.
        non_finite: number of points of the ascents at each radius whose loss or gradient was nan or inf. They are never
            taken for the maximum: the value is then a lower bound, and nan where no point was finite.
        displacement_error: ||(w + epsilon) - w - epsilon|| / ||epsilon|| of the one-step perturbation, what the dtype
            of the weights cannot hold of it. Near 1 in bfloat16 at small radii: training in it does not move. The value
            is that of the perturbation itself where `evaluated_in` is float32, else it means nothing.
        resolution: estimate of the rounding of a rise in the dtype that the losses were computed in; rises below it are
            not known.
        error_bound: (rho,) estimate of what half precision has moved the measure by; None for a network that computes
            in float32 or wider, where `resolution` is all. It is part of `interval`. Of a worst case the rise at the
            point that was found is known to `resolution`: a search led by exact gradients may find a higher one.
        evaluated_in: dtype that the losses were computed in; that of the gradients may be narrower.
    """

    rho: np.ndarray = array("rho")
    sharpness: np.ndarray = array("rho")
    loss: float
    first_order: np.ndarray | None = array("rho", default=None)
    one_step: np.ndarray | None = array("rho", default=None)
    worst_case: np.ndarray | None = array("rho", default=None)
    late_gain: np.ndarray | None = array("rho", default=None)
    restarts: np.ndarray | None = array("restart", "rho", default=None)
    groups: np.ndarray | None = array("group", "rho", default=None)
    subsets: np.ndarray | None = array("subset", "rho", default=None)
    interval: np.ndarray | None = array("bound", "rho", default=None)
    non_finite: np.ndarray = array("rho")
    displacement_error: np.ndarray | None = array("rho", default=None)
    resolution: float = 0.0
    error_bound: np.ndarray | None = array("rho", default=None)
    evaluated_in: str = ""

    @property
    def value(self) -> float:
        """The measure at the first radius."""
        return float(self.sharpness[0])

    @property
    def restart_spread(self) -> np.ndarray | None:
        """(largest - smallest) / largest over the restarts at each radius; None for a single ascent.

        Near 0: every ascent found the same maximum. Large: the loss has several maxima in the ball, and there may be a
        higher one; more restarts look for it.
        """
        if self.restarts is None or len(self.restarts) < 2:
            return None
        high, low = self.restarts.max(axis=0), self.restarts.min(axis=0)
        return np.divide(high - low, high, out=np.zeros_like(high), where=high > 0)

    def columns(self) -> dict[str, np.ndarray | None]:
        """What the summary says of each radius, one array a name."""
        low, high = (None, None) if self.interval is None else self.interval
        columns = {"value": self.sharpness, "first_order": self.first_order, "one_step": self.one_step}
        columns |= {"worst_case": self.worst_case, "late_gain": self.late_gain, "restart_spread": self.restart_spread}
        columns |= {"low": low, "high": high, "non_finite": self.non_finite}
        return columns | {"displacement_error": self.displacement_error, "error_bound": self.error_bound}

    def summary(self) -> dict[str, Any]:
        """Arguments, the value at the first radius with all that is known of it, and the curve over the radii."""
        present = {k: v for k, v in self.columns().items() if v is not None}
        rows = [{"rho": r, **{k: v[i] for k, v in present.items()}} for i, r in enumerate(self.rho)]
        values = {**rows[0], "loss": self.loss, "resolution": self.resolution, "evaluated_in": self.evaluated_in}
        return self.summary_of(values | ({"curve": rows} if len(rows) > 1 else {}))


def rise(move: str, scaling: str = "identity") -> Callable[[Mapping[str, Any], float], str]:
    """What the value of a sharpness says: `move` names what raises the loss, for this T in the 2-ball."""

    def says(summary: Mapping[str, Any], loss: float) -> str:
        value = summary.get("value")
        usual = summary.get("scaling", scaling) == scaling and summary.get("p", 2) == 2
        if not isinstance(value, int | float) or not usual:
            return ""
        verb = "raises" if value >= 0 else "lowers"
        to = "" if summary.get("logit_normalization") else f", from {number(loss, 3)} to {number(loss + value, 3)}"
        return f"{move.format(rho=number(summary.get('rho'), 3))} {verb} the loss by {number(abs(value), 3)}{to}."

    return says


def ball_sharpness(problem: Problem, setting: BallOptions, *, value: str, ball: Ball | None = None) -> Sharpness:
    """One-step sharpness and, where `setting` asks for steps, worst-case sharpness at every radius.

    Args:
        problem: the loss.
        setting: what is asked.
        value: which of the two is the measure: "one_step" or "worst_case".
        ball: around the weights; None: that of the setting's order and scaling.

    Cost: one forward and one backward pass for the gradient at w; then a forward pass for every radius (one step) or,
    for every ascent, `steps` forward and `steps` - 1 backward passes, and with restarts a forward and a backward pass
    for each of up to ten outputs and a forward pass for each at every radius; as much again for the subsets. In half
    precision losses are computed in float32 where that is possible: one forward pass more for L(w), one for every
    ascent and radius, and two gradients over up to 64 examples.
    """
    check_division(problem, setting.m, setting.subsets)
    check_weights(problem)
    with widened(problem) as wide, Bar(f"{value} sharpness", setting.work(problem.examples)) as bar:
        ball = ball or scaled_ball(wide, setting.p, setting.scaling)
        full = _over_groups(problem, wide, ball, setting, bar)
        parts = None
        if setting.subsets:
            subsets = both(problem, wide, lambda p: disjoint_subsets(p, setting.subsets, setting.seed))
            parts = np.stack([_over_groups(*pair, ball, setting, bar).mean(value) for pair in subsets])
        known = resolution(wide, float(full.mean("loss")[0]))
    center, interval = full.mean(value), None
    if parts is not None:
        interval = interval_around(center, parts)
    elif len(full.sizes) > 1:
        interval = interval_around(center, full.values[value], full.sizes)
    error = full.mean(f"{value}_error") if is_half(problem) else None
    if error is not None and interval is not None:
        interval = interval + np.stack([-error, error])
    return Sharpness(
        rho=np.array(setting.radii),
        sharpness=center,
        loss=float(full.mean("loss")[0]),
        first_order=full.mean("first_order"),
        one_step=full.mean("one_step"),
        worst_case=full.mean("worst_case") if setting.steps else None,
        late_gain=full.mean("late_gain") if setting.steps else None,
        restarts=full.mean("restarts") if setting.steps else None,
        groups=full.values[value] if len(full.sizes) > 1 else None,
        subsets=parts,
        interval=interval,
        non_finite=full.values["non_finite"].sum(axis=0).astype(int),
        displacement_error=full.mean("displacement_error"),
        resolution=known,
        error_bound=error,
        evaluated_in=str(wide.computed_in).removeprefix("torch."),
        provenance={"logit_normalization": problem.logit_normalization},
    )


@dataclass(frozen=True)
class _Groups:
    """Values of every group, on the host: name -> (group, rho), "restarts" -> (group, restart, rho)."""

    sizes: np.ndarray
    values: dict[str, np.ndarray]

    def mean(self, name: str) -> np.ndarray:
        """Mean over the groups, weighted by their examples: (rho,)."""
        return np.tensordot(self.sizes / self.sizes.sum(), self.values[name], axes=1)


def _over_groups(problem: Problem, wide: Problem, ball: Ball, setting: BallOptions, bar: Bar) -> _Groups:
    sizes, values = [], []
    for index, (group, exact) in enumerate(both(problem, wide, lambda p: in_groups(p, setting.m))):
        sizes.append(group.weight)
        values.append(_Group(group, exact, ball, setting, bar, f"restart of group {index}").values())
    columns = {name: torch.stack([f[name] for f in values]) for name in values[0]}
    return _Groups(np.array(sizes, dtype=float), {k: v.double().cpu().numpy() for k, v in columns.items()})


class _Group:
    """One group of examples: gradients and ascents by `problem`, rises by `wide` (see `half_precision`)."""

    def __init__(
        self, problem: Problem, wide: Problem, ball: Ball, setting: BallOptions, bar: Bar, purpose: str
    ) -> None:
        self.problem, self.wide, self.ball, self.setting, self.bar = problem, wide, ball, setting, bar
        self.purpose = purpose
        loss, g = problem.loss_and_gradient()
        self.loss = start_loss(problem, wide, loss)
        self.center = ball.gradient(g.to(wide.weights))
        self.slope = ball.dual_norm(self.center)
        check_loss(self.slope, "gradient")
        self.turned = gradient_error(problem, wide, g)

    def values(self) -> dict[str, Tensor]:
        """Every value: name -> (rho,) on the device."""
        radii = torch.tensor(self.setting.radii, dtype=torch.float64, device=self.loss.device)
        values = {"loss": self.loss.expand(len(radii)), "first_order": radii * self.slope}
        values |= self._one_step() if self.setting.steps is None else self._worst_case()
        lost = values["displacement_error"] if self.wide is self.problem else torch.zeros_like(radii)
        rises, known = values["one_step"], resolution(self.wide, float(self.loss))
        values["one_step_error"] = known + error_of_rise(rises, values["first_order"], self.turned, lost)
        if self.setting.steps is not None:  # the rise itself is known; rounded gradients may have led to a lower point
            rises = values["worst_case"]
            values["worst_case_error"] = known + 2 * (self.turned + lost) * rises.abs()
        return values

    def _reached(self, u: Tensor, loss: Tensor) -> Tensor:
        """The loss at u, which the ascent computed as `loss`; where that was not finite it stays so."""
        if self.wide is self.problem:
            return loss
        return torch.where(loss.isfinite(), self.wide.loss(self.wide.weights + self.ball.epsilon(u)), loss)

    def _one_step(self) -> dict[str, Tensor]:
        reached, lost = [], []
        for rho in self.setting.radii:
            epsilon = self.ball.epsilon(self.ball.steepest(self.center, rho))
            reached.append(self.wide.loss(self.wide.weights + epsilon))
            lost.append(displacement_error(self.problem.weights, epsilon))
            self.bar.advance()
        rises = torch.stack(reached) - self.loss
        return {
            "one_step": rises,
            "displacement_error": torch.stack(lost),
            "non_finite": (~torch.isfinite(rises)).double(),
        }

    def _worst_case(self) -> dict[str, Tensor]:
        """Ascents at every radius, the smallest first: its maximizer lies in the larger balls too.

        The largest loss of the smaller radius is thus a lower bound of the next, and its point, moved out to the larger
        radius, starts one more ascent.
        """
        setting, ball, loss, center = self.setting, self.ball, self.loss, self.center
        steps, stationary = positive("steps", setting.steps or 0), not any_entry(center)
        columns: dict[str, list[Tensor]] = {
            name: [] for name in ("one_step", "worst_case", "late_gain", "restarts", "non_finite", "displacement_error")
        }
        best, best_u, smaller = loss, torch.zeros_like(center), 0.0
        known = torch.zeros_like(loss, dtype=torch.bool)
        ascending = np.argsort(setting.radii, kind="stable")
        drawn = stream(setting.seed, f"outputs of {self.purpose}")
        more = setting.restarts - 1
        outputs = best_outputs(self.problem, ball, setting.radii, more + SPARE if more else 0, drawn, self.bar)
        for i in ascending:
            rho = setting.radii[i]
            drawn = stream(setting.seed, self.purpose)
            points = [(first_start(ball, rho, center, drawn), steps)]
            others, failed = other_starts(self.problem, ball, rho, center, outputs[i], more, steps, drawn, self.bar)
            warm = [(best_u * (rho / smaller), steps)] if smaller else []
            reached: list[Tensor] = []
            before = best
            for start, length in points + others + warm:
                one = maximize(self.problem, ball, rho, start, center, length, bar=self.bar)
                top, u = self._reached(one.u, one.loss), one.u
                if not reached:
                    first = self._reached(start, one.first)
                    columns["one_step"].append(torch.zeros_like(loss) if stationary else first - loss)
                    ahead = first.isfinite() & (first > top)  # in float32; the ascent took another for higher
                    top, u = torch.where(ahead, first, top), torch.where(ahead, start, u)
                reached.append(top)
                failed.append(one.non_finite)
                better, known = top > best, known | top.isfinite()
                best, best_u = torch.where(better, top, best), torch.where(better, u, best_u)
                before = torch.where(better, one.before + (top - one.loss), before)
            smaller, restarts = rho, torch.stack(reached[: setting.restarts]) - loss
            columns["restarts"].append(torch.where(restarts.isfinite(), restarts.clamp(min=0), torch.nan))
            columns["late_gain"].append(torch.where(best > loss, (best - before) / (best - loss), 0.0).clamp(max=1.0))
            columns["worst_case"].append(torch.where(known, best - loss, torch.nan))
            columns["non_finite"].append(torch.stack(failed).sum())
            columns["displacement_error"].append(
                displacement_error(self.problem.weights, ball.epsilon(ball.steepest(center, rho)))
            )
        back = torch.from_numpy(np.argsort(ascending, kind="stable")).to(loss.device)
        return {name: torch.stack(column, dim=-1)[..., back] for name, column in columns.items()}
