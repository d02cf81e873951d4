"""Traces, diagonals and spectral densities of symmetric operators from random probes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape import random
from landscape.ball.vectors import dimension, dot, least, norm, square_sums, sums, unit
from landscape.curvature.basis import Basis
from landscape.curvature.factorization import Factorization
from landscape.errors import InputError
from landscape.problem.memory import free_memory
from landscape.progress import Bar
from landscape.statistics import allowance

Matvec = Callable[[Tensor], Tensor]
_LEAST = 16
"""Probes before a target may end the estimate: an early end on agreement by luck has a chance of 2^(1 - probes)."""
_SHARE_OF_FREE = 0.25
"""Of the memory, for vectors that are kept."""
_REST = 4
"""Probes that a sketch leaves: two that see a rest of rank 1 know too little of their own error."""
_USUAL = 0.25
"""Relative variance of ||Az||^2 that is assumed beside the one seen, with the weight of one probe."""


@dataclass(frozen=True)
class TraceEstimate:
    """Estimate of a trace, and of those of the diagonal blocks, from the same products.

    Attributes:
        value: the trace.
        stderr: its standard error, widened for the few probes that it rests on: value +- 1.96 stderr is a 95% interval.
        blocks: (b,) traces of the diagonal blocks; they sum to `value`.
        block_stderr: (b,) the same for them; up to 1.41 times too large where a block is coupled to others.
        diagonal: (d,) estimate of the diagonal, where it was asked for.
        products: matrix-vector products spent.
        rank: of the sketch; 0 without one.
        all_units: whether the products sufficed for all d unit vectors: nothing was sampled.
    """

    value: float
    stderr: float
    blocks: np.ndarray
    block_stderr: np.ndarray
    diagonal: Tensor | None
    products: int
    rank: int = 0
    all_units: bool = False

    @property
    def method(self) -> str:
        """What was done, which the number of products decides."""
        return "unit vectors" if self.all_units else "hutch++" if self.rank else "hutchinson"


def trace(
    matvec: Matvec,
    like: Tensor,
    *,
    probes: int = 100,
    sketch: bool = True,
    target: float | None = None,
    blocks: Sequence[int] | None = None,
    diagonal: bool = False,
    generator: torch.Generator,
) -> TraceEstimate:
    """Trace of A from at most `probes` products with Rademacher vectors.

    Hutchinson: the mean of z'Az. Hutch++ (`sketch`): a third of the products finds an orthonormal basis Q of A's
    dominant range, a third computes A Q, which gives that part exactly, and only the rest, (I - QQ')A(I - QQ'), is
    estimated: the error falls with 1/products instead of 1/sqrt(products).
    Q and A Q take at most a quarter of the free memory; a smaller sketch leaves more to the probes, which are 4 at
    least: fewer than 6 products leave no sketch. Where `probes` suffice for all d unit vectors (with a target: where
    d <= 16), these are taken instead, and the trace is exact.
    The standard error covers the estimated part; after 16 probes they stop once it is below target |value|. It is not
    the scatter of z'Az, which a few probes can share by luck, but comes from the entries y = z * Az, whose variances
    s_i^2 sum to half of that of z'Az: 2 sum_i s_i^2, never below the 2^(1 - probes) of its bound 2 ||A||_F^2.

    Args:
        matvec: v -> A v.
        like: a vector with A's length, dtype and device.
        probes: products allowed.
        sketch: Hutch++ instead of Hutchinson.
        target: relative standard error to stop at.
        blocks: lengths of consecutive diagonal blocks (default: one).
        diagonal: also estimate the diagonal.
        generator: draws the probes.

    Source: Hutchinson 1990; Meyer, Musco, Musco and Woodruff 2021 (arXiv 2010.09649).
    """
    check(probes, target)
    lengths = list(blocks or [like.numel()])
    if dimension(like) <= (probes if target is None else min(probes, _LEAST)):
        return _from_unit_vectors(matvec, like, lengths, diagonal=diagonal)
    rank = min((probes - 1) // 3, (probes - _REST) // 2, dimension(like), _room(like)) if sketch else 0
    with Bar("trace", probes) as bar:
        low = _LowRank.of(matvec, like, rank, generator, bar)
        known = low.block_traces(lengths) if low else torch.zeros(len(lengths), dtype=torch.float64)
        total = low.diagonal() if low and diagonal else torch.zeros_like(like)
        samples: list[Tensor] = []
        squares: list[Tensor] = []
        estimated = torch.zeros_like(like)
        for _ in range(max(probes - 2 * rank, 2)):
            z = random.rademacher(like, generator)
            product = _projected(matvec, z, low) * z
            estimated += product
            samples.append(sums(product, lengths))
            squares.append(square_sums(product, lengths))
            bar.advance()
            if target is not None and len(samples) >= _LEAST:
                value, (error, _) = (
                    known.sum() + torch.stack(samples).sum(1).mean(),
                    _errors(squares, estimated, lengths),
                )
                if error <= target * float(value.abs()):
                    break
    values = (known + torch.stack(samples).mean(0)).cpu()
    stderr, block_stderr = _errors(squares, estimated, lengths)
    return TraceEstimate(
        value=float(values.sum()),
        stderr=stderr,
        blocks=values.numpy(),
        block_stderr=block_stderr,
        diagonal=total + estimated / len(samples) if diagonal else None,
        products=2 * rank + len(samples),
        rank=rank,
    )


class _LowRank:
    """Orthonormal Q (rows) near the dominant range of A, and A Q."""

    def __init__(self, q: Basis, images: list[Tensor]) -> None:
        self.q, self.images = q, images
        self.small = torch.stack([q.dots(y) for y in images])  # M = Q'AQ

    @classmethod
    def of(cls, matvec: Matvec, like: Tensor, rank: int, generator: torch.Generator, bar: Bar) -> _LowRank | None:
        if not rank:
            return None
        q = Basis(like)
        for _ in range(rank):
            vector = matvec(random.rademacher(like, generator)).to(like, copy=True)
            before = norm(vector)
            q.orthogonalize(vector)
            length = norm(vector)
            bar.advance()
            # What is left is rounding: the range is exhausted. Any direction serves, in exact arithmetic.
            if not float(length) > 100 * torch.finfo(like.dtype).eps * float(before):
                vector = random.normal(like, generator)
                q.orthogonalize(vector)
                q.orthogonalize(vector)
                length = norm(vector)
            q.append(vector.div_(length))
        images = []
        for i in range(rank):
            images.append(matvec(q[i]).to(like, copy=True))
            bar.advance()
        return cls(q, images)

    def _terms(self):  # type: ignore[no-untyped-def]
        """A - (I - QQ')A(I - QQ') = QQ'A + AQQ' - QMQ': the entries of its diagonal, one term a vector of Q."""
        for i, image in enumerate(self.images):
            row = self.q[i]
            mixed = torch.zeros_like(row)
            for j in range(len(self.images)):
                mixed.add_(self.q[j], alpha=float(self.small[i, j]))
            yield row * (2 * image - mixed)

    def block_traces(self, lengths: Sequence[int]) -> Tensor:
        if len(lengths) == 1:
            return self.small.diagonal().sum().reshape(1)
        return torch.stack([sums(term, lengths) for term in self._terms()]).sum(0)

    def diagonal(self) -> Tensor:
        return torch.stack(list(self._terms())).sum(0)


def _room(like: Tensor) -> int:
    """Rank of a sketch whose two sets of vectors fit in a quarter of the free memory."""
    return int(least(_SHARE_OF_FREE * free_memory(like.device) / max(2 * like.numel() * like.element_size(), 1), like))


def _projected(matvec: Matvec, z: Tensor, low: _LowRank | None) -> Tensor:
    """(I - QQ') A (I - QQ') z."""
    if low is None:
        return matvec(z)
    inner = z.clone()
    low.q.orthogonalize(inner)
    outer = matvec(inner).to(z, copy=True)
    low.q.orthogonalize(outer)
    return outer


def _errors(squares: list[Tensor], total: Tensor, lengths: Sequence[int]) -> tuple[float, np.ndarray]:
    """Widened standard errors of the trace and of its blocks, from ||y||^2 of every probe and the sum of all y.

    The variance of entry i of y = z * Az is sum_{j != i} A_ij^2, that of the trace twice the sum of them all. It is
    known with 2 / (relative variance of ||y||^2) degrees of freedom a probe, few where A is of low rank.
    """
    seen = torch.stack(squares).cpu().numpy()
    n = len(seen)
    mean = square_sums(total / n, lengths).cpu().numpy()
    columns, means = np.column_stack([seen.sum(1), seen]), np.append(mean.sum(), mean)
    size = columns.mean(0)
    variance = np.maximum(2 * n / (n - 1) * (size - means), 2.0 ** (1 - n) * 2 * size)
    spread = np.divide(columns.var(0, ddof=1), size**2, out=np.zeros_like(size), where=size > 0)
    degrees = 2 * n / ((_USUAL + (n - 1) * spread) / n)
    errors = allowance(degrees) * np.sqrt(variance / n)
    return float(errors[0]), errors[1:]


def _from_unit_vectors(matvec: Matvec, like: Tensor, lengths: Sequence[int], *, diagonal: bool) -> TraceEstimate:
    """All d entries of the diagonal."""
    entries = torch.zeros_like(like)
    with Bar("trace", dimension(like)) as bar:
        for i in range(dimension(like)):
            e = unit(like, i)
            entries += e * matvec(e)
            bar.advance()
    values = sums(entries, lengths).cpu().numpy()
    errors = np.zeros_like(values)
    kept = entries if diagonal else None
    return TraceEstimate(float(values.sum()), 0.0, values, errors, kept, dimension(like), all_units=True)


@dataclass(frozen=True)
class Quadrature:
    """Nodes and weights of stochastic Lanczos quadrature.

    Attributes:
        nodes: (probes, steps) Ritz values.
        weights: (probes, steps) squared first components of T's eigenvectors; each row sums to 1.
        products: matrix-vector products spent.
    """

    nodes: np.ndarray
    weights: np.ndarray
    products: int

    def moments(self, order: int) -> np.ndarray:
        """(probes,) estimates of tr(A^order) / d."""
        return (self.weights * self.nodes**order).sum(1)


def quadrature(
    matvec: Matvec,
    like: Tensor,
    *,
    probes: int = 10,
    steps: int = 50,
    reorthogonalize: bool = True,
    generator: torch.Generator,
) -> Quadrature:
    """Spectral density of A as weighted points, one set a Rademacher probe.

    Lanczos from z / sqrt(d) gives T; sum_i tau_i f(theta_i) with tau_i the squared first component of T's i-th
    eigenvector estimates tr f(A) / d, exactly for polynomials up to degree 2 steps - 1.

    Args:
        matvec: v -> A v.
        like: a vector with A's length, dtype and device.
        probes: start vectors.
        steps: Lanczos steps of each, capped at d.
        reorthogonalize: False keeps three vectors instead of `steps`: copies of converged values appear, which share
            their weight, so that the density suffers little.
        generator: draws the probes.

    Source: Golub and Meurant 2010; Ghorbani 2019 (arXiv 1901.10159).
    """
    steps = min(steps, dimension(like))
    nodes, weights, products = [], [], 0
    with Bar("spectral density", probes * steps) as bar:
        for _ in range(probes):
            start = random.rademacher(like, generator)
            t, _ = tridiagonal(matvec, start, steps, reorthogonalize=reorthogonalize, generator=generator, bar=bar)
            values, vectors = np.linalg.eigh(t)
            products += len(values)
            nodes.append(np.pad(values, (0, steps - len(values)), mode="edge"))
            weights.append(np.pad(vectors[0] ** 2, (0, steps - len(values))))
    return Quadrature(np.stack(nodes), np.stack(weights), products)


def tridiagonal(
    matvec: Matvec, start: Tensor, steps: int, *, reorthogonalize: bool, generator: torch.Generator, bar: Bar
) -> tuple[np.ndarray, float]:
    """Lanczos from one vector: T, and the norm of what is left of the last product (0 where nothing is).

    It ends early at an invariant subspace: what follows would carry no weight.

    Args:
        matvec: v -> A v.
        start: the first vector, of any length.
        steps: products at most.
        reorthogonalize: False keeps three vectors instead of `steps`.
        generator: draws nothing but what continues an exhausted process.
        bar: advanced at every step.
    """
    if not reorthogonalize:
        return _recurrence(matvec, start, steps, bar)
    state = Factorization(matvec, start, generator, start=start)
    for _ in range(steps):
        state.step()
        bar.advance()
        if state.beta == 0.0:
            break
    state.symmetric()  # warns
    return state.t[: state.steps, : state.steps].copy(), state.beta


def fits(like: Tensor, vectors: int) -> bool:
    """Whether so many vectors (and one) fit in a quarter of the free memory."""
    size = (min(vectors, dimension(like)) + 1) * like.numel() * like.element_size()
    return least(float(size <= _SHARE_OF_FREE * free_memory(like.device)), like) > 0


def _recurrence(matvec: Matvec, start: Tensor, steps: int, bar: Bar) -> tuple[np.ndarray, float]:
    """Three terms, without reorthogonalization."""
    t = np.zeros((steps, steps))
    last = torch.zeros_like(start)
    beta = 0.0
    vector = start / norm(start)
    vector = vector.to(start)
    for j in range(steps):
        product = matvec(vector) - beta * last
        alpha = dot(product, vector)
        product = product - alpha.to(product) * vector
        length = norm(product)
        t[j, j], beta = torch.stack([alpha, length]).tolist()
        bar.advance()
        ended = beta <= 10 * torch.finfo(start.dtype).eps * np.abs(t).max()
        if j + 1 == steps or ended:
            return t[: j + 1, : j + 1], 0.0 if ended else beta
        t[j, j + 1] = t[j + 1, j] = beta
        last, vector = vector, (product / length).to(start)
    return t, beta


def smoothed(points: np.ndarray, weights: np.ndarray, axis: np.ndarray, width: float) -> np.ndarray:
    """Weighted points (probes, m) as densities on an axis: (probes, len(axis)), Gaussian kernels of std `width`."""
    density = np.zeros((len(points), len(axis)))
    for row, values, mass in zip(density, points, weights, strict=True):
        scaled = (axis[None] - values[:, None]) / width
        row += mass @ np.exp(-0.5 * scaled**2) / (width * np.sqrt(2 * np.pi))
    return density


def check(probes: int, target: float | None) -> None:
    """Refuse too few probes for a standard error, or a target that is not positive."""
    if probes < 4:
        raise InputError(f"at least 4 probes are needed for a standard error, received {probes}")
    if target is not None and not target > 0:
        raise InputError(f"target must be a relative standard error > 0, received {target}")
