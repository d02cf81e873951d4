"""What an analysis will cost: it is made of a few examples, report and all, and a pass over all takes so much longer.

    seconds = seconds of the trial + sum over kinds of (passes of that kind) (seconds of a pass over all - over the few)

A small network spends its time between the passes (on directions, projections, calls of its layers), a large one within
them; the trial knows the former, the passes the latter. A Hessian-vector product is timed as curvature makes it: from
the graph of one chunk, kept since the product before.

    memory = peak of this process after all that, which held one chunk's graph + all vectors + the other graphs kept
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from figures.page import measuring
from figures.page.requests import SURFACE
from figures.page.store import Store
from landscape.curvature.products.hessian_graph import HessianGraph
from landscape.errors import InputError
from landscape.problem.problem import Problem
from trainers.rebuild import Subject
from trainers.requests import MeasureRequest

if TYPE_CHECKING:
    from figures.page.analysis import Analysis
    from landscape.problem.memory import Plan

FEW = 64
"""Examples on which measures are tried: their passes hardly depend on how many there are."""
_POINTS = 9
"""A side of the surface that is tried."""
_RUNS, _LONG = 5, 1.0
"""Runs of which the median is taken, as long as they take less than that many seconds."""


@dataclass(frozen=True)
class CostEstimate:
    """What one measure, or the report, will cost.

    Attributes:
        key: of the measure.
        seconds: it takes; nan where they are not known.
        passes: forward, backward, hvp: passes over the whole sample; empty where they are not known.
        obstacle: why they are not known; "" where they are.
    """

    key: str
    seconds: float
    passes: Mapping[str, float] = field(default_factory=dict)
    obstacle: str = ""


def memory(peak: float, plan: Plan | None) -> float:
    """Bytes at the most, of a process that reached `peak` with a product from one chunk; nan where that is not known.

    No more than that for the measures of an analysis; what a single one holds for each example by itself is not in it.
    """
    if plan is None:
        return peak
    return peak + plan.vector_bytes + max(plan.kept_share * plan.graphs_bytes - plan.chunk_bytes, 0.0)


def estimates(
    subject: Subject,
    wanted: Sequence[MeasureRequest],
    plan: Plan | None,
    draw: Callable[[Sequence[Analysis], Path], object],
) -> Iterator[CostEstimate]:
    """The cost of the loss itself, of every wanted measure, and of the report, one after the other.

    Args:
        subject: the checkpoint, brought back to life.
        wanted: measures.
        plan: of the curvature among them; None where none is wanted.
        draw: puts the report of analyses and its figures into a folder.

    Cost: every measure over 64 examples (the first batch where it cannot be divided), 81 points of the surface there,
    their report, and some 20 passes over a batch and over these examples.
    """
    few = _few(subject)
    all_, of_few = _Seconds(subject.problem, plan), _Seconds(few.problem, plan)
    yield CostEstimate("loss", 2.0 * all_["forward"], {"forward": 2.0})
    with tempfile.TemporaryDirectory() as folder:
        measured, store, tried = measuring.Measured(few), Store(Path(folder) / "analysis.h5", {}), []
        for request in wanted:
            small, start = _small(request), time.perf_counter()
            try:
                cost = measured.result(small, request.key, store).cost
            except InputError as error:
                yield CostEstimate(request.key, math.nan, obstacle=str(error))
                continue
            trial = time.perf_counter() - start
            tried.append(small)
            points = {} if small is request else {"forward": float(request.arguments["grid"] ** 2)}
            passes = points or {k: n for k, n in cost.items() if n}
            trial *= points["forward"] / _POINTS**2 if points else 1.0
            within = sum(n * all_[k] for k, n in passes.items())
            more = sum(n * (all_[k] - of_few[k]) for k, n in passes.items())
            yield CostEstimate(request.key, max(within, trial + more), passes)
        start = time.perf_counter()
        draw([measuring.analyze(measured, subject.path.stem, store, tried)], Path(folder))
        yield CostEstimate("report", time.perf_counter() - start)


def _few(subject: Subject) -> Subject:
    """The same over a few of the examples, also of the data beside."""

    def cut(problem: Problem) -> Problem:
        return problem.with_batches([problem.few_examples(FEW)])

    beside, other = subject.companions, subject.companions.other
    if other is not None:
        beside = dataclasses.replace(beside, other=functools.cache(lambda: cut(other())))
    return dataclasses.replace(subject, problem=cut(subject.problem), companions=beside)


def _small(request: MeasureRequest) -> MeasureRequest:
    """The measure as it is tried: a surface with fewer points."""
    if request.measure != SURFACE or request.arguments["grid"] <= _POINTS:
        return request
    return dataclasses.replace(request, arguments={**request.arguments, "grid": _POINTS})


class _Seconds(dict[str, float]):
    """Seconds of a pass over the sample, by kind: of the loss from one batch; of products, where one is looked up."""

    def __init__(self, problem: Problem, plan: Plan | None) -> None:
        self._problem, self._plan = problem, plan
        part, scale = _part(problem, problem.batches.sizes[0])
        forward, gradient = (scale * _second(call) for call in (part.loss, part.gradient))
        super().__init__(forward=forward, backward=max(gradient - forward, 0.0))

    def __missing__(self, kind: str) -> float:
        if kind != "hvp":
            raise KeyError(kind)
        self[kind] = self._of_product()
        return self[kind]

    def _of_product(self) -> float:
        """Of one from the graphs of chunks that are kept; without a plan of one that builds its graph."""
        problem, plan = self._problem, self._plan
        part, scale = _part(problem, problem.batches.sizes[0] if plan is None else plan.chunk_size)
        v = torch.ones_like(problem.weights)
        if plan is None:
            return scale * _second(functools.partial(part.hvp, v))
        graph = HessianGraph(part, chunk_size=part.examples, memory=math.inf)
        product = _second(functools.partial(graph.product, v))
        # What does not fit in half of the memory is rebuilt for every product.
        anew = 1.0 - plan.kept_share
        return scale * (product + (anew * _second(part.gradient) if anew else 0.0))


def _part(problem: Problem, size: int) -> tuple[Problem, float]:
    """The loss over the first so many examples, or the first batch of those that cannot be divided; how many of it."""
    divided = problem if problem.undividable is not None else problem.divided(size)
    part = problem.with_batches([divided.few_examples(size)])
    return part, problem.examples / part.examples


def _second(call: Callable[[], torch.Tensor]) -> float:
    """The median of a few runs after the first, fewer where they take long."""
    call().sum().item()  # also waits for the device
    taken: list[float] = []
    while len(taken) < _RUNS and sum(taken) < _LONG:
        start = time.perf_counter()
        call().sum().item()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
