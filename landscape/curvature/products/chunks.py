"""How the examples are divided for derivatives: what a graph costs is measured on a few examples, then chosen."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.problem.batches import Batch, Batches
from landscape.problem.memory import free_memory

if TYPE_CHECKING:
    from landscape.problem.problem import Problem

_PROBE = 16
# Largest single activation of a chunk. Measured on CPUs: a ResNet-20 is fastest at 64 to 256 images (64 kB of
# activation each), an MLP as one batch of 2,000 (4 kB each); on a GPU only launch overhead asks for large chunks.
_CACHE = {"cpu": 16 * 2**20}
_DEFAULT_CACHE = 512 * 2**20
_SHARE_OF_FREE = 0.5


@dataclass(frozen=True)
class Footprint:
    """Memory of the graph of one first derivative, in bytes.

    Attributes:
        fixed: what does not grow with the number of examples.
        per_example: what grows with it.
        largest: the largest single tensor, per example.
        additive: whether the loss of a batch is the size-weighted mean of its parts' (not with batch statistics,
            class weights, ignored targets): only then may the examples be divided anew.
    """

    fixed: float
    per_example: float
    largest: float
    additive: bool

    def bytes(self, examples: int) -> float:
        """Memory of the graph of `examples` examples."""
        return self.fixed + self.per_example * examples


def footprint(problem: Problem, leaves: Sequence[Tensor]) -> Footprint:
    """Measure what the graph of a first derivative holds, on up to 16 examples of the first batch.

    Cost: forward and backward passes over 24 examples.
    """
    batch = next(iter(problem.batches))
    passes = (problem.passes.forward, problem.passes.backward)
    many = min(_PROBE, batch.size)
    few = max(many // 2, 1)
    try:
        large = _held(problem, leaves, batch.rows(0, many))
        small = _held(problem, leaves, batch.rows(0, few))
        rest = _held(problem, leaves, batch.rows(few, many)) if many > few else small
    finally:
        problem.passes.forward, problem.passes.backward = passes
    slope = (large[0] - small[0]) / (many - few) if many > few else large[0] / many
    parts = (small[2] * few + rest[2] * (many - few)) / many
    tolerance = 50 * torch.finfo(leaves[0].dtype).eps * (1 + large[2].abs())
    return Footprint(
        fixed=max(small[0] - slope * few, 0.0),
        per_example=max(slope, 1.0),
        largest=large[1] / many,
        additive=bool((large[2] - parts).abs() <= tolerance) and not weighs(problem),
    )


def weighs(problem: Problem) -> bool:
    """Whether a batch's mean divides by something else than its size: class weights, ignored targets.

    A few examples need not show it: data sorted by class, targets that are rarely ignored.
    """
    loss = problem._loss
    if loss is None or getattr(loss, "reduction", "mean") == "none":
        return False
    ignored = getattr(loss, "ignore_index", -100)  # torch's default, of the function too
    targets = (b.target for b in problem.batches)
    return getattr(loss, "weight", None) is not None or any(
        isinstance(t, Tensor) and not t.is_floating_point() and bool((t == ignored).any()) for t in targets
    )


def chosen(problem: Problem, found: Footprint, size: int | None = None) -> Problem:
    """The same L(w) over chunks of a good size: `size`, or the one that fits cache and memory.

    The user's batches stay where the loss is not additive over examples or the examples cannot be divided.
    """
    if not found.additive or problem.batches.whole() is None:
        return problem
    if size is None:
        device = problem.weights.device
        memory = 0.25 * free_memory(device) - found.fixed
        fitting = max(min(cached(problem, found.largest), int(memory / found.per_example)), 1)
        count = -(-problem.batches.examples // fitting)
        size = -(-problem.batches.examples // count)
    sizes = problem.batches.sizes
    if all(s == size for s in sizes[:-1]) and sizes[-1] <= size and (len(sizes) > 1 or sizes[0] == size):
        return problem
    # A copy with the number of examples as it is: `rebatched` would count anew over all processes, of which another may
    # keep its batches.
    other = copy.copy(problem)
    other.batches = Batches.of(problem.batches.split(size))
    return other


def cached(problem: Problem, largest: float) -> int:
    """Examples whose largest activation fits the cache."""
    return int(_CACHE.get(problem.weights.device.type, _DEFAULT_CACHE) / max(largest, 1.0))


def budget(problem: Problem) -> float:
    """Bytes that kept graphs may take: half of what is free now."""
    return _SHARE_OF_FREE * free_memory(problem.weights.device)


def _held(problem: Problem, leaves: Sequence[Tensor], batch: Batch) -> tuple[int, int, Tensor]:
    """(bytes that the graph holds, bytes of the largest tensor with a row an example, loss) of a batch."""
    known = {t.untyped_storage().data_ptr() for t in [*leaves, *batch.tensors()]}
    held: dict[int, Tensor] = {}
    largest = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal largest
        # A detached alias keeps the storage alive (no address is counted twice) without a cycle through the graph.
        held.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        if tensor.dim() and tensor.shape[0] == batch.size:
            largest = max(largest, tensor.numel() * tensor.element_size())
        return tensor.detach()

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = problem.batch_loss(problem.forward(batch), batch)
        gradients = problem.first_derivative(loss, leaves, batch)
    total = sum(t.untyped_storage().nbytes() for key, t in held.items() if key not in known)
    del gradients
    return total, largest, loss.detach().double()
