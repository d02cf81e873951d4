"""Rise of the loss under fine-tuning on other data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.ball.vectors import dot, norm
from landscape.errors import InputError
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.progress import track
from landscape.results.result import Result, array
from landscape.sharpness.checks import check_loss, check_other, check_weights
from landscape.sharpness.subsets import RandomBatches, positive

_LOOKS = 5


@dataclass(frozen=True, kw_only=True)
class Forgetting(Result):
    """What fine-tuning on other data does to the loss.

    Attributes:
        value: L(w_T) - L(w), w_T the weights after the last step.
        step: the steps at which the losses are known; the first is 0.
        loss: (step,) L, on what was learned first.
        accuracy: (step,) likewise; nan where targets are not classes.
        other_loss: (step,) the loss that is minimized.
        distance: (step,) ||w_t - w||.
        predicted: g'e + e'He / 2 at the last step, e = w_T - w: what the landscape around w says of it.
        examples: on which L is taken.
        other_examples: on which the network is fine-tuned.
    """

    value: float
    step: np.ndarray = array("step")
    loss: np.ndarray = array("step")
    accuracy: np.ndarray = array("step")
    other_loss: np.ndarray = array("step")
    distance: np.ndarray = array("step")
    predicted: float
    examples: int
    other_examples: int


@measure(
    "forgetting",
    label="Forgetting",
    meaning="Rise of the loss on what was learned, after fine-tuning on other data: on half of the classes, with the "
    "rise on the others, unless other data are given. Smaller is better kept.",
    unit="loss",
)
def forgetting(
    problem: Problem,
    other: Problem | None = None,
    *,
    steps: int = 50,
    lr: float = 0.01,
    momentum: float = 0.0,
    batch_size: int | None = 128,
    seed: int = 0,
) -> Forgetting:
    """Rise of the loss under fine-tuning on other data: L(w_T) - L(w).

    w_(t+1) = w_t - lr v_(t+1), v_(t+1) = momentum v_t + the gradient of the other loss on random examples, drawn
    without replacement in every step. Beside the rise stands what the landscape at w says of it, g'e + e'He / 2 with
    e = w_T - w.
    The weights of the model stay as they are; statistics of BatchNorm are those of the Problem's policy at every step,
    and dropout is off.
    Without `other` the examples are divided by their class: fine-tuned is on the upper half of the classes (of an odd
    number the larger one), the rise is that of the others, also in `examples`.

    Args:
        problem: L, on what was learned first.
        other: the loss that is fine-tuned, of the same model and parameters; its weights are not looked at.
        steps: of the fine-tuning.
        lr: length of a step.
        momentum: in [0, 1).
        batch_size: examples of a step; None for all.
        seed: draws the examples.

    Returns:
        Forgetting with `value`, and the losses at up to 6 of the steps.

    Raises:
        InputError: no other data and targets that are not classes, or one class; `other` is not a Problem of the
            same model and parameters; a number out of range; batches that cannot be divided; a fine-tuning that is
            not finite.

    Cost: `steps` forward + backward passes over `batch_size` examples, 6 forward passes over both, 1 forward + 1
    backward pass and 1 Hessian-vector product.
    Source: forgetting as in Kirkpatrick 2017 (arXiv 1612.00796); flatness against it: Mirzadeh 2020 (arXiv 2006.06958).

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> first, then = (landscape.Problem(line, torch.nn.MSELoss(), [(x, t * x)]) for t in (1, 2))
        >>> round(landscape.forgetting(first, then, steps=1, lr=0.1).value, 6)  # w goes from 1 to 1.2, where L = 0.2^2
        0.04
    """
    _check(steps, lr, momentum)
    check_weights(problem)
    first, then = (problem, check_other(problem, other)) if other is not None else _by_class(problem)
    before = asdict(then.passes)
    batches = RandomBatches(then, batch_size, seed)
    looks = sorted({round(steps * i / _LOOKS) for i in range(_LOOKS + 1)})
    start = problem.weights
    w, velocity = start, torch.zeros_like(start)
    rows = []
    for t in track(range(steps + 1), "fine-tuning", total=steps + 1):
        if t in looks:
            at = first.evaluate(w)
            rows.append(torch.stack([at.loss, at.accuracy, then.loss(w), norm(w - start)]))
        if t < steps:
            velocity = momentum * velocity + batches.draw(f"fine-tuning {t}").gradient(w)
            w = w - lr * velocity
    loss, accuracy, other_loss, distance = torch.stack(rows).cpu().numpy().T
    check_loss(torch.as_tensor(loss[0]))
    if not (np.isfinite(loss).all() and np.isfinite(other_loss).all()):
        raise InputError(f"the fine-tuning is not finite after {steps} steps of lr={lr:g}: take a smaller lr")
    if then.passes is not problem.passes:  # a Problem that counts its passes for itself
        spent = {k: n - before[k] for k, n in asdict(then.passes).items()}
        vars(problem.passes).update({k: n + spent[k] for k, n in asdict(problem.passes).items()})
    e = w - start
    return Forgetting(
        value=float(loss[-1] - loss[0]),
        step=np.array(looks),
        loss=loss,
        accuracy=accuracy,
        other_loss=other_loss,
        distance=distance,
        predicted=float(dot(first.gradient(), e) + dot(e, first.hvp(e)) / 2),
        examples=first.examples,
        other_examples=then.examples,
        provenance={} if other is None else {"other": other.provenance()},
    )


def _by_class(problem: Problem) -> tuple[Problem, Problem]:
    """The problem on the lower half of the classes, and on the upper half."""
    whole = problem.batches.whole() if problem.undividable is None else None
    target = None if whole is None else whole.target
    if whole is None or not isinstance(target, Tensor) or target.dim() != 1 or target.is_floating_point():
        raise InputError("the targets are not class indices to divide the examples by: give `other`, a Problem")
    classes = target[target != problem.objective.ignored].unique()
    if len(classes) < 2:
        raise InputError("all examples are of one class: give `other`, a Problem on other data")
    middle = len(classes) // 2

    def of(some: Tensor) -> Problem:
        return problem.with_batches([whole.select(torch.isin(target, some).nonzero()[:, 0])])

    return of(classes[:middle]), of(classes[middle:])


def _check(steps: int, lr: float, momentum: float) -> None:
    positive("steps", steps)
    if not (math.isfinite(lr) and lr > 0):
        raise InputError(f"lr={lr:g}: a positive finite number is needed")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum={momentum:g}: a number in [0, 1) is needed")
