"""Hidden units that can trade places: matched by an assignment of their weights (Ainsworth 2022, arXiv 2209.04836)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Named = dict[str, Tensor]


def random_cycle(count: int, generator: torch.Generator) -> np.ndarray:
    """A random order in which everything moves: one cycle through all (a random order of two is often the old one)."""
    along = torch.randperm(count, generator=generator).numpy()
    order = np.empty(count, dtype=np.int64)
    order[along] = np.roll(along, 1)
    return order


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

    def tensors(self) -> set[str]:
        """Names of what a permutation changes."""
        return {name for name, _ in self.places}

    def random(self, tensors: Named, generator: torch.Generator) -> Named:
        """The tensors with the units in random order."""
        return self.permuted(tensors, random_cycle(self.units, generator))

    def matched(self, first: Named, second: Named) -> tuple[Named, int]:
        """The second tensors with their units in the order nearest to the first's, and how many moved."""
        order = linear_sum_assignment(self.similarity(first, second), maximize=True)[1]
        return self.permuted(second, order), int((order != np.arange(self.units)).sum())

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


def unit_groups(units: Sequence[Any]) -> list[UnitGroup]:
    """Groups of the units of a network's rescalings: what one factor would scale is what one hidden unit consists of.

    One group a block; units whose parts have another shape than their neighbors' are left out. A convolution before
    BatchNorm has a rescaling of its own; its units are those of the BatchNorm, so that the two groups are one here.
    """
    blocks: dict[str, list[dict[tuple[str, int], tuple[int, ...]]]] = {}
    for unit in units:
        if all(t.axis is not None for t in unit.touches):
            parts: dict[tuple[str, int], tuple[int, ...]] = {}
            for t in unit.touches:  # a tensor may hold several parts of a unit: queries that share their keys
                parts[t.tensor, t.axis] = (*parts.get((t.tensor, t.axis), ()), *t.index)
            blocks.setdefault(unit.block, []).append(parts)
    groups = []
    for name, members in blocks.items():
        alike = {k: len(v) for k, v in members[0].items()}
        same = [m for m in members if {k: len(v) for k, v in m.items()} == alike]
        if len(same) > 1:
            groups.append(UnitGroup(name, {k: np.array([m[k] for m in same]) for k in alike}))
    return _joined(groups)


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
