"""Lanczos: extreme eigenpairs of a symmetric operator, each with a bound on its error."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape import random
from landscape.ball import vectors
from landscape.curvature.factorization import Factorization
from landscape.curvature.missed import Search, mixed
from landscape.curvature.two_pass import TwoPass
from landscape.curvature.wanted import ENDS, Eigenpairs, Request
from landscape.errors import InputError
from landscape.problem.memory import BESIDE, LEAST_BEYOND, free_memory, hosted, way
from landscape.progress import Bar

if TYPE_CHECKING:
    from landscape.curvature.operators import Operator

_SHARE_OF_FREE = 0.25


def lanczos(
    operator: Operator,
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
    device: torch.device | None = None,
) -> Eigenpairs:
    """Extreme eigenpairs of a symmetric operator by Lanczos with full reorthogonalization (Gram-Schmidt twice).

    After every product each wanted Ritz pair's residual |beta s_last| is compared with tol |lambda|; the process stops
    as soon as all are below. A basis that would not fit is restarted thickly (Wu and Simon 2000): the best Ritz
    vectors are kept.

    What this proves: an eigenvalue lies within its residual of every value that is returned. It does not prove that
    none further out exists: one start vector sees one copy of a repeated eigenvalue, a process that stops early has not
    separated eigenvalues that nearly coincide, and one whose Krylov space is exhausted has seen nothing of the rest.
    Therefore a second process starts from an independent random vector in the complement of the pairs, adds what the
    first one missed, and repeats until nothing is missed. It goes on until a missed eigenvalue would have been
    overlooked with a probability below 20%, or below 1e-5 where something was missed, the Krylov space was (nearly)
    exhausted, A has at most 500 rows, or `verify` asks for it: 1 to 4 products above a network's bulk, 10 to 40 at its
    dense lower end. The result says the probability.

    Args:
        operator: A.
        k: pairs; for "BE" at each end.
        which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "BE" both ends.
        tol: residual allowed, relative to |lambda| ("value") or to the largest |lambda| ("spectrum").
        relative_to: see `tol`.
        start: (d,) or (m, d): vectors near the wanted ones (from a neighboring checkpoint); their sum starts.
        hint: (d,) vector that is rich in the wanted ones, mixed in equal parts with the random start vector. The
            gradient of a trained network lies mostly in the top eigenspace (Gur-Ari 2018, arXiv 1812.04754) and saves
            two or three products; the random half keeps every eigenvector in play.
        generator: draws the start vector.
        max_products: products allowed, the look included; then the pairs are returned with converged=False.
        capacity: basis vectors allowed; None is what fits in a quarter of the free memory, or 0 where fewer than
            3 (k + 8) vectors fit in all of it. 0 keeps none: two passes for each pair (see
            `landscape.curvature.two_pass`), k + 3 vectors in all, 4 for the largest eigenvalue alone.
        verify: keep looking for missed eigenvalues until the probability of one is below 1e-5.
        device: where a basis of `capacity` vectors lives; None is where the vectors do. Where `capacity` is None too, a
            basis for several pairs goes to the host if only that can hold it (`landscape.problem.memory.way`).

    Raises:
        InputError: an argument out of range, or a product that is not finite.
    """
    like, d = operator.like, operator.dimension
    if capacity is None:
        capacity, device = _room(like, min(2 * k if which == "BE" else k, d))
    _check(k, d, which, tol, relative_to, max_products, capacity)
    room = min(capacity, d)
    request = Request(k, which, tol, relative_to, torch.finfo(like.dtype).eps, max_products, room)

    def draw() -> Tensor:
        if start is not None:
            return mixed(start, like, generator, 0.01)
        return random.normal(like, generator) if hint is None else mixed(hint, like, generator, 1.0)

    with Bar("Lanczos" if room else "Lanczos without a basis", None) as bar:
        if not room:
            return TwoPass(request, operator, generator, bar).pairs(draw, verify)
        state = Factorization(operator.matvec, like, generator, draw(), cause=operator.cause, device=device)
        pairs, others = request.first(state, bar)
        search = Search(request, operator, generator, state.scale, bar, device)
        few = state.exhausted or request.all_but_exact(pairs)
        pairs = search.completed(pairs, others, verify or few)
        return replace(pairs, vectors=pairs.vectors.to(like.device))


def _room(like: Tensor, pairs: int) -> tuple[int, torch.device | None]:
    """Rows of the basis (0: none is kept), and where it lives if not where the vectors do."""
    each = max(like.numel() * like.element_size(), 1)
    fitting = vectors.least(free_memory(like.device) / each, like)
    beside = hosted(like)
    needed, basis = way(pairs, fitting, beside)
    if needed > fitting:
        smaller = f"find at most {int(fitting) - BESIDE} (a smaller k), or " if fitting >= BESIDE + 1 else ""
        raise InputError(
            f"{pairs} eigenpairs need {pairs + BESIDE} vectors of {vectors.dimension(like):,} numbers even without a "
            f"basis, {int(fitting)} fit in what is free: {smaller}restrict parameters"
        )
    if basis == "none":
        return 0, None
    room, device = (beside, torch.device("cpu")) if basis == "host" else (fitting, None)
    return max(int(_SHARE_OF_FREE * room), pairs + LEAST_BEYOND), device


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
    pairs = 2 * k if which == "BE" else k
    if capacity == 0 and max_products < 2 * min(pairs, d):
        raise InputError(
            f"{pairs} eigenpairs take at least {2 * pairs} products where no basis is kept, received {max_products}"
        )
    if capacity is not None and capacity != 0 and capacity < min(pairs + 3, d):
        raise InputError(
            f"a basis of {capacity} vectors cannot hold {k} pairs: at least {pairs + 3} are needed, or 0 for none"
        )
