"""How to evaluate many points fast: batch size, memory format and points per launch by rules of sizes and device alone.

An MLP wants one big batch (up to 4x faster than batches of 128 on a CPU), a convolutional network batches of 64 to 256
with channels last. The last bits of the values follow from the choice, so no stopwatch decides: the same call
gives the same numbers. The choice is stored with the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import InputError
from landscape.problem.problem import Problem
from landscape.surfaces.grid.evaluation import Choice, GridEvaluation

LARGEST = 4096
"""Upper end of the batch sizes: a whole data set as one batch needs memory without bound."""
_WORTH = 100
_CACHE_NUMBERS = 1 << 23
_LAUNCH_WORK = 1 << 33
_LAUNCH_NUMBERS = 1 << 28
_MOST_POINTS = 128


def choose(
    problems: Mapping[str, Problem],
    center: Tensor,
    vectors: Sequence[Tensor],
    points: int,
    *,
    batch_size: int | None = None,
    points_per_launch: int | None = None,
    precision: str = "native",
    loss: float | None = None,
) -> Choice:
    """The choice for a surface of `points` points.

    Args:
        problems: as for `GridEvaluation`.
        center: w0.
        vectors: the directions.
        points: how many points will be evaluated; below 100 the batches stay as given.
        batch_size: a size instead of the rule; 0 keeps the batches as given.
        points_per_launch: a number instead of the rule.
        precision: see `Choice`.
        loss: L(w0) over the batches as given, in the native precision, where it is known.

    Cost: two forward passes, which show that other batches leave the loss as it is; one where the loss is known.
    """
    if precision not in ("native", "tf32", "bfloat16"):
        raise InputError(f"precision must be native, tf32 or bfloat16, received {precision!r}")
    if (batch_size is not None and batch_size < 0) or (points_per_launch is not None and points_per_launch < 1):
        raise InputError(
            f"batch_size must be >= 0 and points_per_launch >= 1, received {batch_size} and {points_per_launch}"
        )
    problem = next(iter(problems.values()))
    base = Choice(precision=precision)
    bound_to_batches = next((reason for p in problems.values() for reason in _keeps_batches(p)), None)
    if batch_size is not None:
        choice = replace(base, batch_size=batch_size, reason="batch size as asked for")
    elif bound_to_batches or points < _WORTH:
        reason = bound_to_batches or f"batches as given: {points} points do not repay others"
        choice = replace(base, reason=reason)
    else:
        choice = _agreeing(_by_rule(problem, base), problem, center, vectors, loss)
    if points_per_launch is None:
        points_per_launch = _points_rule(problem, choice, points)
    choice = replace(choice, points_per_launch=points_per_launch)
    return _launchable(choice, problem, center, vectors) if points_per_launch > 1 else choice


def _keeps_batches(problem: Problem) -> list[str]:
    """Reasons for which the loss, or the memory, depends on the division into batches."""
    if problem.distributed:
        return ["batches as given: the examples are shared among processes"]
    return [] if problem.undividable is None else [f"batches as given: {problem.undividable}"]


# -- batches -----------------------------------------------------------------------------------------------------------


def _by_rule(problem: Problem, base: Choice) -> Choice:
    whole = problem.batches.whole()
    if whole is None:
        return replace(base, reason="batches as given: their shapes differ")
    images = any(t.dim() == 4 for t in whole.tensors()) and any(len(s.shape) == 4 for s in problem.parameters)
    device, dtype = problem.weights.device.type, problem.weights.dtype
    size = min(fitting_examples(activations(problem), device=device, images=images), whole.size)
    # Where the convolutions are written for it: on a CPU those of at most 32 bits, on a GPU those of the tensor cores.
    low = dtype in (torch.bfloat16, torch.float16)
    channels_last = images and (low or (dtype == torch.float32 and (device == "cpu" or base.precision != "native")))
    reason = f"rule for {'convolutions' if images else 'networks without images'} on {device}"
    return replace(base, batch_size=size, channels_last=channels_last, reason=reason)


def fitting_examples(activations: int, *, device: str, images: bool) -> int:
    """Examples a batch: a power of two from 64 to 4096 (256 for convolutions on a CPU).

    Args:
        activations: numbers that the layers put out for one example.
        device: "cpu", or the type of an accelerator.
        images: whether the network convolves images.

    The largest whose activations stay below 2^23 numbers on a CPU (beyond its cache bigger batches only get slower),
    2^28 on an accelerator (1 GiB in float32).
    """
    room = _CACHE_NUMBERS if device == "cpu" else _LAUNCH_NUMBERS
    fitting = 1 << (max(room // max(activations, 1), 1).bit_length() - 1)
    return min(max(fitting, 64), 256 if images and device == "cpu" else LARGEST)


def _agreeing(
    choice: Choice, problem: Problem, center: Tensor, vectors: Sequence[Tensor], reference: float | None
) -> Choice:
    """The choice, unless other batches change L(w): a loss with class weights averages each batch by its own sum."""
    if choice.batch_size == 0:
        return choice
    as_given = replace(choice, batch_size=0, channels_last=False)
    if reference is None or choice.precision != "native":
        reference = _center_loss(as_given, problem, center, vectors)
    chosen = _center_loss(choice, problem, center, vectors)
    low = choice.precision != "native" or center.dtype in (torch.bfloat16, torch.float16)
    tolerance = 1e-2 if low else max(1e3 * torch.finfo(center.dtype).eps, 1e-8)
    if abs(chosen - reference) <= tolerance * max(abs(reference), 1e-3) or reference != reference:
        return choice
    return replace(as_given, reason="batches as given: the loss depends on the division into them")


def _center_loss(choice: Choice, problem: Problem, center: Tensor, vectors: Sequence[Tensor]) -> float:
    evaluation = GridEvaluation({"": problem}, center, vectors, replace(choice, points_per_launch=1))
    with evaluation.opened():
        return float(evaluation([(0.0,) * len(vectors)])[0, 0, 0])


# -- points per launch -------------------------------------------------------------------------------------------------


def _points_rule(problem: Problem, choice: Choice, points: int) -> int:
    """Points a launch, from sizes and the device alone: many on a GPU where one point leaves it idle, else one.

    On a CPU batched products of small matrices are slower than plain ones.
    """
    if problem.weights.device.type != "cuda" or problem.batch_norm != "frozen" or problem.distributed:
        return 1
    examples = choice.batch_size or max(problem.batches.sizes)
    return fitting_points(points, problem.dimension, examples, activations(problem) * examples)


def fitting_points(points: int, dimension: int, examples: int, activations: int) -> int:
    """The largest power of two, at most 128 and at most `points`, whose launch stays small in work and in memory.

    Args:
        points: how many there are.
        dimension: d.
        examples: in a batch.
        activations: numbers that the layers put out for a batch.

    Work: points x d x examples below 2^33. Memory: points x (d + activations) below 2^28 numbers (1 GiB in float32).
    Fewer than 4 points are not worth a batched launch.
    """
    work = _LAUNCH_WORK // max(dimension * examples, 1)
    room = _LAUNCH_NUMBERS // max(dimension + activations, 1)
    fitting = min(work, room, _MOST_POINTS, points)
    return 1 if fitting < 4 else 1 << (int(fitting).bit_length() - 1)


def activations(problem: Problem) -> int:
    """Numbers that all layers put out for one example, seen in a forward pass over two."""
    total = 0

    def count(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() if isinstance(output, Tensor) else 0

    batch, counted = next(iter(problem.batches)), problem.passes.forward
    few = batch.rows(0, 2) if batch.sliceable else batch
    layers = [m for m in problem.model.modules() if not list(m.children())]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad(), problem.bound():
            problem.forward(few)
    finally:
        for handle in handles:
            handle.remove()
        problem.passes.forward = counted
    return -(-total // few.size)


def _launchable(choice: Choice, problem: Problem, center: Tensor, vectors: Sequence[Tensor]) -> Choice:
    """The choice with one point per launch where the model cannot be evaluated at several weights at once."""
    origin = (0.0,) * len(vectors)
    single = replace(choice, points_per_launch=1)
    if problem.batch_norm != "frozen" or problem.distributed:
        return replace(single, reason=f"{choice.reason}; one point per launch: needs frozen statistics, unshared data")
    counted = problem.passes.forward
    try:
        many = GridEvaluation({"": problem}, center, vectors, replace(choice, points_per_launch=2))
        with many.opened():
            batched = many([origin, origin])[0]
    except (RuntimeError, NotImplementedError, ValueError, InputError) as error:
        text = str(error).splitlines()[0][:120]
        return replace(single, reason=f"{choice.reason}; one point per launch: the model does not batch ({text})")
    finally:
        problem.passes.forward = counted
    one = GridEvaluation({"": problem}, center, vectors, single)
    with one.opened():
        alone = one([origin])[0]
    problem.passes.forward = counted
    if torch.allclose(batched, alone, rtol=1e-3, atol=1e-5, equal_nan=True):
        return choice
    return replace(single, reason=f"{choice.reason}; one point per launch: batched values differ")
