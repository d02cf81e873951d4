"""Maximizing the loss over a scaled ball by projected ascent, in coordinates in which the ball is round.

The ball ||T^-1 epsilon||_p <= rho is ||u||_p <= rho for u = T^-1 epsilon. There the gradient is T g, nothing divides by
T (a zero weight stays where it is), and a rescaling of the network that multiplies T and divides g by the same factors
changes nothing: projecting in the space of the weights instead is not invariant for p = 2.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.ball import vectors
from landscape.ball.perturbation import ascent
from landscape.problem.problem import Problem
from landscape.progress import Bar
from landscape.random import normal, uniform

MOMENTUM = 0.75
_ENOUGH = 0.75


@dataclass(frozen=True)
class Ball:
    """The unit ball of order p in u = T^-1 epsilon.

    Attributes:
        p: order of the norm.
        scale: T, (d,); None is T = 1.
    """

    p: float
    scale: Tensor | None = None

    def epsilon(self, u: Tensor) -> Tensor:
        """The perturbation T u, (d,)."""
        return u if self.scale is None else u * self.scale

    def gradient(self, g: Tensor, u: Tensor | None = None) -> Tensor:
        """The gradient in u of a function whose gradient in w is g at the point u (None: the center): T g, (d,)."""
        return g if self.scale is None else g * self.scale

    def dual_norm(self, h: Tensor) -> Tensor:
        """||h||_q with 1/p + 1/q = 1: the slope of the steepest ascent; float64, on the device."""
        q = 1.0 if math.isinf(self.p) else math.inf if self.p == 1 else self.p / (self.p - 1)
        if q in (1.0, 2.0, math.inf):
            return vectors.norm(h, q)
        # The largest entry is divided out: |h|^q underflows for small gradients and large q.
        largest = vectors.norm(h, math.inf)
        safe = torch.where(largest > 0, largest, torch.ones_like(largest))
        return vectors.norm(h.double() / safe, q) * safe

    def steepest(self, h: Tensor, rho: float) -> Tensor:
        """The u of the ball of radius rho that maximizes <h, u>: what one step reaches.

        Gradients near the underflow of float32 (saturated networks) are lifted by a power of two first: the direction
        stays the same to the last bit, and rho / ||h|| stays in range.
        """
        lifted = h.to(torch.promote_types(h.dtype, torch.float32))
        lifted = lifted * torch.where(vectors.norm(lifted, math.inf) < 2.0**-60, 2.0**80, 1.0)
        return ascent([lifted], rho, None, self.p)[0].to(h.dtype)

    def direction(self, h: Tensor) -> Tensor:
        """The ascent direction at h, of unit length: h/||h||_2 for p = 2, sign(h) for p = inf; zero for h = 0."""
        return self.steepest(h, 1.0)

    def project(self, u: Tensor, rho: float) -> Tensor:
        """The point of the ball of radius rho that is nearest to u (p = 2 or inf)."""
        if math.isinf(self.p):
            return u.clamp(-rho, rho)
        length = vectors.norm(u)
        return u * torch.clamp(rho / length.clamp(min=torch.finfo(torch.float64).tiny), max=1.0)

    def random(self, like: Tensor, rho: float, generator: torch.Generator) -> Tensor:
        """A random point: uniform on the sphere (p = 2) or in the box (p = inf) of the coordinates with T > 0.

        Coordinates with T = 0 move nothing: left in, they would use up the radius.
        """
        draw = uniform(like, generator) if math.isinf(self.p) else normal(like, generator)
        live = draw if self.scale is None else draw * (self.scale > 0)
        return live * rho if math.isinf(self.p) else self.steepest(live, rho)


@dataclass(frozen=True)
class Maximum:
    """What an ascent found; all on the device.

    Attributes:
        loss: largest finite loss that was evaluated, 0-dim float64; -inf where none was finite.
        u: where, (d,).
        first: loss at the first evaluated point (from the center: the one-step value), as it is, finite or not.
        before: largest finite loss of the first three quarters of the points; -inf where there is none.
        non_finite: number of evaluated points whose loss or gradient was not finite, 0-dim.
        non_finite_losses: of these, the points whose loss was not finite, 0-dim.
    """

    loss: Tensor
    u: Tensor
    first: Tensor
    before: Tensor
    non_finite: Tensor
    non_finite_losses: Tensor


def maximize(
    problem: Problem, ball: Ball, rho: float, start: Tensor, center: Tensor, steps: int, *, bar: Bar | None = None
) -> Maximum:
    """Projected gradient ascent of L(w + T u) over ||u||_p <= rho from the point `start`.

    z = P(u + eta d(T g)), u' = P(u + a (z - u) + (1 - a)(u - u_previous)), a = 0.75, d the unit ascent direction. The
    step eta starts at 2 rho and is halved, and the iterate set back to the best one, at checkpoints (after 22%, 41%,
    57%, ... of the steps) when fewer than 75% of the steps since the last one raised the loss or when the best loss has
    not risen since although the step stayed. The best iterate is returned.

    Non-finite points: a point whose loss or gradient is nan or inf is never the best; the ascent goes back to the best
    point with half the step (to the center as long as there is none), and the number of such points is returned.

    Every decision is taken on the device: the loop never waits for it.

    Args:
        problem: the loss; the center of the ball is its weights.
        ball: p = 2 or inf, and T.
        rho: radius.
        start: u of the first evaluated point, (d,), in the ball.
        center: T g at the center, (d,).
        steps: number of points that are evaluated, `start` included.
        bar: progress, advanced at every step.

    Cost: `steps` forward and `steps` - 1 backward passes.
    Source: the step size rule is that of APGD (Croce 2020, arXiv 2003.01690, section 3), applied to weights as in
    Andriushchenko 2023 (arXiv 2302.07011). Differs from their code: works in u, not in epsilon; momentum is dropped
    when the iterate is set back to the best one; only improvements between finite losses count.
    """
    state = _State(problem, ball, rho, start, center)
    checks = checkpoints(steps)
    before = state.best_loss
    for step in range(steps):
        state.evaluate(with_gradient=step < steps - 1)
        if bar is not None:
            bar.advance()
        if 4 * (step + 1) <= 3 * steps:
            before = state.best_loss
        if step in checks:
            state.review(step - checks[step])
        if step < steps - 1:
            state.move()
    counts = (state.non_finite, state.non_finite_losses)
    return Maximum(state.best_loss, state.best, state.first, before, *counts)


def checkpoints(steps: int) -> dict[int, int]:
    """Step at which progress is reviewed -> the one before it: 22%, 41%, 57%, ... of the steps (Croce 2020, eq. 4)."""
    previous, percent, reviews = 0, 22, [0]
    while percent < 100:
        reviews.append(-(-percent * steps // 100))
        previous, percent = percent, percent + max(percent - previous - 3, 6)
    return {b: a for a, b in itertools.pairwise(reviews) if b > a}


class _State:
    """Iterate, best point, step size and counters of one ascent, all on the device."""

    def __init__(self, problem: Problem, ball: Ball, rho: float, start: Tensor, center: Tensor) -> None:
        self.problem, self.ball, self.rho = problem, ball, rho
        self.u = self.previous = start
        self.best = torch.zeros_like(start)
        self.h = self.best_h = center
        count = torch.zeros((), dtype=torch.float64, device=start.device)
        self.loss = self.first = self.best_loss = self.reviewed_loss = torch.full_like(count, -math.inf)
        self.eta = torch.full_like(count, 2 * rho)
        self.improved = self.non_finite = self.non_finite_losses = count
        self.halved = torch.ones_like(count, dtype=torch.bool)
        self.evaluated = 0

    def evaluate(self, *, with_gradient: bool) -> None:
        """Loss (and gradient) at u; back to the best point with half the step where they are not finite."""
        w = self.problem.weights + self.ball.epsilon(self.u)
        if with_gradient:
            loss, g = self.problem.loss_and_gradient(w)
            h = self.ball.gradient(g, self.u)
            fine = torch.isfinite(loss) & vectors.finite(h)
        else:
            loss, h = self.problem.loss(w), self.best_h
            fine = torch.isfinite(loss)
        if not self.evaluated:
            self.first = loss
        else:
            self.improved = self.improved + (fine & (loss > self.loss))
        self.evaluated += 1
        self.non_finite = self.non_finite + (~fine)
        self.non_finite_losses = self.non_finite_losses + (~torch.isfinite(loss))
        better = fine & (loss > self.best_loss)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.best, self.best_h = torch.where(better, self.u, self.best), torch.where(better, h, self.best_h)
        self.eta = torch.where(fine, self.eta, self.eta / 2)
        self.loss, self.h = torch.where(fine, loss, self.best_loss), torch.where(fine, h, self.best_h)
        self.u = torch.where(fine, self.u, self.best)
        self.previous = torch.where(fine, self.previous, self.best)

    def review(self, interval: int) -> None:
        """Halve the step and go back to the best point where the last `interval` steps made too little progress."""
        stalled = ~self.halved & (self.best_loss <= self.reviewed_loss)
        halve = (self.improved < _ENOUGH * interval) | stalled
        self.eta = torch.where(halve, self.eta / 2, self.eta)
        self.u, self.previous = torch.where(halve, self.best, self.u), torch.where(halve, self.best, self.previous)
        self.h, self.loss = torch.where(halve, self.best_h, self.h), torch.where(halve, self.best_loss, self.loss)
        self.halved, self.reviewed_loss, self.improved = halve, self.best_loss, torch.zeros_like(self.improved)

    def move(self) -> None:
        """One projected step with momentum."""
        eta = self.eta.to(self.u.dtype)
        z = self.ball.project(self.u + eta * self.ball.direction(self.h), self.rho)
        step = MOMENTUM * (z - self.u) + (1 - MOMENTUM) * (self.u - self.previous)
        self.u, self.previous = self.ball.project(self.u + step, self.rho), self.u
