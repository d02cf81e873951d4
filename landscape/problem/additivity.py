"""Whether the loss of a batch is the weighted sum of its parts' losses: only then may batches be regrouped.

It is not, where examples influence each other (batch statistics, graphs, contrastive losses) or where a mean divides by
something else than its weight says (class weights or ignored targets inside a function). Neither can be read off a
model or a function, so it is tried out: on examples that differ as much as possible, values and gradients.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.ball.vectors import norm
from landscape.errors import InputError
from landscape.problem.batches import TARGET_KEYS, Batch
from landscape.problem.objective import IGNORED, telling
from landscape.problem.widened import is_half, widened
from landscape.random import normal, stream

if TYPE_CHECKING:
    from landscape.problem.problem import Problem

NOT_ADDITIVE = "the losses of a batch's parts do not add up to its loss"
BATCH_STATISTICS = "BatchNorm uses the statistics of each batch"
NO_STATISTICS = "a BatchNorm keeps no running statistics"
TOO_COARSE = "the network computes too coarsely to try out whether parts of a batch add up"
COUPLED = (NOT_ADDITIVE, BATCH_STATISTICS, NO_STATISTICS, TOO_COARSE)
"""Reasons by which L may depend on the batches, whatever the loss divides by."""
_PROBE = 32
_LOOKED_AT = 16
_CLASSES = 16


def obstacle(problem: Problem) -> str | None:
    """Why the batches of a Problem may not be regrouped, in words; None where they may.

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
        return BATCH_STATISTICS
    if any(not m.track_running_stats for m in evaluator.batch_norms):
        return NO_STATISTICS
    if objective.weight is not None:
        return "weight(batch) is known of the given batches alone"
    if objective.torch is not None and objective.torch.uneven:
        return "label smoothing weighs classes of weight 0"
    alone = sum(problem.batches.sizes) == 1
    if alone or (max(problem.batches.sizes) == 1 and problem.batches.whole() is None):
        return None  # a single example, or several that cannot be joined: there is nothing to divide
    try:
        with widened(problem) as wide:  # half precision hides it
            if is_half(wide):
                return TOO_COARSE
            adds_up = _adds_up(wide)
    except InputError:
        return "the model or the loss cannot take a part of a batch"
    return None if adds_up else NOT_ADDITIVE


def _adds_up(problem: Problem) -> bool:
    tolerance = _tolerance(problem)
    seen = [_adds_up_at(problem, None, tolerance)]
    if not problem.objective.exact:
        # A hinge that is satisfied is 0, whatever it hides: it is looked at elsewhere too.
        noise = normal(problem.weights, stream(0, "additivity elsewhere"))
        size = norm(problem.weights) / problem.dimension**0.5
        seen.append(_adds_up_at(problem, 0.1 * problem.weights + 0.3 * size.to(noise) * noise, tolerance))
    if False in seen or (True not in seen and not problem.objective.exact):
        return False
    return problem.objective.exact or _everywhere(problem, tolerance)


def _tolerance(problem: Problem) -> float:
    """What rounding leaves undecided of a sum of losses; of coarse dtypes what still tells denominators apart."""
    return min(max(1e3 * torch.finfo(problem.computed_in).eps, 1e-9), 0.02)


def _adds_up_at(problem: Problem, w: Tensor | None, tolerance: float) -> bool | None:
    """Whether parts add up at w; None where values and gradients are all 0, which says nothing."""
    leaves, told = problem.leaves(w), False
    with problem.uncounted(), torch.enable_grad(), problem.bound_tensors(leaves):
        for batch in probes(problem):
            whole = _shares(problem, leaves, [batch])
            for order in orders(batch):
                cut = max(batch.size // 3, 1)
                if batch.size == 1:
                    continue
                parts = _shares(problem, leaves, [batch.select(order[:cut]), batch.select(order[cut:])])
                told = told or bool(whole[2] + parts[2] + whole[3] + parts[3] > 0)
                if not _close(whole, parts, tolerance):
                    return False
    return True if told else None


def _shares(problem: Problem, leaves: Sequence[Tensor], batches: Sequence[Batch]) -> tuple[Tensor, ...]:
    """Sum of c_b l_b and of its gradient, and the sums of their sizes: what rounding is measured by."""
    value = torch.zeros((), dtype=torch.float64, device=leaves[0].device)
    gradient = torch.zeros_like(problem.weights, dtype=torch.float64)
    sizes = [torch.zeros_like(value), torch.zeros_like(value)]
    for batch in (problem.weighed(b) for b in batches):
        if not batch.weight:
            continue
        loss = problem.batch_loss(problem.forward(batch), batch)
        with telling("the backward pass", batch):
            flat = problem.parameters.flatten(problem.evaluator.gradients(loss, leaves)).double()
        value = value + loss.detach().double() * batch.weight
        gradient += flat * batch.weight
        sizes[0] = sizes[0] + loss.detach().double().abs() * batch.weight
        sizes[1] = sizes[1] + norm(flat) * batch.weight
    return value, gradient, *sizes


def _close(one: Sequence[Tensor], other: Sequence[Tensor], tolerance: float) -> bool:
    """Whether values and gradients agree, relative to the sizes of the parts that they are sums of."""
    values = (one[0] - other[0]).abs() <= tolerance * (one[2] + other[2])
    # A gradient may be rounding alone (a bias before a normalization): then it is small beside the loss.
    bound = tolerance * (one[3] + other[3]) + 1e-3 * tolerance * (one[2] + other[2])
    return bool(values) and bool(norm(one[1] - other[1]) <= bound)


def _everywhere(problem: Problem, tolerance: float) -> bool:
    """L over the user's batches beside L over all of them regrouped, as far as they can be."""
    whole, largest = float(problem.loss()), max(problem.batches.sizes)
    for size in (max(largest // 2, 1), 2 * largest):
        other = float(problem.divided(size).loss())
        if not abs(other - whole) <= 10 * tolerance * abs(whole):
            return False
    return True


def agrees(problem: Problem, divided: Problem, size: int) -> bool:
    """Whether L at the weights is the same over these parts of the batches of this process; tried once a size.

    What couples examples in large batches only, or a few rare ones, shows in no try on a few rows.
    """
    if size not in problem.verified:
        tolerance = max(1e4 * torch.finfo(problem.computed_in).eps, 1e-8)
        with problem.uncounted():
            one, other = (float(p.alone().loss()) for p in (problem, divided))
        # A loss that is not finite is refused where it is needed.
        if not abs(one - other) <= tolerance * abs(one) and math.isfinite(one):
            return False
        problem.verified.add(size)
    return True


def probes(problem: Problem) -> Iterator[Batch]:
    """Batches of up to 32 examples: the most different ones of all, and the first of the user's batches."""
    kept = _looked_at(problem)
    whole = problem.batches.of(kept).whole()
    telling = [b for b in kept if _tells(b)] or kept
    chosen = [whole] if whole is not None else [telling[i] for i in sorted({0, len(telling) // 2, len(telling) - 1})]
    for batch in chosen:
        yield batch.select(telling_rows(batch, _PROBE))
    if whole is not None and len(kept) > 1 and kept[0].size > 1:
        yield kept[0].rows(0, _PROBE)


def _looked_at(problem: Problem) -> list[Batch]:
    """Up to 16 batches, evenly spread; the first ones where they are read again at every pass."""
    kept = problem.batches.kept
    if kept is None:
        return list(itertools.islice(problem.batches, _LOOKED_AT))
    places = torch.linspace(0, len(kept) - 1, min(_LOOKED_AT, len(kept))).round().long().unique().tolist()
    return [kept[i] for i in places]


def _tells(batch: Batch) -> bool:
    """Whether the batch has several examples and a label that counts."""
    target = batch.target
    labels = isinstance(target, Tensor) and not target.is_floating_point()
    return batch.size > 1 and (not labels or bool((target != IGNORED).any()))


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
    kept = _looked_at(problem)
    if not all(b.sliceable for b in kept):
        return None
    labels = kept[0].target
    integers = isinstance(labels, Tensor) and not labels.is_floating_point()
    candidates = dict(_CANDIDATES if integers else _CANDIDATES[:1])
    real = [b for b in probes(problem) if b.size > 1]
    if not real:
        # Single sequences: twice the same one, of which some labels will be masked.
        real = [b.select(torch.zeros(2, dtype=torch.long, device=b.tensors()[0].device)) for b in kept[:3]]
    fitting: dict[str, Callable[[Batch], float]] = {}
    if real:
        with contextlib.suppress(InputError):  # a model that cannot take a part of a batch
            fitting = _fitting(problem, candidates, real)
    if len(fitting) > 1:
        with contextlib.suppress(InputError):  # a model that knows no ignored labels
            fitting = _fitting(problem, fitting, [_masked(b) for b in real]) or fitting
    if len(fitting) > 1 and is_half(problem):
        return None  # rounding hides which
    return next(iter(fitting.items()), None)


def _fitting(
    problem: Problem, candidates: dict[str, Callable[[Batch], float]], batches: Sequence[Batch]
) -> dict[str, Callable[[Batch], float]]:
    """The candidates by which parts of all these batches add up."""
    tolerance = _tolerance(problem)
    fitting, leaves, seen = dict(candidates), problem.bindable(), set()
    with problem.uncounted(), torch.enable_grad(), problem.bound_tensors(leaves):
        for batch in batches:
            for order in orders(batch):
                cut = max(batch.size // 3, 1)
                parts = (batch, batch.select(order[:cut]), batch.select(order[cut:]))
                evaluated = [_shares(problem, leaves, [replace(b, weight=1.0)]) for b in parts]
                for words, count in list(fitting.items()):
                    counts = [count(b) for b in parts]
                    if not counts[0]:
                        continue  # nothing counts here: this says nothing
                    seen.add(words)
                    if not _fits(counts, evaluated, tolerance):
                        del fitting[words]
    return {words: count for words, count in fitting.items() if words in seen}


def _masked(batch: Batch) -> Batch:
    """The batch with labels set to -100: the first of every other example, all from the middle on of the first."""
    labels = batch.target.clone()
    labels[0, ...] = IGNORED if labels.dim() == 1 else labels[0]
    if labels.dim() > 1:
        labels[0, labels.shape[1] // 2 :] = IGNORED
        labels[1::2, 0] = IGNORED
    name = next((k for k in TARGET_KEYS if k in batch.kwargs), None)
    if name is not None:
        return replace(batch, kwargs={**batch.kwargs, name: labels}, target=labels)
    return replace(batch, args=(*batch.args[:-1], labels) if len(batch.args) > 1 else batch.args, target=labels)


def _fits(counts: Sequence[float], evaluated: Sequence[tuple[Tensor, ...]], tolerance: float) -> bool:
    shares = [[t * c if c else torch.zeros_like(t) for t in e] for c, e in zip(counts, evaluated, strict=True)]
    added = [first + second for first, second in zip(*shares[1:], strict=True)]
    return _close(shares[0], added, tolerance)


def _labels(batch: Batch) -> float:
    return float((batch.target != IGNORED).sum())


def _shifted_labels(batch: Batch) -> float:
    return float((batch.target[:, 1:] != IGNORED).sum()) if batch.target.dim() > 1 else 0.0


_CANDIDATES: tuple[tuple[str, Callable[[Batch], float]], ...] = (
    ("examples", lambda b: float(b.size)),
    ("labels that count", _labels),
    ("labels that count, but the first of each sequence", _shifted_labels),
)
