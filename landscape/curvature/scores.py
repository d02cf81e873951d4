"""The covariance C of the examples' gradients: dense, or by random combinations of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from landscape import random
from landscape.curvature import operators
from landscape.errors import InputError
from landscape.problem.problem import Problem


def covariance(problem: Problem, w: Tensor | None = None, *, chunk_size: int | None = None) -> Tensor:
    """C = mean_i g_i g_i' - g g', (d, d), g_i the gradients of the examples' parts of L, g = mean_i g_i that of L.

    Raises:
        InputError: outputs that are no (examples, outputs) matrix.

    Cost: d products with the empirical Fisher matrix and one gradient.
    """
    squares = operators.gauss_newton(problem, w, matrix="empirical-fisher", chunk_size=chunk_size).dense()
    g = problem.gradient(w)
    return squares - g[:, None] * g


def combinations(problem: Problem, w: Tensor | None, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random vectors u (d,) with E[u u'] = C, the covariance of the examples' gradients.

    u = sum_i (s_i - s) g_i / sqrt(n), s_i independent signs and s their mean: the covariance of the coefficients is
    I - 11'/n. One backward pass each, of a loss whose examples have random signs.

    Raises:
        InputError: the loss knows no single examples, or they are spread over several processes.
    """
    if problem.examples != problem.batches.examples:
        raise InputError("the covariance of the gradients needs all examples in one process: run in one")
    n = problem.examples
    for _ in range(count):
        signs = random.rademacher(torch.empty(n, dtype=torch.float64), generator)
        yield weighted_gradient(problem, (signs - signs.mean()) / n**0.5, w)


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
