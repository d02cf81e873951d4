"""Features that an orthogonal map, or a signed permutation, may pass through: matched as a whole.

The map comes from the inner products C = sum R1 R2' of the rows of two networks: for orthogonal maps the polar factor
of C (Procrustes), for signed permutations an assignment of |C|. What the gains of norms scale is compared with the
gains folded into the layers that read them; then the second network takes over the first one's gains.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from landscape.invariance.feature_spaces import FeatureSpace, Norm
from landscape.surfaces.matching.units import random_cycle

Named = dict[str, Tensor]
_SMALLEST_GAIN = 1e-6
"""Of the largest one: a gain below it could not be divided by."""


@dataclass(frozen=True)
class FeatureGroup:
    """One space of features, and the gains that its norms have in the network that gives the coordinates.

    Attributes:
        space: what passes through.
        gains: parameter -> gain in the first network.
    """

    space: FeatureSpace
    gains: Named

    @property
    def name(self) -> str:
        """The parameter that comes first."""
        return self.space.name

    @property
    def units(self) -> int:
        """The number of features."""
        return self.space.size

    def tensors(self) -> set[str]:
        """Names of what a map changes."""
        return self.space.tensors()

    def random(self, tensors: Named, generator: torch.Generator) -> Named:
        """The tensors with the features mapped by a random member that moves them all, and turns the sign it may."""
        n = self.units
        if not self.space.orthogonal:
            order = torch.from_numpy(random_cycle(n, generator))
            signs = 2.0 * torch.randint(0, 2, (n,), generator=generator).double() - 1
            signs[0] = -1.0
            return self.mapped(tensors, torch.eye(n, dtype=torch.float64)[order] * self._allowed(signs)[:, None])
        c = torch.randn(n, n, generator=generator, dtype=torch.float64)
        c = -c if c.sum() > 0 else c  # the sign of the vector of ones
        return self.mapped(tensors, self._procrustes(c, complete=False))

    def matched(self, first: Named, second: Named, *, without: Collection[str] = ()) -> tuple[Named, int]:
        """The second tensors with the features mapped to the first's, and how many moved (all, where they are turned).

        Args:
            first: tensors of the network that gives the coordinates.
            second: tensors that are mapped.
            without: names that have no say, since other maps reach them too.
        """
        c = torch.zeros(self.units, self.units, dtype=torch.float64)
        for name, (a, b) in self._rows(first, second):
            if name not in without:
                c += (a @ b.mT).cpu()
        if self.space.orthogonal:
            q = self._procrustes(c, complete=True)
            return self.mapped(second, q), self.units if not torch.allclose(q, torch.eye(self.units).double()) else 0
        signed, weights = self.space.signs == "each", np.zeros((self.units, self.units))
        for name in self.space.gains:
            weights += torch.outer(first[name].double(), second[name].double()).cpu().numpy()
        best: tuple[float, Tensor] | None = None
        for sign in (1.0, -1.0) if self.space.signs == "common" else (1.0,):
            scores = weights + (c.abs() if signed else sign * c).numpy()
            order = torch.from_numpy(linear_sum_assignment(scores, maximize=True)[1])
            score = float(scores[np.arange(self.units), order].sum())
            chosen = c[torch.arange(self.units), order]
            signs = torch.where(chosen < 0, -1.0, 1.0) if signed else torch.full((self.units,), sign)
            if best is None or score > best[0]:
                best = score, torch.eye(self.units, dtype=torch.float64)[order] * signs.double()[:, None]
        assert best is not None
        kept = torch.diagonal(best[1]) == 1
        return self.mapped(second, best[1]), int((~kept).sum())

    def mapped(self, tensors: Named, q: Tensor) -> Named:
        """The tensors with the features mapped by q (size, size), the gains of norms those of the first network."""
        moved = dict(tensors)

        def turn(name: str, axis: int, before: Tensor | float = 1.0, after: Tensor | float = 1.0) -> None:
            tensor = moved[name].movedim(axis, 0)
            rows = tensor.reshape(self.units, -1).double()
            turned = after * (q.to(rows) @ (before * rows))
            moved[name] = turned.reshape(tensor.shape).movedim(0, axis).contiguous()

        for name, axis in self.space.members:
            turn(name, axis)
        for name in self.space.gains:
            moved[name] = q.abs().to(moved[name].device) @ moved[name].double()
        for norm in self.space.norms:
            mine, theirs = self._gains(norm, tensors)
            for name, axis in norm.readers:
                turn(name, axis, theirs, 1 / mine)
            if norm.bias:
                turn(norm.bias, 0, 1 / theirs, mine)
            if norm.gain:
                moved[norm.gain] = self.gains[norm.gain].to(moved[norm.gain]).clone()
        return moved

    def foldable(self, tensors: Named) -> bool:
        """Whether every gain, the first network's and these, can be divided by."""
        names = [norm.gain for norm in self.space.norms if norm.gain]
        gains = [t.abs() for name in names for t in (tensors[name], self.gains[name])]
        return all(bool(g.min() > _SMALLEST_GAIN * g.max()) for g in gains)

    def _gains(self, norm: Norm, tensors: Named) -> tuple[Tensor | float, Tensor | float]:
        if norm.gain is None:
            return 1.0, 1.0
        return tuple(t[norm.gain].double()[:, None] for t in (self.gains, tensors))  # type: ignore[return-value]

    def _rows(self, first: Named, second: Named) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """(name, the rows (size, n) of both networks), gains of norms folded into what reads them."""

        def rows(tensors: Named, name: str, axis: int, factor: Tensor | float) -> Tensor:
            return factor * tensors[name].movedim(axis, 0).reshape(self.units, -1).double()

        for name, axis in self.space.members:
            yield name, (rows(first, name, axis, 1.0), rows(second, name, axis, 1.0))
        for norm in self.space.norms:
            mine, theirs = self._gains(norm, second)
            for name, axis in norm.readers:
                yield name, (rows(first, name, axis, mine), rows(second, name, axis, theirs))
            if norm.bias:
                yield norm.bias, (rows(first, norm.bias, 0, 1 / mine), rows(second, norm.bias, 0, 1 / theirs))

    def _allowed(self, signs: Tensor) -> Tensor:
        kinds = {"none": torch.ones_like(signs), "common": signs[:1].expand_as(signs), "each": signs}
        return kinds[self.space.signs]

    def _procrustes(self, c: Tensor, *, complete: bool) -> Tensor:
        """The orthogonal map of the group with the largest tr Q'C."""
        if not self.space.centered:
            return polar(c, complete=complete)
        n = self.units
        ones = torch.full((n, 1), n**-0.5, dtype=torch.float64)
        basis = torch.linalg.qr(torch.cat([ones, torch.eye(n, n - 1, dtype=torch.float64)], 1)).Q[:, 1:]
        sign = -1.0 if float(ones.mT @ c @ ones) < 0 else 1.0
        return basis @ polar(basis.mT @ c @ basis, complete=complete) @ basis.mT + sign * ones @ ones.mT


def polar(c: Tensor, *, complete: bool = True) -> Tensor:
    """The orthogonal matrix Q with the largest tr Q'C, the polar factor of C.

    Args:
        c: (n, n).
        complete: where C has not full rank, let Q be as near to the identity there as it can.
    """
    left, sigma, right = torch.linalg.svd(c)
    rank = int((sigma > 1e-10 * sigma[:1].clamp(min=torch.finfo(c.dtype).tiny)).sum())
    if not complete or rank == len(c):
        return left @ right
    inner = left[:, rank:].mT @ right[rank:].mT
    a, _, b = torch.linalg.svd(inner)
    return left[:, :rank] @ right[:rank] + left[:, rank:] @ a @ b @ right[rank:]
