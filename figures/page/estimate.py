"""What an analysis will cost: it is tried on a few examples, and a pass over all examples takes so much longer.

    seconds = seconds of the trial + sum over kinds of (passes of that kind) (seconds of a pass over all - over the few)

A small network spends its time between the passes (on directions, projections, calls of its layers), a large one within
them; the trial knows the former, the passes the latter.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

import landscape
from figures.page.requests import SURFACE
from landscape import MEASURES
from landscape.errors import InputError
from landscape.problem.problem import Problem
from trainers.companions import NOTHING_BESIDE, Companions
from trainers.requests import MeasureRequest

if TYPE_CHECKING:
    from landscape.problem.memory import Plan

FEW = 64
"""Examples on which measures are tried: their passes hardly depend on how many there are."""
_POINTS = 5
"""A side of the surface that is tried."""
_RUNS, _LONG = 5, 1.0
"""Runs of which the median is taken, as long as they take less than that many seconds."""


@dataclass(frozen=True)
class CostEstimate:
    """What one measure will cost.

    Attributes:
        key: of the measure.
        passes: forward, backward, hvp: passes over the whole sample; empty where they are not known.
        seconds: they take; nan where they are not known.
        obstacle: why they are not known; "" where they are.
    """

    key: str
    passes: Mapping[str, float]
    seconds: float
    obstacle: str = ""


def estimates(
    problem: Problem, wanted: Sequence[MeasureRequest], plan: Plan | None, companions: Companions = NOTHING_BESIDE
) -> Iterator[CostEstimate]:
    """The cost of the loss itself and of every wanted measure, one after the other.

    Args:
        problem: the loss over the sample.
        wanted: measures.
        plan: of the curvature among them; None where none is wanted.
        companions: what some of them take beside the problem.

    Cost: every measure over 64 examples (the first batch where it cannot be divided), 25 points of the surface there,
    and some 20 passes over a batch and over these examples.
    """
    few, beside = _few(problem), companions
    if (other := companions.other) is not None:
        beside = dataclasses.replace(companions, other=lambda: _few(other()))
    all_, of_few = _seconds(problem, plan), _seconds(few, plan)
    yield CostEstimate("loss", {"forward": 2.0}, 2.0 * all_["forward"])
    for request in wanted:
        try:
            passes, trial = _tried(few, request, beside)
        except InputError as error:
            yield CostEstimate(request.key, {}, math.nan, str(error))
            continue
        within = sum(n * all_[k] for k, n in passes.items())
        more = sum(n * (all_[k] - of_few[k]) for k, n in passes.items())
        yield CostEstimate(request.key, passes, max(within, trial + more))


def _few(problem: Problem) -> Problem:
    return problem.with_batches([problem.few_examples(FEW)])


def _tried(few: Problem, request: MeasureRequest, companions: Companions) -> tuple[dict[str, float], float]:
    """Passes of a measure, and the seconds that it takes over a few examples."""
    start = time.perf_counter()
    if request.measure == SURFACE:
        landscape.surface(few, **{**request.arguments, "grid": _POINTS})
        points = float(request.arguments["grid"] ** 2)
        return {"forward": points}, (time.perf_counter() - start) * points / _POINTS**2
    result = MEASURES[request.measure](few, **companions.arguments(request))
    return {k: n for k, n in result.cost.items() if n}, time.perf_counter() - start


def _seconds(problem: Problem, plan: Plan | None) -> dict[str, float]:
    """Seconds of a pass over the sample, by kind: of the loss from one batch, of products from one chunk."""
    forward, gradient = _seconds_of(problem, problem.batches.sizes[0], Problem.loss, Problem.gradient)
    seconds = {"forward": forward, "backward": max(gradient - forward, 0.0)}
    if plan is None:
        return seconds
    v = torch.ones_like(problem.weights)
    first, product = _seconds_of(
        problem, min(plan.chunk_size, problem.examples), Problem.gradient, lambda part: part.hvp(v)
    )
    # Graphs that are kept need no first derivative for the next product; half of the memory is for them.
    kept = min(1.0, 0.5 * plan.free_bytes / max(plan.graphs_bytes, 1.0))
    return seconds | {"hvp": max(product - kept * first, 0.0)}


def _seconds_of(problem: Problem, examples: int, *calls: Callable[[Problem], torch.Tensor]) -> list[float]:
    """Seconds of each call over the whole sample, from its second run over the first examples."""
    part = problem.with_batches([problem.few_examples(examples)])
    return [problem.examples / part.examples * _second(functools.partial(call, part)) for call in calls]


def _second(call: Callable[[], torch.Tensor]) -> float:
    """The median of a few runs after the first, fewer where they take long."""
    call().sum().item()  # also waits for the device
    taken: list[float] = []
    while len(taken) < _RUNS and sum(taken) < _LONG:
        start = time.perf_counter()
        call().sum().item()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
