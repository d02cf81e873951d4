"""Rotations between two linear layers without an activation between them: they keep the function, too."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.invariance.rescaling import Symmetries
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
        shapes = slots[first].shape, slots[second].shape
        if len(shapes[1]) == 2 and shapes[0][0] == shapes[1][1] == len(block.units):
            pairs.append((first, second))
    return pairs


def rotated(problem: Problem, first: str, second: str, generator: torch.Generator) -> Tensor:
    """Weights with A -> Q A, a -> Q a, B -> B Q^T for a random rotation Q between layers A and B."""
    tensors = {
        s.name: t for s, t in zip(problem.parameters, problem.parameters.unflatten(problem.weights), strict=True)
    }
    width = tensors[first].shape[0]
    q = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q.to(tensors[first])
    tensors[first], tensors[second] = q @ tensors[first], tensors[second] @ q.mT
    bias = first.rpartition(".")[0] + ".bias"
    if bias in tensors:
        tensors[bias] = q @ tensors[bias]
    return problem.parameters.flatten(list(tensors.values()))
