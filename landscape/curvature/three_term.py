"""Lanczos without a basis: its vectors are forgotten as they go, and made again where one is wanted.

Vectors stay in the operator's dtype; every dot, norm and entry of the projected matrix accumulates in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from landscape.ball.vectors import dot, dots, norm
from landscape.errors import InputError

if TYPE_CHECKING:
    from landscape.curvature.operators import Operator

COLUMNS = 2**20
"""Entries of each vector that become float64 at once."""


class ThreeTerm:
    """beta_j+1 v_j+1 = A v_j - alpha_j v_j - beta_j v_j-1, in the complement of locked vectors.

    Two vectors are held; the product takes the place of the older one. Orthogonality is lost along a Ritz vector once
    that has converged to half of the digits (Paige 1980): the recurrence holds all the same, an eigenvalue lies within
    its residual of a Ritz value, and copies of one that converged long ago are the only harm. From there on a second
    run repeats the first one only where products repeat bit for bit.

    Args:
        operator: A.
        start: draws the first vector, the same at every call, and gives it away.
        locked: (m, d) orthonormal rows.
        scale: a lower bound of ||A||, known before the first step.
    """

    def __init__(self, operator: Operator, start: Callable[[], Tensor], locked: Tensor, scale: float = 0.0) -> None:
        self._operator, self._start, self._locked = operator, start, locked
        self._epsilon = torch.finfo(operator.like.dtype).eps
        self.alphas, self.betas = list[float](), list[float]()
        self.scale, self.products, self.exhausted = scale, 0, False
        self._vector: Tensor | None = self._first()
        self._last: Tensor | None = None

    def step(self) -> None:
        """One product; afterwards T has one more row."""
        v, last = self._vector, self._last
        assert v is not None
        w = self._product(v, last, self.betas[-1] if self.betas else 0.0)
        alpha = float(dot(w, v))
        w.add_(v, alpha=-alpha)
        self._deflate(w)
        beta = float(norm(w))
        if not math.isfinite(alpha + beta):
            raise InputError(
                "a Hessian-vector product is not finite: the derivatives overflow; use float64 or check the loss"
            )
        self.alphas.append(alpha)
        self.betas.append(beta)
        self.scale = max(self.scale, abs(alpha), beta)
        self.exhausted = beta <= 100 * self._epsilon * self.scale or beta == 0
        self._last, self._vector = v, w if beta == 0 else w.div_(beta)

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvalues of T ascending, their eigenvectors (columns) and residuals |beta s_last|."""
        beside = np.array(self.betas[:-1])
        values, vectors = np.linalg.eigh(np.diag(self.alphas) + np.diag(beside, 1) + np.diag(beside, -1))
        self.scale = max(self.scale, float(np.abs(values).max()))
        return values, vectors, np.abs(self.betas[-1] * vectors[-1])

    def combine(self, s: np.ndarray, result: Tensor) -> None:
        """Write sum_j s_j v_j, of unit length, to `result`: the process over again, which then has no more steps."""
        self._vector = self._last = None
        result.zero_()
        v, last = self._first(), None
        for j, weight in enumerate(s.tolist()):
            result.add_(v, alpha=weight)
            if j + 1 < len(s):
                w = self._product(v, last, self.betas[j - 1] if j else 0.0)
                w.add_(v, alpha=-self.alphas[j])
                self._deflate(w)
                v, last = w.div_(self.betas[j]), v
        self._deflate(result)
        result.div_(norm(result))

    def chance(self, x: float) -> float:
        """Probability that the process has overlooked an eigenvalue x of A that lies outside all Ritz values, if any.

        Its unit eigenvector u has <u, v_j> = p_j(x) <u, v_1>, p_j the Lanczos polynomials, whatever orthogonality is
        left, and none of these is above 1: <u, v_1> is at most 1 / max_j |p_j(x)|. See `Factorization.chance`.
        """
        if self.scale == 0:
            return 0.0
        before, now, most = 0.0, 1.0, 1.0
        betas = [0.0, *self.betas[:-1], max(self.betas[-1], 0.1 * self._epsilon * self.scale)]
        for j, alpha in enumerate(self.alphas):
            before, now = now, ((x - alpha) * now - betas[j] * before) / betas[j + 1]
            most = max(most, abs(now))
            if most > 1e100:
                break
        dimension = self._operator.dimension - len(self._locked)
        return math.erf(math.sqrt(dimension / 2) / most)

    def _first(self) -> Tensor:
        v = self._start()
        self._deflate(v)
        self._deflate(v)
        return v.div_(norm(v))

    def _product(self, v: Tensor, last: Tensor | None, beta: float) -> Tensor:
        """A v, or A v - beta last in the place of `last`."""
        self.products += 1
        if last is None:
            w = product(self._operator, v)
        else:
            w = last.mul_(-beta)
            self._operator.accumulate(w, v)
        self._deflate(w)
        return w

    def _deflate(self, vector: Tensor) -> None:
        if len(self._locked):
            vector.addmv_(self._locked.mT, dots(self._locked, vector, COLUMNS).to(vector.dtype), alpha=-1.0)


def product(operator: Operator, v: Tensor) -> Tensor:
    """A v, which may be overwritten: no copy is made of what an operator hands out, but where it hands out v."""
    w = operator.matvec(v).to(operator.like)
    return w.clone() if w.data_ptr() == v.data_ptr() else w
