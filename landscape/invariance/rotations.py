"""Rotations between two linear layers without an activation between them: they keep the function, too."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.invariance.rescaling import Symmetries
from landscape.problem.parameters import Slot
from landscape.problem.problem import Problem


def candidates(symmetries: Symmetries) -> list[tuple[str, str]]:
    """Pairs of weight matrices where all that leaves the first enters the second alone."""
    slots = {slot.name: slot for slot in symmetries.parameters}
    pairs = []
    for block in symmetries.blocks:
        matrices = [n for n in block.incoming if n in slots and len(slots[n].shape) == 2]
        if len(matrices) != 1 or len(block.outgoing) != 1 or len(block.incoming) > 2:
            continue
        first, second = matrices[0], block.outgoing[0]
        a, b = slots[first], slots[second]
        if len(b.shape) == 2 and a.shape[a.filter_axis] == b.shape[1 - b.filter_axis] == len(block.units):
            pairs.append((first, second))
    return pairs


def rotated(problem: Problem, first: str, second: str, generator: torch.Generator) -> Tensor:
    """Weights with A -> Q A, a -> Q a, B -> B Q^T for a random rotation Q between layers A and B."""
    pieces = zip(problem.parameters, problem.parameters.unflatten(problem.weights), strict=True)
    # As (outputs, inputs), whichever way round the layer holds them.
    tensors = {s.name: _turned(s, t) for s, t in pieces}
    width = tensors[first].shape[0]
    q = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q.to(tensors[first])
    tensors[first], tensors[second] = q @ tensors[first], tensors[second] @ q.mT
    bias = first.rpartition(".")[0] + ".bias"
    if bias in tensors:
        tensors[bias] = q @ tensors[bias]
    return problem.parameters.flatten([_turned(s, tensors[s.name]) for s in problem.parameters])


def _turned(slot: Slot, tensor: Tensor) -> Tensor:
    """A matrix that holds (inputs, outputs) as (outputs, inputs), and back."""
    return tensor.mT if slot.filter_axis and tensor.dim() == 2 else tensor
