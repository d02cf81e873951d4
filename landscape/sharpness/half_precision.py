"""What half precision leaves of a sharpness: differences of losses are taken in float32, gradients as they are.

A loss in bfloat16 has two or three digits, and its rise over a small step none. Evaluated in float32 at w and at w +
epsilon (no graph is kept) the rise is exact to seven digits of the loss, whatever epsilon was made of. What is left is
the rounding of the gradient, which turns epsilon a little.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from landscape.ball.vectors import dot, norm
from landscape.errors import InputError
from landscape.problem.batches import Batch
from landscape.problem.problem import Problem
from landscape.problem.widened import as_float32, is_half
from landscape.sharpness.checks import check_loss

_PIECES, _FEW = 8, 8
"""Pieces of the sample over which gradients are compared, and examples of each: their graph in float32 fits where that
of a batch may not."""
_USUAL = 8
"""Relative error of a gradient in half precision, in units of eps, where none in float32 is to be had: of 24 small
networks it was 0.6 to 10."""


def start_loss(problem: Problem, wide: Problem, loss: Tensor) -> Tensor:
    """L(w) as `wide` computes it, `loss` as the problem itself does. Cost: a forward pass where they are two.

    Raises:
        InputError: it is not finite.
    """
    loss = loss if wide is problem else wide.loss()
    check_loss(loss)
    return loss


def gradient_error(problem: Problem, wide: Problem, gradient: Tensor) -> float:
    """||error|| / ||gradient|| by half precision; 0 where the gradient is in float32 or wider, or is 0.

    Args:
        problem: L as it is computed.
        wide: what `widened` made of it.
        gradient: at w, by `problem`.

    Cost: two gradients over up to 64 examples, where `wide` is another problem.
    """
    size = float(norm(gradient))
    if not is_half(problem) or not size:
        return 0.0
    if wide is problem:
        return _USUAL * torch.finfo(problem.computed_in).eps
    return _over_pieces(problem, wide, lambda part: part.gradient()) / size


def product_error(problem: Problem, wide: Problem, unit: Tensor, curvature: float) -> float:
    """Error of u'Hu by half precision, for a unit vector u (d,); 0 where H u is in float32 or wider.

    Cost: two Hessian-vector products over up to 64 examples, where `wide` is another problem.
    """
    if not is_half(problem):
        return 0.0
    if wide is problem:
        return _USUAL * torch.finfo(problem.computed_in).eps * abs(curvature)
    return _over_pieces(problem, wide, lambda part: dot(unit, part.hvp(unit)))


def error_of_rise(rise: Tensor, first_order: Tensor, turned: float, displacement: Tensor) -> Tensor:
    """Error of the rise at the maximizer of the linearized loss, beside that of the losses.

    The slope is stationary there, so that a turn by the angle t costs t^2 of its part; of the curvature's part it costs
    2 t, as far as H bends no more along the error of the gradient than along the gradient. What the weights cannot hold
    of the displacement counts in full in both.

    Args:
        rise: of the loss.
        first_order: that of the linearized loss.
        turned: relative error of the gradient.
        displacement: relative error of w + epsilon.
    """
    return (displacement + turned**2) * first_order + 2 * (turned + displacement) * (rise - first_order).abs()


def _pieces(problem: Problem) -> Iterator[Batch]:
    """Up to 8 pieces of 8 examples, spread evenly over the first batches; a batch that cannot be divided whole."""
    batches = list(itertools.islice(problem.weighted_batches(), _PIECES))
    for batch in batches if all(b.sliceable for b in batches) else batches[:1]:
        last, count = max(batch.size - _FEW, 0), _PIECES // len(batches)
        starts = {i * last // max(count - 1, 1) for i in range(count)} if batch.sliceable else ()
        pieces = [problem.weighed(batch.rows(i, i + _FEW)) for i in sorted(starts)]
        yield from (p for p in pieces or [batch] if p.weight)


def _over_pieces(problem: Problem, wide: Problem, quantity: Callable[[Problem], Tensor]) -> float:
    """Mean of ||error|| of an additive quantity over pieces of the sample: its mean over all has no larger one.

    Every process looks at pieces of its own examples, as many as it likes.
    """
    here, exact = problem.alone(), wide.alone()
    try:
        errors = [(p.weight, _error(here, exact, quantity, p, problem.weight)) for p in _pieces(here)]
    except InputError:  # a model that takes whole batches alone
        batch = next(here.weighted_batches())
        errors = [(batch.weight, _error(here, exact, quantity, batch, problem.weight))]
    sums = torch.tensor([[w * e, w] for w, e in errors], dtype=torch.float64).sum(0)
    total, weight = problem.summed(sums.to(problem.weights.device)).tolist()
    return total / weight


def _error(problem: Problem, wide: Problem, quantity: Callable[[Problem], Tensor], batch: Batch, whole: float) -> float:
    """||error|| of a batch, computed on the scale that it has within L, whose weight is `whole`: float16 underflows."""
    parts = problem.with_batches([batch]), wide.with_batches([as_float32(batch)])
    for part in parts:
        part.weight = whole
    narrow, exact = (quantity(part) for part in parts)
    return float(norm(narrow.to(exact) - exact)) * whole / batch.weight
