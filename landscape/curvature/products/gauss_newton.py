"""Products with J' B J: the generalized Gauss-Newton matrix and the Fisher matrices, over kept graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from landscape import random
from landscape.curvature.exact.output_curvature import OutputCurvature, Root, outputs_of
from landscape.curvature.products import second_derivative
from landscape.curvature.products.kept_graphs import KeptGraphs
from landscape.errors import InputError
from landscape.problem.batch_passes import add_gradient
from landscape.problem.batches import Batch
from landscape.problem.problem import Problem

Middle = Callable[[Tensor], Tensor]
Graph = tuple[Tensor, Tensor, list[Tensor | None], Middle]
MATRICES = ("ggn", "fisher", "mc-fisher", "empirical-fisher")


class GaussNewtonGraph:
    """v -> J' B J v at a fixed w, J the Jacobian of the outputs and B block-diagonal over examples.

    * "ggn": B the Hessian of the loss at the outputs.
    * "fisher": the same, for losses whose Hessian does not depend on the targets (cross-entropy, squared error): the
      exact Fisher matrix of the model's own distribution *is* the GGN (Martens 2020, arXiv 1412.1193).
    * "mc-fisher": scores at `samples` targets drawn from the model's distribution.
    * "empirical-fisher": scores at the true targets; not an approximation of curvature away from a perfect fit.

    J v comes from differentiating u -> J' u, which is linear, with respect to u: two backward passes over graphs that
    are built once.

    Args:
        problem: L; its outputs must be (examples, outputs).
        w: where (default: the weights of the Problem).
        matrix: see above.
        samples: targets drawn for "mc-fisher".
        seed: of these.
        chunk_size: examples in a chunk; None chooses.
        memory: bytes that kept graphs may take; None is half of the free memory.
    """

    def __init__(
        self,
        problem: Problem,
        w: Tensor | None = None,
        *,
        matrix: str = "ggn",
        samples: int = 1,
        seed: int = 0,
        chunk_size: int | None = None,
        memory: float | None = None,
    ) -> None:
        if matrix not in MATRICES:
            raise InputError(f"matrix must be one of {', '.join(MATRICES)}, received {matrix!r}")
        if samples < 1:
            raise InputError(f"samples must be at least 1, received {samples}")
        self.matrix, self._samples, self._seed = matrix, samples, seed
        self.graphs: KeptGraphs[Graph] = KeptGraphs(problem, w, chunk_size=chunk_size, memory=memory)
        self.leaves = self.graphs.leaves
        self._checked = False

    def product(self, v: Tensor) -> Tensor:
        """J' B J v: (d,)."""
        result = torch.zeros_like(self.graphs.problem.weights)
        self._add(result, v)
        return self.graphs.problem.summed(result)

    def add_product(self, total: Tensor, v: Tensor) -> None:
        """Add J' B J v to `total`, in place."""
        if self.graphs.problem.distributed:
            total += self.product(v)
        else:
            self._add(total, v)

    def _add(self, total: Tensor, v: Tensor) -> None:
        problem = self.graphs.problem
        pieces = problem.parameters.typed(v.to(problem.weights))
        with self.graphs.open():
            for batch, graph, _ in self.graphs.each(self._build):
                second_derivative.named(functools.partial(self._add_pulled_back, total, graph, pieces))
                problem.passes.hvp += batch.size

    def _add_pulled_back(self, total: Tensor, graph: Graph, pieces: list[Tensor]) -> None:
        outputs, u, pulled, middle = graph
        pairs = [(g, p) for g, p in zip(pulled, pieces, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            raise InputError(
                "the loss does not depend on the chosen parameters through differentiable operations: choose others"
            )
        rows, vectors = zip(*pairs, strict=True)
        forward = torch.autograd.grad(rows, u, vectors, retain_graph=True, allow_unused=True)[0]
        forward = torch.zeros_like(u) if forward is None else forward
        add_gradient(total, self.leaves, [outputs], [middle(forward)], retain_graph=True)

    def facts(self) -> dict[str, Any]:
        """What was chosen and measured."""
        return {"hvp": "double-backward", **self.graphs.facts()}

    def _build(self, batch: Batch, start: int) -> Graph:
        problem = self.graphs.problem
        outputs = outputs_of(problem, batch)
        if not self._checked:
            second_derivative.require(outputs)
        u = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(outputs, self.leaves, u, create_graph=True, allow_unused=True)
        problem.passes.backward += batch.size
        middle = self._middle(OutputCurvature(problem, outputs, batch), batch, start)
        self._checked = True
        return outputs, u, list(pulled), middle

    def _middle(self, curvature: OutputCurvature, batch: Batch, start: int) -> Middle:
        if not self._checked or not self.graphs.problem.objective.exact:
            curvature.check_separable()
        if self.matrix == "empirical-fisher":
            return _rank_one(curvature.score())
        if self.matrix == "mc-fisher":
            # Drawn for all examples and cut: the targets depend neither on the chunks nor on what is rebuilt.
            shape = (self.graphs.problem.batches.examples, self._samples, curvature.outputs[0].numel())
            drawn = torch.randn(shape, generator=random.stream(self._seed, "mc-fisher"))
            return _rank_one(curvature.sampled(drawn[start : start + batch.size].to(curvature.outputs)))
        if self.matrix == "fisher" and not self._checked and _depends_on_targets(self.graphs.problem, curvature, batch):
            raise InputError(
                "this loss's Hessian at the outputs depends on the targets: its exact Fisher matrix is not the GGN; "
                'take matrix="ggn" or "mc-fisher"'
            )
        return curvature.product


def _rank_one(root: Root) -> Middle:
    columns = root.columns.flatten(2) if root.columns.dim() > 2 else root.columns.unsqueeze(2)

    def apply(u: Tensor) -> Tensor:
        flat = u.reshape(u.shape[0], -1)
        return torch.einsum("sio,si->io", columns, torch.einsum("sio,io->si", columns, flat)).view_as(u)

    return apply


def _depends_on_targets(problem: Problem, curvature: OutputCurvature, batch: Batch) -> bool:
    if not isinstance(batch.target, Tensor):
        return True
    rolled = replace(batch, target=batch.target.roll(1, 0))
    other = OutputCurvature(problem, curvature.outputs, rolled)
    probe = random.normal(curvature.outputs.detach().reshape(-1), random.stream(0, "targets")).view_as(
        curvature.outputs
    )
    first, second = curvature.product(probe), other.product(probe)
    return not torch.allclose(first, second, rtol=1e-4, atol=1e-6 * float(first.abs().amax()))
