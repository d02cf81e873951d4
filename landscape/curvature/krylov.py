"""Lanczos: extreme eigenpairs of a symmetric operator, each with a bound on its error.

Vectors stay in the operator's dtype; every dot, norm and entry of the projected matrix accumulates in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from landscape import random
from landscape.ball.vectors import norm
from landscape.curvature.basis import BLOCK, Basis
from landscape.errors import AsymmetryWarning, InputError
from landscape.problem.memory import free_memory
from landscape.progress import Bar

Matvec = Callable[[Tensor], Tensor]
ENDS = ("LA", "SA", "LM", "BE")
_SHARE_OF_FREE = 0.25
LEAST_BEYOND = 8
"""Vectors of the smallest basis beside the k that are wanted."""
_SYMMETRIC = 0.01
"""Asymmetry up to which products count as a symmetric matrix's, relative to its norm. Measured: 1e-7 by double backward
in float32, up to 2e-3 by central differences of smooth networks, 0.1 and more with kinks; 0.05 with a wrong one."""


@dataclass(frozen=True)
class Eigenpairs:
    """Approximate eigenpairs.

    Attributes:
        values: (k,) float64; algebraically descending, for "LM" descending in magnitude.
        vectors: (k, d), rows of unit length.
        residuals: (k,) float64, ||A v - lambda v||, asymmetry of the products included, and 10 roundings of the dtype:
            an eigenvalue of A lies within this distance of `values`.
        products: matrix-vector products spent.
        converged: whether every residual met the tolerance, the products being those of a symmetric matrix.
        verified: whether a second, deflated run found no eigenvalue that the first one missed (None: not asked).
    """

    values: np.ndarray
    vectors: Tensor
    residuals: np.ndarray
    products: int
    converged: bool
    verified: bool | None = None


class Factorization:
    """A V = V (T + E) + beta v_next e_last': the state of a Lanczos process with full reorthogonalization.

    `steps` is the order of the projected matrix T, `beta` the norm of what is left of the last product. E is rounding
    where A is symmetric; `asymmetry` is ||E||, known for nothing: reorthogonalizing computes V'A V whole, of which T
    takes one half. A wrong second derivative shows here.

    Args:
        matvec: v -> A v, A symmetric.
        like: a vector with the length, dtype and device of A's.
        generator: draws start vectors.
        start: first vector (default: random).
        locked: vectors that are deflated: the process runs in their orthogonal complement.
    """

    def __init__(
        self,
        matvec: Matvec,
        like: Tensor,
        generator: torch.Generator,
        start: Tensor | None = None,
        locked: Basis | None = None,
    ) -> None:
        self._matvec, self._like, self._generator, self._locked = matvec, like, generator, locked
        self.dimension = like.numel() - (locked.size if locked is not None else 0)
        self.basis = Basis(like)
        self.t = np.zeros((BLOCK, BLOCK))
        self.beta, self.asymmetry, self.products = 0.0, 0.0, 0
        self.steps = 0
        self._epsilon = torch.finfo(like.dtype).eps
        self.basis.append(self._fresh(start))

    def step(self) -> None:
        """One product and its orthogonalization; afterwards T has one more row."""
        j = self.steps
        # A copy: the operator may hand out a tensor that it still needs.
        vector = self._matvec(self.basis[j]).to(self._like, copy=True)
        self.products += 1
        if self._locked is not None:
            self._locked.orthogonalize(vector)
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
            self.t = np.pad(self.t, (0, BLOCK))
        self.t[j, j] = alpha
        self.asymmetry = float(np.hypot(self.asymmetry, np.linalg.norm(above - self.t[:j, j])))
        self.steps += 1
        if self.steps == self.dimension:
            self.beta = 0.0
            return
        if self.beta <= 10 * self._epsilon * np.abs(self.t).max() or self.beta == 0.0:
            # An invariant subspace: go on in its complement, where further copies of an eigenvalue live.
            self.beta = 0.0
            self.basis.append(self._fresh(None))
            return
        self.t[j, j + 1 : j + 2] = self.t[j + 1 : j + 2, j] = self.beta
        self.basis.append(vector.div_(self.beta))

    def symmetric(self) -> bool:
        """Whether A is symmetric, as far as the products tell; warns where it is not (AsymmetryWarning)."""
        relative = self.asymmetry / max(np.abs(self.t[: self.steps, : self.steps]).max(), 1e-300)
        if relative > _SYMMETRIC:
            warnings.warn(
                f"the products are not those of a symmetric matrix (relative asymmetry {relative:.2g}): by double "
                "backward an operation of the model has a wrong second derivative, by central differences the loss has "
                "kinks within the step (ReLU); neither values nor bounds can be trusted",
                AsymmetryWarning,
                stacklevel=2,
            )
        return bool(relative <= _SYMMETRIC)

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvalues of T ascending, their eigenvectors (columns) and residual bounds |beta s_last|."""
        values, vectors = np.linalg.eigh(self.t[: self.steps, : self.steps])
        return values, vectors, np.abs(self.beta * vectors[-1])

    def restart(self, keep: np.ndarray) -> None:
        """Thick restart: keep the Ritz pairs at these indices, and the next vector."""
        values, vectors, _ = self.ritz()
        coupling = self.beta * vectors[-1, keep]
        self.basis.replace(vectors[:, keep], self.basis[self.steps])
        size = len(keep)
        self.t = np.zeros((max(BLOCK, -(-(size + 2) // BLOCK) * BLOCK),) * 2)
        self.t[np.arange(size), np.arange(size)] = values[keep]
        self.t[:size, size] = self.t[size, :size] = coupling
        self.steps = size

    def _fresh(self, start: Tensor | None) -> Tensor:
        vector = random.normal(self._like, self._generator) if start is None else start.to(self._like).clone()
        for basis in (self._locked, self.basis, self._locked, self.basis):
            if basis is not None and basis.size:
                basis.orthogonalize(vector)
        length = norm(vector)
        if start is not None and not float(length) > 0:
            return self._fresh(None)
        return vector.div_(length)


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


def lanczos(
    matvec: Matvec,
    like: Tensor,
    k: int,
    *,
    which: str = "LA",
    tol: float = 1e-3,
    relative_to: str = "value",
    start: Tensor | None = None,
    hint: Tensor | None = None,
    generator: torch.Generator,
    max_products: int = 500,
    capacity: int | None = None,
    verify: bool = False,
) -> Eigenpairs:
    """Extreme eigenpairs of a symmetric operator by Lanczos with full reorthogonalization (Gram-Schmidt twice).

    After every product each wanted Ritz pair's residual |beta s_last| is compared with tol |lambda|; the process stops
    as soon as all are below. A basis that would not fit is restarted thickly (Wu and Simon 2000): the best Ritz
    vectors are kept.

    What this proves: an eigenvalue lies within its residual of every value that is returned. It does not prove that
    none further out exists: a random start vector has a component along every eigenvector, but a process that stops
    early has not separated eigenvalues that nearly coincide, and one start vector sees one copy of a repeated
    eigenvalue. `verify` runs a second process in the complement of the pairs found, from a fresh vector, adds what the
    first one missed, and repeats until nothing is found.

    Args:
        matvec: v -> A v.
        like: a vector with A's length, dtype and device.
        k: pairs; for "BE" at each end.
        which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "BE" both ends.
        tol: residual allowed, relative to |lambda| ("value") or to the largest |lambda| ("spectrum").
        relative_to: see `tol`.
        start: (d,) or (m, d): vectors near the wanted ones (from a neighboring checkpoint); their sum starts.
        hint: (d,) vector that is rich in the wanted ones, mixed in equal parts with the random start vector. The
            gradient of a trained network lies mostly in the top eigenspace (Gur-Ari 2018, arXiv 1812.04754) and saves
            two or three products; the random half keeps every eigenvector in play.
        generator: draws the start vector.
        max_products: products allowed; then the pairs are returned with converged=False.
        capacity: basis vectors allowed; None is what fits in a quarter of the free memory.
        verify: look for missed eigenvalues, for a few more products.

    Raises:
        InputError: an argument out of range, or a product that is not finite.
    """
    d = like.numel()
    _check(k, d, which, tol, relative_to, max_products, capacity)
    floor = 10 * torch.finfo(like.dtype).eps
    room = min(capacity or _room(like, k, which), d)
    run = _Run(k, which, tol, relative_to, floor, max_products, room)
    if start is not None:
        start = _mixed(start, like, generator, 0.01)
    elif hint is not None:
        start = _mixed(hint, like, generator, 1.0)
    with Bar("Lanczos", None) as bar:
        found = run.pairs(Factorization(matvec, like, generator, start), bar)
        return _verified(found, run, matvec, like, generator, bar) if verify else found


@dataclass(frozen=True)
class _Run:
    k: int
    which: str
    tol: float
    relative_to: str
    floor: float
    max_products: int
    room: int

    def pairs(self, state: Factorization, bar: Bar) -> Eigenpairs:
        pairs = 2 * self.k if self.which == "BE" else self.k
        while True:
            state.step()
            bar.advance()
            values, vectors, residuals = state.ritz()
            index = wanted(values, self.k, self.which)
            scale = np.abs(values).max() if values.size else 0.0
            whole = np.hypot(residuals[index], state.asymmetry)
            enough = len(index) >= min(pairs, state.dimension)
            done = enough and bool(np.all(residuals[index] <= self.allowed(values, index)))
            if done or state.steps == state.dimension or state.products >= self.max_products:
                # More steps lower the residuals, not the asymmetry: they are not waited for.
                met = bool(np.all(whole <= (1 + 1e-6) * self.allowed(values, index)))
                converged = state.symmetric() and met and (done or state.steps == state.dimension)
                rows = state.basis.combined(vectors[:, index])
                return Eigenpairs(values[index], rows, whole + self.floor * scale, state.products, converged)
            if state.steps == self.room:
                state.restart(self._kept(values, index))

    def allowed(self, values: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Residual allowed for each wanted pair; rounding of the products is a floor."""
        scale = np.abs(values).max()
        relative = np.abs(values[index]) if self.relative_to == "value" else np.full(len(index), scale)
        return np.maximum(self.tol * relative, self.floor * scale)

    def _kept(self, values: np.ndarray, index: np.ndarray) -> np.ndarray:
        """The wanted pairs and, of the rest, those nearest to the wanted ends: half of the free room."""
        more = len(index) + (self.room - len(index)) // 2
        count = max(min(more, self.room - 2), len(index))
        return np.sort(wanted(values, count // 2 if self.which == "BE" else count, self.which))


def _verified(
    found: Eigenpairs, run: _Run, matvec: Matvec, like: Tensor, generator: torch.Generator, bar: Bar
) -> Eigenpairs:
    """Look for missed pairs in the complement of those found, until none lies further out than the last wanted."""
    clean = found.vectors.shape[0] == like.numel()
    products = found.products
    while found.converged and not clean and products < run.max_products:
        locked = Basis(like)
        for vector in found.vectors:
            vector = vector.clone()
            locked.orthogonalize(vector)
            locked.append(vector.div_(norm(vector)))
        state = Factorization(matvec, like, generator, locked=locked)
        extra = _outside(state, found, run, bar)
        products += state.products
        clean = extra is None
        if extra is not None:
            found = _merged(found, extra, run)
    return replace(found, products=products, verified=clean and found.converged)


def _outside(state: Factorization, found: Eigenpairs, run: _Run, bar: Bar) -> Eigenpairs | None:
    """Converged pairs of the complement that belong among the wanted; None where there is none."""
    while True:
        state.step()
        bar.advance()
        values, vectors, residuals = state.ritz()
        index = wanted(values, 1, run.which)
        beyond = np.array([_further(values[i], found.values, run) for i in index])
        settled = residuals[index] <= run.allowed(np.concatenate([values, found.values]), index)
        exhausted = state.steps == state.dimension or state.products >= run.max_products
        # A random start holds 1/sqrt(d) of a missed eigenvector: a small residual alone says nothing. The top Ritz
        # value counts once it is known to 10% of itself and its residual keeps it inside.
        gap = np.array([_distance(values[i], found.values, run) for i in index])
        inside = ~beyond & (settled | (residuals[index] <= np.minimum(0.1 * np.abs(values[index]), gap)))
        if exhausted or np.all(inside | (beyond & settled)):
            chosen = index[beyond]
            if not len(chosen):
                return None
            # The deflated residual lacks what the pairs found leave over: both are at right angles.
            bounds = np.hypot(np.hypot(residuals[chosen], state.asymmetry), np.linalg.norm(found.residuals))
            rows = state.basis.combined(vectors[:, chosen])
            return Eigenpairs(values[chosen], rows, bounds, 0, True)
        if state.steps == run.room:
            state.restart(run._kept(values, index))


def _edges(found: np.ndarray, run: _Run) -> dict[str, float]:
    if run.which == "LM":
        return {"LM": float(np.abs(found).min())}
    if run.which == "BE":
        upper = (len(found) + 1) // 2
        edges = {"LA": float(found[:upper].min())}
        return edges | ({"SA": float(found[upper:].max())} if len(found) > upper else {})
    return {run.which: float(found.min() if run.which == "LA" else found.max())}


def _distance(value: float, found: np.ndarray, run: _Run) -> float:
    """How far a value lies inside the wanted ones (negative: outside, one was missed)."""
    signs = {"LA": lambda e: e - value, "SA": lambda e: value - e, "LM": lambda e: e - abs(value)}
    return min(signs[end](edge) for end, edge in _edges(found, run).items())


def _further(value: float, found: np.ndarray, run: _Run) -> bool:
    """Whether a value lies outside by more than the tolerance of the wanted ones."""
    slack = max(run.tol * abs(value), run.floor * np.abs(found).max())
    return _distance(value, found, run) < -slack


def _merged(found: Eigenpairs, extra: Eigenpairs, run: _Run) -> Eigenpairs:
    values = np.concatenate([found.values, extra.values])
    order = np.argsort(values, kind="stable")
    index = order[wanted(values[order], run.k, run.which)]
    vectors = torch.cat([found.vectors, extra.vectors])[torch.from_numpy(index.copy()).to(found.vectors.device)]
    residuals = np.concatenate([found.residuals, extra.residuals])[index]
    return Eigenpairs(values[index], vectors, residuals, found.products, found.converged)


def _mixed(vectors: Tensor, like: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """The sum of the given vectors and a random one of `share` of its length: no eigenvector is shut out."""
    rows = vectors.reshape(-1, vectors.shape[-1]).to(like)
    if rows.shape[1] != like.numel():
        raise InputError(f"start vectors must have length d = {like.numel()}, received shape {tuple(vectors.shape)}")
    total = rows.sum(dim=0)
    noise = random.normal(like, generator)
    norms = [norm(x) for x in (total, noise)]
    if not bool(norms[0] > 0):
        return noise
    return (total / norms[0]).to(like) + (noise * (share / norms[1])).to(like)


def _room(like: Tensor, k: int, which: str) -> int:
    least = (2 * k if which == "BE" else k) + LEAST_BEYOND
    fitting = free_memory(like.device) / (like.numel() * like.element_size())
    if least > fitting:
        raise InputError(
            f"k={k} needs a basis of {least} vectors of {like.numel():,} numbers, {int(fitting)} fit in what is free: "
            "give a smaller k, or restrict parameters"
        )
    return max(int(_SHARE_OF_FREE * fitting), least)


def check_request(k: int, d: int, tol: float) -> None:
    """Raise InputError for a number of pairs or a tolerance out of range."""
    if not 1 <= k <= d:
        raise InputError(f"k must be between 1 and the number of parameters d = {d}, received {k}")
    if not tol > 0:
        raise InputError(f"tol must be > 0, received {tol}: it is the residual allowed relative to |lambda|")


def _check(k: int, d: int, which: str, tol: float, relative_to: str, max_products: int, capacity: int | None) -> None:
    check_request(k, d, tol)
    if which not in ENDS:
        raise InputError(f"which must be one of {', '.join(ENDS)}, received {which!r}")
    if relative_to not in ("value", "spectrum"):
        raise InputError(f"relative_to must be 'value' or 'spectrum', received {relative_to!r}")
    if max_products < 1:
        raise InputError(f"at least one Hessian-vector product is needed, received {max_products}")
    least = (2 * k if which == "BE" else k) + 3
    if capacity is not None and capacity < min(least, d):
        raise InputError(f"a basis of {capacity} vectors cannot hold {k} pairs: at least {least} are needed")
