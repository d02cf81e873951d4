"""Vectors of weights: every sum over their entries, and the steps that are built from such sums.

A vector is flat, (d,), or a list of tensors that stands for one, as in training (DTensors, where the parameters are
sharded). Norms and dots accumulate in float64 and stay on the device as 0-dim float64 tensors: a float32 norm of 10
million entries on a CPU is off by 3.6e-4. What works entry by entry keeps the vector's dtype.

This is the one seam for vectors that are spread over processes: whatever needs all entries at once is here and in
`landscape.random`, where they are drawn; products and sums of entries work on a part as they work on the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from landscape.ball import shards
from landscape.errors import InputError

Vector = Tensor | Sequence[Tensor]
_PIECE = 1 << 22
"""Entries that become float64 at once."""


def norm(a: Vector, order: float = 2.0) -> Tensor:
    """||a|| of any order; of a list the Euclidean norm over all tensors."""
    if isinstance(a, Tensor):
        if a.numel() <= _PIECE:
            return torch.linalg.vector_norm(a, order, dtype=torch.float64)
        # In pieces: torch makes a float64 copy of what it gets.
        parts = [torch.linalg.vector_norm(x, order, dtype=torch.float64) for x in a.reshape(-1).split(_PIECE)]
        return torch.linalg.vector_norm(torch.stack(parts), order)
    here = torch.linalg.vector_norm(_norms_here(a, order), order)
    everywhere = shards.gathered(here, a)
    return here if everywhere is None else torch.linalg.vector_norm(everywhere, order)


def norms(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """The norm of each tensor, (n,)."""
    here = _norms_here(tensors, order)
    everywhere = shards.gathered(here, tensors)
    return here if everywhere is None else torch.linalg.vector_norm(everywhere, order, dim=0)


def _norms_here(tensors: Sequence[Tensor], order: float) -> Tensor:
    """Norms of the parts that this process holds; of none, which has no largest entry, 0."""
    parts = [t if t.numel() else t.new_zeros(1) for t in shards.local(tensors)]
    each = torch._foreach_norm(parts, order, torch.float64)
    return torch.stack([n.to(each[0].device) for n in each])


def dot(a: Vector, b: Vector) -> Tensor:
    """<a, b>."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        pairs = zip(a.split(_PIECE), b.split(_PIECE), strict=True)
        return torch.stack([torch.dot(x.double(), y.double()) for x, y in pairs]).sum()
    products = torch._foreach_mul(shards.local(list(a)), shards.local(list(b)))
    sums = [p.sum(dtype=torch.float64) for p in products]
    here = torch.stack([s.to(sums[0].device) for s in sums]).sum()
    everywhere = shards.gathered(here, list(a))
    return here if everywhere is None else everywhere.sum()


def dots(rows: Tensor, vector: Tensor, piece: int = _PIECE) -> Tensor:
    """<row, vector> of every row: (k, d), (d,) -> (k,); `piece` columns become float64 at once."""
    total = torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
    for columns in pieces(vector.numel(), piece):
        total += rows[:, columns].double() @ vector[columns].double()
    return total


def pieces(length: int, piece: int) -> Iterator[slice]:
    """Slices of `piece` entries that cover a length."""
    return (slice(start, start + piece) for start in range(0, length, piece))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between two vectors."""
    return dot(a, b) / (norm(a) * norm(b))


def finite(a: Tensor) -> Tensor:
    """Whether all entries are finite: their norm carries every nan and inf, at a quarter of the time of isfinite."""
    return torch.isfinite(norm(a))


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
    return list(torch._foreach_sub(list(a), torch._foreach_mul(unit, dot(a, unit))))


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
