"""Permutation alignment: the order of hidden units is arbitrary, and a barrier between two orders is an artefact.

The units are those of the network's rescaling symmetries (`landscape.rescaling`): what one factor would scale is what
one hidden unit consists of. Units are matched by their weights (Ainsworth 2022, arXiv 2209.04836, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape import random
from landscape.ball.vectors import cosine
from landscape.errors import InputError
from landscape.invariance.rescaling import find
from landscape.problem.problem import Problem

Named = dict[str, Tensor]
_SWEEPS = 100
_EXAMPLES = 16


@dataclass(frozen=True)
class UnitGroup:
    """Units that can trade places.

    Attributes:
        name: of the tensor that they enter first.
        places: (tensor, axis) -> (units, run) indices of each unit along the axis.
    """

    name: str
    places: dict[tuple[str, int], np.ndarray]

    @property
    def units(self) -> int:
        """The number of units that can change places."""
        return len(next(iter(self.places.values())))

    def permuted(self, tensors: Named, order: np.ndarray) -> Named:
        """The tensors with unit order[i] moved to the place of unit i."""
        moved = dict(tensors)
        for (name, axis), index in self.places.items():
            target = torch.from_numpy(index.reshape(-1)).to(moved[name].device)
            source = torch.from_numpy(index[order].reshape(-1)).to(moved[name].device)
            moved[name] = moved[name].clone().index_copy_(axis, target, moved[name].index_select(axis, source))
        return moved

    def similarity(self, first: Named, second: Named) -> np.ndarray:
        """(units, units): inner products of the units' weights; buffers do not count."""
        total = np.zeros((self.units, self.units))
        for (name, axis), index in self.places.items():
            if name in first:
                a, b = (self._rows(t[name], axis, index) for t in (first, second))
                total += (a @ b.T).cpu().numpy()
        return total

    def _rows(self, tensor: Tensor, axis: int, index: np.ndarray) -> Tensor:
        flat = torch.from_numpy(index.reshape(-1)).to(tensor.device)
        return tensor.index_select(axis, flat).movedim(axis, 0).reshape(len(index), -1).double()


@dataclass(frozen=True)
class Alignment:
    """A network with its units in the order of another one's.

    Attributes:
        weights: (d,), the same function as before.
        buffers: name -> buffer, reordered with the units.
        facts: groups, units, how many moved, sweeps, cosine of the weights before and after, largest relative change
            of the outputs, groups that were found but could not be confirmed.
    """

    weights: Tensor
    buffers: Named
    facts: dict[str, Any] = field(default_factory=dict)


def align(first: Problem, second: Problem, *, seed: int = 0) -> Alignment:
    """The second network with its units permuted so that its weights lie as near to the first's as can be found.

    Coordinate descent: one group of units after the other, in random order, is matched by a linear assignment given
    all others, until no group changes. The inner product of the weights grows with every accepted step.

    Args:
        first: the network that gives the order.
        second: the network that is reordered; neither is changed.
        seed: of the order of the groups.

    Raises:
        InputError: different architectures, or no group of units that can be permuted.

    Cost: the trace of the network, one forward pass on 16 examples a group.
    """
    from scipy.optimize import linear_sum_assignment

    from landscape.surfaces.comparison import check_same_architecture

    check_same_architecture(first, second)
    groups, rejected = permutable(second, seed)
    if not groups:
        raise InputError(
            "no hidden units that can be permuted were found: alignment needs layers joined by ReLU-like activations"
        )
    target, moving = _named(first), {**_named(second), **_buffers(second)}
    before = float(cosine(first.weights, second.weights))
    orders = {g.name: np.arange(g.units) for g in groups}
    generator, sweeps, changed = random.stream(seed, "order of alignment"), 0, True
    while changed and sweeps < _SWEEPS:
        changed, sweeps = False, sweeps + 1
        for i in torch.randperm(len(groups), generator=generator).tolist():
            group = groups[i]
            order = linear_sum_assignment(group.similarity(target, moving), maximize=True)[1]
            proposed = group.permuted(moving, order)
            # A group that a tensor meets on both axes makes the assignment a linearization: accept what is better.
            if _inner(target, proposed) > _inner(target, moving) * (1 + 1e-12) + 1e-12:
                moving, changed = proposed, True
                orders[group.name] = orders[group.name][order]
    weights = second.parameters.flatten([moving[n] for n in second.parameters.names])
    buffers = {n: moving[n] for n in _buffers(second)}
    facts = {
        "groups": len(groups),
        "units": sum(g.units for g in groups),
        "moved": sum(int((o != np.arange(len(o))).sum()) for o in orders.values()),
        "sweeps": sweeps,
        "converged": not changed,
        "cosine": [before, float(cosine(first.weights, weights))],
        "output_change": _output_change(second, moving),
        "rejected": rejected,
    }
    return Alignment(weights, buffers, facts)


def permutable(problem: Problem, seed: int = 0) -> tuple[list[UnitGroup], list[str]]:
    """Groups of units that can trade places, each confirmed by the outputs; and the names of those that were not.

    A convolution before BatchNorm has a rescaling of its own; its units are those of the BatchNorm, so that the two
    groups are one here.
    """
    symmetries = find(problem.model, next(iter(problem.batches)), parameters=problem.parameters)
    tensors = {**_named(problem), **_buffers(problem)}
    kept, rejected = [], []
    tolerance = 1e-4 if problem.weights.dtype != torch.float64 else 1e-9
    for group in _joined(_units(symmetries.units)):
        order = torch.randperm(group.units, generator=random.stream(seed, "trial permutation")).numpy()
        if _output_change(problem, group.permuted(tensors, order)) <= tolerance:
            kept.append(group)
        else:
            rejected.append(group.name)
    return kept, rejected


def _units(units: Sequence[Any]) -> list[UnitGroup]:
    """One group a block; units whose parts have another shape than their neighbors' are left out."""
    blocks: dict[str, list[dict[tuple[str, int], tuple[int, ...]]]] = {}
    for unit in units:
        if all(t.axis is not None for t in unit.touches):
            blocks.setdefault(unit.block, []).append({(t.tensor, t.axis): t.index for t in unit.touches})
    groups = []
    for name, members in blocks.items():
        alike = {k: len(v) for k, v in members[0].items()}
        same = [m for m in members if {k: len(v) for k, v in m.items()} == alike]
        if len(same) > 1:
            groups.append(UnitGroup(name, {k: np.array([m[k] for m in same]) for k in alike}))
    return groups


def _joined(groups: list[UnitGroup]) -> list[UnitGroup]:
    """Groups that scale different tensors of one module along its channels are one group."""
    joined: list[UnitGroup] = []
    for group in groups:
        while (other := next((g for g in joined if _same_units(g, group)), None)) is not None:
            joined.remove(other)
            group = _merged(other, group)
        joined.append(group)
    return joined


def _channels(group: UnitGroup) -> dict[str, np.ndarray]:
    """Module -> channel of each unit, for modules of which a unit has one entry of a tensor's first axis."""
    return {n.rpartition(".")[0]: i[:, 0] for (n, a), i in group.places.items() if a == 0 and i.shape[1] == 1}


def _same_units(one: UnitGroup, two: UnitGroup) -> bool:
    a, b = _channels(one), _channels(two)
    return any(set(a[m]) == set(b[m]) for m in a if m in b)


def _merged(one: UnitGroup, two: UnitGroup) -> UnitGroup:
    a, b = _channels(one), _channels(two)
    module = next(m for m in a if m in b and set(a[m]) == set(b[m]))
    position = {int(c): i for i, c in enumerate(b[module])}
    order = np.array([position[int(c)] for c in a[module]])
    return UnitGroup(one.name, {**{k: v[order] for k, v in two.places.items()}, **one.places})


# -- tensors and outputs ---------------------------------------------------------------------------------------------


def _named(problem: Problem) -> Named:
    return dict(zip(problem.parameters.names, problem.parameters.unflatten(problem.weights), strict=True))


def _buffers(problem: Problem) -> Named:
    return {n: b.detach() for n, b in problem.model.named_buffers()}


def _inner(first: Named, second: Named) -> float:
    return float(sum((first[n].double() * second[n].double()).sum() for n in first))


def _output_change(problem: Problem, tensors: Named) -> float:
    """Max |f' - f| / max |f| on a few examples, with the weights and buffers in `tensors`."""
    before, after = (outputs_at(problem, t) for t in ({**_named(problem), **_buffers(problem)}, tensors))
    return float((after - before).abs().max() / before.abs().max().clamp(min=1e-30))


def outputs_at(problem: Problem, tensors: Mapping[str, Tensor]) -> Tensor:
    """Outputs on the first 16 examples with these weights and buffers."""
    few, passes = problem.few_examples(_EXAMPLES), problem.passes.forward
    with (
        torch.no_grad(),
        problem.evaluator.bound(
            [tensors[n] for n in problem.parameters.names], [tensors[n] for n in _buffers(problem)]
        ),
    ):
        outputs = problem.batch_outputs(few).detach().double()
    problem.passes.forward = passes
    return outputs
