"""Eigenvalues that one start vector cannot show: copies of a repeated one, clusters, and what lies at right angles.

A Krylov space holds one vector of every eigenspace, so its residuals say nothing of a second copy, and a space that is
exhausted says nothing of the rest. The search deflates what is known and starts over from an independent random
vector; what it has not found, it has overlooked with a probability that its own coefficients bound
(`Factorization.chance`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from landscape import random
from landscape.ball.spread import plain, spread_of
from landscape.ball.vectors import dimension, dot, norm
from landscape.curvature.basis import Basis
from landscape.curvature.factorization import Factorization
from landscape.curvature.wanted import Eigenpairs, Fence, Request, wanted
from landscape.errors import InputError
from landscape.progress import Bar

if TYPE_CHECKING:
    from landscape.curvature.operators import Operator

USUAL = 0.2
"""Probability of missing one at which a look ends: above a network's bulk after 1 to 4 products. A fixed number of
products would not do: where eigenvalues are dense, as at the lower end, a few of them see nothing at all."""
CHANCE = 1e-5
"""The same of a thorough look."""
SMALL = 500
"""Dimension up to which every look is thorough: products cost little, and small models repeat eigenvalues."""


@dataclass(frozen=True)
class Search:
    """A search for missed eigenpairs.

    Args:
        request: what is wanted.
        operator: A.
        generator: draws start vectors.
        scale: ||A|| as far as known.
        bar: shows the products.
        device: where bases live, and the pairs while they are looked at; None is the device of A's vectors.
    """

    request: Request
    operator: Operator
    generator: torch.Generator
    scale: float
    bar: Bar
    device: torch.device | None = None

    def completed(self, pairs: Eigenpairs, others: Tensor, thorough: bool) -> Eigenpairs:
        """The pairs with what they miss, looked for until a look sees nothing.

        Args:
            pairs: as a first process found them.
            others: (m, d) vectors that are known not to be wanted.
            thorough: look until the probability of missing one is below `CHANCE` instead of `USUAL`.
        """
        enough = CHANCE if thorough or self.operator.dimension <= SMALL else USUAL
        while pairs.converged:
            locked = self._basis(pairs.vectors, others)
            if locked.size == self.operator.dimension:
                return replace(pairs, missed_probability=0.0)
            if self._left(pairs) < 1:
                return replace(pairs, converged=False)
            state = self._process(locked)
            fences = self.request.fences(pairs.values, self.scale, self.operator.dimension)
            chance = self._look(state, fences, enough, self._left(pairs))
            pairs = replace(pairs, products=pairs.products + state.products)
            if chance is not None:
                return replace(pairs, missed_probability=chance, converged=chance <= enough)
            enough = CHANCE
            seen = self._beyond(state, fences)[1]
            start = plain(seen).sum(dim=0).as_subclass(type(self.operator.like))
            pairs, dropped = self._with_missed(pairs, fences, start)
            others = torch.cat([others, dropped])
        return pairs

    def _left(self, pairs: Eigenpairs) -> int:
        return self.request.max_products - pairs.products

    def _process(self, locked: Basis, start: Tensor | None = None) -> Factorization:
        operator = self.operator
        return Factorization(
            operator.matvec, operator.like, self.generator, start, locked, self.scale, operator.cause, self.device
        )

    def _basis(self, vectors: Tensor, others: Tensor) -> Basis:
        basis = Basis(self.operator.like, self.device)
        for i, vector in enumerate([*vectors, *others]):
            rest = vector.clone()
            basis.orthogonalize(rest)
            length = norm(rest)
            # Of the others only those are deflated that the pairs leave as they are.
            if i < len(vectors) or float(length) > 0.99:
                basis.append(rest.div_(length))
        return basis

    def _look(self, state: Factorization, fences: list[Fence], enough: float, products: int) -> float | None:
        """Probability that an eigenvalue beyond a fence is overlooked; None as soon as there is one."""
        while True:
            self._step(state)
            if len(self._beyond(state, fences)[0]):
                return None
            chance = max(state.chance(sign * excluded) for sign, _, excluded in fences)
            if chance <= enough or state.products >= products:
                return chance

    def _step(self, state: Factorization) -> None:
        if state.steps == self.request.room:
            state.restart(self.request.kept(state.ritz()[0]))
        state.step()
        self.bar.advance()

    def _beyond(self, state: Factorization, fences: list[Fence]) -> tuple[np.ndarray, Tensor]:
        """Columns of the Ritz vectors beyond a fence, and the vectors."""
        values, vectors, _ = state.ritz()
        index = np.flatnonzero(np.any([sign * values >= level for sign, level, _ in fences], axis=0))
        index = index[wanted(values[index], self.request.k, self.request.which)]
        return index, state.basis.combined(vectors[:, index])

    def _with_missed(self, pairs: Eigenpairs, fences: list[Fence], start: Tensor) -> tuple[Eigenpairs, Tensor]:
        """The wanted among the pairs and those beyond the fences, and the vectors that are no longer wanted."""
        state = self._process(self._basis(pairs.vectors, start[:0].reshape(0, len(start))), start)
        products = self._left(pairs)
        while True:
            self._step(state)
            index, rows = self._beyond(state, fences)
            values, vectors, residuals = state.ritz()
            settled = state.steps == state.dimension
            settled |= len(index) > 0 and bool(
                np.all(residuals[index] <= 0.5 * self.request.allowed(values[index], self.scale))
            )
            if settled or state.products >= products:
                break
        bounds = self.request.bounds(residuals[index], state.asymmetry_of(vectors[:, index]), self.scale)
        extra = Eigenpairs(values[index], rows, bounds, state.products, settled and state.symmetric())
        return self._merged(pairs, extra, state.coupling(vectors[:, index]))

    def _merged(self, pairs: Eigenpairs, extra: Eigenpairs, coupling: np.ndarray) -> tuple[Eigenpairs, Tensor]:
        """Rayleigh-Ritz on both: two vectors of a cluster are told apart only together."""
        matrix = np.diag(np.concatenate([pairs.values, extra.values]))
        k = len(pairs.values)
        matrix[:k, k:], matrix[k:, :k] = coupling, coupling.T
        values, q = np.linalg.eigh(matrix)
        # What the coupling explains of the pairs' residuals is no longer an error.
        explained = np.sqrt(np.maximum(pairs.residuals**2 - (coupling**2).sum(axis=1), 0))
        floor = self.request.rounding(self.scale) / 2
        rests = np.maximum(np.concatenate([explained, extra.residuals]) - floor, 0)
        bounds = np.abs(q).T @ rests + floor
        index = wanted(values, self.request.k, self.request.which)
        rest = np.setdiff1d(np.arange(len(values)), index)
        both, like = plain(torch.cat([pairs.vectors, extra.vectors])).double(), self.operator.like
        parts = [(torch.from_numpy(q[:, i].T.copy()).to(both) @ both).to(like.dtype) for i in (index, rest)]
        rows = [part.as_subclass(type(like)) for part in parts]
        merged = replace(
            pairs,
            values=values[index],
            vectors=rows[0],
            residuals=bounds[index],
            products=pairs.products + extra.products,
            converged=extra.converged and self.request.met(values[index], bounds[index], self.scale),
        )
        return (merged if merged.converged or not extra.converged else self._measured(merged)), rows[1]

    def _measured(self, pairs: Eigenpairs) -> Eigenpairs:
        """The pairs with their residuals from a product each: what a rotation bounds is often far smaller."""
        values, residuals = pairs.values.copy(), pairs.residuals.copy()
        allowed = self.request.allowed(values, self.scale)
        failing = np.flatnonzero(residuals > allowed)[: self._left(pairs)]
        for i in failing:
            v = pairs.vectors[i].to(self.operator.like.device)
            product = self.operator.matvec(v)
            values[i] = float(dot(v, product) / dot(v, v))
            residuals[i] = float(norm(product - values[i] * v)) + self.request.rounding(self.scale) / 2
            self.bar.advance()
        return replace(
            pairs,
            values=values,
            residuals=residuals,
            products=pairs.products + len(failing),
            converged=self.request.met(values, residuals, self.scale),
        )


def mixed(vectors: Tensor, like: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """The sum of some vectors and a random one of `share` of its length: no eigenvector is shut out."""
    rows, spread = vectors.reshape(-1, vectors.shape[-1]).to(like.device, like.dtype), spread_of(like)
    if spread is not None and spread_of(rows) is None and rows.shape[1] == spread.length:
        rows = torch.stack([spread.here(row) for row in rows])
    if rows.shape[1] != like.numel() or spread_of(rows) is not spread:
        raise InputError(f"start vectors must have length d = {dimension(like)}, received shape {tuple(vectors.shape)}")
    total = rows[0] if len(rows) == 1 else plain(rows).sum(dim=0).as_subclass(type(like))
    noise = random.normal(like, generator)
    norms = [norm(x) for x in (total, noise)]
    if not bool(norms[0] > 0):
        return noise
    return noise.mul_(share / norms[1]).add_(total, alpha=float(1 / norms[0]))
