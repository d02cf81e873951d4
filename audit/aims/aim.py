"""What is minimized: the arguments of a Problem, targets, and L by its definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CLASSES = 3
Fields = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """One of the user's batches, as the reference sees it.

    Attributes:
        fields: inputs by the names of forward's arguments, the examples first.
        target: what the outputs are compared with.
    """

    fields: Fields
    target: Any

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))


Call = Callable[[Batch], Any]
Measure = Callable[[Any, Any], Tensor]
Value = Callable[[Call, Sequence[Batch]], Tensor]


@dataclass
class Aim:
    """An objective.

    Attributes:
        arguments: of Problem, beside model and batches: loss, weight.
        value: L, in the graph of what `call` returns for a batch.
        target: targets of n examples.
        objective: called with outputs and target, what Problem's `objective` returns; no loss is given then.
        ignored: the target that does not count; whole batches of it may be drawn.
        losses: whether one value per example has to be there; else it may be refused.
        refused: "must" or "may": Problem has to refuse this, or may.
        curved: whether torch has a second derivative of it; curvature may be refused else.
        plain: whether batches have to be plain: `objective` and `weight` read them.
    """

    arguments: dict[str, Any]
    value: Value
    target: Callable[[int, Fields], Any]
    objective: Callable[[Any, Any], Any] | None = None
    ignored: int | None = None
    losses: bool = False
    refused: str | None = None
    curved: bool = True
    plain: bool = False


@dataclass(frozen=True)
class Outputs:
    """What an objective must fit.

    Attributes:
        dtype: of the model.
        shape: of an example's outputs.
        pick: the tensor in what the model returns; one of torch's losses gets it by itself.
    """

    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    pick: Callable[[Any], Tensor] | None = None

    def reading(self, loss: Measure) -> Measure:
        """The loss of a user who picks the tensor."""
        pick = self.pick
        return loss if pick is None else lambda outputs, target: loss(pick(outputs), target)


def at_once(
    loss: Measure, pick: Callable[[Any], Tensor] | None = None, counts: Callable[[Tensor], bool] = lambda target: True
) -> Value:
    """The loss of the outputs of all batches, joined: one row a place, so that lengths may differ."""

    def value(call: Call, batches: Sequence[Batch]) -> Tensor:
        # A batch without a target that counts takes no part, whether or not a BatchNorm could take it alone.
        batches = [b for b in batches if counts(b.target)] or batches
        outputs, targets = zip(*((call(b), b.target) for b in batches), strict=True)
        if pick is not None:
            outputs = tuple(map(pick, outputs))
        if outputs[0].dim() > 2:  # (n, C, ...) -> one row a place
            longer = targets[0].dim() == outputs[0].dim()
            outputs = tuple(o.movedim(1, -1).flatten(0, -2) for o in outputs)
            targets = tuple(t.movedim(1, -1).flatten(0, -2) if longer else t.flatten() for t in targets)
        return loss(torch.cat(outputs), torch.cat(targets)).mean()

    return value


def by_weight(loss: Measure, weight: Callable[[Batch], float]) -> Value:
    """sum_b c_b l_b / sum_b c_b over the user's batches."""

    def value(call: Call, batches: Sequence[Batch]) -> Tensor:
        weights = [weight(b) for b in batches]
        shares = [loss(call(b), b.target).mean() * c for b, c in zip(batches, weights, strict=True) if c]
        return torch.stack(shares).sum() / sum(weights)

    return value


def by_size(loss: Measure) -> Value:
    """sum_b n_b l_b / sum_b n_b over the user's batches."""
    return by_weight(loss, lambda batch: float(len(batch)))


def together(loss: Callable[[Any], Tensor]) -> Value:
    """The loss that the model returns on all examples in one batch."""

    def value(call: Call, batches: Sequence[Batch]) -> Tensor:
        names = batches[0].fields
        fields = {name: torch.cat([b.fields[name] for b in batches]) for name in names}
        return loss(call(Batch(fields, torch.cat([b.target for b in batches]))))

    return value


def classes(n: int, fields: Fields) -> Tensor:
    """Class indices, uneven."""
    return torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), n, replacement=True)


def numbers(*shape: int) -> Callable[[int, Fields], Tensor]:
    """Standard normal targets."""
    return lambda n, fields: torch.randn(n, *shape)
