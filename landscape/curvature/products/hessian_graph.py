"""Hessian-vector products by double backward, with the graphs of the first derivative kept between products."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from landscape import random
from landscape.ball.vectors import norm
from landscape.curvature.products import second_derivative
from landscape.curvature.products.kept_graphs import KeptGraphs
from landscape.errors import InputError
from landscape.problem.batches import Batch
from landscape.problem.parameters import aligned
from landscape.problem.problem import Problem

Gradients = list[Tensor | None]


class HessianGraph:
    """v -> H v at a fixed w, where H is the Hessian of L or a diagonal block of it.

    The examples are divided into chunks. The first derivative of each chunk is built once, with its graph; the graphs
    are kept as long as their measured size fits, so that a product costs only the second backward pass. The remaining
    chunks are rebuilt at every product.

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
        chunk_size: examples in a chunk; None chooses (see `landscape.curvature.products.chunks`).
        memory: bytes that kept graphs may take; None is half of the free memory, 0 keeps none.

    Raises:
        InputError: a loss that is nan or infinite (the batch is named), a loss without derivative, or an operation
            without second derivative (it is named).
    """

    def __init__(
        self, problem: Problem, w: Tensor | None = None, *, chunk_size: int | None = None, memory: float | None = None
    ) -> None:
        self.graphs: KeptGraphs[tuple[Tensor, Gradients]] = KeptGraphs(problem, w, chunk_size=chunk_size, memory=memory)
        self.leaves = self.graphs.leaves
        self._checked = False
        self._custom: list[str] = []
        self._known: tuple[float, Tensor] | None = None

    @property
    def loss(self) -> float:
        """L(w)."""
        return self._built()[0]

    @property
    def gradient(self) -> Tensor:
        """Gradient of L at w: (d,)."""
        return self._built()[1]

    def product(self, v: Tensor, block: Sequence[int] | None = None) -> Tensor:
        """H v, or H_BB v for the block of parameter tensors with these positions in the layout.

        Args:
            v: (d,), or flat over the tensors of the block.
            block: positions of parameter tensors; the second backward pass is restricted to them.

        Returns:
            Same shape as v. Cost: one Hessian-vector product (less for a block near the output).
        """
        result = torch.zeros_like(v, dtype=self.graphs.problem.weights.dtype)
        self._add(result, v, block)
        return self.graphs.problem.summed(result)

    def add_product(self, total: Tensor, v: Tensor, block: Sequence[int] | None = None) -> None:
        """Add H v, or H_BB v, to `total`, in place: beside both only the backward pass's own buffers are held."""
        if self.graphs.problem.distributed:
            total += self.product(v, block)
        else:
            self._add(total, v, block)

    def _add(self, total: Tensor, v: Tensor, block: Sequence[int] | None) -> None:
        self._built()
        problem = self.graphs.problem
        chosen = list(range(len(self.leaves))) if block is None else list(block)
        leaves = [self.leaves[i] for i in chosen]
        parts = v.to(problem.weights).split([x.numel() for x in leaves])
        pieces = [aligned(p.view(leaf.shape)).to(leaf.dtype) for p, leaf in zip(parts, leaves, strict=True)]
        with self.graphs.open():
            for batch, (_, gradients), kept in self.graphs.each(self._differentiate):
                slopes = [gradients[i] for i in chosen]
                add = functools.partial(
                    problem.add_second_derivative, total, slopes, leaves, pieces, batch, retain_graph=kept
                )
                second_derivative.named(add)

    def facts(self) -> dict[str, Any]:
        """What was chosen and measured."""
        return {"hvp": "double-backward", **self.graphs.facts()}

    def _built(self) -> tuple[float, Tensor]:
        """Loss and gradient; on the way the graphs that fit are built and kept, and the loss is seen to be finite."""
        if self._known is None:
            problem = self.graphs.problem
            losses, total = [], torch.zeros_like(problem.weights)
            with self.graphs.open():
                for batch, (loss, gradients), _ in self.graphs.each(self._differentiate):
                    losses.append(loss * batch.weight)
                    pairs = zip(gradients, self.leaves, strict=True)
                    total += problem.parameters.flatten(
                        [torch.zeros_like(x) if g is None else g.detach() for g, x in pairs]
                    )
            value = float(problem.summed(torch.stack(losses).sum()) / problem.weight)
            if not math.isfinite(value):
                self.graphs.release()
                raise _not_finite(self.graphs.original, self.leaves)
            self._known = value, problem.summed(total)
            if self._custom:
                self._verify()
        return self._known

    def _verify(self) -> None:
        """Compare one product with central differences of gradients: autograd cannot see a wrong second derivative.

        A custom function that keeps an intermediate result in its context, not through `save_for_backward`, cuts the
        second derivative off without a word. Cost: four gradients, once, and only where there is such a function.

        Raises:
            InputError: they differ by more than the differences' own error.
        """
        problem, w = self.graphs.original, self.graphs.original.parameters.flatten([x.detach() for x in self.leaves])
        v = random.normal(w, random.stream(0, "custom functions"))
        v = v / norm(v)
        h = torch.finfo(w.dtype).eps ** (1 / 3) * (1 + float(norm(w)))
        with problem.uncounted():
            near, far = ((problem.gradient(w + s * v) - problem.gradient(w - s * v)) / (2 * s) for s in (h, 2 * h))
            difference = float(norm(self.product(v) - near))
        allowed = 10 * float(norm(far - near)) + (1e-4 if w.dtype == torch.float64 else 1e-2) * float(norm(near))
        if difference > allowed:
            raise InputError(
                f"the second derivative of {', '.join(self._custom)}, a custom function, is wrong: a product differs "
                f"from central differences by {difference / max(float(norm(near)), 1e-300):.0%}; keep tensors by "
                'ctx.save_for_backward and use operations that can be differentiated, or take hvp="differences"'
            )

    def _differentiate(self, batch: Batch, _start: int) -> tuple[Tensor, Gradients]:
        problem = self.graphs.problem
        loss = problem.batch_loss(problem.forward(batch), batch)
        if not self._checked:
            second_derivative.require(loss)
            self._custom = second_derivative.custom_functions(loss)
            self._checked = True
        return loss.detach().double(), problem.first_derivative(loss, self.leaves, batch)


def _not_finite(problem: Problem, leaves: Sequence[Tensor]) -> InputError:
    """The error for a loss that is nan or infinite, with the first such batch of the user's."""
    start = 0
    with torch.no_grad(), problem.bound_tensors(leaves):
        for i, batch in enumerate(problem.batches):
            value = float(problem.batch_loss(problem.forward(batch), batch)) if batch.weight else 0.0
            if not math.isfinite(value):
                return InputError(
                    f"the loss is {value} on batch {i} (examples {start} to {start + batch.size - 1}): curvature needs "
                    "a finite loss; check that batch and the weights"
                )
            start += batch.size
    return InputError("the loss is not finite: curvature needs a finite loss; check the inputs and the weights")
