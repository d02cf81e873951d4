"""The covariance C of the examples' gradients: dense, or by random combinations of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from landscape import random
from landscape.errors import InputError
from landscape.problem.problem import Problem

_TOGETHER = 64
"""Examples whose gradients are taken from one graph: each walks all of it."""


def covariance(problem: Problem, w: Tensor | None = None) -> Tensor:
    """C = mean_i g_i g_i' - g g', (d, d) float64, g_i the gradients of the examples' parts of L, g that of L.

    The means are over the examples that have a part in L.

    An example with a weight has that weight in g_i, squared in C; the empirical Fisher matrix has it once.

    Raises:
        InputError: the loss knows no single examples, or they are spread over several processes.

    Cost: one forward pass and at most 64 backward passes (of batches that cannot be divided one an example of theirs).
    """
    _require_one_process(problem)
    divided = problem.undividable is None and problem.batches.whole() is not None
    parts, n = problem.divided(_TOGETHER) if divided else problem, problem.contributing()
    leaves, squares, total = problem.leaves(w), problem.zero(), problem.zero()
    with torch.enable_grad(), problem.bound_tensors(leaves):
        for batch in parts.batches:
            losses = problem.example_losses(problem.forward(batch), batch) * (n / problem.weight)
            rows = torch.stack([_gradient(problem, loss, leaves) for loss in losses])
            problem.passes.backward += batch.size**2
            squares, total = squares + rows.mT @ rows / n, total + rows.sum(0) / n
    return squares - total[:, None] * total


def _gradient(problem: Problem, loss: Tensor, leaves: list[Tensor]) -> Tensor:
    parts = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    zeros = [torch.zeros_like(t) if g is None else g for g, t in zip(parts, leaves, strict=True)]
    return problem.parameters.flatten(zeros).double()


def _require_one_process(problem: Problem) -> None:
    if problem.examples != problem.batches.examples:
        raise InputError("the covariance of the gradients needs all examples in one process: run in one")


def combinations(problem: Problem, w: Tensor | None, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random vectors u (d,) with E[u u'] = C, the covariance of the examples' gradients.

    u = sum_i (s_i - s) g_i / sqrt(n), s_i independent signs of the n examples that have a part in L, s their mean: the
    covariance of the coefficients is I - 11'/n. One backward pass each, of a loss whose examples have random signs.

    Raises:
        InputError: the loss knows no single examples, or they are spread over several processes.
    """
    _require_one_process(problem)
    part = torch.cat([problem.objective.contributing(batch) for batch in problem.batches]).cpu()
    n, coefficients = int(part.sum()), torch.zeros(len(part), dtype=torch.float64)
    for _ in range(count):
        signs = random.rademacher(torch.empty(n, dtype=torch.float64), generator)
        coefficients[part] = (signs - signs.mean()) * n**0.5 / len(part)  # of g_i as if all examples had a part
        yield weighted_gradient(problem, coefficients, w)


def weighted_gradient(problem: Problem, coefficients: Tensor, w: Tensor | None = None) -> Tensor:
    """sum_i a_i g_i, (d,), with mean_i g_i the gradient of L. Cost: one forward and one backward pass."""
    leaves, share, start = problem.leaves(w), problem.examples / problem.weight, 0
    with torch.enable_grad(), problem.bound_tensors(leaves):
        for batch in problem.batches:
            part = coefficients[start : start + batch.size]
            start += batch.size
            losses = problem.example_losses(problem.forward(batch), batch)
            (losses * part.to(losses)).sum().mul(share).backward(inputs=leaves)
            problem.passes.backward += batch.size
    return problem.parameters.flatten([torch.zeros_like(t) if t.grad is None else t.grad for t in leaves])
