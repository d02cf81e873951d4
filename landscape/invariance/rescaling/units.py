"""Units and their ties: which entries of a network's tensors carry which scale factor.

A *label* stands for the factor of one entry of a tensor: ``+k`` is the factor tau_k of unit k, ``-k`` its inverse,
``0`` the factor 1 and ``ANY`` an entry that is zero, which fits every factor. A tensor's labels have its shape, so that
views, slices and concatenations act on them as they act on the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

ANY = torch.iinfo(torch.int64).min


class Units:
    """Units, tied by a union-find whose links carry a sign: x and y tied with sign -1 means tau_x = 1 / tau_y.

    Unit 0 is the one whose factor is 1. Products tau_z = tau_x tau_y are kept aside as linear equations in log tau and
    eliminated at the end (`solve`).
    """

    def __init__(self) -> None:
        self._parent, self._sign = [0], [1]
        self._products: list[tuple[int, int, int]] = []

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, count: int) -> Tensor:
        """Labels (count,) of new units, free so far."""
        start = len(self._parent)
        self._parent += range(start, start + count)
        self._sign += [1] * count
        return torch.arange(start, start + count)

    def find(self, unit: int) -> tuple[int, int]:
        """(root, sign) of a unit: tau_unit = tau_root ** sign; the sign of the root 0 has no meaning."""
        path, sign = [], 1
        while self._parent[unit] != unit:
            path.append(unit)
            unit = self._parent[unit]
        for one in reversed(path):
            sign *= self._sign[one]
            self._parent[one], self._sign[one] = unit, sign
        return unit, sign

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Make the factors of two (broadcastable) label tensors equal, entry by entry."""
        a, b = (t.reshape(-1) for t in compact(a, b))
        different = (a != b) & (a != ANY) & (b != ANY)
        for x, y in _unique_pairs(a[different], b[different], len(self)):
            self._union(x, y)

    def fix(self, labels: Tensor) -> None:
        """Make the factors 1."""
        self.tie(labels, torch.zeros((), dtype=torch.int64))

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Labels of the entrywise product: the factors multiply."""

        def multiply(x: Tensor, y: Tensor) -> Tensor:
            result = torch.where(x == 0, y, x)
            both = (x != 0) & (y != 0) & (x != ANY) & (y != ANY)
            result[both] = self._products_of(x[both], y[both])
            result[(x == ANY) | (y == ANY)] = ANY
            return result

        return elementwise(multiply, a, b)

    def root(self, labels: Tensor) -> Tensor:
        """Labels of the entrywise square root: the factors' own square roots, one unit for each different factor."""
        squares, inverse = torch.unique(compact(labels)[0], return_inverse=True)
        made = self.fresh(len(squares))
        made = torch.where((squares == 0) | (squares == ANY), squares, made)
        self.tie(self.product(made, made), squares)
        return made[inverse].expand(labels.shape)

    def fixed(self, labels: Tensor) -> bool:
        """Whether every factor is known to be 1 by now."""
        return all(self.find(abs(u))[0] == 0 for u in torch.unique(compact(labels)[0]).tolist() if u != ANY)

    def reduce(self, labels: Tensor, dims: Sequence[int]) -> Tensor:
        """Tie the labels along dimensions and keep one of each: those dimensions get length 1."""
        if not dims:
            return labels
        # ANY is the smallest integer, so that a maximum takes it only where there is nothing else.
        kept = compact(labels)[0].amax(dim=tuple(dims), keepdim=True)
        kept = kept.expand([1 if i in [d % labels.dim() for d in dims] else n for i, n in enumerate(labels.shape)])
        self.tie(labels, kept)
        return kept

    def solve(self) -> tuple[csr_matrix, np.ndarray]:
        """The general solution: log tau of every unit as a combination of free ones.

        Returns:
            (matrix (units, free), the free units): row k says tau_k = product over j of tau_free[j] ** matrix[k, j].
        """
        pivots = self._eliminate()
        roots = [self.find(unit) for unit in range(len(self))]
        free = sorted({root for root, _ in roots} - {0} - set(pivots))
        column = {unit: i for i, unit in enumerate(free)}
        rows, columns, values = [], [], []
        for unit, (root, sign) in enumerate(roots):
            for other, factor in _expand(root, pivots).items():
                rows.append(unit)
                columns.append(column[other])
                values.append(sign * factor)
        return csr_matrix((values, (rows, columns)), shape=(len(self), len(free))), np.array(free, dtype=np.int64)

    # -- inner ---------------------------------------------------------------------------------------------------

    def _union(self, x: int, y: int) -> None:
        (a, s), (b, t) = self.find(abs(x)), self.find(abs(y))
        s, t = s * (1 if x >= 0 else -1), t * (1 if y >= 0 else -1)
        if a == b:
            if s != t:  # tau = 1 / tau
                self._parent[a] = 0
            return
        # The older unit stays the root: it names the class, and 0 is the oldest.
        old, young = min(a, b), max(a, b)
        self._parent[young], self._sign[young] = old, s * t

    def _products_of(self, x: Tensor, y: Tensor) -> Tensor:
        """Labels of new units z = x y, one for each different pair."""
        pairs, inverse = torch.unique(torch.stack([x, y]), dim=1, return_inverse=True)
        z = self.fresh(pairs.shape[1])
        self._products += zip(z.tolist(), *pairs.tolist(), strict=True)
        return z[inverse]

    def _eliminate(self) -> dict[int, dict[int, float]]:
        """Solve log z = log x + log y for one root each: pivot -> combination of roots that are no earlier pivots."""
        pivots: dict[int, dict[int, float]] = {}
        for z, x, y in self._products:
            row: dict[int, float] = {}
            for label, factor in ((z, 1.0), (x, -1.0), (y, -1.0)):
                root, sign = self.find(abs(label))
                signed = factor * sign * (1 if label >= 0 else -1)
                for other, c in _expand(root, pivots).items():
                    row[other] = row.get(other, 0.0) + signed * c
            row = {u: c for u, c in row.items() if c != 0}
            if row:
                pivot = max(row)
                pivots[pivot] = {u: -c / row[pivot] for u, c in row.items() if u != pivot}
        return pivots


def compact(*tensors: Tensor) -> list[Tensor]:
    """The tensors broadcast against each other, with every dimension along which all of them repeat cut to length 1."""
    together = list(torch.broadcast_tensors(*tensors))
    for dim in range(together[0].dim()):
        if all(t.stride(dim) == 0 for t in together):
            together = [t.narrow(dim, 0, min(1, t.shape[dim])) for t in together]
    return together


def elementwise(function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """function(a, b), computed without the repetitions and expanded to the broadcast shape."""
    return function(*compact(a, b)).expand(torch.broadcast_shapes(a.shape, b.shape))


def _unique_pairs(a: Tensor, b: Tensor, units: int) -> list[tuple[int, int]]:
    base = 2 * units + 1  # labels lie in (-units, units): a pair is one integer
    keys = torch.unique(a * base + b)
    seconds = (keys + units) % base - units
    return list(zip(((keys - seconds) // base).tolist(), seconds.tolist(), strict=True))


def _expand(root: int, pivots: dict[int, dict[int, float]]) -> dict[int, float]:
    if root == 0:
        return {}
    if root not in pivots:
        return {root: 1.0}
    total: dict[int, float] = {}
    for unit, factor in pivots[root].items():
        for other, c in _expand(unit, pivots).items():
            total[other] = total.get(other, 0.0) + factor * c
    return {u: c for u, c in total.items() if c != 0}
