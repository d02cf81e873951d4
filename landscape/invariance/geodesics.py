"""Geodesic balls on the quotient of the weights by the maps of attention that leave the network's function.

One head is a pair G (n, h), H (m, h) on which the network depends through B = G H' alone: queries against keys, values
against the layer that reads them, biases as rows. G -> G A, H -> H A^-T leaves B for every invertible A. Two metrics
have this symmetry,

    inv:  tr (G'G)^-1 x'x + tr (H'H)^-1 y'y        mix:  tr H'H x'x + tr G'G y'y        for tangents x of G, y of H.

All coordinates here are invariant too. With G = Q R, Q'Q = 1, Q chosen by the space that its columns span alone, and
H = P S likewise, a tangent has coordinates (U, V): inv x = U R, y = V S; mix x = U S^-T, y = V R^-T. Its length is
that of (U, V), and networks that are maps of each other have the same Q, P, U and V. So an ascent in (U, V) visits the
same functions from all of them.

Geodesics of inv have a closed form: with W = U Q', G(t) = exp(t (W - W')) exp(t W') G solves the equation of geodesics
(d/dt (x (G'G)^-1) = -G (G'G)^-1 x'x (G'G)^-1); W needs no inverse, and where G has not full rank its null directions do
not move. Those of mix solve G'' = (G y'y - x (G'G)~) (H'H)^-1 with (H'H)~ = y'H + H'y in place of (G'G)~, and the same
with the letters exchanged: integrated by Runge and Kutta's method in the span of (G, x).

A tangent is horizontal where it is orthogonal to the maps: inv X'M = M Y, mix X = Y', for X = Q'U, Y = P'V, M = R S'.
Horizontal geodesics are those of the quotient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.ball.ascent import Ball
from landscape.ball.scaling import Scaling
from landscape.errors import InputError, unknown
from landscape.invariance.rescaling import Head
from landscape.problem.parameters import Parameters
from landscape.random import normal, stream

METRICS = ("inv", "mix")
_GRAPH = 1 << 25
"""Numbers that the graph of the geodesics of some heads may hold."""
STEPS = 4
"""Of the integration of mix: where tangents of length 0.3 and 0.6 move weights of 1 its error is 1e-9 and 4e-8."""
_SERIES = 8.0


@dataclass(frozen=True)
class HeadPairs:
    """Heads of one shape at the weights, all float64.

    Attributes:
        places: in the flat vector, of G (heads, n, h) and of H (heads, m, h).
        bases: Q (heads, n, h) and P (heads, m, h).
        factors: R and S (heads, h, h), G = Q R and H = P S.
        core: left vectors, singular values and right vectors of M = R S'.
        whole: (heads,) whether all invertible matrices pass; else (rotary embeddings) all tangents count as horizontal,
            which leaves the maximum over the ball as it is: a point of the quotient is within a distance if any of its
            networks is.
    """

    places: tuple[Tensor, Tensor]
    bases: tuple[Tensor, Tensor]
    factors: tuple[Tensor, Tensor]
    core: tuple[Tensor, Tensor, Tensor]
    whole: Tensor


@dataclass(frozen=True, kw_only=True)
class GeodesicBall(Ball):
    """The ball of geodesics of length <= rho from w; a point u (d,) holds (U, V) in the places of G and H.

    Parameters outside of attention move by geodesics of dw^2 / w^2, w exp(u) (scale = |w|), or of dw^2, w + u.

    Attributes:
        w: the center, (d,).
        metric: inv or mix.
        pairs: the heads.
    """

    w: Tensor
    metric: str
    pairs: tuple[HeadPairs, ...]

    def epsilon(self, u: Tensor) -> Tensor:
        """Exp_w(u) - w, (d,)."""
        epsilon = self._outside(u)
        for pair in self.pairs:
            for places, moved in zip(pair.places, self._moved(pair, *_at(u, pair)), strict=True):
                epsilon[places] = (moved - self.w[places].double()).to(u)
        return epsilon

    def gradient(self, g: Tensor, u: Tensor | None = None) -> Tensor:
        """Horizontal gradient in u of a function whose gradient at Exp_w(u) is g, (d,)."""
        u = torch.zeros_like(g) if u is None else u
        h = g if self.scale is None else g * self.scale * torch.exp(u * torch.sign(self.w))
        h = h.clone()
        for pair in self.pairs:
            for one in _chunks(pair):
                points = tuple(t.requires_grad_() for t in _at(u, one))
                with torch.enable_grad():
                    moved = self._moved(one, *points)
                slopes = torch.autograd.grad(moved, points, [g[p].double() for p in one.places])
                _put(h, one, self._horizontal(one, *slopes))
        return h

    def random(self, like: Tensor, rho: float, generator: torch.Generator) -> Tensor:
        """A random point of the sphere among horizontal tangents and parameters that move."""
        draw = normal(like, generator)
        live = draw if self.scale is None else draw * (self.scale > 0)
        for pair in self.pairs:
            _put(live, pair, self._horizontal(pair, *_at(draw, pair)))
        return self.steepest(live, rho)

    def _outside(self, u: Tensor) -> Tensor:
        return u.clone() if self.scale is None else self.w * torch.expm1(u * torch.sign(self.w))

    def _moved(self, pair: HeadPairs, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.metric == "mix":
            return _mix(pair, u, v)
        first, second = (_inv(q, r, x) for q, r, x in zip(pair.bases, pair.factors, (u, v), strict=True))
        return first, second

    def _horizontal(self, pair: HeadPairs, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The orthogonal projection of (U, V), without what moves nothing where G or H has not full rank."""
        q, p = pair.bases
        u, v = u @ q.mT @ q, v @ p.mT @ p
        x, y = q.mT @ u, p.mT @ v
        left, sigma, right = pair.core
        if self.metric == "mix":  # X and Y' are equal: each gives up half of their difference
            cosine = sine = torch.full_like(x, 0.5**0.5)
            left = right = torch.eye(x.shape[-1]).to(x)
        else:  # with M diagonal the maps move (X_ij, Y_ji) along (sigma_i, -sigma_j)
            length = torch.hypot(sigma[..., :, None], sigma[..., None, :])
            safe = torch.where(length > 0, length, 1.0)
            sine, cosine = sigma[..., :, None] / safe, sigma[..., None, :] / safe
        turned_x, turned_y = left.mT @ x @ left, (right @ y @ right.mT).mT
        along = (sine * turned_x - cosine * turned_y) * pair.whole[:, None, None]
        return u - q @ left @ (sine * along) @ left.mT, v + p @ right.mT @ (cosine * along).mT @ right


def geodesic_ball(
    parameters: Parameters, w: Tensor, heads: Sequence[Head], *, metric: str = "inv", scaling: str = "elementwise"
) -> GeodesicBall:
    """The ball around w on the quotient by the maps of these heads.

    Args:
        parameters: layout of w.
        w: the center, (d,).
        heads: of attention, as `landscape.rescaling.find` returns them.
        metric: "inv" or "mix".
        scaling: of the parameters outside of them: "elementwise" (dw^2 / w^2) or "identity" (dw^2).

    Raises:
        InputError: an unknown metric or scaling, a parameter in two heads at once, no parameter that moves; with mix a
            head whose weights have not full rank.
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    if scaling not in ("elementwise", "identity"):
        raise unknown("scaling", scaling, ("elementwise", "identity"))
    scale = Scaling(scaling).diagonal(parameters, w)
    pairs = tuple(_pairs(parameters, w, heads))
    covered = torch.cat([p.reshape(-1) for pair in pairs for p in pair.places]) if pairs else torch.zeros(0)
    if len(torch.unique(covered)) < len(covered):
        raise InputError("an entry of a weight belongs to two heads of attention at once: no metric of both is known")
    for pair in pairs if metric == "mix" else ():
        ranks = torch.stack([torch.linalg.matrix_norm(q) ** 2 for q in pair.bases])
        if (ranks.round() < pair.bases[0].shape[-1]).any():
            raise InputError(
                f"a head of attention has weights of rank {int(ranks.round().min())} for {pair.bases[0].shape[-1]} "
                "dimensions: metric=mix has no length there; take metric=inv, in which null directions do not move"
            )
    if scale is not None and not scale.any():
        raise InputError("every weight is zero: nothing moves; take scaling=identity")
    return GeodesicBall(2.0, scale, w=w, metric=metric, pairs=pairs)


# -- geodesics -----------------------------------------------------------------------------------------------------


def _inv(q: Tensor, r: Tensor, u: Tensor) -> Tensor:
    """exp(W - W') exp(W') G for W = U Q': (heads, n, h).

    With X = Q'U and K = U - Q X, W - W' maps Q to Q (X - X') + K and K to -Q K'K: it acts on the span of (Q, K / c).
    """
    x = q.mT @ u
    k = u - q @ x
    c = torch.linalg.matrix_norm(u.detach())[:, None, None].clamp(min=torch.finfo(u.dtype).tiny)
    eye = torch.eye(x.shape[-1]).to(x).expand_as(x)
    above = torch.cat([x - x.mT, k.mT @ (k / -c)], -1)
    turn = torch.cat([above, torch.cat([c * eye, torch.zeros_like(x)], -1)], -2)
    turned = _exponential(turn, torch.cat([eye, torch.zeros_like(x)], -2))
    return torch.cat([q, k / c], -1) @ turned @ _exponential(x.mT, r)


def _exponential(a: Tensor, b: Tensor) -> Tensor:
    """e^a b; for the small a of usual radii a series, whose backward pass is several times faster than matrix_exp's."""
    size = float(torch.linalg.matrix_norm(a.detach()).max())
    if not size <= _SERIES:
        return torch.linalg.matrix_exp(a) @ b
    pieces = max(1, math.ceil(size))
    for _ in range(pieces):
        term = total = b
        for k in range(1, 19):  # 1 / 19! = 8e-18
            term = a @ term / (k * pieces)
            total = total + term
        b = total
    return b


def _mix(pair: HeadPairs, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The geodesic of mix at t = 1, in the map of the pair with G = Q M and H = P, and mapped back."""
    (q, p), (r, s) = pair.bases, pair.factors
    m = r @ s.mT
    starts = torch.cat([q @ m, u], -1), torch.cat([p, torch.linalg.solve(m, v.mT).mT], -1)
    g, h = _integrated(torch.stack([b.mT @ b for b in starts]))
    return starts[0] @ g @ torch.linalg.inv(s).mT, starts[1] @ h @ s


def _integrated(gram: Tensor) -> Tensor:
    """Coefficients (2, heads, 2h, h) of G(1) in (G, x) and H(1) in (H, y), from the Gram matrices (2, heads, 2h, 2h).

    The classical method of Runge and Kutta, order 4, over unit time.
    """
    width, step = gram.shape[-1] // 2, 1 / STEPS
    state = torch.eye(2 * width).to(gram).expand_as(gram)  # place and speed, side by side

    def slope(state: Tensor) -> Tensor:
        place, speed = state.split(width, -1)
        other = (state.mT @ gram @ state).flip(0)  # H'H, H'y, y'H, y'y for G; those of G for H
        hh, hy, yh, yy = (half for rows in other.split(width, -2) for half in rows.split(width, -1))
        turned = place @ yy - speed @ (hy + yh)
        return torch.cat([speed, torch.linalg.solve_ex(hh, turned.mT).result.mT], -1)  # nan where H has no full rank

    for _ in range(STEPS):
        first = slope(state)
        second = slope(state + step / 2 * first)
        third = slope(state + step / 2 * second)
        fourth = slope(state + step * third)
        state = state + step / 6 * (first + 2 * second + 2 * third + fourth)
    return state[..., :width]


# -- heads of the flat vector --------------------------------------------------------------------------------------


def _pairs(parameters: Parameters, w: Tensor, heads: Sequence[Head]) -> Iterator[HeadPairs]:
    """Heads of one shape together."""
    starts = {s.name: torch.arange(s.start, s.stop).view(s.shape) for s in parameters}
    by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor, Head]]] = {}
    for head in heads:
        first, second = (
            torch.cat([p.rows(starts[p.tensor]) for p in head.parts if p.dual == dual], -1).mT for dual in (False, True)
        )
        shape = (*first.shape, len(second))
        by_shape.setdefault(shape, []).append((first, second, head))
    for group in by_shape.values():
        first, second = (torch.stack(side).to(w.device) for side in ([e[0] for e in group], [e[1] for e in group]))
        whole = torch.tensor([head.whole for _, _, head in group], device=w.device)
        (q, r), (p, s) = (_factored(w[places].double(), w.dtype) for places in (first, second))
        yield HeadPairs((first, second), (q, p), (r, s), torch.linalg.svd(r @ s.mT), whole)


def _factored(g: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Q and R with G = Q R, Q a function of the columns' span alone: the factor of its projection of fixed noise."""
    left, sigma, _ = torch.linalg.svd(g, full_matrices=False)
    cut = max(g.shape[-2:]) * torch.finfo(dtype).eps * sigma[..., :1]
    left = left * (sigma > cut)[..., None, :]
    noise = torch.randn(g.shape[-2:], generator=stream(0, "bases of heads"), dtype=torch.float64).to(g)
    a, strength, b = torch.linalg.svd(left.mT @ noise, full_matrices=False)
    kept = strength > 1e-9 * strength[..., :1]
    q = left @ (a * kept[..., None, :]) @ b
    return q, q.mT @ g


def _at(u: Tensor, pair: HeadPairs) -> tuple[Tensor, Tensor]:
    return u[pair.places[0]].double(), u[pair.places[1]].double()


def _put(u: Tensor, pair: HeadPairs, values: tuple[Tensor, Tensor]) -> None:
    for places, value in zip(pair.places, values, strict=True):
        u[places] = value.to(u)


def _chunks(pair: HeadPairs) -> Iterator[HeadPairs]:
    """As many heads at a time as the graph of their geodesics has room for."""
    most = max(1, _GRAPH // (2000 * pair.factors[0].shape[-1] ** 2))
    for start in range(0, len(pair.whole), most):
        some = slice(start, start + most)
        places, bases, factors = ((a[some], b[some]) for a, b in (pair.places, pair.bases, pair.factors))
        left, sigma, right = pair.core
        yield HeadPairs(places, bases, factors, (left[some], sigma[some], right[some]), pair.whole[some])
