"""Invertible maps of attention: which parameters a matrix may pass through unseen, head by head.

Where queries and keys of a head meet in q . k alone, q -> A q and k -> A^-T k leave every score; where values are mixed
over positions and then enter a linear layer, v -> A v and the layer's columns times A^-1 leave its outputs. Biases are
columns of their layer: they are mapped too. Rotary embeddings leave, of all A, those that commute with the rotations:
a scaled rotation in each plane. Heads that share keys share one A. A normalization of queries or keys leaves none.

The trace records which outputs of linear layers reach which products, and by which functions; `assembled` makes heads
of that. They are candidates: `search` applies random maps and compares outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from landscape.invariance.rescaling.units import ANY, Units, compact

STRAIGHT, POSITIONAL, BENT = 0, 1, 2
"""What happened to an output of a linear layer: nothing, or the same for all outputs of a head; a linear function that
depends on the position or mixes outputs (rotary embeddings); anything else."""


@dataclass(frozen=True)
class Part:
    """Slices of one parameter that a head's map acts on: row j is tensor.movedim(axis, 0)[places[j]].

    Attributes:
        tensor: dotted name.
        axis: along which the head's dimensions lie.
        places: along that axis, one for each dimension of the head: (size,).
        dual: whether it is mapped by A^-T, not by A.
    """

    tensor: str
    axis: int
    places: tuple[int, ...]
    dual: bool

    def rows(self, tensor: Tensor) -> Tensor:
        """The part as a matrix (size, n), in the order of the head's dimensions."""
        index = torch.tensor(self.places, device=tensor.device)
        return tensor.movedim(self.axis, 0)[index].reshape(len(self.places), -1)

    def write(self, tensor: Tensor, rows: Tensor) -> None:
        """Put rows (size, n) back in their places, in place."""
        index, moved = torch.tensor(self.places, device=tensor.device), tensor.movedim(self.axis, 0)
        moved[index] = rows.reshape(len(self.places), *moved.shape[1:])


@dataclass(frozen=True)
class Head:
    """What passes through one head: any invertible A of its group maps `parts` and leaves the network's function.

    Attributes:
        parts: slices of parameters; those not dual are mapped by A, the dual ones by A^-T.
        free: dimensions among which A is any invertible matrix.
        planes: pairs of dimensions in each of which A is a scaled rotation (rotary embeddings).
        residual: max |f' - f| / max |f| of the verification.
    """

    parts: tuple[Part, ...]
    free: tuple[int, ...]
    planes: tuple[tuple[int, int], ...]
    residual: float = math.nan

    @property
    def size(self) -> int:
        """Dimensions of the head."""
        return len(self.parts[0].places)

    @property
    def dimension(self) -> int:
        """Dimension of the group."""
        return len(self.free) ** 2 + 2 * len(self.planes)

    @property
    def whole(self) -> bool:
        """Whether the group is that of all invertible matrices."""
        return len(self.free) == self.size

    def tensors(self, *, dual: bool) -> tuple[str, ...]:
        """Names of the parameters on one side."""
        return tuple(dict.fromkeys(part.tensor for part in self.parts if part.dual == dual))

    def sample(self, generator: torch.Generator, low: float, high: float) -> Tensor:
        """A random member A (size, size), float64: singular values uniform in [low, high), random signs of det A."""
        a = torch.eye(self.size, dtype=torch.float64)
        stretch = low + (high - low) * torch.rand(self.size, generator=generator, dtype=torch.float64)
        if self.free:
            n, free = len(self.free), torch.tensor(self.free)
            draws = torch.randn(2, n, n, generator=generator, dtype=torch.float64)
            left, right = torch.linalg.qr(draws).Q
            a[free[:, None], free] = left * stretch[:n] @ right
        angles = 2 * math.pi * torch.rand(len(self.planes), generator=generator, dtype=torch.float64)
        for (i, j), angle, scale in zip(self.planes, angles, stretch[len(self.free) :], strict=False):
            cosine, sine = scale * angle.cos(), scale * angle.sin()
            a[i, i], a[i, j], a[j, i], a[j, j] = cosine, -sine, sine, cosine
        return a

    def apply(self, tensors: Mapping[str, Tensor], a: Tensor) -> None:
        """Map this head's parts of named float64 tensors by A, in place."""
        inverse = torch.linalg.inv(a).mT
        for part in self.parts:
            tensor = tensors[part.tensor]
            matrix = (inverse if part.dual else a).to(tensor)
            part.write(tensor, matrix @ part.rows(tensor))


@dataclass
class Mixing:
    """What the trace records of linear layers and attention; units are outputs of linear layers (see `units`).

    Attributes:
        levels: unit -> what happened to it; absent: `STRAIGHT`.
        origins: unit -> the parameters whose slices make it: (name, axis, place), the bias last.
        first: (name, axis, place) -> the first unit that it made; a layer that is called again makes it again.
        sinks: (units in the order of the inputs, name of the weight, axis of its inputs).
        products: (queries, keys): units of one head each.
        values: units of one head that attention mixes over positions.
    """

    levels: dict[int, int] = field(default_factory=dict)
    origins: dict[int, list[tuple[str, int, int]]] = field(default_factory=dict)
    first: dict[tuple[str, int, int], int] = field(default_factory=dict)
    sinks: list[tuple[list[int], str, int]] = field(default_factory=list)
    products: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    values: list[tuple[int, ...]] = field(default_factory=list)

    def bend(self, labels: Tensor, level: int = BENT) -> None:
        """Record what a function does to the entries with these labels."""
        for unit in _units_of(labels):
            if unit in self.origins:
                self.levels[unit] = max(level, self.levels.get(unit, STRAIGHT))

    def layer(self, units: Tensor, tensors: Sequence[tuple[str, int, int]]) -> None:
        """Record the outputs of a linear layer: units (out,); weight and bias: name, axis of outputs, first place."""
        for i, unit in enumerate(units.tolist()):
            self.origins[unit] = [(name, axis, start + i) for name, axis, start in tensors]
            self.first.setdefault(self.origins[unit][0], unit)

    def reads(self, labels: Tensor, name: str, axis: int) -> None:
        """Record what a linear layer reads: labels (in,), its weight and the axis of its inputs."""
        self.sinks.append((labels.tolist(), name, axis))

    def product(self, q: Tensor, k: Tensor) -> None:
        """Record a contraction of q (..., size) with k (..., size), broadcast, along the last dimension."""
        if q.shape[-1] == k.shape[-1]:
            q, k = (t.expand(torch.broadcast_shapes(q.shape, k.shape)) for t in (q, k))
            both = torch.stack(compact(q, k), dim=-2)
            rows = torch.unique(both.reshape(-1, *both.shape[-2:]), dim=0)
            self.products += [(tuple(a), tuple(b)) for a, b in rows.tolist()]

    def mixed(self, v: Tensor) -> None:
        """Record values v (..., size) that are averaged over positions."""
        rows = compact(v)[0]
        self.values += [tuple(row) for row in torch.unique(rows.reshape(-1, rows.shape[-1]), dim=0).tolist()]

    def assembled(self, units: Units, inside: Iterable[str]) -> tuple[Head, ...]:
        """The candidates whose parameters all lie `inside` the flat vector."""
        names, links = set(inside), _Links()
        first = {u: self.first[o[0]] for u, o in self.origins.items()}
        for q, k in self.products:
            if all(u in first for u in (*q, *k)):
                links.join(tuple(first[u] for u in q), tuple(first[u] for u in k))
        for v in self.values:
            if all(u in first for u in v):
                links.add(tuple(first[u] for u in v))
        levels = {first[u]: 0 for u in first}
        for u, level in self.levels.items():
            levels[first[u]] = max(level, levels[first[u]])
        sinks = dict.fromkeys((tuple(first.get(u, 0) for u in row), name, axis) for row, name, axis in self.sinks)
        heads = (self._head(group, levels, list(sinks), units) for group in links.groups())
        return tuple(h for h in heads if h is not None and names.issuperset(p.tensor for p in h.parts))

    def _head(
        self,
        group: Mapping[tuple[int, ...], int],
        levels: Mapping[int, int],
        sinks: Sequence[tuple[tuple[int, ...], str, int]],
        units: Units,
    ) -> Head | None:
        parts: list[Part] = []
        for row, sign in group.items():
            parts += [
                Part(name, axis, tuple(self.origins[u][i][2] for u in row), sign < 0)
                for i, (name, axis, _) in enumerate(self.origins[row[0]])
            ]
            reading = [_columns(row, sink) for sink in sinks]
            if None in reading:
                return None
            for (_, name, axis), columns in zip(sinks, reading, strict=True):
                parts += [Part(name, axis, places, sign > 0) for places in columns or ()]
        rows = list(group)
        same_layer = all(len({(o[0][0], len(o)) for u in row for o in [self.origins[u]]}) == 1 for row in rows)
        if not same_layer or _overlapping(parts) or len({p.dual for p in parts}) < 2:
            return None
        roots = [units.find(u)[0] for u in rows[0]]
        if 0 in roots or any(levels[u] == BENT for row in rows for u in row):
            return None
        free, planes = [], []
        for root in dict.fromkeys(roots):
            here = [i for i, r in enumerate(roots) if r == root]
            straight = all(levels[row[i]] == STRAIGHT for row in rows for i in here)
            if len(here) == 1 and straight:
                free += here
            elif len(here) == 2 and not straight:
                planes.append((here[0], here[1]))
        return Head(tuple(parts), tuple(free), tuple(planes)) if free or planes else None


class _Links:
    """Rows of units and their groups: in a product, one row is mapped by the dual of the other's map."""

    def __init__(self) -> None:
        self._edges: dict[tuple[int, ...], set[tuple[int, ...]]] = {}

    def add(self, row: tuple[int, ...]) -> None:
        self._edges.setdefault(row, set())

    def join(self, a: tuple[int, ...], b: tuple[int, ...]) -> None:
        for x, y in ((a, b), (b, a)):
            self._edges.setdefault(x, set()).add(y)

    def groups(self) -> Iterator[dict[tuple[int, ...], int]]:
        """Rows that one map acts on, each with +1 (A) or -1 (A^-T); none whose units belong to two of its rows."""
        left = dict.fromkeys(self._edges)
        while left:
            start = next(iter(left))
            signs, todo, consistent = {start: 1}, [start], True
            while todo:
                row = todo.pop()
                left.pop(row, None)
                for other in sorted(self._edges[row]):
                    if other not in signs:
                        signs[other] = -signs[row]
                        todo.append(other)
                    consistent &= signs[other] == -signs[row]
            members = [u for row in signs for u in row]
            if consistent and len(set(members)) == len(members):
                yield signs


def _columns(row: tuple[int, ...], sink: tuple[tuple[int, ...], str, int]) -> list[tuple[int, ...]] | None:
    """Where a layer reads these units: a tuple of columns for each time that it reads all; None where it reads some."""
    wanted: dict[int, list[int]] = {unit: [] for unit in row}
    for column, unit in enumerate(sink[0]):
        if unit in wanted:
            wanted[unit].append(column)
    times = {len(columns) for columns in wanted.values()}
    return [tuple(one) for one in zip(*wanted.values(), strict=True)] if len(times) == 1 else None


def _overlapping(parts: Sequence[Part]) -> bool:
    """Whether an entry of a parameter belongs to two parts: it could not be mapped by both."""
    seen: dict[str, list[tuple[int, set[int]]]] = {}
    for part in parts:
        for axis, places in seen.setdefault(part.tensor, []):
            if axis != part.axis or places & set(part.places):
                return True
        seen[part.tensor].append((part.axis, set(part.places)))
    return False


def _units_of(labels: Tensor) -> list[int]:
    return [abs(u) for u in torch.unique(compact(labels)[0]).tolist() if u not in (0, ANY)]
