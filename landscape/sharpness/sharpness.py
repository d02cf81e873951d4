"""What the measures of the ball share: the result, and how it is computed over groups and subsets of the examples.

S(w) = sum_g n_g/n [max over ||T^-1 epsilon||_p <= rho of L_g(w + epsilon) - L_g(w)] over groups g of m examples (one
group of all n by default). One-step sharpness replaces the maximizer by that of the linearized loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.ball.ascent import Ball, maximize
from landscape.ball.vectors import norm
from landscape.formatting import number
from landscape.problem.problem import Problem
from landscape.progress import Bar
from landscape.random import stream
from landscape.results.result import Result, array
from landscape.sharpness.checks import check_loss, check_weights, resolution, scaled_ball
from landscape.sharpness.options import BallOptions
from landscape.sharpness.starts import best_outputs, starts
from landscape.sharpness.subsets import check_division, disjoint_subsets, in_groups, positive
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
            ones where one output is above the others (see `landscape.sharpness.starts`), those beyond at random.
        groups: (group, rho) the measure of each group of m examples; None for one group.
        subsets: (subset, rho) the measure on each disjoint subset of the examples; None where not asked for.
        interval: (bound, rho) 95% confidence interval of the measure over samples of as many examples, from the spread
            over the subsets or else over the groups (Student's t); None where there is neither. A perturbation fits the
            sample that it is computed on: samples of more examples have a smaller sharpness.
        non_finite: number of points of the ascents at each radius whose loss or gradient was nan or inf. They are never
            taken for the maximum: the value is then a lower bound, and nan where no point was finite.
        displacement_error: ||(w + epsilon) - w - epsilon|| / ||epsilon|| of the one-step perturbation, what the dtype
            of the weights cannot hold of it. Near 1 in bfloat16 at small radii: the value then means nothing.
        resolution: estimate of the rounding of a rise in the model's dtype; rises below it are not known.
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
        return columns | {"displacement_error": self.displacement_error}

    def summary(self) -> dict[str, Any]:
        """Arguments, the value at the first radius with all that is known of it, and the curve over the radii."""
        present = {k: v for k, v in self.columns().items() if v is not None}
        rows = [{"rho": r, **{k: v[i] for k, v in present.items()}} for i, r in enumerate(self.rho)]
        values = {**rows[0], "loss": self.loss, "resolution": self.resolution}
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
    for each of up to ten outputs and a forward pass for each at every radius; as much again for the subsets.
    """
    check_division(problem, setting.m, setting.subsets)
    check_weights(problem)
    ball = ball or scaled_ball(problem, setting.p, setting.scaling)
    with Bar(f"{value} sharpness", setting.work(problem.examples)) as bar:
        full = _over_groups(problem, ball, setting, bar)
        parts = None
        if setting.subsets:
            subsets = disjoint_subsets(problem, setting.subsets, setting.seed)
            parts = np.stack([_over_groups(s, ball, setting, bar).mean(value) for s in subsets])
    center, interval = full.mean(value), None
    if parts is not None:
        interval = interval_around(center, parts)
    elif len(full.sizes) > 1:
        interval = interval_around(center, full.values[value], full.sizes)
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
        resolution=resolution(problem, float(full.mean("loss")[0])),
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


def _over_groups(problem: Problem, ball: Ball, setting: BallOptions, bar: Bar) -> _Groups:
    sizes, values = [], []
    for index, group in enumerate(in_groups(problem, setting.m)):
        sizes.append(group.weight)
        values.append(_in_group(group, ball, setting, f"restart of group {index}", bar))
    columns = {name: torch.stack([f[name] for f in values]) for name in values[0]}
    return _Groups(np.array(sizes, dtype=float), {k: v.double().cpu().numpy() for k, v in columns.items()})


def _in_group(problem: Problem, ball: Ball, setting: BallOptions, purpose: str, bar: Bar) -> dict[str, Tensor]:
    """Every value of one group: name -> (rho,) on the device."""
    loss, g = problem.loss_and_gradient()
    check_loss(loss)
    center = ball.gradient(g)
    slope = ball.dual_norm(center)
    check_loss(slope, "gradient")
    radii = torch.tensor(setting.radii, dtype=torch.float64, device=loss.device)
    values = {"loss": loss.expand(len(radii)), "first_order": radii * slope}
    if setting.steps is None:
        return values | _one_step(problem, ball, setting, center, loss, bar)
    return values | _worst_case(problem, ball, setting, center, loss, purpose, bar)


def _displacement_error(w: Tensor, epsilon: Tensor) -> Tensor:
    lost, size = (norm(t) for t in ((w + epsilon) - w - epsilon, epsilon))
    return torch.where(size > 0, lost / size, 0.0)


def _one_step(
    problem: Problem, ball: Ball, setting: BallOptions, center: Tensor, loss: Tensor, bar: Bar
) -> dict[str, Tensor]:
    reached, lost = [], []
    for rho in setting.radii:
        epsilon = ball.epsilon(ball.steepest(center, rho))
        reached.append(problem.loss(problem.weights + epsilon))
        lost.append(_displacement_error(problem.weights, epsilon))
        bar.advance()
    rises = torch.stack(reached) - loss
    return {
        "one_step": rises,
        "displacement_error": torch.stack(lost),
        "non_finite": (~torch.isfinite(rises)).double(),
    }


def _worst_case(
    problem: Problem, ball: Ball, setting: BallOptions, center: Tensor, loss: Tensor, purpose: str, bar: Bar
) -> dict[str, Tensor]:
    """Ascents at every radius, the smallest first: its maximizer lies in the larger balls too.

    The largest loss of the smaller radius is thus a lower bound of the next, and its point, moved out to the larger
    radius, starts one more ascent.
    """
    steps, stationary = positive("steps", setting.steps or 0), not bool(center.any())
    columns: dict[str, list[Tensor]] = {
        name: [] for name in ("one_step", "worst_case", "late_gain", "restarts", "non_finite", "displacement_error")
    }
    best, best_u, smaller = loss, torch.zeros_like(center), 0.0
    known = torch.zeros_like(loss, dtype=torch.bool)
    ascending = np.argsort(setting.radii, kind="stable")
    drawn = stream(setting.seed, f"outputs of {purpose}")
    outputs = best_outputs(problem, ball, setting.radii, setting.restarts - 1, drawn, bar)
    for i in ascending:
        rho = setting.radii[i]
        points = starts(ball, rho, center, outputs[i], setting.restarts, stream(setting.seed, purpose))
        warm = [best_u * (rho / smaller)] if smaller else []
        reached: list[Tensor] = []
        failed: list[Tensor] = []
        before = best
        for start in itertools.chain(points, warm):
            one = maximize(problem, ball, rho, start, center, steps, bar=bar)
            if not reached:
                columns["one_step"].append(torch.zeros_like(loss) if stationary else one.first - loss)
            reached.append(one.loss)
            failed.append(one.non_finite)
            better, known = one.loss > best, known | one.loss.isfinite()
            best, best_u = torch.where(better, one.loss, best), torch.where(better, one.u, best_u)
            before = torch.where(better, one.before, before)
        smaller, restarts = rho, torch.stack(reached[: setting.restarts]) - loss
        columns["restarts"].append(torch.where(restarts.isfinite(), restarts.clamp(min=0), torch.nan))
        columns["late_gain"].append(torch.where(best > loss, (best - before) / (best - loss), 0.0).clamp(max=1.0))
        columns["worst_case"].append(torch.where(known, best - loss, torch.nan))
        columns["non_finite"].append(torch.stack(failed).sum())
        first = ball.epsilon(ball.steepest(center, rho))
        columns["displacement_error"].append(_displacement_error(problem.weights, first))
    back = torch.from_numpy(np.argsort(ascending, kind="stable")).to(loss.device)
    return {name: torch.stack(column, dim=-1)[..., back] for name, column in columns.items()}
