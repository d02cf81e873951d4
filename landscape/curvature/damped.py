"""Quadratic forms of (A + c I)^-1 by Lanczos, with bounds: what soft ranks and information criteria are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.ball.vectors import dimension, norm
from landscape.curvature import stochastic
from landscape.progress import Bar

Matvec = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Forms:
    """Lanczos processes from several start vectors u: u'(A + c I)^-1 u of each, between two bounds.

    For f(x) = 1 / (x + c) all derivatives of even order are positive and all of odd order negative, so that the Gauss
    quadrature of the process is a lower bound, and the Gauss-Radau quadrature with a node at `floor`, at or below the
    smallest eigenvalue, an upper one (Golub and Meurant 2010, chapter 6). They meet as the process converges.

    Attributes:
        matrices: T of each process.
        betas: what is left of its last product.
        squares: (starts,) ||u||^2.
        products: matrix-vector products spent.
    """

    matrices: list[np.ndarray]
    betas: list[float]
    squares: np.ndarray
    products: int

    @property
    def smallest(self) -> float:
        """Smallest Ritz value; the smallest eigenvalue lies at or below it."""
        return min((float(np.linalg.eigvalsh(t)[0]) for t in self.matrices if len(t)), default=0.0)

    @property
    def largest(self) -> float:
        """Largest Ritz value."""
        return max((float(np.linalg.eigvalsh(t)[-1]) for t in self.matrices if len(t)), default=0.0)

    def inverse(self, damping: float, floor: float) -> np.ndarray:
        """(bound, starts): lower and upper bound of u'(A + damping I)^-1 u.

        Args:
            damping: c, with A + c I positive definite.
            floor: a lower bound of A's eigenvalues, above -c.
        """
        pairs = [
            (_corner(t, damping), _corner(_with_node(t, beta, floor), damping))
            for t, beta in zip(self.matrices, self.betas, strict=True)
        ]
        return np.sort(np.array(pairs).T, axis=0) * self.squares

    def rational(self, damping: float) -> float:
        """Mean over starts of the Gauss quadrature of min(x, 0) / (x + damping): the part of negative eigenvalues."""
        parts = []
        for t in self.matrices:
            values, vectors = np.linalg.eigh(t)
            below = np.minimum(values, 0.0)
            parts.append(float((vectors[:1] ** 2 * below / (below + damping)).sum()))
        return float((np.array(parts) * self.squares).mean())


def forms(
    matvec: Matvec, like: Tensor, starts: Iterable[Tensor], *, count: int, steps: int, generator: torch.Generator
) -> Forms:
    """Lanczos, `steps` products from each of `count` start vectors; fully reorthogonalized where the vectors fit.

    Without, copies of converged values appear, which share their weight: what lies between the bounds stays.

    Args:
        matvec: v -> A v.
        like: a vector with A's length, dtype and device.
        starts: the vectors u, made one at a time.
        count: how many they are.
        steps: of each process; it ends earlier where it has found an invariant subspace.
        generator: draws nothing but what continues an exhausted process.
    """
    matrices, betas, squares = [], [], []
    steps, kept = min(steps, dimension(like)), stochastic.fits(like, steps)
    with Bar("Lanczos", count * steps) as bar:
        for start in starts:
            length = float(norm(start))
            squares.append(length**2)
            t, beta = np.zeros((0, 0)), 0.0
            if length:  # a score of zeros has the form 0 for every A
                t, beta = stochastic.tridiagonal(
                    matvec, start, steps, reorthogonalize=kept, generator=generator, bar=bar
                )
            matrices.append(t)
            betas.append(beta)
    return Forms(matrices, betas, np.array(squares), sum(len(t) for t in matrices))


def _corner(t: np.ndarray, damping: float) -> float:
    """e_1'(T + damping I)^-1 e_1."""
    values, vectors = np.linalg.eigh(t)
    return float((vectors[:1] ** 2 / (values + damping)).sum())


def _with_node(t: np.ndarray, beta: float, floor: float) -> np.ndarray:
    """T with one more row, so that `floor` is an eigenvalue: the Jacobi matrix of the Gauss-Radau quadrature."""
    if beta == 0.0:  # the process is complete: Gauss is exact
        return t
    last = np.zeros(len(t))
    last[-1] = beta
    along = np.linalg.lstsq(t - floor * np.eye(len(t)), last, rcond=None)[0]
    wider = np.pad(t, (0, 1))
    wider[-2, -1] = wider[-1, -2] = beta
    wider[-1, -1] = floor + beta * along[-1]
    return wider
