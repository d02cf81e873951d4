"""Hessian-vector products compiled into one program: worth its compilation where hundreds of products are needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from landscape.curvature.products import chunks, second_derivative
from landscape.errors import InputError
from landscape.problem.batches import Batch
from landscape.problem.outputs import logits_of
from landscape.problem.problem import Problem


class CompiledProduct:
    """H v as the directional derivative of the gradient, through `torch.compile`.

    Compilation takes a minute or more, once for every size of chunk. A compiled function has no second derivative, so
    that no graph can be kept: the whole product, forward pass included, is one program.

    Args:
        problem: L; the loss must be a function of outputs and targets, BatchNorm without batch statistics.
        w: where (default: the weights of the Problem).
        chunk_size: examples at once; None chooses.
        backend: of `torch.compile`.
    """

    def __init__(
        self, problem: Problem, w: Tensor | None = None, *, chunk_size: int | None = None, backend: str = "inductor"
    ) -> None:
        if problem._loss is None or problem.logit_normalization or problem.batch_norm != "frozen":
            raise InputError(
                'hvp="compiled" needs a loss(outputs, targets), frozen BatchNorm and no logit normalization; '
                'take hvp="double-backward"'
            )
        leaves = problem.leaves(w)
        with problem.bound_tensors(leaves), second_derivative.twice_differentiable(problem.model):
            found = chunks.footprint(problem, leaves)
        self._leaves = [x.detach() for x in leaves]
        self._problem = chunks.chosen(problem, found, chunk_size)
        self._program = torch.compile(self._product, backend=backend, dynamic=False)

    def product(self, v: Tensor) -> Tensor:
        """H v: (d,)."""
        problem = self._problem
        pieces = problem.parameters.unflatten(v.to(problem.weights))
        result = torch.zeros_like(problem.weights)
        with problem.bound_tensors(self._leaves), second_derivative.twice_differentiable(problem.model):
            for batch in problem.batches:
                found = self._program(self._leaves, pieces, batch)
                result += problem.parameters.flatten(found) * (batch.size / problem.examples)
                problem.passes.hvp += batch.size
        return problem._sum(result)

    def facts(self) -> dict[str, Any]:
        """What was chosen."""
        sizes = self._problem.batches.sizes
        return {"hvp": "compiled", "chunk_size": max(sizes), "chunks": len(sizes)}

    def _product(self, leaves: list[Tensor], pieces: list[Tensor], batch: Batch) -> list[Tensor]:
        problem = self._problem
        assert problem._loss is not None
        names, model, loss = problem.parameters.names, problem.model, problem._loss

        def mean_loss(tensors: list[Tensor]) -> Tensor:
            named = dict(zip(names, tensors, strict=True))
            outputs = torch.func.functional_call(model, named, batch.args, batch.kwargs)
            return loss(logits_of(outputs), batch.target).mean()

        return torch.func.jvp(torch.func.grad(mean_loss), (leaves,), (pieces,))[1]
