"""The Lanczos process itself: one product per step, and what the steps say of A, seen and unseen.

Vectors stay in the operator's dtype; every dot, norm and entry of the projected matrix accumulates in float64.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from landscape import random
from landscape.ball.vectors import dimension, norm
from landscape.curvature.basis import BLOCK, Basis
from landscape.errors import AsymmetryWarning, InputError

Matvec = Callable[[Tensor], Tensor]
_SYMMETRIC = 0.01
"""Asymmetry up to which products count as a symmetric matrix's, relative to its norm. Measured: 1e-7 by double backward
in float32, up to 2e-3 by central differences of smooth networks, 0.1 and more with kinks; 0.05 with a wrong one."""


def wrong_derivative() -> str:
    """Why products by double backward are not those of a symmetric matrix."""
    return (
        "by double backward: an operation of the model has a wrong second derivative, or rounding is above the "
        "curvature that there is (float64 tells)"
    )


def symmetric(asymmetry: float, scale: float, cause: Callable[[], str]) -> bool:
    """Whether products are those of a symmetric matrix of norm `scale`; warns where they are not."""
    relative = asymmetry / max(scale, 1e-300)
    if relative > _SYMMETRIC:
        warnings.warn(
            f"the products are not those of a symmetric matrix (relative asymmetry {relative:.2g}), "
            f"{cause()}; neither values nor bounds can be trusted",
            AsymmetryWarning,
            stacklevel=2,
        )
    return bool(relative <= _SYMMETRIC)


def joint(chances: Sequence[float]) -> float:
    """Probability that independent random vectors all overlook as much as by these probabilities of each.

    The product c of n such numbers is below a level far more often than that says: sum_k<n (-ln c)^k / k! times as
    often (Fisher 1932), since where an eigenvalue is overlooked each of them is spread evenly between 0 and 1.
    """
    if not min(chances, default=1.0) > 0:
        return 0.0
    s = max(-sum(math.log(chance) for chance in chances), 0.0)
    counted = torch.tensor([max(len(chances), 1), s], dtype=torch.float64)
    return float(torch.special.gammaincc(counted[0], counted[1]))


class _Chapter(NamedTuple):
    """Steps from one start vector (`ended`) or up to a restart: T, beta, and the index of their first vector."""

    t: np.ndarray
    beta: float
    first: int
    ended: bool


class Factorization:
    """A V = V (T + E) + beta v_next e_last': the state of a Lanczos process with full reorthogonalization.

    `steps` is the order of the projected matrix T, `beta` the norm of what is left of the last product. E is rounding
    where A is symmetric; `asymmetry` is ||E||_F, known for nothing: reorthogonalizing computes V'A V whole, of which T
    takes one half. A wrong second derivative shows here. `asymmetry_of` is what a single Ritz vector has of it.

    Args:
        matvec: v -> A v, A symmetric.
        like: a vector with the length, dtype and device of A's.
        generator: draws start vectors.
        start: first vector (default: random).
        locked: vectors that are deflated: the process runs in their orthogonal complement.
        scale: a lower bound of ||A||, known before the first step: products round at eps times it.
        cause: why the products may not be those of a symmetric matrix, in words.
        device: where the basis lives; None is the device of `like`.
    """

    def __init__(
        self,
        matvec: Matvec,
        like: Tensor,
        generator: torch.Generator,
        start: Tensor | None = None,
        locked: Basis | None = None,
        scale: float = 0.0,
        cause: Callable[[], str] = wrong_derivative,
        device: torch.device | None = None,
    ) -> None:
        self._matvec, self._like, self._generator, self._locked = matvec, like, generator, locked
        self._cause = cause
        self.dimension = dimension(like) - (locked.size if locked is not None else 0)
        self.basis = Basis(like, device)
        self.t, self._e = np.zeros((BLOCK, BLOCK)), np.zeros((BLOCK, BLOCK))
        self._before_restarts = np.zeros((0, 0))
        self.beta, self.asymmetry, self.products, self.scale = 0.0, 0.0, 0, scale
        self.steps = 0
        self.exhausted = False
        self._first, self._chapters = 0, list[_Chapter]()
        self._couplings: list[Tensor] = []
        self._epsilon = torch.finfo(like.dtype).eps
        self.basis.append(self._fresh(start))

    def step(self) -> None:
        """One product and its orthogonalization; afterwards T has one more row."""
        j = self.steps
        # A copy: the operator may hand out a tensor that it still needs.
        vector = self._matvec(self.basis[j]).to(self._like, copy=True)
        self.products += 1
        if self._locked is not None:
            self._couplings.append(self._locked.orthogonalize(vector))
        coefficients = self.basis.orthogonalize(vector)
        if self._locked is not None:
            self._locked.orthogonalize(vector)
        length = norm(vector)
        *above, alpha, self.beta = torch.cat([coefficients, length[None]]).tolist()
        if not np.isfinite(alpha + self.beta):
            raise InputError(
                "a Hessian-vector product is not finite: the derivatives overflow; use float64 or check the loss"
            )
        if j == self.t.shape[0] - 1:
            self.t, self._e = (np.pad(matrix, (0, BLOCK)) for matrix in (self.t, self._e))
        self.t[j, j] = alpha
        self._e[:j, j] = above - self.t[:j, j]
        self.asymmetry = float(np.hypot(self.asymmetry, np.linalg.norm(self._e[:j, j])))
        self.steps += 1
        self.scale = max(self.scale, float(np.abs(self.t).max()))
        if self.steps == self.dimension:
            self.beta = 0.0
            return
        self.exhausted |= self.beta <= 100 * self._epsilon * self.scale
        if self.beta <= self._epsilon * self.scale or self.beta == 0.0:
            self._begin_anew()
            return
        self.t[j, j + 1 : j + 2] = self.t[j + 1 : j + 2, j] = self.beta
        vector.div_(self.beta)
        # What little is left is at right angles to the basis only after it has got its length.
        self.basis.append(self._fresh(vector) if self.exhausted else vector)

    def _begin_anew(self) -> None:
        """An invariant subspace: go on in its complement, where further copies of an eigenvalue live."""
        left = max(self.beta, 0.1 * self._epsilon * self.scale)
        self._chapters.append(_Chapter(self.t[: self.steps, : self.steps].copy(), left, self._first, True))
        self.beta, self._first = 0.0, self.steps
        self.basis.append(self._fresh(None))

    def symmetric(self) -> bool:
        """Whether A is symmetric, as far as the products tell; warns where it is not (AsymmetryWarning)."""
        return symmetric(self.asymmetry, self.scale, self._cause)

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvalues of T ascending, their eigenvectors (columns) and residual bounds |beta s_last|."""
        values, vectors = np.linalg.eigh(self.t[: self.steps, : self.steps])
        self.scale = max(self.scale, float(np.abs(values).max()))
        return values, vectors, np.abs(self.beta * vectors[-1])

    def asymmetry_of(self, vectors: np.ndarray) -> np.ndarray:
        """||E s|| and ||E's|| together, (m,), for combinations s of the basis, (steps, m).

        The first is what E adds to the residual of a Ritz vector, far less than `asymmetry` after many steps, each of
        which rounds. What was before a restart is kept as a matrix whose products have these lengths.
        """
        return np.linalg.norm(self._asymmetries(vectors), axis=0)

    def _asymmetries(self, vectors: np.ndarray) -> np.ndarray:
        e, before = self._e[: self.steps, : self.steps], self._before_restarts
        return np.vstack([before @ vectors[: before.shape[1]], e @ vectors, e.T @ vectors])

    def coupling(self, vectors: np.ndarray) -> np.ndarray:
        """<locked, A v> of combinations of the basis, (steps, m) -> (locked, m): what deflation leaves out of A v."""
        return torch.stack(self._couplings, dim=1).cpu().numpy() @ vectors

    def chance(self, x: float) -> float:
        """Probability that the process has overlooked an eigenvalue x of A that lies outside all Ritz values, if any.

        For its unit eigenvector u, u'V (x - T) = beta <u, v_next> e_last' gives <u, v_j> for all j up to one factor,
        and their squares sum to at most 1: <u, v_1> is at most 1/sqrt(sum_j p_j(x)^2), p_j the Lanczos polynomials
        (Christoffel's bound on the mass at x of a measure with these moments). A random v_1 of d entries lies that
        nearly at right angles to u with a probability of erf(|<u, v_1>| sqrt(d / 2)). Start vectors are independent,
        see `joint`.
        """
        if self.steps == self.dimension or self.scale == 0:
            return 0.0
        now = _Chapter(self.t[: self.steps, : self.steps], self.beta, self._first, True)
        chances, gain = list[float](), 1.0
        for t, beta, first, ended in [*self._chapters, now]:
            if first < len(t):
                last = np.zeros(len(t))
                last[-1] = beta
                along = np.linalg.solve(x * np.eye(len(t)) - t, last)
                gain *= abs(along[first]) / (math.sqrt(1 + along @ along) if ended else 1.0)
            if ended:
                chances.append(math.erf(gain * math.sqrt(self.dimension / 2)))
                gain = 1.0
        return joint(chances)

    def restart(self, keep: np.ndarray) -> None:
        """Thick restart: keep the Ritz pairs at these indices, and the next vector."""
        values, vectors, _ = self.ritz()
        self._chapters.append(_Chapter(self.t[: self.steps, : self.steps].copy(), self.beta, self._first, False))
        coupling = self.beta * vectors[-1, keep]
        self.basis.replace(vectors[:, keep], self.basis[self.steps])
        if self._couplings:
            rows = torch.from_numpy(self.coupling(vectors[:, keep])).to(self._couplings[0])
            self._couplings = list(rows.mT)
        size = len(keep)
        self._before_restarts = np.linalg.qr(self._asymmetries(vectors[:, keep]))[1]
        self.t = np.zeros((max(BLOCK, -(-(size + 2) // BLOCK) * BLOCK),) * 2)
        self._e = np.zeros(self.t.shape)
        self.t[np.arange(size), np.arange(size)] = values[keep]
        self.t[:size, size] = self.t[size, :size] = coupling
        self.steps = self._first = size

    def _fresh(self, start: Tensor | None) -> Tensor:
        vector = random.normal(self._like, self._generator) if start is None else start.to(self._like).clone()
        for basis in (self._locked, self.basis, self._locked, self.basis):
            if basis is not None and basis.size:
                basis.orthogonalize(vector)
        length = norm(vector)
        if start is not None and not float(length) > 0:
            return self._fresh(None)
        return vector.div_(length)
