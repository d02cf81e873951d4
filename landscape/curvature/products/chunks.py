"""How examples are divided for derivatives: the cost of a graph is measured on a few of them, then a rule decides."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from landscape.errors import InputError
from landscape.problem import additivity, memory, structure
from landscape.problem.batches import Batch

if TYPE_CHECKING:
    from landscape.problem.problem import Problem

_PROBE = 16
# Largest single activation of a chunk. Measured on CPUs: a ResNet-20 is fastest at 64 to 256 images (64 kB of
# activation each), an MLP as one batch of 2,000 (4 kB each); on a GPU only launch overhead asks for large chunks.
_CACHE = {"cpu": 16 * 2**20}
_DEFAULT_CACHE = 512 * 2**20
# Largest graph of a chunk: a rule of the arguments, so that numbers repeat; what is free only refuses.
_GRAPH = {"cpu": 2**30}
_DEFAULT_GRAPH = 4 * 2**30
_SHARE_OF_FREE = 0.5
# What a product holds at most, relative to the graph of its chunk, in Hessian products of four networks: 1.15 to 1.5
# where the graph is freed on the way, 0.6 to 0.9 beside one that is kept.
REBUILT, BESIDE_KEPT = 1.5, 0.9
_NO_HOOKS = ("saved tensor hooks", "invalid python storage")
"""What torch says where torch.func runs inside of forward()."""


@dataclass(frozen=True)
class Footprint:
    """Memory of the graph of one first derivative, in bytes.

    Attributes:
        fixed: what does not grow with the number of examples.
        per_example: what grows with it.
        largest: the largest single tensor, per example.
        gradient: the first derivative itself, one vector of length d for each graph that is kept.
    """

    fixed: float
    per_example: float
    largest: float
    gradient: float = 0.0

    def bytes(self, examples: int) -> float:
        """Memory of the graph of `examples` examples, and of the gradient that it leads to."""
        return self.fixed + self.per_example * examples + self.gradient


def footprint(problem: Problem, leaves: Sequence[Tensor]) -> Footprint:
    """Measure what the graph of a first derivative holds, on up to 16 examples of the first batch.

    A batch that cannot be sliced is measured whole. Cost: forward and backward passes over up to 24 examples.
    """
    batch, gradient = next(problem.weighted_batches()), float(sum(t.nbytes for t in leaves))
    with problem.uncounted():
        if not batch.sliceable or batch.size == 1 or problem.undividable is not None:
            held, largest = _held(problem, leaves, batch)
            return Footprint(0.0, max(held / batch.size, 1.0), largest / batch.size, gradient)
        many = min(_PROBE, batch.size)
        few = max(many // 2, 1)
        large, small = (_held(problem, leaves, problem.weighed(batch.rows(0, n))) for n in (many, few))
    slope = max((large[0] - small[0]) / (many - few), 1.0)
    return Footprint(max(small[0] - slope * few, 0.0), slope, large[1] / many, gradient)


def chosen(problem: Problem, footprint: Footprint, size: int | None = None) -> Problem:
    """The same L(w) over chunks of a good size: `size`, or the one that fits cache and graph, the same every time.

    The user's batches stay where L would change with their division, whatever size is asked for: the first time, L over
    the chunks is compared with L over the batches (two forward passes that are not counted).

    Raises:
        InputError: a chunk whose graph does not fit in memory; the size that does is named.
    """
    sizes, weight = problem.batches.sizes, problem.weight
    target = size
    if target is None:
        count = -(-problem.batches.examples // fitting(problem, footprint))
        target = -(-problem.batches.examples // count)
    as_given = all(s == target for s in sizes[:-1]) and sizes[-1] <= target and (len(sizes) > 1 or sizes[0] <= target)
    if as_given or problem.undividable is not None:
        _require_room(problem, footprint, max(sizes))
        return problem
    _require_room(problem, footprint, target)
    # A copy with the weight of all as it is: `rebatched` would sum again over all processes, of which another may keep
    # its batches.
    other = copy.copy(problem)
    other.batches, other.weight = problem.batches.of(problem.batches.split(target)), weight
    if additivity.agrees(problem, other, target):
        return other
    problem.settle_division(additivity.NOT_ADDITIVE)
    return problem


def fitting(problem: Problem, footprint: Footprint) -> int:
    """Examples whose largest activation fits the cache and whose graph stays below the bound."""
    kind = problem.weights.device.type
    cached = _CACHE.get(kind, _DEFAULT_CACHE) / max(footprint.largest, 1.0)
    graph = (_GRAPH.get(kind, _DEFAULT_GRAPH) - footprint.fixed) / footprint.per_example
    return max(int(min(cached, graph)), 1)


def budget(problem: Problem, footprint: Footprint) -> float:
    """Bytes that kept graphs may take: half of what is free now, and never the room of one eigenvalue's products."""
    free = memory.free_memory(problem.weights.device)
    vectors = (1 + memory.BESIDE) * problem.weights.nbytes
    product = BESIDE_KEPT * footprint.bytes(max(problem.batches.sizes))
    return min(_SHARE_OF_FREE * free, max(free - vectors - product, 0.0))


def _require_room(problem: Problem, footprint: Footprint, size: int) -> None:
    free, needed = memory.free_memory(problem.weights.device), REBUILT * footprint.bytes(size)
    if needed <= free:
        return
    fits = int((_SHARE_OF_FREE * free - footprint.bytes(0)) / footprint.per_example)
    if fits < 1:
        remedy = "restrict parameters, or take forward-only measures"
    else:
        remedy = f"give batches of at most {fits}" if problem.undividable else f"give chunk_size={fits}"
    raise InputError(
        f"a product over {size} examples takes {memory.size(needed)}, {memory.size(free)} are free: {remedy}"
    )


def _held(problem: Problem, leaves: Sequence[Tensor], batch: Batch) -> tuple[int, int]:
    """(bytes that the graph holds, bytes of the largest tensor with a row per example) of a batch."""
    known = {t.untyped_storage().data_ptr() for t in [*leaves, *batch.tensors()] if t.layout == torch.strided}
    held: dict[int, Tensor] = {}
    largest = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal largest
        if tensor.layout != torch.strided:
            return tensor.detach()
        # A detached alias keeps the storage alive (no address is counted twice) without a cycle through the graph.
        held.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        if tensor.dim() and tensor.shape[0] == batch.size:
            largest = max(largest, tensor.numel() * tensor.element_size())
        return tensor.detach()

    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = problem.batch_loss(problem.forward(batch), batch)
            gradients = problem.first_derivative(loss, leaves, batch)
    except (RuntimeError, InputError) as error:
        if not any(words in f"{error} {error.__cause__}" for words in _NO_HOOKS):
            raise
        return _put_out(problem, batch)
    total = sum(t.untyped_storage().nbytes() for key, t in held.items() if key not in known)
    del gradients
    return total, largest


def _put_out(problem: Problem, batch: Batch) -> tuple[int, int]:
    """The same, estimated from what the modules put out: a graph of a first derivative holds about four times that."""
    sizes = [0]

    def see(_module: nn.Module, _inputs: Any, output: Any) -> None:
        sizes.extend(t.numel() * t.element_size() for t in structure.tensors(output))

    with contextlib.ExitStack() as stack:
        for module in (m for m in problem.model.modules() if not isinstance(m, torch.jit.ScriptModule)):
            stack.callback(module.register_forward_hook(see).remove)
        with problem.evaluator.without_graph():
            problem.forward(batch)
    return 4 * sum(sizes), max(sizes)
