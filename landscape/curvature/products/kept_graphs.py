"""Graphs of all chunks of examples, kept between products while their measured size fits in memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from landscape.curvature.products import chunks, second_derivative
from landscape.errors import InputError
from landscape.problem.batches import Batch
from landscape.problem.problem import Problem

G = TypeVar("G")


class KeptGraphs(Generic[G]):
    """The chunks of a Problem at fixed weights, and the graph of each.

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
        chunk_size: examples in a chunk; None chooses (see `landscape.curvature.products.chunks`).
        memory: bytes that kept graphs may take; None is half of the free memory, 0 keeps none.

    Attributes:
        problem: L over the chunks that were chosen.
        original: L over the user's batches.
        leaves: parameter tensors at w that the graphs lead to.
        kept_bytes: measured size of the kept graphs.
    """

    def __init__(
        self, problem: Problem, w: Tensor | None, *, chunk_size: int | None = None, memory: float | None = None
    ) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1, received {chunk_size}")
        self.original, self.leaves = problem, problem.leaves(w)
        with second_derivative.twice_differentiable(problem.model), problem.bound_tensors(self.leaves):
            self.footprint = second_derivative.named(lambda: chunks.footprint(problem, self.leaves))
        self.problem = chunks.chosen(problem, self.footprint, chunk_size)
        self.memory = chunks.budget(self.problem, self.footprint) if memory is None else memory
        self.kept_bytes = 0.0
        self._graphs: dict[int, G] = {}

    def __len__(self) -> int:
        """Number of graphs that are kept."""
        return len(self._graphs)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Within the context graphs can be built and differentiated (checkpointed activations run forward again)."""
        with (
            torch.enable_grad(),
            second_derivative.twice_differentiable(self.problem.model),
            self.problem.bound_tensors(self.leaves),
        ):
            yield

    def each(self, build: Callable[[Batch, int], G]) -> Iterator[tuple[Batch, G, bool]]:
        """(batch, graph, whether it is kept) of each chunk, within `open`; what is not kept is rebuilt.

        `build` gets the batch and the position of its first example.
        """
        stop = 0
        for i, batch in enumerate(self.problem.weighted_batches()):
            start, stop = stop, stop + batch.size
            if i in self._graphs:
                yield batch, self._graphs[i], True
                continue
            graph = second_derivative.named(functools.partial(build, batch, start))
            size = self.footprint.bytes(batch.size)
            keep = self.kept_bytes + size <= self.memory
            if keep:
                self._graphs[i] = graph
                self.kept_bytes += size
            yield batch, graph, keep

    def release(self) -> None:
        """Drop all graphs; the next product builds them again."""
        self._graphs.clear()
        self.kept_bytes = 0.0

    def facts(self) -> dict[str, Any]:
        """What was chosen and measured: chunk sizes, kept graphs, their bytes."""
        sizes = self.problem.batches.sizes
        return {
            "chunk_size": max(sizes),
            "chunks": len(sizes),
            "kept_graphs": len(self),
            "kept_bytes": self.kept_bytes,
        }
