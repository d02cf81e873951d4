"""Whether the loss of a batch is the weighted sum of its parts' losses: only then may batches be divided anew.

It is not, where examples influence each other (batch statistics, graphs, contrastive losses) or where a mean divides by
something else than its weight says (class weights or ignored targets inside a function). Neither can be read off a
model or a function, so it is tried out: on examples that differ as much as possible, values and gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.problem.batches import TARGET_KEYS, Batch
from landscape.random import stream

if TYPE_CHECKING:
    from landscape.problem.problem import Problem

IGNORED = -100
_PROBE = 32
_BATCHES = 3
_CLASSES = 16
_COARSE = (torch.bfloat16, torch.float16)


def obstacle(problem: Problem) -> str | None:
    """Why the batches of a Problem may not be divided or merged, in words; None where they may.

    Cost: forward and backward passes over up to 160 examples; where the loss's denominator is not known, two forward
    passes over all examples besides.
    """
    objective, evaluator = problem.objective, problem.evaluator
    if objective.function is not None:
        return "an objective function takes its batches whole"
    if problem.batches.kept is None:
        return "the batches do not fit in memory"
    if not all(b.sliceable for b in problem.batches.kept):
        return "a batch holds something else than tensors whose first dimension runs over the examples"
    if not evaluator.evaluation_mode:
        return "the model keeps its training mode"
    if evaluator.batch_norms and problem.batch_norm == "batch":
        return "BatchNorm uses the statistics of each batch"
    if any(not m.track_running_stats for m in evaluator.batch_norms):
        return "a BatchNorm keeps no running statistics"
    if objective.weight is not None:
        return "weight(batch) is known of the given batches alone"
    if objective.torch is not None and objective.torch.uneven:
        return "label smoothing weighs classes of weight 0"
    if not objective.exact and problem.weights.dtype in _COARSE:
        return "the loss's denominator is not known, and this dtype is too coarse to try it out"
    try:
        adds_up = _adds_up(problem)
    except InputError:
        return "the model or the loss cannot take a part of a batch"
    return None if adds_up else "the losses of a batch's parts do not add up to its loss"


def _adds_up(problem: Problem) -> bool:
    tolerance = max(1e3 * torch.finfo(problem.weights.dtype).eps, 1e-9)
    leaves = problem.leaves()
    with problem.uncounted(), torch.enable_grad(), problem.bound_tensors(leaves):
        for batch in probes(problem):
            whole = _shares(problem, leaves, [batch])
            for order in orders(batch):
                cut = max(batch.size // 3, 1)
                parts = [batch.select(order[:cut]), batch.select(order[cut:])] if batch.size > 1 else []
                if parts and not _close(whole, _shares(problem, leaves, parts), tolerance):
                    return False
    return problem.objective.exact or _everywhere(problem, tolerance)


def _shares(problem: Problem, leaves: Sequence[Tensor], batches: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of c_b l_b, of its gradient, and of the sizes of the parts: what rounding is measured by."""
    value = torch.zeros((), dtype=torch.float64, device=leaves[0].device)
    gradient: Tensor | None = None
    size = torch.zeros_like(value)
    for batch in (problem.weighed(b) for b in batches):
        if not batch.weight:
            continue
        loss = problem.batch_loss(problem.forward(batch), batch)
        found = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else [None] * len(leaves)
        flat = problem.parameters.flatten(
            [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]
        )
        value = value + loss.detach().double() * batch.weight
        gradient = flat.double() * batch.weight if gradient is None else gradient + flat.double() * batch.weight
        size = size + torch.linalg.vector_norm(flat, dtype=torch.float64) * batch.weight
    return value, torch.zeros_like(problem.weights, dtype=torch.float64) if gradient is None else gradient, size


def _close(one: Sequence[Tensor], other: Sequence[Tensor], tolerance: float) -> bool:
    values = abs(float(one[0] - other[0])) <= tolerance * (abs(float(one[0])) + abs(float(other[0])) + tolerance)
    distance = float(torch.linalg.vector_norm(one[1] - other[1]))
    return values and distance <= tolerance * (float(one[2]) + float(other[2]) + tolerance)


def _everywhere(problem: Problem, tolerance: float) -> bool:
    """L over the user's batches beside L over all of them divided anew, as far as they can be."""
    given, largest = float(problem.loss()), max(problem.batches.sizes)
    for size in (max(largest // 2, 1), 2 * largest):
        other = float(problem.divided(size).loss())
        if not abs(other - given) <= 10 * tolerance * (abs(given) + tolerance):
            return False
    return True


def probes(problem: Problem) -> Iterator[Batch]:
    """Batches of up to 32 examples: the most different ones of all, and the first of the user's batches."""
    whole = problem.batches.whole()
    kept = problem.batches.kept or []
    chosen = [whole] if whole is not None else [kept[i] for i in sorted({0, len(kept) // 2, len(kept) - 1})][:_BATCHES]
    for batch in chosen:
        yield batch.select(telling_rows(batch, _PROBE))
    if whole is not None and len(kept) > 1 and kept[0].size > 1:
        yield kept[0].rows(0, _PROBE)


def telling_rows(batch: Batch, count: int) -> Tensor:
    """Positions of up to `count` examples that differ as much as possible: of every class, shortest and longest."""
    rows: list[int] = []
    for tensor in batch.tensors():
        if tensor.dim() == 1 and not tensor.is_floating_point():
            _, inverse = torch.unique(tensor, return_inverse=True)
            counts = torch.bincount(inverse)
            rarest = counts.argsort()[:_CLASSES]
            rows += [int((inverse == c).nonzero()[0]) for c in rarest]
        for score in _scores(tensor):
            rows += [int(score.argmin()), int(score.argmax())]
    rows += torch.linspace(0, batch.size - 1, min(count, batch.size)).round().long().tolist()
    device = batch.tensors()[0].device
    return torch.tensor(sorted(list(dict.fromkeys(rows))[:count]), device=device)


def orders(batch: Batch) -> Iterator[Tensor]:
    """Orders of the examples whose first third and rest differ most: by class and by length, and one at random."""
    keys = []
    for tensor in batch.tensors():
        keys += [tensor] if tensor.dim() == 1 and not tensor.is_floating_point() else []
        keys += list(_scores(tensor))
    varied = [k for k in keys if bool((k != k[0]).any())]
    for key in varied[:1] + varied[1:][-1:]:
        yield key.double().argsort(stable=True)
    device = batch.tensors()[0].device
    yield torch.randperm(batch.size, generator=stream(0, "additivity")).to(device)


def _scores(tensor: Tensor) -> Iterator[Tensor]:
    """How long an example is, as far as integers and masks show it: entries that count, and their sum."""
    if tensor.dim() >= 2 and not tensor.is_floating_point():
        flat = tensor.flatten(1)
        yield (flat == IGNORED).sum(1)
        yield (flat == 0).sum(1)
        yield flat.sum(1)
    elif tensor.dim() == 1 and tensor.is_floating_point():
        yield tensor.detach()


# -- a model's own loss ------------------------------------------------------------------------------------------------


def own_denominator(problem: Problem) -> tuple[str, Callable[[Batch], float]] | None:
    """What the loss that a model returns divides by, found by what makes parts of batches add up.

    Tried are the number of examples, of labels that are not -100, and of these without the first position (a causal
    language model predicts each token from those before it): on real batches, and on those with some labels set to
    -100, which tells them apart where all examples are equally long.

    Returns:
        The words for it and c_b of a batch; None where none of them adds up, or the batches cannot be divided.
    """
    kept = problem.batches.kept
    if kept is None or not all(b.sliceable for b in kept):
        return None
    labels = kept[0].target
    integers = isinstance(labels, Tensor) and not labels.is_floating_point()
    candidates = dict(_CANDIDATES if integers else _CANDIDATES[:1])
    real = [b for b in probes(problem) if b.size > 1]
    fitting = _fitting(problem, candidates, real) if real else {}
    if len(fitting) > 1:
        with contextlib.suppress(InputError):  # a model that knows no ignored labels
            fitting = _fitting(problem, fitting, [_masked(b) for b in real]) or fitting
    return next(iter(fitting.items()), None)


def _fitting(
    problem: Problem, candidates: dict[str, Callable[[Batch], float]], batches: Sequence[Batch]
) -> dict[str, Callable[[Batch], float]]:
    """The candidates by which parts of all these batches add up."""
    tolerance = max(1e3 * torch.finfo(problem.weights.dtype).eps, 1e-9)
    fitting, leaves = dict(candidates), problem.leaves()
    with problem.uncounted(), torch.enable_grad(), problem.bound_tensors(leaves):
        for batch in batches:
            for order in orders(batch):
                cut = max(batch.size // 3, 1)
                parts = (batch, batch.select(order[:cut]), batch.select(order[cut:]))
                evaluated = [_shares(problem, leaves, [replace(b, weight=1.0)]) for b in parts]
                for words, count in list(fitting.items()):
                    if not _fits([count(b) for b in parts], evaluated, tolerance):
                        del fitting[words]
    return fitting


def _masked(batch: Batch) -> Batch:
    """The batch with labels set to -100: the first of every other example, all from the middle on of the first."""
    labels = batch.target.clone()
    labels[0, ...] = IGNORED if labels.dim() == 1 else labels[0]
    if labels.dim() > 1:
        labels[0, labels.shape[1] // 2 :] = IGNORED
        labels[1::2, 0] = IGNORED
    name = next((k for k in TARGET_KEYS if k in batch.kwargs), None)
    kwargs = batch.kwargs if name is None else {**batch.kwargs, name: labels}
    return replace(batch, kwargs=kwargs, target=labels)


def _fits(counts: Sequence[float], evaluated: Sequence[tuple[Tensor, Tensor, Tensor]], tolerance: float) -> bool:
    shares = [[t * c if c else torch.zeros_like(t) for t in e] for c, e in zip(counts, evaluated, strict=True)]
    added = [first + second for first, second in zip(*shares[1:], strict=True)]
    return counts[0] > 0 and _close(shares[0], added, tolerance)


def _labels(batch: Batch) -> float:
    return float((batch.target != IGNORED).sum())


def _shifted_labels(batch: Batch) -> float:
    return float((batch.target[:, 1:] != IGNORED).sum()) if batch.target.dim() > 1 else 0.0


_CANDIDATES: tuple[tuple[str, Callable[[Batch], float]], ...] = (
    ("examples", lambda b: float(b.size)),
    ("labels that count", _labels),
    ("labels that count, but the first of each sequence", _shifted_labels),
)
