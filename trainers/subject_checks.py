"""Whether a loss is worth analyzing: labels that fit it, finite weights, the right network, one that learned."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from landscape.errors import CheckpointWarning, InputError
from landscape.problem.losses import NAMED
from landscape.problem.outputs import logits_of
from landscape.problem.problem import Problem

_NEUTRAL_AT_ZERO = (NAMED["mse"], NAMED["bce"])
"""Losses beside cross-entropy by which outputs of 0 say nothing of the targets."""


@contextlib.contextmanager
def naming_the_loss() -> Iterator[None]:
    """Nobody said what L is: a network that cross-entropy of class labels does not fit may need another loss."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{error}; without --loss L is the cross-entropy of labels: own (what the model returns), mse, bce, nll "
            "or module:callable say another"
        ) from error


def require_labels(problem: Problem) -> None:
    """Raise InputError where targets that nobody called probabilities would be taken for such."""
    target = next(iter(problem.batches)).target
    if isinstance(target, Tensor) and target.is_floating_point():
        raise InputError(
            "the targets are numbers, not class labels: say what they are, --loss mse, --loss bce, --loss "
            "cross-entropy (probabilities of classes) or --loss module:callable"
        )


class Diverged(InputError):
    """The weights of a checkpoint, or its statistics, are no numbers."""


def require_finite(path: Path, problem: Problem) -> None:
    """Raise Diverged for weights, or statistics that the loss uses, that no training should have left."""
    tensors = problem.parameters.unflatten(problem.weights)
    bad = [s.name for s, t in zip(problem.parameters, tensors, strict=True) if not t.isfinite().all()]
    if bad:
        raise Diverged(
            f"{path}: {bad[0]} holds NaN or infinite weights: the training diverged; use an earlier checkpoint"
        )
    if problem.batch_norm == "frozen":
        _require_statistics(path, problem.model)


def _require_statistics(path: Path, network: nn.Module) -> None:
    """An infinite variance makes every output of its layer 0 and a negative one nan: finite losses of nothing."""
    for name, module in network.named_modules():
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if not (isinstance(mean, Tensor) and isinstance(variance, Tensor)):
            continue
        if not (mean.isfinite().all() and variance.isfinite().all() and (variance >= 0).all()):
            raise Diverged(
                f"{path}: the running statistics of {name} are not finite or a variance is negative: use an earlier "
                "checkpoint, or --batch-norm recalibrate"
            )


def tell_if_another_fits_better(path: Path, problem: Problem, others: Iterable[tuple[str, str, Problem]]) -> bool:
    """Warn, and note, that the same weights have a smaller loss in another function; return whether they have.

    Padding, activation and the number of heads change nothing in the names and shapes of weights, so that any file of
    weights loads into each of them. In the function that was trained the loss is far smaller than in the others: one
    that is smaller by more than a tenth, over all examples, is reported.

    Args:
        path: of the weights.
        problem: their loss.
        others: (what the network was made with, what the other was made with, the loss of the weights in it).

    Cost: one forward pass over the first batch for each, and over all batches where that is suspicious.
    """
    better = []
    for chosen, other, rival in others:
        for count in sorted({1, len(problem.batches)}):
            mine, its = (_loss_over(p, count) for p in (problem, rival))
            if not its < 0.9 * mine:
                break
        else:
            better.append((its, mine, chosen, other))
    if not better:
        return False
    its, mine, chosen, other = min(better)
    _tell(
        path,
        problem,
        f"L = {mine:.4g} with {chosen} and {its:.4g} with {other}, which the same weights fit by name and shape: the "
        f"file does not say which was trained; give {other}, or go on if {chosen} is meant",
    )
    return True


def _loss_over(problem: Problem, count: int) -> float:
    """L over the first `count` weighted batches."""
    total, weight = 0.0, 0.0
    with problem.uncounted(), problem.values():
        for _, batch in zip(range(count), problem.weighted_batches(), strict=False):
            total += float(problem.batch_loss(problem.forward(batch), batch)) * batch.weight
            weight += batch.weight
    return total / weight


def _tell(path: Path, problem: Problem, text: str) -> None:
    problem.notes.append(text)
    warnings.warn(CheckpointWarning(f"{path}: {text}"), stacklevel=4)


def tell_if_worse_than_nothing(path: Path, problem: Problem, options: str) -> None:
    """Warn, and note, that a network which was trained elsewhere has a larger loss than outputs of 0 would have.

    Names and shapes say nothing of where channels are padded, which activation was used or how inputs were normalized:
    weights in another function load without a word and give numbers of no network that was ever trained.

    Args:
        path: of the weights.
        problem: their loss.
        options: what else the network could have been made with, in words; "" for none.

    Cost: one forward pass over the first batch, and only where that is suspicious over all.
    """
    known = problem.objective.torch
    if known is None or not (known.of_logits or known.function in _NEUTRAL_AT_ZERO):
        return
    with problem.uncounted(), problem.values():
        for count in sorted({1, len(problem.batches)}):
            loss, of_zeros = _with_outputs_of_zero(problem, count)
            if not loss > of_zeros * (1 + 1e-3):
                return
    made_with = f": {options}" if options else ""
    _tell(
        path,
        problem,
        f"L = {loss:.4g} is above {of_zeros:.4g}, the loss of a network whose outputs are all 0: either the weights "
        "fit by name and shape alone, or the data are not those of the training; compare the normalization of "
        f"the inputs, the order of the classes and what the network is made with{made_with}",
    )


def _with_outputs_of_zero(problem: Problem, count: int) -> tuple[float, float]:
    """L over the first `count` weighted batches, and what it would be if the outputs were 0."""
    sums, total = torch.zeros(2, dtype=torch.float64), 0.0
    for _, batch in zip(range(count), problem.weighted_batches(), strict=False):
        outputs = logits_of(problem.forward(batch))
        pair = [problem.batch_loss(o, batch).detach().double().cpu() for o in (outputs, torch.zeros_like(outputs))]
        sums += torch.stack(pair) * batch.weight
        total += batch.weight
    loss, of_zeros = (sums / total).tolist()
    return loss, of_zeros
