"""Sums over processes, and means over processes and m-groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainers.method.context import Pass


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Sum each tensor over all processes, in place, in one bucket per dtype."""
    for dtype in dict.fromkeys(t.dtype for t in tensors):  # a set's order differs from process to process
        same = [t for t in tensors if t.dtype == dtype]
        bucket = torch.cat([t.reshape(-1) for t in same])
        torch.distributed.all_reduce(bucket)
        pieces = bucket.split([t.numel() for t in same])
        torch._foreach_copy_(same, [p.view_as(t) for p, t in zip(pieces, same, strict=True)])


def mean(values: Sequence[Any], weights: Sequence[float]) -> Any:
    """Weighted mean of numbers and floating tensors in equal trees; what cannot be averaged is taken from the last."""
    last = values[-1]
    if all(v is last for v in values):
        return last
    if isinstance(last, dict):
        return {k: mean([v[k] for v in values if k in v], weights) for k in last}
    if isinstance(last, list | tuple):
        return [mean(column, weights) for column in zip(*values, strict=True)]
    if isinstance(last, float) or (isinstance(last, Tensor) and last.is_floating_point()):
        return sum(v * w for v, w in zip(values, weights, strict=True))
    return last


def plus_share(total: Sequence[Tensor] | None, value: Any, share: float) -> Any:
    """The sum total + share value for lists of tensors, share value without a total; anything else as it is."""
    if not isinstance(value, list) or not all(isinstance(v, Tensor) for v in value):
        return value
    scaled = list(torch._foreach_mul(value, share))
    return scaled if total is None else list(torch._foreach_add(list(total), scaled))


def mean_over_processes(value: Any, share: float) -> Any:
    """Mean over processes of a list of floating tensors, each weighted by its share; anything else as it is."""
    tensors = isinstance(value, list) and all(isinstance(v, Tensor) and v.is_floating_point() for v in value)
    if not tensors or not value:
        return value
    scaled = list(torch._foreach_mul(value, share))
    sum_over_processes(scaled)
    return scaled


def joined(passes: Sequence[Pass]) -> Pass:
    """The passes over the m-groups as one pass over the batch."""
    sizes = [p.size for p in passes]
    loss = mean([p.loss for p in passes], [n / sum(sizes) for n in sizes])
    losses = [p.example_losses for p in passes]
    target = torch.cat([p.target for p in passes]) if isinstance(passes[0].target, Tensor) else None
    together = None if losses[0] is None else torch.cat(losses)  # type: ignore[arg-type]
    return Pass(loss, torch.cat([p.logits for p in passes]), target, together)
