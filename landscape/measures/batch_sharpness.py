"""Curvature that the batches' own gradients meet: what stochastic gradient descent keeps at 2 / eta."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from landscape.ball.vectors import dot, norm
from landscape.curvature import operators
from landscape.errors import InputError
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.progress import Bar
from landscape.random import stream
from landscape.results.result import Result, array
from landscape.sharpness.checks import check_loss, check_weights
from landscape.sharpness.subsets import in_groups, positive

DEFAULT_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class BatchSharpness(Result):
    """Batch sharpness.

    Attributes:
        value: mean over the batches.
        stderr: of that mean, from the spread over the batches; None for a single one.
        batches: (batch,) g_b'H_b g_b / ||g_b||^2; nan for a batch without gradient.
        gradient_norms: (batch,) ||g_b||.
        batch_size: examples in a batch (the last may have fewer); 0 where they are the Problem's own.
        stationary: batches whose gradient is zero: SGD makes no step there, they are left out of the mean.
        ratio_of_means: sum of g_b'H_b g_b / sum of ||g_b||^2, in which long gradients count more.
    """

    value: float
    stderr: float | None
    batches: np.ndarray = array("batch")
    gradient_norms: np.ndarray = array("batch")
    batch_size: int
    stationary: int
    ratio_of_means: float


@measure(
    "batch_sharpness",
    label="Batch sharpness",
    meaning="Mean curvature of a batch's loss along its own gradient: SGD with learning rate η settles where it is "
    "about 2 / η, not where the largest eigenvalue is.",
    unit="loss / weight²",
    flat="small",
)
def batch_sharpness(
    problem: Problem,
    *,
    batch_size: int | None = None,
    shuffle: bool = False,
    hvp: str = "double-backward",
    seed: int = 0,
) -> BatchSharpness:
    """Mean over a partition into batches of the curvature of each batch's loss along its gradient.

    mean_b g_b'H_b g_b / ||g_b||^2, g_b and H_b of the mean loss of batch b. Every batch counts alike, a shorter last
    one too: each is one step of SGD. One batch of all examples gives the directional sharpness of the gradient, at most
    lambda_max(H); with smaller batches the value is larger, and may exceed it.

    Args:
        problem: L.
        batch_size: examples in a batch, in their order; by default 32 (all where there are fewer), or the batches as
            given where these cannot be divided.
        shuffle: permute the examples first, by the seed: where they are sorted.
        hvp: "double-backward", or "differences" for models without second derivative.
        seed: of the permutation.

    Returns:
        BatchSharpness with `value`, `stderr`, `batches`.

    Raises:
        InputError: a batch_size out of range, batches that cannot be divided, no batch with a gradient; weights, a loss
            or a gradient not finite; a model without second derivative.

    Cost: 1 forward pass, 1 backward pass and 1 Hessian-vector product over the examples.
    Source: Andreyev 2024 (arXiv 2412.20553), definition of batch sharpness.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.tensor([[1.0], [3.0]], dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # x^2 (w - 2)^2: curvature 2 x^2
        >>> result = landscape.batch_sharpness(problem, batch_size=1)
        >>> result.batches.round(6).tolist(), round(result.value, 6)
        ([2.0, 18.0], 10.0)
    """
    check_weights(problem)
    size = _size(problem, batch_size, shuffle=shuffle)
    if shuffle:
        problem = _permuted(problem, seed)
    curvatures, norms = [], []
    with Bar("batch sharpness", math.ceil(problem.examples / size) if size else len(problem.batches)) as bar:
        for group in _groups(problem, size):
            operator = operators.hessian(group, hvp=hvp)
            gradient = operator.hint()
            assert gradient is not None
            check_loss(gradient, "gradient")
            length = norm(gradient)
            unit = gradient / length.clamp(min=torch.finfo(torch.float64).tiny).to(gradient)
            curvatures.append(float(dot(unit, operator.matvec(unit))) if bool(length > 0) else math.nan)
            norms.append(float(length))
            bar.advance()
    values, squares = np.array(curvatures), np.square(norms)
    moving = np.isfinite(values)
    if not moving.any():
        raise InputError(
            "the gradient of every batch is zero: SGD stands still, and there is no direction to look along"
        )
    kept, count = values[moving], int(moving.sum())
    return BatchSharpness(
        value=float(kept.mean()),
        stderr=float(kept.std(ddof=1) / math.sqrt(count)) if count > 1 else None,
        batches=values,
        gradient_norms=np.array(norms),
        batch_size=size or 0,
        stationary=len(values) - count,
        ratio_of_means=float((kept * squares[moving]).sum() / squares[moving].sum()),
    )


def _size(problem: Problem, asked: int | None, *, shuffle: bool) -> int | None:
    """Examples in a batch; None for the batches as given."""
    n, reason = problem.examples, problem.undividable
    if reason is None and (problem.batches.whole() is None or n != problem.batches.examples):
        reason = "they differ in shape, do not fit in memory or lie in several processes"
    if reason is not None:
        if asked is None and not shuffle:
            return None
        raise InputError(f"these batches cannot be regrouped ({reason}): leave batch_size and shuffle out")
    if asked is not None and positive("batch_size", asked) > n:
        raise InputError(f"batch_size={asked}: there are only {n} examples; give at most {n}")
    return min(DEFAULT_BATCH, n) if asked is None else asked


def _groups(problem: Problem, size: int | None) -> Iterator[Problem]:
    if size is not None:
        yield from in_groups(problem, size)
    else:
        yield from (problem.with_batches([batch]) for batch in problem.weighted_batches())


def _permuted(problem: Problem, seed: int) -> Problem:
    whole = problem.batches.whole()
    assert whole is not None
    order = torch.randperm(whole.size, generator=stream(seed, "order of the batches"))
    return problem.with_batches([whole.select(order.to(problem.weights.device))])
