"""The maximum of d'Hd over the unit ball of a norm: by Frank-Wolfe steps, and over all signs where these are few.

For l_inf the problem is that of the maximal cut: no method known finds the maximum in time that grows with a power of
the dimension. A search gives a lower bound; what its restarts reached says how far they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.ball.norms import NormBall
from landscape.ball.vectors import dot
from landscape.progress import Bar

MOST_SIGNS = 16
"""Dimensions up to which all vertices of the box are tried: 65,536 of them."""
_PIECE = 1 << 12


@dataclass(frozen=True)
class Ascent:
    """Where one search ended.

    Attributes:
        value: d'Hd.
        point: d, of the ball.
        gap: max over the ball of <s - d, Hd>, over |d'Hd|: 0 at a stationary point; 1 elsewhere where d'Hd is 0.
        products: with H.
    """

    value: float
    point: Tensor
    gap: float
    products: int


def ascend(
    matvec: Callable[[Tensor], Tensor], ball: NormBall, start: Tensor, steps: int, tol: float, bar: Bar
) -> Ascent:
    """Frank-Wolfe steps from a point of the ball, each to the best point on the way to the furthest along H d.

    d'Hd never falls. Where H bends up along the way its end is the best; else a point between.
    """
    d, h = start, matvec(start)
    products, value, gap = 1, float(dot(d, h)), float("inf")
    while True:
        bar.advance()
        s, dual = ball.furthest_and_dual(h)
        gap = float(dual) - value
        if gap <= tol * abs(value) or products >= steps:
            return Ascent(value, d, gap / abs(value) if value else float(gap > 0), products)
        hs = matvec(s)
        products += 1
        bend = float(dot(s, hs)) - 2 * float(dual) + value
        t = 1.0 if bend >= 0 else min(1.0, gap / -bend)
        d, h = (s, hs) if t == 1.0 else (d + t * (s - d), h + t * (hs - h))
        value = float(dot(d, h))


def best_of_signs(dense: Tensor) -> Tensor:
    """The vertex of the box [-1, 1]^d with the largest d'Hd, all 2^(d-1) pairs +-d tried: (d,).

    The maximum over the whole box where no diagonal entry of H is negative: d'Hd is then convex in each coordinate.
    """
    size = dense.shape[0]
    h, best, at = dense.double(), None, None
    bits = torch.arange(size - 1, device=h.device)
    for first in range(0, 1 << (size - 1), _PIECE):
        codes = torch.arange(first, min(first + _PIECE, 1 << (size - 1)), device=h.device)
        signs = torch.cat([torch.ones_like(codes)[:, None], 1 - 2 * ((codes[:, None] >> bits) & 1)], dim=1).double()
        values = ((signs @ h) * signs).sum(dim=1)
        if best is None or values.max() > best:
            best, at = values.max(), signs[values.argmax()]
    assert at is not None
    return at.to(dense)


def highest(ascents: Sequence[Ascent]) -> Ascent:
    """The one that reached the largest value."""
    return max(ascents, key=lambda a: a.value)
