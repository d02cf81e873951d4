"""What an analysis will cost: passes, counted on a few examples, times the seconds that a pass takes."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from figures.page.requests import SURFACE
from landscape import MEASURES
from landscape.errors import InputError
from landscape.problem.problem import Problem
from trainers.companions import NOTHING_BESIDE, Companions
from trainers.requests import MeasureRequest

if TYPE_CHECKING:
    from landscape.problem.memory import Plan

FEW = 64
"""Examples on which the passes are counted: they hardly depend on how many there are."""


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

    Cost: every measure over 64 examples (the first batch where it cannot be divided), eight passes over a batch.
    """
    seconds = _seconds(problem, plan)
    few, beside = _few(problem), companions
    if (other := companions.other) is not None:
        beside = dataclasses.replace(companions, other=lambda: _few(other()))
    yield _estimate("loss", {"forward": 2.0}, seconds)
    for request in wanted:
        try:
            yield _estimate(request.key, _passes(few, request, beside), seconds)
        except InputError as error:
            yield CostEstimate(request.key, {}, math.nan, str(error))


def _estimate(key: str, passes: Mapping[str, float], seconds: Mapping[str, float]) -> CostEstimate:
    return CostEstimate(key, passes, sum(seconds[k] * n for k, n in passes.items()))


def _few(problem: Problem) -> Problem:
    return problem.with_batches([problem.few_examples(FEW)])


def _passes(few: Problem, request: MeasureRequest, companions: Companions) -> dict[str, float]:
    if request.measure == SURFACE:
        return {"forward": float(request.arguments["grid"] ** 2)}
    return {k: n for k, n in MEASURES[request.measure](few, **companions.arguments(request)).cost.items() if n}


def _seconds(problem: Problem, plan: Plan | None) -> dict[str, float]:
    """Seconds of a pass over the sample, by kind: of the loss from one batch, of products from one chunk."""
    forward, gradient = _seconds_of(problem, problem.batches.sizes[0], Problem.loss, Problem.gradient)
    seconds = {"forward": forward, "backward": max(gradient - forward, 0.0)}
    if plan is None:
        return seconds
    v = torch.ones_like(problem.weights)
    first, product = _seconds_of(problem, plan.chunk_size, Problem.gradient, lambda part: part.hvp(v))
    # Graphs that are kept need no first derivative for the next product; half of the memory is for them.
    kept = min(1.0, 0.5 * plan.free_bytes / max(plan.graphs_bytes, 1.0))
    return seconds | {"hvp": max(product - kept * first, 0.0)}


def _seconds_of(problem: Problem, examples: int, *calls: Callable[[Problem], torch.Tensor]) -> list[float]:
    """Seconds of each call over the whole sample, from its second run over the first examples."""
    part = problem.with_batches([problem.few_examples(examples)])
    return [problem.examples / part.examples * _second(functools.partial(call, part)) for call in calls]


def _second(call: Callable[[], torch.Tensor]) -> float:
    call().sum().item()  # also waits for the device
    start = time.perf_counter()
    call().sum().item()
    return time.perf_counter() - start
