"""Vectors of weights: every sum over their entries, and the steps that are built from such sums.

A vector is flat, (d,), or a list of tensors that stands for one, as in training (DTensors, where the parameters are
sharded). Norms and dots accumulate in float64 and stay on the device as 0-dim float64 tensors: a float32 norm of 10
million entries on a CPU is off by 3.6e-4. What works entry by entry keeps the vector's dtype.

This is the one seam for vectors that are spread over processes (`landscape.ball.spread`): whatever needs all entries
at once is here and in `landscape.random`, where they are drawn; every number is then gathered from all processes and
put together in the same order, so that all go on with the same bits. What works entry by entry needs to know nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from landscape.ball.spread import gathered, local, plain, spread_of
from landscape.errors import InputError

Vector = Tensor | Sequence[Tensor]
_PIECE = 1 << 22
"""Entries that become float64 at once."""


def dimension(a: Tensor) -> int:
    """Number of entries d, over all processes."""
    spread = spread_of(a)
    return a.numel() if spread is None else spread.length


def norm(a: Vector, order: float = 2.0) -> Tensor:
    """||a|| of any order; of a list over all tensors."""
    if isinstance(a, Tensor):
        # In pieces: torch makes a float64 copy of what it gets.
        parts = [torch.linalg.vector_norm(_padded(x), order, dtype=torch.float64) for x in _pieces_of(plain(a))]
        here = parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts), order)
    else:
        here = torch.linalg.vector_norm(_norms_here(a, order), order)
    everywhere = gathered(here, a)
    return here if everywhere is None else torch.linalg.vector_norm(everywhere, order)


def norms(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """The norm of each tensor, (n,)."""
    here = _norms_here(tensors, order)
    everywhere = gathered(here, tensors)
    return here if everywhere is None else torch.linalg.vector_norm(everywhere, order, dim=0)


def _norms_here(tensors: Sequence[Tensor], order: float) -> Tensor:
    """Norms of the parts that this process holds."""
    each = torch._foreach_norm([_padded(t) for t in local(tensors)], order, torch.float64)
    return torch.stack([n.to(each[0].device) for n in each])


def _pieces_of(a: Tensor) -> Sequence[Tensor]:
    return [a] if a.numel() <= _PIECE else a.reshape(-1).split(_PIECE)


def _padded(here: Tensor) -> Tensor:
    """A zero where a process holds no entry: the largest of none is refused by torch."""
    return here if here.numel() else here.new_zeros(1)


def dot(a: Vector, b: Vector) -> Tensor:
    """<a, b>."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        pairs = zip(plain(a).split(_PIECE), plain(b).split(_PIECE), strict=True)
        parts = [torch.dot(x.double(), y.double()) for x, y in pairs]
    else:
        parts = [p.sum(dtype=torch.float64) for p in torch._foreach_mul(local(list(a)), local(list(b)))]
    return _total(torch.stack([p.to(parts[0].device) for p in parts]).sum(), a)


def dots(rows: Tensor, vector: Tensor, piece: int = _PIECE) -> Tensor:
    """<row, vector> of every row: (k, d), (d,) -> (k,); `piece` columns become float64 at once."""
    here, other = plain(rows), plain(vector)
    total = torch.zeros(here.shape[0], dtype=torch.float64, device=here.device)
    for columns in pieces(other.numel(), piece):
        total += here[:, columns].double() @ other[columns].double()
    return _total(total, vector)


def sums(a: Tensor, lengths: Sequence[int]) -> Tensor:
    """Sums over consecutive blocks of so many entries (here): (blocks,) float64."""
    return _total(torch.stack([p.sum(dtype=torch.float64) for p in plain(a).split(list(lengths))]), a)


def square_sums(a: Tensor, lengths: Sequence[int]) -> Tensor:
    """Sums of squares over consecutive blocks of so many entries (here): (blocks,) float64."""
    norms = [torch.linalg.vector_norm(p, dtype=torch.float64) for p in plain(a).split(list(lengths))]
    return _total(torch.stack(norms) ** 2, a)


def unit(like: Tensor, index: int) -> Tensor:
    """The unit vector along entry `index` of the whole vector."""
    result, spread = torch.zeros_like(like), spread_of(like)
    if spread is None:
        result[index] = 1
        return result
    at = 0
    for start, stop in spread.ranges:
        if start <= index < stop:
            plain(result)[at + index - start] = 1
        at += stop - start
    return result


def least(value: float, like: Tensor) -> float:
    """The smallest of the processes' values: what fits on one must fit on all."""
    everywhere = gathered(torch.tensor(value, dtype=torch.float64, device=like.device), like)
    return value if everywhere is None else float(everywhere.min())


def _total(here: Tensor, a: Vector) -> Tensor:
    everywhere = gathered(here, a)
    return here if everywhere is None else everywhere.sum(0)


def pieces(length: int, piece: int) -> Iterator[slice]:
    """Slices of `piece` entries that cover a length."""
    return (slice(start, start + piece) for start in range(0, length, piece))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between two vectors."""
    return dot(a, b) / (norm(a) * norm(b))


def finite(a: Tensor) -> Tensor:
    """Whether all entries are finite: their norm carries every nan and inf, at a quarter of the time of isfinite."""
    return torch.isfinite(norm(a))


def any_entry(a: Vector) -> bool:
    """Whether an entry is not 0."""
    return bool(norm(a, math.inf) != 0)


def sign_of_largest(a: Tensor) -> Tensor:
    """Sign of the entry of the largest magnitude: it fixes the sign of an eigenvector."""
    here = _padded(plain(a))
    largest = here[here.abs().argmax()]
    everywhere = gathered(largest, a)
    return torch.sign(largest if everywhere is None else everywhere[everywhere.abs().argmax()])


def axpy_(a: Tensor, alpha: float | Tensor, x: Tensor) -> Tensor:
    """Add alpha x to `a` in place; alpha is brought to the dtype of x."""
    return a.add_(x * alpha.to(x)) if isinstance(alpha, Tensor) else a.add_(x, alpha=alpha)


def scaled_to(vectors: Sequence[Tensor], length: Tensor) -> list[Tensor]:
    """Each vector with the norm `length`."""
    return [v * (length / norm(v)).to(v) for v in vectors]


def ratio(numerator: float | Tensor, denominator: Tensor) -> Tensor:
    """Numerator / denominator, and 0 where the denominator is 0, on the device."""
    safe = torch.where(denominator > 0, denominator, torch.ones_like(denominator))
    return torch.where(denominator > 0, numerator / safe, torch.zeros_like(denominator))


def rejection(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """The part of `a` orthogonal to `b`, a - (<a, b> / <b, b>) b, over all tensors together; `a` where b is zero."""
    unit = torch._foreach_mul(list(b), ratio(1.0, norm(b)))  # squares of small entries would underflow
    rest = torch._foreach_sub(list(a), torch._foreach_mul(unit, dot(a, unit)))
    return [r.to(x.dtype) for r, x in zip(rest, a, strict=True)]  # a 0-dim tensor takes the dtype of a 0-dim factor


def orthogonalized(vectors: Sequence[Tensor]) -> list[Tensor]:
    """Gram-Schmidt, twice over (once leaves a cosine of the order of the rounding times the condition).

    Raises:
        InputError: linearly dependent vectors.
    """
    basis: list[Tensor] = []
    for vector in vectors:
        rest = vector.clone()
        for _ in range(2):
            for earlier in basis:
                axpy_(rest, -dot(rest, earlier) / dot(earlier, earlier), earlier)
        if float(norm(rest)) <= 1e-6 * float(norm(vector)):
            raise InputError("the directions are parallel: they span a line, not a plane; choose others")
        basis.append(rest)
    return basis
