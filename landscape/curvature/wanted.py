"""Which eigenpairs are wanted, how exact they must be, and the first ones that a Lanczos process gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from landscape.curvature.factorization import Factorization
from landscape.progress import Bar

ENDS = ("LA", "SA", "LM", "BE")


@dataclass(frozen=True)
class Eigenpairs:
    """Approximate eigenpairs.

    Attributes:
        values: (k,) float64; algebraically descending, for "LM" descending in magnitude.
        vectors: (k, d), rows of unit length.
        residuals: (k,) float64, ||A v - lambda v||, asymmetry of the products included, and 10 roundings of the dtype:
            an eigenvalue of A lies within this distance of `values`.
        products: matrix-vector products spent.
        converged: whether every residual is at most tol |lambda|, or `rounding` where that is more; the products are
            those of a symmetric matrix; and the look for missed eigenvalues saw no more, with a `missed_probability` of
            at most 20%.
        rounding: 20 roundings of ||A||: an eigenvalue is not known better than that, whatever `tol`.
        missed_probability: of a random start vector to hide an eigenvalue further out than the wanted ones by more than
            the tolerance, or by sqrt(d) / 20 `rounding` where that is more, if there is one; 0 where the whole space
            was seen, None where nothing was looked for.
        basis: whether a basis was kept.
    """

    values: np.ndarray
    vectors: Tensor
    residuals: np.ndarray
    products: int
    converged: bool
    rounding: float = 0.0
    missed_probability: float | None = None
    basis: bool = True


class Fence(NamedTuple):
    """sign * lambda >= level: an eigenvalue further out than the wanted ones, by more than half the tolerance.

    The other half is left to what the last wanted pair, itself known up to its residual, has mixed in of it.

    A random vector in d dimensions holds 1/sqrt(d) of an eigenvector, whose eigenvalue stands out from one rounding of
    a product wherever it is sqrt(d) times as large: `excluded` is from where on a search can prove that none exists.
    """

    sign: int
    level: float
    excluded: float


@dataclass(frozen=True)
class Request:
    """What is asked of a Lanczos process; see `landscape.curvature.krylov.lanczos`."""

    k: int
    which: str
    tol: float
    relative_to: str
    epsilon: float
    max_products: int
    room: int

    @property
    def pairs(self) -> int:
        """Number of wanted pairs."""
        return 2 * self.k if self.which == "BE" else self.k

    def rounding(self, scale: float) -> float:
        """Absolute error that the products of a matrix of norm `scale` leave in an eigenvalue."""
        return 20 * self.epsilon * max(scale, 1e-290)

    def allowed(self, values: np.ndarray, scale: float) -> np.ndarray:
        """Bound allowed for each value; rounding of the products is a floor."""
        relative = np.abs(values) if self.relative_to == "value" else np.full(len(values), scale)
        return np.maximum(self.tol * relative, self.rounding(scale))

    def bounds(self, residuals: np.ndarray, asymmetry: np.ndarray | float, scale: float) -> np.ndarray:
        """Distance within which an eigenvalue lies: residual, asymmetry and rounding of the products."""
        return np.hypot(residuals, asymmetry) + self.rounding(scale) / 2

    def met(self, values: np.ndarray, bounds: np.ndarray, scale: float) -> bool:
        """Whether every bound is allowed."""
        return bool(np.all(bounds <= (1 + 1e-6) * self.allowed(values, scale)))

    def all_but_exact(self, pairs: Eigenpairs) -> bool:
        """Whether residuals are a millionth of what is allowed: A has few different eigenvalues, which then repeat."""
        floor = pairs.rounding / 2
        allowed = self.allowed(pairs.values, pairs.rounding / (20 * self.epsilon))
        telling = allowed > 1000 * floor
        exact = pairs.residuals - floor <= np.maximum(1e-6 * allowed, floor)
        return bool(telling.any() and exact[telling].all())

    def fences(self, values: np.ndarray, scale: float, d: int) -> list[Fence]:
        """Where the wanted values of a d x d matrix end."""
        if self.which == "BE":
            upper = (len(values) + 1) // 2
            ends = [(1, values[:upper].min())] + ([(-1, -values[upper:].max())] if len(values) > upper else [])
        elif self.which == "LM":
            ends = [(sign, np.abs(values).min()) for sign in (1, -1)]
        else:
            ends = [(1, values.min())] if self.which == "LA" else [(-1, -values.max())]
        slack = [0.5 * float(self.allowed(np.array([end]), scale)[0]) for _, end in ends]
        coarse = math.sqrt(d) * self.epsilon * scale
        return [Fence(sign, end + s, end + max(s, coarse)) for (sign, end), s in zip(ends, slack, strict=True)]

    def kept(self, values: np.ndarray) -> np.ndarray:
        """For a restart: the wanted pairs and, of the rest, those nearest to the ends: half of the free room."""
        least = min(self.pairs, len(values))
        count = max(min(least + (self.room - least) // 2, self.room - 2), least)
        return np.sort(wanted(values, count // 2 if self.which == "BE" else count, self.which))

    def first(self, state: Factorization, bar: Bar) -> tuple[Eigenpairs, Tensor]:
        """The wanted pairs of one process, and the vectors of others that it knows well (m, d)."""
        while True:
            state.step()
            bar.advance()
            values, vectors, residuals = state.ritz()
            index = wanted(values, self.k, self.which)
            scale = state.scale
            room = self.allowed(values[index], scale) - self.rounding(scale) / 2
            done = len(index) >= min(self.pairs, state.dimension) and bool(np.all(residuals[index] <= room))
            if done or state.steps == state.dimension or state.products >= self.max_products:
                # More steps lower the residuals, not the asymmetry: they are not waited for.
                bounds = self.bounds(residuals[index], state.asymmetry_of(vectors[:, index]), scale)
                met = self.met(values[index], bounds, scale)
                converged = state.symmetric() and met and (done or state.steps == state.dimension)
                rows = state.basis.combined(vectors[:, index])
                pairs = Eigenpairs(values[index], rows, bounds, state.products, converged, self.rounding(scale))
                others = self._known(values, residuals, index, scale)
                return pairs, state.basis.combined(vectors[:, others])
            if state.steps == self.room:
                state.restart(self.kept(values))

    def _known(self, values: np.ndarray, residuals: np.ndarray, index: np.ndarray, scale: float) -> np.ndarray:
        """Unwanted pairs that may be deflated: an eigenvalue at a fence moves by at most r^2 / gap, half the slack."""
        inside = np.setdiff1d(np.arange(len(values)), index)
        for sign, level, _ in self.fences(values[index], scale, 1):
            edge = np.array([level])
            gap = level - sign * values[inside]
            inside = inside[residuals[inside] ** 2 <= 0.25 * self.allowed(edge, scale)[0] * np.maximum(gap, 0)]
        return inside


def wanted(values: np.ndarray, k: int, which: str) -> np.ndarray:
    """Indices of the wanted among ascending values, in the order in which they are reported."""
    n = len(values)
    if which == "LA":
        return np.arange(n)[::-1][:k]
    if which == "SA":
        return np.arange(n)[:k][::-1]
    if which == "LM":
        return np.argsort(-np.abs(values), kind="stable")[:k]
    both = min(2 * k, n)
    return np.concatenate([np.arange(n - (both + 1) // 2, n)[::-1], np.arange(both // 2)[::-1]])
