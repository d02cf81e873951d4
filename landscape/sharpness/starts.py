"""Where ascents start: the one-step point, points at which one output is above the others, random ones.

In a large ball the loss has several maxima: at each the network names one class for nearly every example. The gradient
at trained weights is that of the few examples it is not sure of, and leads to any of them; so do random points, which
in many dimensions move the outputs little. The gradient of one output leads to its maximum, and the loss at its
one-step point ranks them, roughly: the best few of them and a random point are followed for a fifth of the steps,
which tells far better (docs/benchmarks/worst_case.md), and the best go on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from landscape.ball import vectors
from landscape.ball.ascent import Ball, maximize
from landscape.errors import InputError
from landscape.problem.losses import CLASSES
from landscape.problem.outputs import logits_of
from landscape.problem.problem import Problem
from landscape.progress import Bar

MOST_OUTPUTS = 10
"""Directions that are tried: of more outputs so many are drawn, of at most half as many both signs."""
SPARE = 2
"""Outputs that are followed for some steps beyond the number of ascents that go on, and one random point."""


class _Above:
    """As a loss: the mean of one output above the mean of all, or of the only one. It learns how many there are."""

    def __init__(self, axis: int) -> None:
        self.axis, self.index, self.count = axis, 0, 1

    def __call__(self, outputs: Any, target: Any) -> Tensor:
        logits = logits_of(outputs)
        if logits.dim() < 2:
            return logits.mean()
        self.count = logits.shape[self.axis]
        one = logits.select(self.axis, self.index).mean()
        return one - logits.mean() if self.count > 1 else one


def output_gradients(problem: Problem, generator: torch.Generator) -> Iterator[Tensor]:
    """Gradient of the mean of each output above the mean of all, (d,); of at most five outputs in both signs.

    Nothing where the model's outputs are not known (an objective function) or have no gradient.

    Cost: one forward and one backward pass for each output, for at most `MOST_OUTPUTS`; of two, for one.
    """
    objective = problem.objective
    if objective.function is not None:
        return
    classes = objective.torch is not None and objective.torch.kind == CLASSES
    above, raised = _Above(1 if classes else -1), copy.copy(problem)
    raised.objective = replace(objective, loss=above, torch=None, denominator=None, takes_logits=False)
    try:
        g = raised.gradient()
    except InputError:
        return
    others = torch.randperm(max(above.count - 1, 0), generator=generator)[: MOST_OUTPUTS - 1] + 1
    # Of two outputs the one above the mean is the other below it.
    for index in [None, *others.tolist()] if above.count != 2 else [None]:
        if index is not None:
            above.index = index
            g = raised.gradient()
        yield g
        if 2 * above.count <= MOST_OUTPUTS:
            yield -g


def best_outputs(
    problem: Problem, ball: Ball, radii: Sequence[float], count: int, generator: torch.Generator, bar: Bar
) -> list[list[Tensor]]:
    """For each radius the `count` gradients T g of outputs whose one-step points have the largest losses, best first.

    Cost: that of `output_gradients`, and a forward pass for each output and radius. Memory: `count` vectors a radius.
    """
    ranked: list[list[tuple[float, Tensor]]] = [[] for _ in radii]
    left = MOST_OUTPUTS if count else 0
    for g in output_gradients(problem, generator) if count else ():
        h = ball.gradient(g)
        if vectors.finite(h) and vectors.any_entry(h):
            for entries, rho in zip(ranked, radii, strict=True):
                loss = float(problem.loss(problem.weights + ball.epsilon(ball.steepest(h, rho))))
                if math.isfinite(loss):
                    entries.append((loss, h))
                    entries.sort(key=lambda entry: entry[0], reverse=True)
                    del entries[count:]
        left -= 1
        bar.advance(1 + len(radii))
    bar.advance(left * (1 + len(radii)))
    return [[h for _, h in entries] for entries in ranked]


def trial_steps(steps: int) -> int:
    """Points of an ascent of `steps` points after which the candidates are compared."""
    return max(steps // 5, 1)


def trials(count: int) -> int:
    """Most candidates for `count` ascents."""
    return count + SPARE + 1 if count else 0


def first_start(ball: Ball, rho: float, center: Tensor, generator: torch.Generator) -> Tensor:
    """The one-step point; a random one where T g = 0."""
    return ball.steepest(center, rho) if vectors.any_entry(center) else ball.random(center, rho, generator)


def other_starts(
    problem: Problem,
    ball: Ball,
    rho: float,
    center: Tensor,
    outputs: Sequence[Tensor],
    count: int,
    steps: int,
    generator: torch.Generator,
    bar: Bar,
) -> tuple[list[tuple[Tensor, int]], list[Tensor]]:
    """`count` points to which short ascents of the candidates led, the highest first, and the steps left from there.

    The candidates are the one-step points of the outputs, and random points: one, or as many as are missing.

    Returns:
        The points with the steps that are left; of every short ascent how many points were not finite.

    Cost: `trial_steps` forward passes for each candidate, one backward pass fewer; none where all of them are taken.
    """
    points = [ball.steepest(h, rho) for h in outputs]
    points += [ball.random(center, rho, generator) for _ in range(max(count - len(points), 1 if points else 0))]
    if len(points) <= count:
        bar.advance(trials(count) * trial_steps(steps))
        return [(point, steps) for point in points], []
    tried = [maximize(problem, ball, rho, point, center, trial_steps(steps), bar=bar) for point in points]
    best = sorted(tried, key=lambda one: float(one.loss), reverse=True)[:count]
    left = max(steps - trial_steps(steps), 1)
    bar.advance((trials(count) - len(tried)) * trial_steps(steps) + count * (steps - left))
    return [(one.u, left) for one in best], [one.non_finite for one in tried]
