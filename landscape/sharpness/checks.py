"""What every measure of the ball does first: normalize outputs, build the ball, refuse what is not finite."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from landscape.ball.ascent import Ball
from landscape.ball.scaling import Scaling
from landscape.ball.vectors import any_entry, norm
from landscape.errors import InputError
from landscape.problem.problem import Problem


def normalized(problem: Problem, logits: bool) -> Problem:
    """The problem with normalized outputs where `logits` asks for it; passes are counted together."""
    if not logits or problem.logit_normalization:
        return problem
    other = copy.copy(problem)
    other.logit_normalization = True
    return other


def scaled_ball(problem: Problem, p: float, scaling: Scaling) -> Ball:
    """The ball of order p with T at the problem's weights.

    Raises:
        InputError: T is zero for every parameter.
    """
    scale = scaling.diagonal(problem.parameters, problem.weights)
    if scale is not None and not any_entry(scale):
        raise InputError(
            f"T is zero for every parameter (scaling={scaling.kind}, biases={scaling.biases}): nothing moves; choose "
            "another treatment of biases, another scaling or more parameters"
        )
    return Ball(p, scale)


def check_weights(problem: Problem) -> None:
    """Raise InputError where a weight is nan or inf."""
    if torch.isfinite(norm(problem.weights, math.inf)):
        return
    pieces = zip(problem.parameters, problem.parameters.unflatten(problem.weights), strict=True)
    names = [slot.name for slot, t in pieces if not torch.isfinite(norm(t, math.inf))]
    raise InputError(
        f"the weights are not finite (nan or inf in {', '.join(names[:3])}): the training diverged or the file is "
        "damaged; analyze an earlier checkpoint"
    )


def check_loss(loss: Tensor, what: str = "loss") -> None:
    """Raise InputError where the loss (or gradient) at w is not finite."""
    if not torch.isfinite(norm(loss, math.inf)):
        value = f" ({loss.item()})" if loss.dim() == 0 else ""
        raise InputError(
            f"the {what} at the weights themselves is not finite{value}: look at the inputs and targets, or compute in "
            "float64"
        )


def check_other(problem: Problem, other: object) -> Problem:
    """The other loss as it is, of the same model and parameters as `problem`.

    Raises:
        InputError: no Problem; one of other parameters, of another dtype or device, or of another network, which
            may be another function of weights of the same names and shapes.
    """
    if not isinstance(other, Problem):
        received = "missing" if other is None else f"of type {type(other).__name__}"
        raise InputError(f"other is {received}: the Problem of the other data is needed")
    if [(s.name, s.shape) for s in other.parameters] != [(s.name, s.shape) for s in problem.parameters]:
        raise InputError("other is a loss of other parameters: make both Problems of one model and the same parameters")
    kinds = [f"{p.weights.dtype} on {p.weights.device}" for p in (other, problem)]
    if kinds[0] != kinds[1]:
        raise InputError(f"other is a loss in {kinds[0]}, not in {kinds[1]}: make both after the model is moved")
    if other.model is not problem.model:
        raise InputError(
            "other is a loss of another network, which may be another function of the same weights: make both Problems "
            "of one model object"
        )
    return other


def resolution(problem: Problem, loss: float) -> float:
    """Estimate of the rounding of a rise: 4 eps (|L| + 0.1), eps of the coarsest dtype that L is computed in.

    The constant part is the rounding of outputs of order 1, which stays when the loss itself is small. Against float64
    the errors of small networks, trained and not, in float32 were 2 to 15 times smaller.
    """
    return 4 * torch.finfo(problem.computed_in).eps * (abs(loss) + 0.1)


def require_resolved(problem: Problem, rise: float, loss: float) -> None:
    """Raise InputError where a rise of the loss that is looked for is below rounding."""
    if rise < (rounding := resolution(problem, loss)):
        raise InputError(
            f"rise={rise:g} is below the rounding of the loss ({rounding:.1g} at L = {loss:g}): take a larger rise, or "
            "compute in float64"
        )


def displacement_error(w: Tensor, epsilon: Tensor) -> Tensor:
    """||(w + epsilon) - w - epsilon|| / ||epsilon||: what the dtype of w cannot hold of a step; 0 for none."""
    lost, size = (norm(t) for t in ((w + epsilon).to(w) - w.to(epsilon) - epsilon, epsilon))
    return torch.where(size > 0, lost / size, 0.0)
