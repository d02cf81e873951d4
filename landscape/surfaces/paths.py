"""Paths between two networks: straight lines, Bezier and polygonal curves of low loss, and the barrier on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape import random
from landscape.ball.vectors import norm
from landscape.errors import InputError
from landscape.problem.problem import Problem
from landscape.progress import track
from landscape.results.result import Result, array, plain
from landscape.surfaces.alignment import align
from landscape.surfaces.grid import quantities
from landscape.surfaces.grid.choice import choose
from landscape.surfaces.grid.evaluation import GridEvaluation
from landscape.surfaces.grid.tiles import Tiles
from landscape.surfaces.plan import check_draws


def _linear(t: float) -> tuple[float, float]:
    return t, 0.0


def _bezier(t: float) -> tuple[float, float]:
    return t * t, 2 * t * (1 - t)


def _polygon(t: float) -> tuple[float, float]:
    return (0.0, 2 * t) if t <= 0.5 else (2 * t - 1, 2 * (1 - t))


CURVES: dict[str, Callable[[float], tuple[float, float]]] = {"linear": _linear, "bezier": _bezier, "polygon": _polygon}
"""t -> (b, m): the point w0 + b (w1 - w0) + m (bend - w0)."""


@dataclass(frozen=True, kw_only=True)
class LossPath(Result):
    """Loss and accuracy along a curve from one network (t = 0) to another (t = 1).

    Attributes:
        t: parameter of the curve.
        loss: (t,).
        accuracy: (t,).
        other_loss: (other, t), on further datasets.
        other_accuracy: (other, t).
        sampling_noise: (draw, t), errors of L by the choice of examples, where asked for; 0 at t = 0.
        bend: (parameter,) the trained control point of a curve.
        others: names of the further datasets.
        curve: "linear", "bezier" or "polygon".
        barrier: max over t of loss(t) - ((1 - t) loss(0) + t loss(1)); never negative.
        barrier_at: the t of the maximum.
        accuracy_barrier: the same for 1 - accuracy.
        other_barrier: of each further dataset.
        distance: ||w1 - w0|| in multiples of ||w0||.
        length: of the curve, in the same unit.
        aligned: whether the second network was brought into the first one's coordinates.
        facts: what the alignment and the training of the bend did.
        checks: reasons not to believe the path.
    """

    t: np.ndarray = array("t")
    loss: np.ndarray = array("t")
    accuracy: np.ndarray = array("t")
    other_loss: np.ndarray | None = array("other", "t", default=None)
    other_accuracy: np.ndarray | None = array("other", "t", default=None)
    sampling_noise: np.ndarray | None = array("draw", "t", default=None)
    bend: torch.Tensor | np.ndarray | None = array("parameter", default=None)
    others: list[str] = field(default_factory=list)
    curve: str = "linear"
    barrier: float = 0.0
    barrier_at: float = 0.0
    accuracy_barrier: float = float("nan")
    other_barrier: list[float] = field(default_factory=list)
    distance: float = 0.0
    length: float = 0.0
    aligned: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """Reasons not to believe the picture."""
        return [c["text"] for c in self.checks if not c["ok"]]

    def caption(self) -> str:
        """What must be said under a figure: how it was computed."""
        parts = [
            f"{self.curve} path{' after alignment' if self.aligned else ''}",
            f"distance {self.distance:.3g} ||w0||",
            f"{self.provenance.get('examples', 0):,} samples",
            f"BatchNorm {self.provenance['batch_norm']}" if self.provenance.get("has_batch_norm") else "",
        ]
        return "; ".join(p for p in parts if p)


def path(
    first: Problem,
    second: Problem,
    curve: str = "linear",
    *,
    points: int = 25,
    aligned: bool = False,
    epochs: int = 10,
    lr: float = 0.05,
    momentum: float = 0.9,
    seed: int = 0,
    others: Mapping[str, Problem] | None = None,
    noise_draws: int = 0,
) -> LossPath:
    """Loss along a path between two networks of one architecture.

    "linear": (1 - t) w0 + t w1. "bezier": (1 - t)^2 w0 + 2 t (1 - t) bend + t^2 w1, "polygon": w0 - bend - w1, with the
    bend trained to minimize the expectation of L over uniform t (Garipov 2018, arXiv 1802.10026), in batch statistics
    where there is BatchNorm.

    With BatchNorm use the policy "recalibrate": neither network's running statistics are right in between.

    Args:
        first: the network at t = 0; its data and BatchNorm policy are used everywhere.
        second: the network at t = 1.
        curve: "linear", "bezier" or "polygon".
        points: of the curve that are evaluated, evenly spaced in t, both ends included.
        aligned: bring the second network into the first one's coordinates (`landscape.align`).
        epochs: passes over the data that train the bend.
        lr: of the bend's SGD, decaying to 0 along a cosine.
        momentum: of the bend's SGD.
        seed: of t, of the order of batches, and of the alignment.
        others: name -> Problem of the first model: more datasets, evaluated at the same points.
        noise_draws: as in `landscape.surface`.

    Raises:
        InputError: different architectures (the first differing tensor is named), unknown curve, fewer than 3 points.

    Cost: `points` forward passes, twice as many with `noise_draws`; `epochs` forward and backward passes for a bend.
    """
    from landscape.errors import unknown
    from landscape.surfaces.comparison import check_same_architecture

    if curve not in CURVES:
        raise unknown("curve", curve, CURVES)
    if points < 3 or epochs < 1 or not (lr > 0 and math.isfinite(lr)):
        raise InputError(f"points >= 3, epochs >= 1 and lr > 0 are needed, received {points}, {epochs} and {lr}")
    check_draws(noise_draws)
    check_same_architecture(first, second, "the second network")
    started, facts = time.monotonic(), {}
    end = second.weights.to(first.weights)
    with first.counting() as cost:
        if aligned:
            alignment = align(first, second, seed=seed)
            end, facts["alignment"] = alignment.weights.to(first.weights), alignment.facts
        bend, training = None, {}
        if curve != "linear":
            training = {"epochs": epochs, "lr": lr, "momentum": momentum}
            bend, facts["training"] = trained_bend(
                first, end, curve, epochs=epochs, lr=lr, momentum=momentum, seed=seed
            )
        t = np.linspace(0, 1, points)
        values, noise = _evaluated({"": first, **(others or {})}, end, bend, curve, t, noise_draws, seed)
    scale, drawn = float(norm(first.weights)), {"noise_draws": noise_draws} if noise_draws else {}
    has_norm = bool(first.evaluator.batch_norms)
    return LossPath(
        **_along(t, values),
        sampling_noise=noise,
        bend=bend,
        others=list(others or {}),
        curve=curve,
        distance=float(norm(end - first.weights)) / scale,
        length=_length(first.weights, end, bend, curve) / scale,
        aligned=aligned,
        facts=facts,
        checks=_checks(first, has_norm, facts),
        arguments=plain({"curve": curve, "points": points, "aligned": aligned, "seed": seed, **training, **drawn}),
        cost=cost,
        seconds=time.monotonic() - started,
        provenance={**first.provenance(), "has_batch_norm": has_norm},
    )


def _along(t: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Fields of the result that follow from loss and accuracy (dataset, t, 2)."""
    loss, accuracy = values[..., 0], values[..., 1]
    barriers = [barrier(t, row) for row in loss]
    return {
        "t": t,
        "loss": loss[0],
        "accuracy": accuracy[0],
        "other_loss": loss[1:] if len(loss) > 1 else None,
        "other_accuracy": accuracy[1:] if len(loss) > 1 else None,
        "barrier": barriers[0][0],
        "barrier_at": barriers[0][1],
        "accuracy_barrier": barrier(t, 1 - accuracy[0])[0],
        "other_barrier": [height for height, _ in barriers[1:]],
    }


def barrier(t: np.ndarray, loss: np.ndarray) -> tuple[float, float]:
    """(height, t) of the largest rise of the loss above the line between its ends; at least 0, nan where unknown."""
    rise = loss - ((1 - t) * loss[0] + t * loss[-1])
    if not np.isfinite(loss[[0, -1]]).all():
        return float("nan"), float("nan")
    highest = int(np.argmax(np.where(np.isnan(rise), np.inf, rise)))
    return max(float(rise[highest]), 0.0), float(t[highest])


def trained_bend(
    problem: Problem,
    end: Tensor,
    curve: str,
    *,
    epochs: int,
    lr: float,
    momentum: float = 0.9,
    seed: int = 0,
) -> tuple[Tensor, dict[str, Any]]:
    """The control point that minimizes E_t L(curve(t)), and what its training did.

    SGD from the middle of the line; at every step one batch and one t, uniform in [0, 1]. The gradient with respect to
    the bend is the gradient at the point times the bend's coefficient there.

    Cost: `epochs` forward and backward passes.
    """
    training = problem.with_batch_norm("batch") if problem.evaluator.batch_norms else problem
    generator, shape = random.stream(seed, "training of a bend"), CURVES[curve]
    start, batches = problem.weights, list(problem.weighted_batches())
    bend, velocity = (start + end) / 2, torch.zeros_like(start)
    total, step, history = epochs * len(batches), 0, []
    for _ in track(range(epochs), f"{curve} curve"):
        sums = torch.zeros((), dtype=torch.float64, device=start.device)
        for i in torch.randperm(len(batches), generator=generator).tolist():
            b, m = shape(float(torch.rand((), generator=generator)))
            point = start + b * (end - start) + m * (bend - start)
            loss, gradient = training.with_batches([batches[i]]).loss_and_gradient(point)
            velocity.mul_(momentum).add_(gradient, alpha=m)
            bend = bend - 0.5 * lr * (1 + math.cos(math.pi * step / total)) * velocity
            sums += loss * batches[i].weight
            step += 1
        history.append(float(sums) / problem.weight)
    if not bool(torch.isfinite(bend).all()):
        raise InputError(f"the bend diverged (losses by epoch {history[-3:]}): use a smaller lr than {lr}")
    return bend, {"epochs": epochs, "steps": step, "loss_by_epoch": history}


def _evaluated(
    problems: dict[str, Problem], end: Tensor, bend: Tensor | None, curve: str, t: np.ndarray, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """(datasets, points, 2) and the noise (draws, points).

    The curve lies in the plane of its end and its bend, so that it is a walk on a surface.
    """
    problem = problems[""]
    vectors = [end - problem.weights, *([] if bend is None else [bend - problem.weights])]
    points = [CURVES[curve](float(s))[: len(vectors)] for s in t]
    choice = choose(problems, problem.weights, vectors, len(points))
    evaluation = GridEvaluation(problems, problem.weights, vectors, choice)
    loss, tiles = quantities.loss(evaluation, "path"), Tiles(points, problem)
    tiles.complete(loss)
    values = np.moveaxis(tiles.values(loss).reshape(len(points), len(problems), 2), 1, 0)
    if not draws:
        return values, None
    noise = quantities.sampling_noise(problem, evaluation, draws, seed)
    tiles.complete(noise)
    return values, tiles.values(noise).T


def _length(start: Tensor, end: Tensor, bend: Tensor | None, curve: str) -> float:
    if bend is None:
        return float(norm(end - start))
    if curve == "polygon":
        return float(norm(bend - start) + norm(end - bend))
    # The speed of the curve is 2 |(1 - t) (bend - start) + t (end - bend)|: a midpoint rule over 200 pieces.
    first, second = bend - start, end - bend
    speeds = [norm((1 - s) * first + s * second) for s in (np.arange(200) + 0.5) / 200]
    return float(2 * torch.stack(speeds).mean())


def _checks(problem: Problem, has_norm: bool, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    checks = [{"name": "determinism", "ok": False, "text": note} for note in problem.notes]
    if has_norm and problem.batch_norm == "frozen":
        text = "the first network's BatchNorm statistics are used everywhere: use the policy recalibrate"
        checks.append({"name": "batch_norm", "ok": False, "text": text})
    for name in facts.get("alignment", {}).get("rejected", []):
        text = f"the units of {name} could not be confirmed and were not aligned"
        checks.append({"name": "alignment", "ok": False, "text": text})
    return checks
