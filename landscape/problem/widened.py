"""The same loss computed in float32: where half precision rounds away what tells L(w + epsilon) from L(w)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from landscape.ball.spread import spread_of
from landscape.errors import InputError
from landscape.problem.batches import Batch, Batches
from landscape.problem.evaluator import copied
from landscape.problem.memory import free_memory
from landscape.problem.parameters import Parameters
from landscape.problem.precision import tf32

if TYPE_CHECKING:
    from landscape.problem.problem import Problem

HALF = (torch.bfloat16, torch.float16)


def is_half(problem: Problem) -> bool:
    """Whether any part of L is computed in bfloat16 or float16: by weights in it, or under autocast."""
    return problem.computed_in in HALF


@contextlib.contextmanager
def widened(problem: Problem) -> Iterator[Problem]:
    """The same L, sample and weights, computed in float32 and without TF32; passes are counted together.

    The Problem itself where it computes in float32 or wider, and where it cannot be computed so: forward() has an
    autocast region or conversions to a half dtype of its own, or its weights are in half precision and two vectors in
    float32 do not fit in memory, or they are sharded.

    Cost: a forward pass over two examples. Memory: of weights in half precision a float32 copy; none under autocast.
    """
    wide = _in_float32(problem) if is_half(problem) and spread_of(problem.weights) is None else None
    if wide is None:
        yield problem
        return
    with tf32(False) if problem.weights.is_cuda else contextlib.nullcontext():
        yield wide


class _Float32(Batches):
    """Batches whose tensors in half precision come in float32."""

    @classmethod
    def over(cls, batches: Batches) -> _Float32:
        """The same batches."""
        held = {f.name: getattr(batches, f.name) for f in fields(batches)}
        return cls(**{**held, "kept": None if batches.kept is None else [as_float32(b) for b in batches.kept]})

    def _cast(self, batch: Batch) -> Batch:
        return as_float32(super()._cast(batch))


def as_float32(batch: Batch) -> Batch:
    """The batch, what it holds in half precision in float32."""
    return batch.map(_wide)


def _in_float32(problem: Problem) -> Problem | None:
    needed = 2 * 4 * problem.dimension * (problem.weights.dtype in HALF)
    if needed > free_memory(problem.weights.device):
        return None
    wide = copy.copy(problem)
    wide.parameters = Parameters(tuple(replace(s, dtype=_wider(s.dtype)) for s in problem.parameters))
    wide.weights = _wide(problem.weights)
    wide.model = _model(problem, wide.parameters, wide.weights)
    wide.evaluator = problem.evaluator.rebound(wide.model, wide.parameters)
    wide.evaluator.autocast = None
    wide.batches = wide.calibration_batches = _Float32.over(problem.batches)
    if problem.calibration_batches is not problem.batches:
        wide.calibration_batches = _Float32.over(problem.calibration_batches)
    wide._shared = replace(problem._shared, computed_in=[])
    try:
        return None if is_half(wide) else wide
    except (InputError, RuntimeError):  # tensors of two dtypes meet where forward() converts by hand
        return None


def _model(problem: Problem, parameters: Parameters, weights: Tensor) -> nn.Module:
    """The network with nothing in half precision; itself where there is nothing, else a copy over these weights."""
    tensors = [*problem.model.parameters(), *problem.model.buffers()]
    if not any(t.dtype in HALF for t in tensors):
        return problem.model
    model = copied(problem.model)
    for own, view in zip(parameters.own_tensors(model), parameters.typed(weights), strict=True):
        own.data = view
    for p in model.parameters():
        p.data = _wide(p.data)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else _wide(buffer)
    return model


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_wider(tensor.dtype))


def _wider(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in HALF else dtype
