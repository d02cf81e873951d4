"""Heads of attention: which head is which, and the invertible matrix that passes through each unseen.

Queries and keys of a head enter the network by B = G'H alone, values and the layer that reads them likewise (rows:
the head's dimensions). G -> A G, H -> A^-T H leaves B for every invertible A. Of all pairs with one B those with
G G' = H H' are the balanced ones; two of them differ by an orthogonal matrix. So both networks are brought into their
balanced form, an orthogonal matrix R matches these (Procrustes), and A = L1^-1 R L2 leads into the first network's
form. Networks that are maps of each other meet exactly. Behind rotary embeddings A is a scaled rotation in each plane:
a complex number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from landscape.invariance.rescaling import Head
from landscape.surfaces.matching.features import polar
from landscape.surfaces.matching.units import random_cycle

Named = dict[str, Tensor]


@dataclass(frozen=True)
class HeadGroup:
    """The heads of one layer of attention.

    Attributes:
        heads: (head, part of it): queries and keys, then values and the layer that reads them; one of both where the
            other allows no map.
        trade: whether heads can trade places.
    """

    heads: tuple[tuple[Head, ...], ...]
    trade: bool

    @property
    def name(self) -> str:
        """The parameter that comes first."""
        return self.heads[0][0].parts[0].tensor

    @property
    def units(self) -> int:
        """The number of heads."""
        return len(self.heads)

    def tensors(self) -> set[str]:
        """Names of what a map changes."""
        return {part.tensor for head in self.heads for pair in head for part in pair.parts}

    def random(self, tensors: Named, generator: torch.Generator) -> Named:
        """The tensors with random maps of the heads, each in another's place where they can trade places."""
        n = self.units
        order = random_cycle(n, generator).tolist() if self.trade else range(n)
        maps = [[pair.sample(generator, 0.5, 1.5) for pair in head] for head in self.heads]
        return self.mapped(tensors, order, maps)

    def matched(self, first: Named, second: Named) -> tuple[Named, int]:
        """The second tensors with the heads in the order and coordinates of the first's, and how many heads moved."""
        n = self.units
        costs, maps = np.full((n, n), np.inf), {}
        theirs = [[_Pair.of(pair, second) for pair in head] for head in self.heads]
        for i, head in enumerate(self.heads):
            mine = [_Pair.of(pair, first) for pair in head]
            for j in range(n) if self.trade else (i,):
                found = [a.nearest(b) for a, b in zip(mine, theirs[j], strict=True)]
                costs[i, j], maps[i, j] = sum(cost for cost, _ in found), [a for _, a in found]
        order = linear_sum_assignment(costs)[1].tolist() if self.trade else list(range(n))
        moved = self.mapped(second, order, [maps[i, j] for i, j in enumerate(order)])
        return moved, sum(i != j for i, j in enumerate(order))

    def mapped(self, tensors: Named, order: Sequence[int], maps: Sequence[Sequence[Tensor]]) -> Named:
        """The tensors with head order[i] in the place of head i, mapped by the matrices of i."""
        moved = dict(tensors) | {name: tensors[name].clone() for name in self.tensors()}
        for i, j in enumerate(order):
            for here, there, a in zip(self.heads[i], self.heads[j], maps[i], strict=True):
                inverse = torch.linalg.inv(a).mT
                for target, source in zip(here.parts, there.parts, strict=True):
                    rows = source.rows(tensors[source.tensor])
                    target.write(moved[target.tensor], (inverse if target.dual else a).to(rows) @ rows)
        return moved


@dataclass(frozen=True)
class _Pair:
    """G and H of one head at some weights, (size, n) and (size, m), float64 on the CPU."""

    head: Head
    g: Tensor
    h: Tensor

    @staticmethod
    def of(head: Head, tensors: Named) -> _Pair:
        g, h = (
            torch.cat([p.rows(tensors[p.tensor]) for p in head.parts if p.dual == dual], -1).double().cpu()
            for dual in (False, True)
        )
        return _Pair(head, g, h)

    def nearest(self, other: _Pair) -> tuple[float, Tensor]:
        """(squared distance, A): the best of the candidates for bringing `other` here."""
        candidates = list(self._candidates(other))
        costs = [self._distance(other, a) for a in candidates]
        best = int(np.argmin(costs))
        return costs[best], candidates[best]

    def _distance(self, other: _Pair, a: Tensor) -> float:
        moved = a @ other.g, torch.linalg.solve(a.mT, other.h)
        return float((moved[0] - self.g).square().sum() + (moved[1] - self.h).square().sum())

    def _candidates(self, other: _Pair) -> Iterator[Tensor]:
        eye = torch.eye(self.head.size, dtype=torch.float64)
        yield eye
        turned = eye.clone()
        for i, j in self.head.planes:
            _scaled_rotation(turned, (i, j), self, other)
        free = list(self.head.free)
        if free:
            grid = torch.tensor(free)[:, None], torch.tensor(free)
            (g, h), (k, m) = ((p.g[free], p.h[free]) for p in (self, other))
            orthogonal = turned.clone()
            orthogonal[grid] = polar(g @ k.mT + h @ m.mT)
            yield orthogonal
            mine, theirs = _balancing(g, h), _balancing(k, m)
            if mine is None or theirs is None:
                return
            inverse = [torch.linalg.inv(x).mT for x in (mine, theirs)]
            r = polar(mine @ g @ (theirs @ k).mT + inverse[0] @ h @ (inverse[1] @ m).mT)
            turned[grid] = torch.linalg.solve(mine, r @ theirs)
        yield turned


def _balancing(g: Tensor, h: Tensor) -> Tensor | None:
    """L for which L G (L G)' = L^-T H (L^-T H)'; None where G'H has not full rank."""
    if min(g.shape[1], h.shape[1]) < len(g):
        return None
    first, second = torch.linalg.qr(g.mT).R, torch.linalg.qr(h.mT).R
    left, sigma, _ = torch.linalg.svd(first @ second.mT)
    if not sigma[-1] > 1e-10 * sigma[0]:
        return None
    return torch.linalg.solve(first, left * sigma.sqrt()).mT


def _scaled_rotation(a: Tensor, plane: tuple[int, int], mine: _Pair, theirs: _Pair) -> None:
    """Write the best scaled rotation of a plane into A: a complex number, its scale that which balances the norms."""
    i, j = plane
    (g, h), (k, m) = ((torch.complex(p.g[i], p.g[j]), torch.complex(p.h[i], p.h[j])) for p in (mine, theirs))
    norms = [float(torch.linalg.vector_norm(x)) for x in (g, m, k, h)]
    scale = (norms[0] * norms[1] / (norms[2] * norms[3])) ** 0.5 if min(norms) > 0 else 1.0
    phase = scale * torch.vdot(k, g) + torch.vdot(m, h) / scale
    turn = phase / phase.abs() if phase.abs() > 0 else torch.ones((), dtype=torch.complex128)
    cosine, sine = scale * turn.real, scale * turn.imag
    a[i, i], a[i, j], a[j, i], a[j, j] = cosine, -sine, sine, cosine


def head_groups(heads: Sequence[Head]) -> list[HeadGroup]:
    """Groups of the heads of each layer: queries and keys with the values that they weigh.

    Which values belong to which queries is not known from the parameters: layers and heads are taken in their order,
    and trading places is to be verified.
    """
    sets: dict[tuple, list[Head]] = {}
    for head in heads:
        signature = tuple((p.tensor, p.axis, p.dual) for p in head.parts)
        sets.setdefault((signature, head.free, head.planes), []).append(head)
    ordered = [sorted(group, key=lambda h: h.parts[0].places) for group in sets.values()]
    scores, values = ([g for g in ordered if _mixes(g[0]) == mixes] for mixes in (False, True))
    if len(scores) == len(values) and all(len(a) == len(b) for a, b in zip(scores, values, strict=True)):
        pairs = [tuple(zip(a, b, strict=True)) for a, b in zip(scores, values, strict=True)]
        return [HeadGroup(pair, trade=len(pair) > 1) for pair in pairs]
    return [HeadGroup(tuple((h,) for h in group), trade=False) for group in ordered]


def _mixes(head: Head) -> bool:
    """Whether these are values: what maps them inversely holds them along another axis, that of its inputs."""
    axes = [{p.axis for p in head.parts if p.dual == dual and _weight(head, p.tensor)} for dual in (False, True)]
    return axes[0].isdisjoint(axes[1])


def _weight(head: Head, tensor: str) -> bool:
    return not tensor.endswith("bias")
